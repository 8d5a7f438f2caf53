"""How much of a voxel's response is signal, from repeats of images: the ncsnr of Allen et al. 2022."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from leanrecon.datasets.arrays.repeats import Averaged
from leanrecon.datasets.files.rows import Rows

Array = np.ndarray[Any, Any]

FEWEST = 10
"""Repeated images below which no ncsnr is told."""

_ROWS = 64  # rows that are read together


def noise_of(responses: Rows, trials: Mapping[str, Sequence[Sequence[int]]], *, folds: bool) -> dict[str, Array]:
    """What voxels.npz tells of noise: ``ncsnr`` of all trials, and ``ncsnr_train`` for what learns from it.

    ``trials`` holds the rows of each image by split. Empty where too few images are repeated. ``ncsnr_train`` is NaN where
    too few train images are, and with ``folds``, where each train row is a test row too.
    """
    found = ncsnr(responses, [rows for of in trials.values() for rows in of])
    if found is None:
        return {}
    own = None if folds else ncsnr(responses, trials["train"])
    return {"ncsnr": found, "ncsnr_train": np.full_like(found, np.nan) if own is None else own}


def ncsnr(responses: Rows, trials: Sequence[Sequence[int]]) -> Array | None:
    """The noise ceiling signal-to-noise ratio of every voxel, float32 [voxels]; None with too few repeated images.

    ``trials`` holds the rows of each image. The noise variance is the pooled variance of responses to the same image;
    the signal variance is the variance of all these responses less the noise variance, at least 0. Two passes are
    made over the rows; memory does not depend on their number. Allen et al. 2022, Nature Neuroscience 25, 116-126.
    """
    repeated = [rows for rows in trials if len(rows) > 1]
    if len(repeated) < FEWEST:
        return None
    every = np.array(sorted(row for rows in repeated for row in rows), np.int64)
    shift = np.empty((1, responses.shape[1]), np.float32)
    responses.read(every[:1], shift)
    sums, squares = _sums(responses, every, np.ones(len(every)), shift)
    counts = np.array([len(rows) for rows in repeated], np.float64)
    _, between = _sums(Averaged(responses, repeated), np.arange(len(repeated)), counts, shift)
    n = len(every)
    noise = np.maximum(squares - between, 0) / (n - len(repeated))
    total = np.maximum(squares - sums * sums / n, 0) / (n - 1)
    signal = np.maximum(total - noise, 0)
    ratio = np.sqrt(np.divide(signal, noise, out=np.full_like(signal, np.nan), where=noise > 0))
    known: Array = ratio.astype(np.float32)
    return known


def _sums(rows: Rows, index: Array, weights: Array, shift: Array) -> tuple[Array, Array]:
    """Weighted sums of rows, and of their squares, after ``shift`` was taken off: float64 [voxels]."""
    sums, squares = np.zeros((2, rows.shape[1]))
    block = np.empty((min(_ROWS, len(index)), rows.shape[1]), np.float32)
    for start in range(0, len(index), _ROWS):
        own = index[start : start + _ROWS]
        rows.read(own, block[: len(own)])
        centred = block[: len(own)].astype(np.float64) - shift
        weighted = centred * weights[start : start + len(own), None]
        sums += weighted.sum(axis=0)
        squares += np.einsum("rv,rv->v", weighted, centred)
    rows.release()
    return sums, squares
