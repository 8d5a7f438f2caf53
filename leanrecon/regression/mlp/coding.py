"""Train targets as whitened coordinates along their own principal components, without the components.

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
from leanrecon.regression.ridge.plan import FLOAT64_ORDER
from leanrecon.regression.ridge.spectrum import eigenvectors
from leanrecon.stores.matrix import Matrix

Array = np.ndarray[Any, Any]

NOISE = 64
"""Eigenvalues below this many roundings of the largest are noise of the Gram matrix."""


@dataclass(frozen=True)
class Coding:
    """Coordinates of the train rows, float32 [n, k]: mean 0, variance 1, uncorrelated, by falling explained variance.

    ``spread`` is the standard deviation of the targets along each component (ddof = 0), ``explained`` its share of
    their variance; float64 [k].
    """

    coordinates: Array
    spread: Array
    explained: Array


def target_moments(targets: Matrix) -> Moments:
    """Mean and spread of every target; raises InputError where one is NaN, or where none varies."""
    found = moments(targets, what="targets")
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
    *,
    components: int,
    explained: float,
    folder: Path | None = None,
    pass_nbytes: int | None = None,
) -> Coding:
    """The leading coordinates of the targets: at most ``components``, and no more than explain this share.

    From the eigenvectors of Y Yᵀ or Yᵀ Y, whichever is smaller, formed over panels, in memory or in ``folder``.
    """
    centred = Centred(targets, found, scale=False)
    n, t = targets.shape
    dtype = np.dtype(np.float64 if min(n, t) <= FLOAT64_ORDER else np.float32)
    kernel, _ = gram(centred, dtype, directory=folder, pass_nbytes=pass_nbytes)
    spectrum = eigenvectors(kernel, deflate=False)
    del kernel
    values = spectrum.values[::-1]
    share = values / values.sum()
    rounding = float(np.finfo(np.float64 if dtype == np.float64 else np.float32).eps)
    enough = int(np.searchsorted(np.cumsum(share), explained * (1 - 1e-12))) + 1
    sound = int(np.count_nonzero(values > values[0] * rounding * NOISE))
    k = max(min(components, enough, sound, n - 1), 1)
    spread = np.sqrt(values[:k] / n)
    leading = spectrum.vectors[-k:]  # rows, ascending
    coordinates = buffer((n, k), np.float32)
    if n <= t:
        coordinates[:] = leading[::-1].T * dtype.type(np.sqrt(n))
    else:
        product = buffer((min(n, 512), k), dtype)
        for rows, slab in row_slabs(centred, dtype):
            blas.gemm(slab, leading, product[: len(rows)], beta=0, tb=True)
            coordinates[rows.start : rows.stop] = product[: len(rows), ::-1] / spread.astype(dtype)
    coordinates -= coordinates.mean(axis=0, dtype=np.float64).astype(np.float32)
    return Coding(coordinates, spread, share[:k])


def mixing(predicted: Array, coordinates: Array, *, mean: bool, dtype: Any = np.float32) -> Array:
    """H [m, n] such that H Y are the targets that predicted coordinates [m, k] stand for, with their mean or without."""
    n = len(coordinates)
    hat = buffer((len(predicted), n), np.float32)
    blas.gemm(np.ascontiguousarray(predicted, np.float32), coordinates, hat, alpha=1 / n, beta=0, tb=True)
    # The coordinates' columns sum to zero up to rounding, which a target far from zero would make felt.
    hat += ((float(mean) - hat.sum(axis=1, dtype=np.float64)) / n)[:, None].astype(np.float32)
    return hat if hat.dtype == dtype else hat.astype(dtype)
