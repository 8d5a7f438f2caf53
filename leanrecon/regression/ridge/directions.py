"""Weights and patterns of a few chosen directions, such as a component of a feature space or a pixel's luminance.

A decoder's weight of a voxel also tells how the voxel helps to cancel noise, so that weights alone must not be read as a
map of where something is represented. The pattern of a direction is the covariance of each voxel with what the weights
predict from all of them, cov(X, ŷ) = cov(X) w (Haufe et al. 2014, NeuroImage 87, 96-110, equation 6 for one direction,
up to a factor).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from leanrecon.context import Context
from leanrecon.memory import buffer
from leanrecon.regression.normalise import Centred
from leanrecon.regression.ridge.plan import ALPHAS, FLOAT64_ORDER, TEST_ROWS, WORKSPACE, plan_fit, plan_weights
from leanrecon.regression.ridge.settings import RidgeSettings

if TYPE_CHECKING:
    from leanrecon.regression.ridge.ridge import StreamingRidge
    from leanrecon.stores.matrix import Matrix

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Directions:
    """What a ridge learned for each of k targets."""

    weights: Array
    """float64 [k, p]: for betas as measured, so that ŷ = X w + intercept; 0 for voxels left out."""
    patterns: Array | None
    """float64 [k, p]: the covariance over train rows of each voxel with ŷ; None where it was not asked for."""
    alphas: Array
    """[k]"""
    left_out: Array
    """bool [p]: voxels that do not vary."""


def plan_directions(
    settings: RidgeSettings,
    alpha: float | None,
    betas: "Matrix",
    k: int,
    stimulus: Array | None,
    images: int,
    free: int,
) -> int:
    """Bytes of work of ``learn_directions`` for ``k`` targets of a number of images, beside the targets."""
    from leanrecon.regression.ridge.pairing import Pairing
    from leanrecon.regression.ridge.shapes import shapes_of
    from leanrecon.stores.matrix import ArrayMatrix

    targets = ArrayMatrix(np.broadcast_to(np.float64(0), (images, k)))
    pairing = Pairing.of(stimulus, betas.shape[0], images)
    shapes = shapes_of(betas, targets, TEST_ROWS, pairing, "none", shuffled=False)
    loo = alpha is None and settings.alpha == "loo"
    alphas = ALPHAS if settings.alphas is None else len(settings.alphas)
    fit = plan_fit(shapes, free, loo=loo, alphas=alphas)
    work = fit.work
    if loo and settings.per_target:
        work = max(work, plan_fit(shapes, free, loo=True, per_target=True, alphas=alphas).work)
    factor = fit.triangle if fit.in_memory else 0
    weights = factor + plan_weights(shapes, on_disk=not fit.in_memory)
    patterns = WORKSPACE + shapes.slabs + 8 * k * shapes.n
    return 8 * k * 3 * shapes.p + max(work, weights, patterns)


def learn_directions(
    settings: RidgeSettings,
    alpha: float | None,
    betas: "Matrix",
    targets: Array,
    stimulus: Array | None,
    context: Context,
    *,
    patterns: bool,
) -> Directions:
    """Fit a ridge from betas [n, p] to a few targets [s, k], of which row i of the betas shows ``stimulus[i]``.

    ``alpha`` is the one that was chosen for their feature space; None: the settings say how it is chosen.
    """
    k, p = targets.shape[1], betas.shape[1]
    chosen: list[Any] = [settings.alpha if alpha is None else alpha] * k
    data = betas, targets, stimulus, context
    if alpha is None and settings.per_target:
        chosen = _fitted(settings, *data, per_target=True).alpha_.tolist()
    weights, alphas = buffer((k, p), np.float64), np.empty(k)
    for value in dict.fromkeys(chosen):  # one fit for all targets, unless each has an alpha of its own
        own = np.flatnonzero([one == value for one in chosen])
        ridge = _fitted(settings, *data, alpha=value, per_target=False)
        alphas[own] = ridge.alpha_
        for columns, coef, _ in ridge.weight_blocks():
            here = own[(own >= columns.start) & (own < columns.stop)]
            weights[here] = coef[here - columns.start]
    train = ridge.moments_
    del ridge
    found = patterns_of(Centred(betas, train, scale=False), weights) if patterns else None
    return Directions(weights, found, alphas, ~train.usable)


def _fitted(
    settings: RidgeSettings, betas: "Matrix", targets: Array, stimulus: Array | None, context: Context, **changed: Any
) -> "StreamingRidge":
    from leanrecon.regression.ridge.ridge import StreamingRidge

    options = settings.model_dump(exclude={"kind"}) | {"restandardize": "none"} | changed
    ridge = StreamingRidge(**options, budget=context.budget, seed=context.seed, scratch=context.scratch)
    ridge.warns = False  # the stage regression said what is odd
    ridge.fit(betas, targets, stimulus=stimulus)
    context.peaks.projected.extend(ridge.peaks_.projected)
    return ridge


def patterns_of(betas: Centred, weights: Array) -> Array:
    """The covariance over rows of centred betas [n, p] with their products with ``weights`` [k, p]: float64 [k, p]."""
    from leanrecon.regression.ridge import blas
    from leanrecon.regression.ridge.hat import row_slabs, voxel_slabs
    from leanrecon.regression.ridge.triangle import DEPTH
    from leanrecon.stores.matrix import panels

    n, p = betas.shape
    dtype = np.dtype(np.float64 if min(n, p) <= FLOAT64_ORDER else np.float32)
    w = weights.astype(dtype, copy=False)
    patterns = buffer(weights.shape, dtype)
    if n <= p:
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
    return patterns.astype(np.float64, copy=False) / max(n - 1, 1)
