"""The trials of NSD averaged over the repeats of each image, block of voxels by block of voxels."""

from collections.abc import Iterator, Mapping
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


def average(trials: Store, design: Design, stores: Mapping[str, Store], *, zscore: bool, advance: Advance) -> None:
    """Write the missing betas: trials averaged over the repeats of each image, in percent signal change.

    With ``zscore`` each voxel's trials are z-scored within their session first (mean 0, population standard
    deviation 1; what is constant becomes 0). Sums are whole numbers, or taken in the order of presentation, so
    nothing depends on the blocks. Memory: 4 bytes a voxel of a block of columns and image, and two blocks of rows.
    """
    rows = [design.rows(split) for split in stores]
    shown = [numbers for of_split in rows for numbers in of_split.values()]
    row_of = np.empty(trials.rows, np.int64)
    for row, numbers in enumerate(shown):
        row_of[numbers] = row
    repeats = np.array([len(numbers) for numbers in shown])[:, None]
    missing = sorted({j for store in stores.values() for j in store.missing_column_groups()})
    memory = buffer((trials.buffer_nbytes(),), np.uint8)
    for j in missing:
        columns = next(iter(stores.values())).group_columns(j)
        sums = buffer((len(shown), len(columns)), np.float32 if zscore else np.int32)
        levels = _levels(trials, design, columns, memory) if zscore else None
        for i in range(trials.row_groups):
            group = trials.group_rows(i)
            for place, block in columns_of(trials, i, columns, memory):
                for trial, values in zip(group, block, strict=True):
                    sums[row_of[trial], place] += values if levels is None else _level(levels, trial, values, place)
        first = 0
        for store in stores.values():
            for i in range(store.row_groups):
                group = store.group_rows(i)
                of = slice(first + group.start, first + group.stop)
                if not store.has(i, j):
                    scale = repeats[of] * (1 if zscore else SCALE)
                    store.write_chunk(i, j, (sums[of] / scale).astype(np.float32))
            first += store.rows
        del sums
        advance(1)


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


def average_nbytes(shape: tuple[int, int], n_images: int, chunk: int, *, sessions: int = 0) -> int:
    """Most bytes of memory that ``average`` takes for trials of ``shape``; ``sessions`` are z-scored."""
    from leanrecon.stores.layout import plan_chunks

    rows, width = plan_chunks((n_images, shape[1]), np.float32, chunk)
    read_rows, read_width = plan_chunks(shape, np.int16, chunk)
    levels = 5 * 8 * sessions * width + 8 * read_rows * read_width if sessions else 0
    return 4 * n_images * width + 2 * read_rows * read_width + rows * width * (8 + 4 + 4) + levels
