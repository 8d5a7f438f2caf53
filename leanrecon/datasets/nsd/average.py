"""Betas from the trials of NSD: averages over the repeats of each image, or single trials."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from leanrecon.datasets.nsd.layout import SCALE, Design
from leanrecon.memory import buffer
from leanrecon.progress import Advance
from leanrecon.stores.store import Store

Array = np.ndarray[Any, Any]


def columns_of(trials: Store, i: int, columns: range, memory: Array) -> Iterator[tuple[slice, Array]]:
    """The trials of row group ``i``, cut to some columns: place among the columns, block [rows, columns]."""
    width = trials.chunk_columns
    for j in range(columns.start // width, (columns.stop - 1) // width + 1):
        own = trials.group_columns(j)
        a, b = max(own.start, columns.start), min(own.stop, columns.stop)
        chunk = trials.read_chunk(i, j, memory)
        rows = len(trials.group_rows(i))
        yield slice(a - columns.start, b - columns.start), chunk[:rows, a - own.start : b - own.start]


def sample(trials: Store, columns: Array) -> Array:
    """Some columns of all trials: int16 [trials, columns]; ``columns`` ascend."""
    memory = buffer((trials.buffer_nbytes(),), np.uint8)
    out = np.empty((trials.rows, len(columns)), np.int16)
    for i in range(trials.row_groups):
        rows = trials.group_rows(i)
        for j in range(trials.column_groups):
            own = trials.group_columns(j)
            a, b = np.searchsorted(columns, [own.start, own.stop])
            if a < b:
                chunk = trials.read_chunk(i, j, memory)
                out[rows.start : rows.stop, a:b] = chunk[: len(rows), columns[a:b] - own.start]
    return out


@dataclass(frozen=True)
class Averages:
    """A store of betas that are means over trials, and the trials of each of its rows."""

    store: Store
    trials: list[list[int]]
    rescaled: bool = False
    """Whether a mean of k trials is multiplied by √k."""

    @property
    def factors(self) -> Array:
        """The divisors of sums over trials, [rows, 1]."""
        repeats = np.array([len(trials) for trials in self.trials], np.float64)[:, None]
        return np.sqrt(repeats) if self.rescaled else repeats


def average(trials: Store, design: Design, averages: Sequence[Averages], *, zscore: bool, advance: Advance) -> None:
    """Write the missing betas: trials averaged over the repeats of each image, in percent signal change.

    With ``zscore`` each voxel's trials are z-scored within their session first (mean 0, population standard
    deviation 1; what is constant becomes 0). Sums are of integers, or in the order of presentation, so
    results don't depend on the blocks. Memory: 4 bytes a voxel of a block of columns and image, and two blocks of rows.
    """
    shown = [numbers for of in averages for numbers in of.trials]
    row_of = np.full(trials.rows, -1, np.int64)
    for row, numbers in enumerate(shown):
        row_of[numbers] = row
    memory = buffer((trials.buffer_nbytes(),), np.uint8)
    for j in sorted({j for of in averages for j in of.store.missing_column_groups()}):
        columns = averages[0].store.group_columns(j)
        sums = buffer((len(shown), len(columns)), np.float32 if zscore else np.int32)
        levels = _levels(trials, design, columns, memory) if zscore else None
        for i in range(trials.row_groups):
            group = trials.group_rows(i)
            for place, block in columns_of(trials, i, columns, memory):
                for trial, values in zip(group, block, strict=True):
                    if row_of[trial] >= 0:
                        sums[row_of[trial], place] += values if levels is None else _level(levels, trial, values, place)
        first = 0
        for of in averages:
            for i in range(of.store.row_groups):
                rows = of.store.group_rows(i)
                own = slice(first + rows.start, first + rows.stop)
                if not of.store.has(i, j):
                    scale = of.factors[rows.start : rows.stop] * (1 if zscore else SCALE)
                    of.store.write_chunk(i, j, (sums[own] / scale).astype(np.float32))
            first += of.store.rows
        del sums
        advance(1)


def single(trials: Store, design: Design, store: Store, rows: Array, *, zscore: bool, advance: Advance) -> None:
    """Write the missing betas of single trials, row k those of trial ``rows[k]``, in percent signal change or z-scored.

    ``rows`` ascend. Memory: one block of rows of each store; z-scored, 40 bytes a voxel and session more.
    """
    every = range(trials.columns)
    memory = buffer((trials.buffer_nbytes(),), np.uint8)
    missing = store.missing_row_groups()
    levels = _levels(trials, design, every, memory) if zscore and missing else None
    out = buffer((min(store.chunk_rows, store.rows), trials.columns), np.float32)
    for i in missing:
        group = store.group_rows(i)
        wanted = rows[group.start : group.stop]
        for source in np.unique(wanted // trials.chunk_rows).tolist():
            inside = np.flatnonzero(wanted // trials.chunk_rows == source)
            for place, block in columns_of(trials, source, every, memory):
                for k in inside.tolist():
                    trial = int(wanted[k])
                    values = block[trial - source * trials.chunk_rows]
                    out[k, place] = values / SCALE if levels is None else _level(levels, trial, values, place)
        store.write_rows(i, out[: len(group)])
        advance(len(group))


Levels = tuple[Array, Array, Array]


def _levels(trials: Store, design: Design, columns: range, memory: Array) -> Levels:
    """Mean and standard deviation of every voxel in every session [sessions, columns], and the session of every trial."""
    _, number = np.unique(design.session, return_inverse=True)
    n, sums, squares = np.bincount(number), *np.zeros((2, number[-1] + 1, len(columns)), np.int64)
    for i in range(trials.row_groups):
        for place, block in columns_of(trials, i, columns, memory):
            for trial, values in zip(trials.group_rows(i), block.astype(np.int64), strict=True):
                sums[number[trial], place] += values
                squares[number[trial], place] += values * values
    n = n[:, None]
    spread = np.sqrt(n * squares - sums * sums) / n  # whole numbers under the root: below 2**50
    return sums / n, spread, number


def _level(levels: Levels, trial: int, values: Array, place: slice) -> Array:
    mean, spread, number = levels
    centred = values - mean[number[trial], place]
    own = spread[number[trial], place]
    z: Array = np.divide(centred, own, out=np.zeros_like(centred), where=own > 0)
    return z.astype(np.float32)


def average_nbytes(shape: tuple[int, int], n_images: int, chunk: int, *, sessions: int) -> int:
    """The most bytes of memory that ``average`` takes for trials of ``shape``; ``sessions`` are z-scored."""
    from leanrecon.stores.layout import plan_chunks

    rows, width = plan_chunks((n_images, shape[1]), np.float32, chunk)
    read_rows, read_width = plan_chunks(shape, np.int16, chunk)
    levels = 5 * 8 * sessions * width + 8 * read_rows * read_width if sessions else 0
    return 4 * n_images * width + 2 * read_rows * read_width + rows * width * (8 + 4 + 4) + levels


def single_nbytes(shape: tuple[int, int], n_rows: int, chunk: int, *, sessions: int) -> int:
    """The most bytes of memory that ``single`` takes for trials of ``shape``; ``sessions`` are z-scored."""
    from leanrecon.stores.layout import plan_chunks

    voxels = shape[1]
    rows, width = plan_chunks((n_rows, voxels), np.float32, chunk)
    read_rows, read_width = plan_chunks(shape, np.int16, chunk)
    levels = 5 * 8 * sessions * voxels + 8 * read_rows * read_width if sessions else 0
    return 4 * rows * voxels + 2 * 4 * rows * width + 2 * read_rows * read_width + levels + 32 * voxels
