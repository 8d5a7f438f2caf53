"""Train targets as whitened coordinates along their principal components, without the components.

With centred targets Y [n, t] and Y = C V, where C = √n · U are coordinates of unit variance, V = Cᵀ Y / n. So predicted
coordinates Z [m, k] stand for the targets

    ȳ + Z V = H Y   with   H = (Z Cᵀ + 1) / n      (m×n)

which stream through a hat matrix as the ridge's do. The basis V (373 MB for 1,024 components of the VDVAE latents) is
never formed; C (36 MB) is all that is kept.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leanrecon.errors import InputError
from leanrecon.memory import buffer
from leanrecon.regression.normalise import Centred, Moments, moments
from leanrecon.regression.ridge import blas
from leanrecon.regression.ridge.hat import gram, row_slabs
from leanrecon.regression.ridge.limits import FLOAT64_ORDER
from leanrecon.regression.ridge.spectrum import eigenvectors
from leanrecon.stores.matrix import Matrix

Array = np.ndarray[Any, Any]

NOISE = 64
"""Eigenvalues below this many roundings of the largest are noise of the Gram matrix."""


@dataclass(frozen=True)
class Coding:
    """Coordinates of the train images, float32 [s, k]: mean 0, variance 1, uncorrelated, by falling explained variance.

    Moments are over train rows, so an image counts as often as it is shown. ``spread`` is the standard deviation of the
    targets along each component (ddof = 0), and ``explained`` its share of their variance; float64 [k].
    """

    coordinates: Array
    spread: Array
    explained: Array


def target_moments(targets: Matrix, weights: Array | None = None) -> Moments:
    """Mean and spread of every target over train rows; raises InputError where one is NaN, or where none varies.

    Each image counts as often as ``weights`` [s] say.
    """
    found = moments(targets, what="targets", weights=weights)
    if found.absent.any():
        column = int(np.argmax(found.absent))
        raise InputError(f"target column {column} holds NaN or infinite values", expected="finite targets")
    if not found.usable.any():
        raise InputError(
            f"none of the {targets.shape[1]} targets varies over the {found.rows} train rows",
            expected="targets with a variance above zero",
        )
    return found


def code(
    targets: Matrix,
    found: Moments,
    weights: Array | None = None,
    *,
    components: int,
    explained: float,
    folder: Path | None = None,
    pass_nbytes: int | None = None,
) -> Coding:
    """The leading coordinates of the targets: at most ``components``, and no more than explain this share.

    They come from the eigenvectors of Y Yᵀ or Yᵀ Y, whichever is smaller, formed over panels in memory or in ``folder``.
    Where images are shown several times, their rows of Y are multiplied by the square root of ``weights`` [s].
    """
    root = None if weights is None else np.sqrt(weights)
    centred = Centred(targets, found, scale=False) if root is None else Weighted(targets, found, root)
    s, t = targets.shape
    n = found.rows
    dtype = np.dtype(np.float64 if min(s, t) <= FLOAT64_ORDER else np.float32)
    kernel, _ = gram(centred, dtype, directory=folder, pass_nbytes=pass_nbytes)
    spectrum = eigenvectors(kernel, deflate=False)
    del kernel
    values = spectrum.values[::-1]
    share = values / values.sum()
    rounding = float(np.finfo(np.float64 if dtype == np.float64 else np.float32).eps)
    enough = int(np.searchsorted(np.cumsum(share), explained * (1 - 1e-12))) + 1
    sound = int(np.count_nonzero(values > values[0] * rounding * NOISE))
    k = max(min(components, enough, sound, s - 1), 1)
    spread = np.sqrt(values[:k] / n)
    leading = spectrum.vectors[-k:]  # rows, ascending
    coordinates = buffer((s, k), np.float32)
    if s <= t:
        coordinates[:] = leading[::-1].T * dtype.type(np.sqrt(n))
    else:
        product = buffer((min(s, 512), k), dtype)
        for rows, slab in row_slabs(centred, dtype):
            blas.gemm(slab, leading, product[: len(rows)], beta=0, tb=True)
            coordinates[rows.start : rows.stop] = product[: len(rows), ::-1] / spread.astype(dtype)
    if weights is None or root is None:
        mean = coordinates.mean(axis=0, dtype=np.float64)
    else:
        coordinates /= root[:, None].astype(np.float32)
        mean = np.einsum("i,ij->j", weights, coordinates) / n
    coordinates -= mean.astype(np.float32)
    return Coding(coordinates, spread, share[:k])


class Weighted(Centred):
    """Centred targets whose rows are multiplied by a factor each, float64 [s]."""

    def __init__(self, matrix: Matrix, train: Moments, factors: Array) -> None:
        super().__init__(matrix, train, scale=False)
        self._factors = factors

    def read(self, rows: range, columns: range, memory: Array, dtype: Any) -> Array:
        out = super().read(rows, columns, memory, dtype)
        out *= self._factors[rows.start : rows.stop, None].astype(dtype)
        return out


def mixing(predicted: Array, coordinates: Array, *, mean: bool, weights: Array | None = None) -> Array:
    """H [m, s] such that H Y are the targets that predicted coordinates [m, k] stand for, with their mean or without.

    The columns of an image that is shown in several rows are summed: it counts as often as ``weights`` [s] say.
    """
    shares = 1 / len(coordinates) if weights is None else (weights / weights.sum()).astype(np.float32)
    hat = buffer((len(predicted), len(coordinates)), np.float32)
    alpha = 1.0 if weights is not None else 1 / len(coordinates)
    blas.gemm(np.ascontiguousarray(predicted, np.float32), coordinates, hat, alpha=alpha, beta=0, tb=True)
    if weights is not None:
        hat *= shares
    # Columns of coordinates sum to zero up to rounding, which shows in targets with a large mean.
    lacking = float(mean) - hat.sum(axis=1, dtype=np.float64)
    if weights is None:
        hat += (lacking / len(coordinates))[:, None].astype(np.float32)
    else:
        for row, part in zip(hat, lacking, strict=True):
            row += np.float32(part) * shares
    return hat
