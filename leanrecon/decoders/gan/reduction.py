"""What the generator is given of a row of betas: standardised voxels, or what they come to on fewer directions.

Standardised train betas Z [n, p] span at most n directions. W [p, r] are the orthonormal axes of that span. A
first layer A [h, p] answers to rows of Z as B = A·W answers to their coordinates C = Z·W. Weights of A outside of the span
answer to none of them. So the generator learns B, and A = B·Wᵀ is what is kept. Rows give W = Zᵀ·C·S⁻² (C from the
eigenvectors of Z·Zᵀ, squares S² are its eigenvalues), and Zᵀ·Z gives it where there are fewer voxels than rows.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from leanrecon.alignment.grams import Gram
from leanrecon.decoders.gan.plan import FOLDED, takes_rows
from leanrecon.errors import InputError
from leanrecon.memory import buffer
from leanrecon.stores.matrix import PANEL, BlockMatrix, RowSubset, panels

if TYPE_CHECKING:
    from leanrecon.decoders.gan.settings import GANSettings
    from leanrecon.stores.matrix import Matrix

Array = np.ndarray[Any, Any]

RANK = 1e-6
"""Eigenvalues below this share of the largest are of rounding: products are taken in float32."""


class Standardised(BlockMatrix):
    """Betas less the train mean of each voxel, over its train deviation: float32, 0 where a voxel tells nothing."""

    def __init__(self, matrix: "Matrix", mean: Array, factor: Array) -> None:
        self.matrix, self.mean, self.factor = matrix, mean, factor
        self.shape = matrix.shape
        self.dtype = np.dtype(np.float32)
        self.block = matrix.block
        self._left_out = factor == 0

    @classmethod
    def of(cls, matrix: "Matrix") -> "Standardised":
        """Betas by their own moments; voxels that don't vary, or are NaN anywhere, count for nothing.

        Raises InputError where no voxel is left.
        """
        n, p = matrix.shape
        memory = buffer((min(n, PANEL), p), np.float32)
        mean, squares = np.zeros(p), np.zeros(p)
        with np.errstate(invalid="ignore", over="ignore"):
            for rows in panels(n):
                matrix.read(rows, range(p), memory[: len(rows)])
                mean += memory[: len(rows)].sum(axis=0, dtype=np.float64)
            mean /= n
            for rows in panels(n):
                part = memory[: len(rows)]
                matrix.read(rows, range(p), part)
                part -= mean.astype(np.float32)
                squares += np.einsum("ij,ij->j", part, part, dtype=np.float64)
            deviation = np.sqrt(squares / n)
            varies = np.isfinite(deviation) & (deviation > 1e-6 * np.abs(mean)) & (deviation > 0)
        if not varies.any():
            raise InputError(
                f"none of {p} voxels varies over the train rows", expected="betas that differ from image to image"
            )
        factor = np.zeros(p)
        factor[varies] = 1 / deviation[varies]
        return cls(matrix, np.where(varies, mean, 0), factor)

    @property
    def tile_nbytes(self) -> int:
        return self.matrix.tile_nbytes

    @property
    def scratch_nbytes(self) -> int:
        return self.matrix.scratch_nbytes

    def read(self, rows: range, columns: range, out: Array) -> None:
        self.matrix.read(rows, columns, out)
        self._standardise(columns, out)

    def read_rows(self, index: Array, columns: range, out: Array) -> None:
        self.matrix.read_rows(index, columns, out)
        self._standardise(columns, out)

    def _standardise(self, columns: range, out: Array) -> None:
        part = slice(columns.start, columns.stop)
        out -= self.mean[part].astype(np.float32)
        out *= self.factor[part].astype(np.float32)
        out[:, self._left_out[part]] = 0


class Noise(Standardised):
    """Random numbers in place of betas, drawn from (seed, stream, row): what no brain gave."""

    def __init__(self, matrix: "Matrix", seed: int, stream: int) -> None:
        p = matrix.shape[1]
        super().__init__(matrix, np.zeros(p), np.ones(p))
        self.seed, self.stream = seed, stream

    def read(self, rows: range, columns: range, out: Array) -> None:
        self.read_rows(np.arange(rows.start, rows.stop), columns, out)

    def read_rows(self, index: Array, columns: range, out: Array) -> None:
        for place, row in enumerate(index.tolist()):
            drawn = np.random.default_rng([self.seed, self.stream, row]).standard_normal(self.shape[1], np.float32)
            out[place] = drawn[columns.start : columns.stop]


@dataclass(frozen=True)
class Inputs:
    """What the generator learns from."""

    betas: Standardised
    """[n, p]"""
    fit: Array
    """The rows that are learned from, ascending."""
    coordinates: Array | None = None
    """float32 [n, r] of all train rows, where they are kept in memory; None: voxels are read."""
    squares: Array | None = None
    """float64 [r], squared norms of the columns of coordinates over ``fit``; None: ``axes`` lead back to voxels."""
    axes: Array | None = None
    """float32 [p, r]"""

    @property
    def dims(self) -> int:
        return int(self.betas.shape[1] if self.coordinates is None else self.coordinates.shape[1])

    def take(self, rows: Array, out: Array) -> None:
        """Write some rows, ascending, into ``out`` [len(rows), dims]."""
        if self.coordinates is not None:
            np.take(self.coordinates, rows, axis=0, out=out)
        else:
            self.betas.read_rows(rows, range(self.dims), out)

    def first_layer(self, weights: Array) -> Array:
        """The first layer over voxels, float32 [h, p], of weights over coordinates [h, r]."""
        if self.coordinates is None:
            return weights
        if self.axes is not None:
            found: Array = weights @ self.axes.T
            return found
        assert self.squares is not None
        dual = (self.coordinates[self.fit] / self.squares.astype(np.float32)) @ weights.T
        return self._of_rows(dual)

    def _of_rows(self, dual: Array) -> Array:
        """dualᵀ·Z of the rows of ``fit``, float32 [h, p]; sums are float64, over fixed panels and columns."""
        p, rows = self.betas.shape[1], RowSubset(self.betas, self.fit)
        result = buffer((dual.shape[1], p), np.float32)
        memory = buffer((min(len(self.fit), PANEL), p), np.float32)
        for some in panels(dual.shape[1], FOLDED):
            sums = buffer((len(some), p), np.float64)
            for part in panels(len(self.fit)):
                rows.read(part, range(p), memory[: len(part)])
                sums += dual[part.start : part.stop, some.start : some.stop].T @ memory[: len(part)]
            result[some.start : some.stop] = sums
        return result


def reduced(betas: Standardised, fit: Array, settings: "GANSettings") -> Inputs:
    """The inputs of a training whose rows ``fit`` are learned from; all other rows are only looked at.

    Raises InputError for betas that are not finite.
    """
    p = betas.shape[1]
    if settings.reduction == "none" or (settings.reduction == "exact" and not takes_rows(len(fit), p)):
        return Inputs(betas, fit)
    explained = settings.explained if settings.reduction == "pca" else None
    return _by_rows(betas, fit, explained) if takes_rows(len(fit), p) else _by_voxels(betas, fit, explained)


def _by_rows(betas: Standardised, fit: Array, explained: float | None) -> Inputs:
    """Coordinates C = U·S of Z·Zᵀ = U·S²·Uᵀ; other rows by their products with the rows of ``fit``."""
    gram, products = Gram.of(betas), buffer((len(fit), len(fit)), np.float64)
    for rows, panel in gram.panels():
        a, b = np.searchsorted(fit, [rows.start, rows.stop])
        products[a:b] = panel[fit[a:b] - rows.start][:, fit]
    values, vectors = _largest(products, explained)
    del products
    vectors = vectors / np.sqrt(values)
    coordinates = buffer((betas.shape[0], len(values)), np.float32)
    for rows, panel in gram.panels():
        coordinates[rows.start : rows.stop] = panel[:, fit] @ vectors
    return Inputs(betas, fit, coordinates, squares=values)


def _by_voxels(betas: Standardised, fit: Array, explained: float | None) -> Inputs:
    """Coordinates C = Z·W on the eigenvectors W of Zᵀ·Z."""
    (n, p), rows = betas.shape, RowSubset(betas, fit)
    covariance, memory = buffer((p, p), np.float64), buffer((min(n, PANEL), p), np.float32)
    for part in panels(len(fit)):
        own = memory[: len(part)]
        rows.read(part, range(p), own)
        covariance += own.T @ own
    axes = _largest(covariance, explained)[1].astype(np.float32)
    del covariance
    coordinates = buffer((n, axes.shape[1]), np.float32)
    for part in panels(n):
        betas.read(part, range(p), memory[: len(part)])
        coordinates[part.start : part.stop] = memory[: len(part)] @ axes
    return Inputs(betas, fit, coordinates, axes=axes)


def _largest(symmetric: Array, explained: float | None) -> tuple[Array, Array]:
    """The largest eigenvalues, descending, and their eigenvectors: all that are not rounding, or a share of the sum."""
    from scipy.linalg import eigh

    values, vectors = eigh(symmetric.T, overwrite_a=True, check_finite=False)
    values, vectors = values[::-1], vectors[:, ::-1]
    count = int(np.count_nonzero(values > RANK * values[0]))
    if explained is not None:
        share = np.cumsum(np.maximum(values, 0))
        count = min(count, int(np.searchsorted(share, explained * share[-1])) + 1)
    return values[:count], vectors[:, :count]
