"""Voxels weighed by how well they carry the images: what a weight is made of, and the weights.

A z-scored voxel is multiplied by max(c, 10⁻⁴)^power. With "accuracy" c is the leave-one-out R² of an encoding ridge (see
``regression.encoding``), with "reliability" the share of its variance that repeats of an image have in common.
Weights are scaled to a mean square of one, so that a penalty alpha keeps its meaning.
"""

from typing import Any

import numpy as np

from leanrecon.errors import InputError
from leanrecon.memory import MemoryBudget
from leanrecon.regression.encoding import encoding
from leanrecon.regression.image_rows import ImageRows
from leanrecon.regression.normalise import Centred, Moments
from leanrecon.regression.ridge.form import FLOOR, Source
from leanrecon.regression.ridge.pairing import Pairing
from leanrecon.stores.matrix import Matrix

Array = np.ndarray[Any, Any]


def carried(
    source: Source,
    targets: Matrix,
    betas: Matrix,
    pairing: Pairing,
    train: Moments,
    *,
    reliability: Array | None = None,
    budget: MemoryBudget | None = None,
) -> Array:
    """How much of each voxel's variance the images explain, float64 [p]; NaN where it does not vary.

    ``targets`` [s, k] are only needed for "accuracy". For "reliability" the repeats of an image tell, or, where none is
    repeated, the ``reliability`` that is given; without either InputError is raised.
    """
    if source == "accuracy":
        found = encoding(targets, betas, stimulus=pairing.index, train=train, budget=budget)
        return found.r2
    if pairing.largest > 1:
        return intraclass_correlation(Centred(betas, train, scale=True), pairing, train.usable)
    if reliability is None:
        raise InputError(
            'voxel_weights = "reliability", but this dataset repeats no train image and gives no ncsnr of its voxels',
            expected="train images that were shown twice or more, or a published ncsnr",
            todo='set voxel_weights = "accuracy", or keep single trials (dataset.repeats = "single")',
        )
    given = np.asarray(reliability)
    if given.shape != train.usable.shape or given.dtype.kind not in "biuf":
        raise InputError(
            f"reliability of shape {given.shape} and type {given.dtype}",
            expected=f"a number for each of {len(train.usable)} voxels",
        )
    share = np.where(train.usable, given.astype(np.float64), np.nan)
    if np.isnan(share).all() or np.isinf(share).any():
        raise InputError(
            f"the reliability of the voxels is {'infinite in some' if np.isinf(share).any() else 'NaN in all'} of them",
            expected="the share of each voxel's variance that is not noise, NaN where it is unknown",
        )
    return share


def intraclass_correlation(betas: Centred, pairing: Pairing, usable: Array) -> Array:
    """The share of each voxel's variance that lies between images, float64 [p], by a one-way analysis of variance.

    It is ICC(1) of Shrout & Fleiss (1979) for images that are shown unequally often; NaN where a voxel does not vary.
    """
    rows = ImageRows.of(pairing)
    n, s = pairing.n, len(rows.images)
    if s < 2:
        raise InputError(f"the {n} rows of betas show {s} image", expected="two images or more, to tell them apart")
    result = np.full(betas.shape[1], np.nan)
    usual = (n - float((rows.counts**2).sum()) / n) / (s - 1)
    for voxels, _, within, squares in rows.blocks(betas):
        between, inside = (squares - within) / (s - 1), within / (n - s)
        part = slice(voxels.start, voxels.stop)
        total = between + (usual - 1) * inside
        np.divide(between - inside, total, out=result[part], where=usable[part] & (total > 0))
    return result


def weights_of(share: Array, power: float) -> Array:
    """The weight of each voxel, float64 [p], from the share of its variance that images explain; 0 where it does not vary."""
    varies = ~np.isnan(share)
    weights = np.zeros(len(share))
    weights[varies] = np.maximum(share[varies], FLOOR) ** power
    weights /= np.sqrt(np.square(weights[varies]).mean())
    return weights
