"""Weights and patterns of a few chosen directions, such as a component of a feature space or a pixel's luminance.

A decoder's weight of a voxel also tells how the voxel helps to cancel noise, so weights alone must not be read as a map
of where something is represented. The pattern of a direction is the covariance of each voxel with what the weights
predict from all of them, cov(X, ŷ) = cov(X) w (Haufe et al. 2014, NeuroImage 87, 96-110, equation 6 for one direction,
up to a factor).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leanrecon.context import Context
from leanrecon.memory import buffer
from leanrecon.regression.normalise import Centred, moments
from leanrecon.regression.ridge.limits import ALPHAS, FLOAT64_ORDER, MOMENTS, WORKSPACE
from leanrecon.regression.ridge.plan import FitPlan, Shapes, plan_fit, plan_weights

if TYPE_CHECKING:
    from leanrecon.regression.ridge.kernel import Panels
    from leanrecon.regression.ridge.pairing import Pairing
    from leanrecon.stores.matrix import Matrix

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Linear:
    """The linear ridge that directions are learned by."""

    standardize: bool
    alpha: float | None
    """None: the one of least leave-one-out error, for each direction."""
    alphas: Sequence[float] | None = None
    """What that is chosen from; None: the default grid."""
    voxel_weights: Array | None = None
    """The weight of each voxel, float64 [p]; None where all weigh the same."""


@dataclass(frozen=True)
class Directions:
    """What a ridge learned for each of k targets."""

    weights: Array
    """float64 [k, p]: for betas as measured, so that ŷ = X w + intercept."""
    patterns: Array | None
    """float64 [k, p]: the covariance over train rows of each voxel with ŷ; None where it was not asked for."""
    alphas: Array
    """[k]"""
    left_out: Array
    """bool [p]: voxels that do not vary."""


def plan_directions(ridge: Linear, betas: "Matrix", k: int, stimulus: Array | None, images: int, free: int) -> int:
    """Bytes of work of ``learn_directions`` for ``k`` targets of a number of images, beside the targets."""
    from leanrecon.stores.matrix import ArrayMatrix

    shapes = _shapes(betas, ArrayMatrix(np.broadcast_to(np.float64(0), (images, k))), stimulus)
    plan = _plan(ridge, shapes, free)
    weights = (plan.triangle if plan.in_memory else 0) + plan_weights(shapes, on_disk=not plan.in_memory)
    patterns = WORKSPACE + shapes.slabs + 8 * k * shapes.n
    return _kept(shapes) + max(plan.work, weights, patterns)


def learn_directions(
    ridge: Linear, betas: "Matrix", targets: Array, stimulus: Array | None, context: Context, *, patterns: bool
) -> Directions:
    """Fit betas [n, p] to a few targets [s, k], of which row i of the betas shows ``stimulus[i]``.

    Neither the budget nor which other directions are learned changes what a direction gets.
    """
    from leanrecon.regression.ridge.kernel import cholesky
    from leanrecon.regression.ridge.pairing import Pairing
    from leanrecon.regression.ridge.weights import for_measured_betas, weights
    from leanrecon.stores.matrix import ArrayMatrix

    k, p = targets.shape[1], betas.shape[1]
    pairing = Pairing.of(stimulus, betas.shape[0], len(targets))
    plan = _plan(ridge, _shapes(betas, ArrayMatrix(targets), stimulus), context.budget.free)
    train = moments(betas)
    centred = Centred(betas, train, scale=ridge.standardize, weights=ridge.voxel_weights)
    chosen = (
        np.full(k, ridge.alpha)
        if ridge.alpha is not None
        else _best_alphas(ridge, centred, targets, pairing, plan, context)
    )
    found = buffer((k, p), np.float64)
    for alpha in np.unique(chosen):  # one factor for all targets, unless each has an alpha of its own
        own = np.flatnonzero(chosen == alpha)
        factor = _kernel(centred, plan, context)
        cholesky(factor, float(alpha), deflate=centred.dual)
        some = ArrayMatrix(np.ascontiguousarray(targets[:, own]))
        w, mean = weights(centred, factor, some, range(len(own)), pairing)
        found[own] = for_measured_betas(w, mean, centred)[0]
        del factor, w
    shown = patterns_of(Centred(betas, train, scale=False), found) if patterns else None
    return Directions(found, shown, chosen, ~train.usable)


def patterns_of(betas: Centred, weights: Array) -> Array:
    """The covariance over rows of centred betas [n, p] with their products with ``weights`` [k, p]: float64 [k, p]."""
    from leanrecon.regression.ridge import blas
    from leanrecon.regression.ridge.hat import row_slabs, voxel_slabs
    from leanrecon.regression.ridge.triangle import DEPTH
    from leanrecon.stores.matrix import panels

    n, p = betas.shape
    dtype = _dtype(betas)
    w = weights.astype(dtype, copy=False)
    patterns = buffer(weights.shape, dtype)
    if betas.dual:
        predicted = buffer((len(w), n), dtype)
        for voxels, (slab, _) in zip(panels(p, DEPTH), voxel_slabs(betas, dtype), strict=True):
            blas.gemm(np.ascontiguousarray(w[:, voxels.start : voxels.stop]), slab, predicted, tb=True)
        for voxels, (slab, _) in zip(panels(p, DEPTH), voxel_slabs(betas, dtype), strict=True):
            blas.gemm(predicted, slab, patterns[:, voxels.start : voxels.stop], beta=0)
    else:
        for rows, slab in row_slabs(betas, dtype):
            here = buffer((len(w), len(rows)), dtype)
            blas.gemm(w, slab, here, beta=0, tb=True)
            blas.gemm(here, slab, patterns)
    patterns /= max(n - 1, 1)
    return patterns.astype(np.float64, copy=False)


def _best_alphas(
    ridge: Linear, betas: Centred, targets: Array, pairing: "Pairing", plan: FitPlan, context: Context
) -> Array:
    """The alpha of least leave-one-out error of each target."""
    from leanrecon.regression.ridge import per_target
    from leanrecon.regression.ridge.loo import default_alphas, mean_eigenvalue
    from leanrecon.regression.ridge.spectrum import eigenvectors
    from leanrecon.stores.matrix import ArrayMatrix

    kernel = _kernel(betas, plan, context)
    grid = default_alphas(mean_eigenvalue(kernel)) if ridge.alphas is None else np.sort(np.array(ridge.alphas, float))
    spectrum = eigenvectors(kernel, deflate=betas.dual)
    return per_target.choose(betas, spectrum, ArrayMatrix(targets), grid, pairing)


def _kernel(betas: Centred, plan: FitPlan, context: Context) -> "Panels":
    from leanrecon.regression.ridge.hat import gram

    folder = None if plan.in_memory else Path(context.scratch)
    return gram(betas, _dtype(betas), directory=folder, pass_nbytes=plan.pass_nbytes)[0]


def _dtype(betas: Centred) -> np.dtype[Any]:
    return np.dtype(np.float64 if betas.order <= FLOAT64_ORDER else np.float32)


def _shapes(betas: "Matrix", targets: "Matrix", stimulus: Array | None) -> Shapes:
    from leanrecon.regression.ridge.pairing import Pairing
    from leanrecon.regression.ridge.shapes import shapes_of

    pairing = Pairing.of(stimulus, betas.shape[0], targets.shape[0])
    return shapes_of(betas, targets, 1, pairing, "none", shuffled=False)


def _plan(ridge: Linear, shapes: Shapes, free: int) -> FitPlan:
    """A fit whose factor is kept; with alphas to choose, the phases of the choice beside it."""
    kept = _kept(shapes)
    fit = plan_fit(shapes, free - kept)
    if ridge.alpha is not None:
        return fit
    alphas = ALPHAS if ridge.alphas is None else len(ridge.alphas)
    choice = plan_fit(shapes, free - kept, loo=True, per_target=True, alphas=alphas)
    return replace(choice, phases=fit.phases | choice.phases)


def _kept(shapes: Shapes) -> int:
    """Bytes that are held throughout: what was found, and the moments of the voxels."""
    return 8 * shapes.p * (3 * shapes.t + MOMENTS)
