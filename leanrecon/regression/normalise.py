"""Voxel moments in one pass, and betas centred (and scaled) as they are read."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from leanrecon.errors import InputError
from leanrecon.stores.matrix import Matrix, column_blocks, panels, read_ahead, tile_memories

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation (ddof = 1) of every column over ``rows`` rows; float64 [columns].

    ``absent`` marks columns that are NaN in every row: voxels outside of the mask.
    """

    rows: int
    mean: Array
    std: Array
    absent: Array
    low: Array
    """Least value of every column; infinite where it is absent."""
    high: Array
    rounding: float = 0.0
    """Distance between neighbouring numbers of the matrix's type, as a share of them; 0 for whole numbers."""

    @property
    def usable(self) -> Array:
        """Columns that vary: neither constant nor absent."""
        return ~self.absent & (self.std > 0)

    @property
    def within_rounding(self) -> Array:
        """Columns that vary by no more than the rounding of their numbers."""
        return self.usable & (self.std <= self.rounding * np.abs(self.mean))


def moments(matrix: Matrix, *, what: str = "betas", weights: Array | None = None) -> Moments:
    """Mean and standard deviation of every column, streamed tile by tile; row i counts ``weights[i]`` times.

    Sums are taken of the differences to the first row, in float64 over the rows: nothing is lost to a large
    mean, and a constant column has a standard deviation of exactly 0. An infinite value, or a NaN in a column
    that has other values, raises InputError with its row and column; so do values whose squares overflow.
    """
    n, p = matrix.shape
    shift = np.zeros(p)
    sums = np.zeros(p)
    squares = np.zeros(p)
    nan_rows = np.zeros(p, np.int64)
    first_nan = np.full(p, n)
    low, high = np.full(p, np.inf), np.full(p, -np.inf)
    blocks = column_blocks(matrix)
    items = [(rows, j) for rows in panels(n) for j in range(len(blocks))]

    def read(item: tuple[range, int], memory: Array) -> Array:
        return matrix.read_tile(item[0], item[1], memory)

    for (rows, j), tile in read_ahead(items, read, tile_memories(matrix)):
        part = slice(blocks[j].start, blocks[j].stop)
        block = tile[:, : len(blocks[j])]
        if block.dtype.kind != "f" or block.dtype.itemsize < 4:  # float16 can't hold squares above 65,504
            block = block.astype(np.float64)
        if rows.start == 0:
            shift[part] = block[0]
            shift[part][~np.isfinite(shift[part])] = 0
        block -= shift[part].astype(block.dtype)
        counts = None if weights is None else weights[rows.start : rows.stop]
        total = _column_sums(block, counts)
        if not np.isfinite(total).all():
            _refuse_infinite(block, rows, blocks[j], what)
            nan = np.isnan(block)
            nan_rows[part] += nan.sum(axis=0)
            np.minimum(
                first_nan[part], np.where(nan.any(axis=0), rows.start + nan.argmax(axis=0), n), out=first_nan[part]
            )
        sums[part] += total
        np.fmin(low[part], np.fmin.reduce(block, axis=0), out=low[part])
        np.fmax(high[part], np.fmax.reduce(block, axis=0), out=high[part])
        with np.errstate(over="ignore"):
            squares[part] += _column_sums(np.square(block, out=block), counts)

    absent = nan_rows == n
    _refuse_partly_nan(nan_rows, first_nan, n, what)
    _refuse_overflow(squares, low + shift, high + shift, what)
    total_rows = n if weights is None else round(float(weights.sum()))
    mean = sums / total_rows
    variance = np.maximum(squares - sums * mean, 0) / max(total_rows - 1, 1)
    rounding = float(np.finfo(matrix.dtype).eps) if matrix.dtype.kind == "f" else 0.0
    return Moments(total_rows, mean + shift, np.sqrt(variance), absent, low + shift, high + shift, rounding)


def _column_sums(block: Array, counts: Array | None) -> Array:
    sums: Array = block.sum(axis=0, dtype=np.float64) if counts is None else np.einsum("i,ij->j", counts, block)
    return sums


