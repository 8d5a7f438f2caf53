"""Subjects by their Gram matrices: all that an alignment needs of a subject's voxels, in [images, images].

With centred betas X [n, p], every map that is fitted on them has the form W = Xᵀ·B, since nothing outside the space of
their rows can help. So scores are X·W = G·B with G = X·Xᵀ [n, n]. Betas are read for their means, their deviations where
asked, for G, which reads a panel of rows again for each panel after it, and for W.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from leanrecon.errors import InputError
from leanrecon.memory import buffer
from leanrecon.stores.layout import PANEL
from leanrecon.stores.matrix import Matrix, panels

Array = np.ndarray[Any, Any]

ROWS = 512
"""Rows of a panel of G: fixed, so that no budget decides a sum. Two panels of voxels are held at once."""

_DOUBLE = 8


def gram_nbytes(rows: int, *, kept: bool) -> int:
    """Bytes of a Gram matrix in memory: all of it, or a panel of one that lies in a file."""
    return rows * (rows if kept else min(rows, ROWS)) * _DOUBLE


def reading_nbytes(rows: int, voxels: int, itemsize: int = 4) -> int:
    """Most bytes that ``Gram.of`` and ``weights_of`` take for panels of voxels, beside G: sums, products, conversions."""
    panel = min(rows, ROWS)
    return 2 * panel * voxels * itemsize + 5 * voxels * _DOUBLE + 2 * panel * panel * _DOUBLE


class Gram:
    """The centred Gram matrix of one subject, float64 [n, n], in memory or in a file that is read panel by panel."""

    def __init__(
        self, panels: "list[Array] | Path", mean: Array, factor: Array | None, *, rows: int, trace: float
    ) -> None:
        self._panels = panels
        self.mean = mean
        """Train mean of each voxel, float64 [voxels]; NaN for voxels outside of the mask, NaN in every row."""
        self.factor = factor
        """What each centred voxel is multiplied by, float64 [voxels]: 1 / its train deviation; None: nothing."""
        self.rows = rows
        self.trace = trace
        """The squared norm of the centred betas."""
        self.scale = 1.0
        """What the betas are divided by."""

    @property
    def voxels(self) -> int:
        """How many voxels there are betas of."""
        return len(self.mean) - int(np.isnan(self.mean).sum())

    @property
    def usable(self) -> int:
        """How many voxels vary, as far as betas are standardized; else how many there are betas of."""
        return self.voxels if self.factor is None else int(np.count_nonzero(np.nan_to_num(self.factor)))

    @classmethod
    def of(cls, matrix: Matrix, file: Path | None = None, *, standardize: bool = False) -> "Gram":
        """The Gram matrix of betas [n, voxels] less their means; into ``file`` where one is given.

        ``standardize`` divides each voxel by its standard deviation; voxels that don't vary count for nothing.
        Voxels that are NaN in every row are left out. Products are taken in the betas' own precision and kept in float64.
        Raises InputError for other betas that are not finite.
        """
        n, p = matrix.shape
        mean = _mean(matrix)
        factor = _factor(matrix, mean) if standardize else None
        one, two = (buffer((min(n, ROWS), p), _precision(matrix)) for _ in range(2))
        kept = [buffer((len(rows), n), np.float64) for rows in panels(n, ROWS)] if file is None else []
        trace = 0.0
        with contextlib.nullcontext() if file is None else file.open("wb", buffering=0) as sink:
            for i, rows in enumerate(panels(n, ROWS)):
                own = _centred(matrix, rows, mean, one, factor)
                for j, columns in enumerate(panels(n, ROWS)[: i + 1]):  # G is symmetric: each block is taken once
                    other = own if j == i else _centred(matrix, columns, mean, two, factor)
                    block = (own @ other.T).astype(np.float64)
                    if sink is None:
                        kept[i][:, columns.start : columns.stop] = block
                        kept[j][:, rows.start : rows.stop] = block.T
                    else:
                        _write(sink, block, rows.start, columns.start, n)
                        _write(sink, np.ascontiguousarray(block.T), columns.start, rows.start, n)
                trace += float(np.trace(block))
        return cls(kept if file is None else file, mean, factor, rows=n, trace=trace)

    def panels(self) -> Iterator[tuple[range, Array]]:
        """Rows of G, panel by panel; each is valid until the next one is asked for."""
        if isinstance(self._panels, list):
            yield from zip(panels(self.rows, ROWS), self._panels, strict=True)
            return
        memory = buffer((min(self.rows, ROWS), self.rows), np.float64)
        with self._panels.open("rb", buffering=0) as file:
            for rows in panels(self.rows, ROWS):
                part = memory[: len(rows)]
                file.readinto(part.data.cast("B"))
                yield rows, part

    def times(self, vectors: Array) -> Array:
        """``vectors`` [k, n] · G, float64 [k, n]; over fixed panels."""
        result = np.zeros((len(vectors), self.rows))
        for rows, panel in self.panels():
            result += vectors[:, rows.start : rows.stop] @ panel
        result /= self.scale**2
        return result

    def dense(self) -> Array:
        """All of G, float64 [n, n], in memory of its own."""
        result = buffer((self.rows, self.rows), np.float64)
        for rows, panel in self.panels():
            result[rows.start : rows.stop] = panel
        result /= self.scale**2
        result += result.T  # symmetric to the last bit, as solvers take one half of it
        result *= 0.5
        return result

    def forget(self) -> None:
        """Let go of G, and keep the mean and the scale."""
        self._panels = []

    @property
    def norm(self) -> float:
        """The squared norm of the centred betas after scaling."""
        return self.trace / self.scale**2


def weights_of(matrix: Matrix, gram: Gram, dual: Array) -> Array:
    """The map W = Xᵀ·B of a subject, float32 [voxels, k], from betas [n, voxels] and B [n, k]; over fixed panels."""
    n, p = matrix.shape
    dtype = _precision(matrix)
    memory = buffer((min(n, ROWS), p), dtype)
    sums = buffer((p, dual.shape[1]), np.float64)
    for rows in panels(n, ROWS):
        sums += _centred(matrix, rows, gram.mean, memory, gram.factor).T @ dual[rows.start : rows.stop].astype(dtype)
    sums /= gram.scale**2
    if gram.factor is not None:
        sums *= gram.factor[:, None]  # so that the map takes betas as they are
    return sums.astype(dtype)


def scores(betas: Array, mean: Array, weights: Array) -> Array:
    """Betas [rows, voxels] less the train mean, through a map [voxels, k]; raises InputError for other voxels."""
    if betas.ndim != 2 or betas.shape[1] != len(mean):
        raise InputError(f"betas of shape {betas.shape}", expected=f"[rows, {len(mean)}], as in fit")
    centred = np.array(betas, np.result_type(betas.dtype, weights.dtype))
    subtract(mean, centred)
    result: Array = centred @ weights
    return result


def _mean(matrix: Matrix) -> Array:
    """Means of the columns, float64; NaN for those that are NaN in every row. Raises InputError for others not finite."""
    n, p = matrix.shape
    sums, absent = np.zeros(p), np.zeros(p, np.int64)
    memory = buffer((min(n, PANEL), p), matrix.dtype)
    for rows in panels(n):
        part = memory[: len(rows)]
        matrix.read(rows, range(p), part)
        total = part.sum(axis=0, dtype=np.float64)
        if not np.isfinite(total).all():
            absent += np.isnan(part).sum(axis=0)
        sums += total
    if len(wrong := np.flatnonzero(~np.isfinite(sums) & (absent < n))):
        raise InputError(
            f"betas of voxel {wrong[0]} are NaN or infinite in some rows",
            expected="finite betas to align subjects on, or voxels that are NaN in every row (outside of the mask)",
        )
    return sums / n


def _write(file: IO[bytes], block: Array, row: int, column: int, n: int) -> None:
    """Write a block of a matrix of ``n`` columns to its place in a file of float64."""
    for k, values in enumerate(block):
        file.seek(((row + k) * n + column) * _DOUBLE)
        file.write(values.data.cast("B"))


def _factor(matrix: Matrix, mean: Array) -> Array:
    """One by the standard deviation of each column, 0 where it does not vary beyond rounding."""
    n, p = matrix.shape
    squares, memory = np.zeros(p), buffer((min(n, ROWS), p), _precision(matrix))
    for rows in panels(n, ROWS):
        squares += np.einsum("ij,ij->j", *2 * (_centred(matrix, rows, mean, memory),), dtype=np.float64)
    deviation = np.sqrt(squares / n)
    varies = deviation > 1e-6 * np.abs(mean)
    factor: Array = np.where(varies & (deviation > 0), 1 / np.where(varies & (deviation > 0), deviation, 1), 0.0)
    return factor


def _precision(matrix: Matrix) -> type[np.floating[Any]]:
    """What products of betas are taken in: float64 for betas of float64, float32 for all others."""
    return np.float64 if matrix.dtype == np.float64 else np.float32


def subtract(mean: Array, betas: Array) -> None:
    """Take means [voxels] from betas [rows, voxels] in place; voxels without a mean, outside of the mask, become 0."""
    betas -= mean.astype(betas.dtype)
    if (absent := np.isnan(mean)).any():
        betas[:, absent] = 0


def _centred(matrix: Matrix, rows: range, mean: Array, memory: Array, factor: Array | None = None) -> Array:
    result = memory[: len(rows)]
    matrix.read(rows, range(matrix.shape[1]), result)
    subtract(mean, result)
    if factor is not None:
        result *= factor.astype(result.dtype)
    return result
