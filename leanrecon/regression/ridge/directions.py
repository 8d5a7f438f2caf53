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
from leanrecon.regression.regressor import RegressionData
from leanrecon.regression.ridge.plan import ALPHAS, FLOAT64_ORDER, TEST_ROWS, Shapes, plan_fit, plan_weights
from leanrecon.regression.ridge.settings import RidgeSettings

if TYPE_CHECKING:
    from leanrecon.regression.ridge.ridge import StreamingRidge

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


def plan_directions(shapes: Shapes, settings: RidgeSettings, free: int, *, chosen: bool) -> int:
    """Bytes of work of ``learn_directions``; ``chosen`` says that alpha is known already."""
    loo = settings.alpha == "loo" and not chosen
    alphas = ALPHAS if settings.alphas is None else len(settings.alphas)
    fit = plan_fit(shapes, free, loo=loo, alphas=alphas)
    work = fit.work
    if loo and settings.per_target:
        work = max(work, plan_fit(shapes, free, loo=True, per_target=True, alphas=alphas).work)
    kept = 8 * shapes.t * (2 * shapes.p + shapes.n + shapes.width)
    factor = fit.triangle if fit.in_memory else 0
    return kept + max(work, factor + plan_weights(shapes, on_disk=not fit.in_memory))


def learn_directions(
    settings: RidgeSettings, alpha: float | None, data: RegressionData, context: Context, *, patterns: bool = True
) -> Directions:
    """Fit a ridge to a few targets, with the ``alpha`` that was chosen for their feature space or, where it is None, by the settings."""
    k, p = data.targets.shape[1], data.betas.shape[1]
    chosen: list[Any] = [settings.alpha if alpha is None else alpha] * k
    if alpha is None and settings.per_target:
        chosen = _fitted(settings, data, context, per_target=True).alpha_.tolist()
    weights, alphas = buffer((k, p), np.float64), np.empty(k)
    for value in dict.fromkeys(chosen):  # one fit for all targets, unless each has an alpha of its own
        own = np.flatnonzero([one == value for one in chosen])
        ridge = _fitted(settings, data, context, alpha=value, per_target=False)
        alphas[own] = ridge.alpha_
        for columns, coef, _ in ridge.weight_blocks():
            here = own[(own >= columns.start) & (own < columns.stop)]
            weights[here] = coef[here - columns.start]
    train = ridge.moments_
    del ridge
    return Directions(weights, patterns_of(Centred(data.betas, train, scale=False), weights) if patterns else None, alphas)


def _fitted(settings: RidgeSettings, data: RegressionData, context: Context, **changed: Any) -> "StreamingRidge":
    from leanrecon.regression.ridge.ridge import StreamingRidge

    options = settings.model_dump(exclude={"kind"}) | {"restandardize": "none"} | changed
    ridge = StreamingRidge(**options, budget=context.budget, seed=context.seed, scratch=context.scratch)
    ridge.warns = False  # the stage regression said what is odd
    ridge.fit(data.betas, data.targets, stimulus=data.stimulus)
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


def shapes_of_directions(data: RegressionData) -> Shapes:
    """The shapes of a ridge to a few targets."""
    from leanrecon.regression.ridge.pairing import Pairing
    from leanrecon.regression.ridge.shapes import shapes_of

    pairing = Pairing.of(data.stimulus, data.betas.shape[0], data.targets.shape[0])
    return shapes_of(data.betas, data.targets, TEST_ROWS, pairing, "none", shuffled=False)