def _refuse_partly_nan(nan_rows: Array, first: Array, n: int, what: str) -> None:
    if (partly := np.nonzero((nan_rows > 0) & (nan_rows < n))[0]).size:
        v = int(partly[0])
        raise InputError(
            f"{what} hold NaN: {partly.size} of {len(first)} columns in some of their {n} rows; column {v} in "
            f"{nan_rows[v]} rows, row {first[v]} first",
            expected="finite values, or NaN in every row of a voxel outside of the mask",
            todo="drop those voxels or trials",
        )


def _refuse_overflow(squares: Array, low: Array, high: Array, what: str) -> None:
    if (large := np.flatnonzero(np.isinf(squares))).size:
        v = int(large[0])
        raise InputError(
            f"{what} are too large for sums of their squares in {large.size} of {len(low)} columns: column {v} goes from "
            f"{low[v]:.4g} to {high[v]:.4g}",
            expected="betas in percent, standard deviations, or the like",
            todo="look at where these values come from, and scale or leave out those voxels",
        )


def _refuse_infinite(block: Array, rows: range, columns: range, what: str) -> None:
    infinite = np.argwhere(np.isinf(block))
    if len(infinite):
        row, column = (int(k) for k in infinite[0])
        raise InputError(f"{what} are infinite at row {rows[row]}, column {columns[column]}", expected="finite values")


class Centred:
    """A matrix of betas less the train mean, over the train standard deviation if ``scale``; left-out columns read 0.

    Each voxel is multiplied by its weight, where there are ``weights`` [p]. ``dual`` says whether products are taken
    over voxels, into a kernel of the rows; by default where there are no more rows than voxels.
    """

    def __init__(
        self, matrix: Matrix, train: Moments, *, scale: bool, weights: Array | None = None, dual: bool | None = None
    ) -> None:
        self.matrix = matrix
        self.shape = matrix.shape
        self.dual = matrix.shape[0] <= matrix.shape[1] if dual is None else dual
        self._left_out = ~train.usable
        self._mean = np.where(self._left_out, 0, train.mean)
        self._factor = 1 / np.where(self._left_out, 1, train.std) if scale else None
        if weights is not None:
            self._factor = weights if self._factor is None else self._factor * weights

    @classmethod
    def given(cls, matrix: Matrix, mean: Array, factor: Array | None, left_out: Array, *, dual: bool) -> "Centred":
        """A matrix that is centred by numbers that another process found, float64 [p]; ``left_out`` is bool [p]."""
        centred = cls.__new__(cls)
        centred.matrix, centred.shape, centred.dual = matrix, matrix.shape, dual
        centred._mean, centred._factor, centred._left_out = mean, factor, left_out
        return centred

    @property
    def numbers(self) -> tuple[Array, Array | None, Array]:
        """What ``given`` takes: the mean, the factor and the columns that are left out."""
        return self._mean, self._factor, self._left_out

    @property
    def mean(self) -> Array:
        """What is subtracted from each voxel, float64 [p]."""
        return self._mean

    @property
    def factor(self) -> Array:
        """What each voxel is multiplied by afterwards, float64 [p]."""
        return np.ones(self.shape[1]) if self._factor is None else self._factor

    @property
    def order(self) -> int:
        """The order of the Gram matrix."""
        return self.shape[0] if self.dual else self.shape[1]

    def read(self, rows: range, columns: range, memory: Array, dtype: Any) -> Array:
        """A block in ``memory`` (uint8), as [len(rows), len(columns)] of ``dtype``."""
        part = slice(columns.start, columns.stop)
        count = len(rows) * len(columns)
        out: Array = memory[: count * np.dtype(dtype).itemsize].view(dtype).reshape(len(rows), len(columns))
        mean, left_out = self._mean[part].astype(dtype), self._left_out[part]
        factor = None if self._factor is None else self._factor[part].astype(dtype)
        for some in panels(len(rows)):  # while they are in the processor's cache
            block = out[some.start : some.stop]
            self.matrix.read(range(rows.start + some.start, rows.start + some.stop), columns, block)
            block -= mean
            if factor is not None:
                block *= factor
            if left_out.any():
                block[:, left_out] = 0
        return out
