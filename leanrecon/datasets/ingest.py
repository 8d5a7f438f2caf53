"""Filling the row stores of a study from arrays, group by group, in bounded memory and resumably."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from leanrecon.context import Context
from leanrecon.datasets.files.rows import Convert, Rows
from leanrecon.errors import InputError
from leanrecon.memory import buffer
from leanrecon.stores.layout import plan_chunks
from leanrecon.stores.store import Store

Array = np.ndarray[Any, Any]
Look = Callable[[range, Array], None]

BAND = 256 * 10**6
"""Most bytes of rows that are read together: what a kill can cost, whatever the budget."""

_CRC = 4  # bytes of the checksum behind a chunk
_PIECE = 2**20  # bytes of rows looked through together


@dataclass(frozen=True)
class StorePlan:
    """How one store is filled."""

    at_once: int
    """Row groups that are read together."""
    work: int
    """Bytes of memory taken meanwhile."""
    disk: int
    """Bytes of the store on disk."""


def plan_store(
    shape: Sequence[int],
    dtype: Any,
    chunk_bytes: int,
    *,
    free: int,
    together: int = 1,
    held: int = 0,
    scratch: int = 0,
    working: int = 1,
) -> StorePlan:
    """Plan the filling of a store of ``shape`` from an array that is best read ``together`` rows at a time.

    ``working`` is the memory that reading takes for each byte of the rows read. At least one row group is read at
    once, whether or not it fits ``free`` bytes; more only where that saves reading.
    """
    chunks = plan_chunks(shape, dtype, chunk_bytes)
    itemsize = np.dtype(dtype).itemsize
    chunk = math.prod(chunks) * itemsize
    group = chunks[0] * math.prod(shape[1:]) * itemsize
    groups, column_groups = math.ceil(shape[0] / chunks[0]), math.ceil(math.prod(shape[1:]) / math.prod(chunks[1:]))
    # Besides the band: a group out of order or read back, and a chunk made contiguous, then padded.
    fixed = held + scratch + group + 2 * chunk
    wanted = min(math.ceil(together / chunks[0]), groups)
    at_once = max(min(wanted, min(free - fixed, BAND) // max(working * group, 1)), 1)
    return StorePlan(at_once, fixed + at_once * working * group, groups * column_groups * (chunk + _CRC))


def bands(groups: Sequence[int], at_once: int) -> Iterator[range]:
    """Cut ascending row groups into runs of neighbours, at most ``at_once`` long."""
    start = 0
    for k in range(1, len(groups) + 1):
        if k == len(groups) or groups[k] != groups[k - 1] + 1 or k - start == at_once:
            yield range(groups[start], groups[k - 1] + 1)
            start = k


@dataclass(frozen=True)
class Source:
    """The rows of an array that a store is filled with."""

    rows: Rows
    index: Array
    """Which of them, ascending."""
    at_once: int
    """Row groups of the store that are read together."""
    convert: Convert | None = None
    """Turns blocks of numbers as they come into the store's type."""
    shaped: Callable[[Array], Array] = lambda block: block
    """Gives whole rows the store's shape."""


def fill_store(store: Store, source: Source, context: Context, look: Look | None = None) -> None:
    """Write the missing row groups of ``store``; ``look`` sees every group, old or new, before it is written."""
    missing = store.missing_row_groups()
    present = sorted(set(range(store.row_groups)) - set(missing))
    done = sum(len(store.group_rows(i)) for i in present)
    with context.task(total=store.rows, unit="rows", done=done) as advance:
        for i in present:
            if look is not None:
                group = store.group_rows(i)
                look(group, store[group.start : group.stop])
        n = min(source.at_once * store.chunk_rows, store.rows)
        memory = buffer((n if missing else 0, *source.rows.shape[1:]), store.dtype)
        for band in bands(missing, source.at_once):
            start, stop = band.start * store.chunk_rows, store.group_rows(band[-1]).stop
            source.rows.read(source.index[start:stop], memory[: stop - start], source.convert)
            for i in band:
                group = store.group_rows(i)
                block = source.shaped(memory[group.start - start : group.stop - start])
                if look is not None:
                    look(group, block)
                store.write_rows(i, block)
                advance(len(group))
    source.rows.release()


class NanCount:
    """Counts the NaN of every voxel over the rows of all splits; raises InputError at an infinite response."""

    def __init__(self, voxels: int) -> None:
        self.counts = np.zeros(voxels, np.int64)
        self.rows = 0
        self._whole = np.ones(voxels, bool)
        self._low, self._high = np.full(voxels, np.inf, np.float32), np.full(voxels, -np.inf, np.float32)

    def looker(self, locate: Callable[[int], str]) -> Look:
        """A function that counts the rows of a split in; ``locate`` names its k-th row in words."""
        return lambda group, block: self.look(block, group.start, locate)

    def look(self, block: Array, first: int, locate: Callable[[int], str]) -> None:
        """Count some rows in, from row ``first`` of a split on."""
        step = max(_PIECE // max(block.shape[1] * block.itemsize, 1), 1)
        for start in range(0, len(block), step):
            piece = block[start : start + step]
            infinite = np.isinf(piece)
            if infinite.any():
                row, voxel = np.argwhere(infinite)[0]
                raise InputError(
                    f"the response of voxel {voxel} in {locate(first + start + int(row))} is infinite, or too large for float32",
                    expected="finite betas",
                    todo="correct the array and run again with --overwrite",
                )
            self.counts += np.isnan(piece).sum(axis=0)
            self._whole &= (piece == np.rint(piece)).all(axis=0)
            np.fmin(self._low, np.fmin.reduce(piece, axis=0), out=self._low)
            np.fmax(self._high, np.fmax.reduce(piece, axis=0), out=self._high)
        self.rows += len(block)

    def check(self, stores: Sequence[tuple[Store, Callable[[int], str]]]) -> None:
        """Refuse voxels that are NaN in some rows only; those that are NaN in every row lie outside the mask."""
        partial = (self.counts > 0) & (self.counts < self.rows)
        if partial.any():
            row, voxel = _first_nan(stores, partial)
            raise InputError(
                f"{int(self.counts[partial].sum())} betas of {int(partial.sum())} voxels are NaN, though these voxels "
                f"have numbers in other rows; the first is voxel {voxel} in {row}",
                expected="numbers, or voxels that are NaN in every row (outside the mask)",
                todo="fill or leave out these rows or voxels, and run again with --overwrite",
            )
        if self.rows and (self.counts == self.rows).all():
            raise InputError("every beta is NaN", expected="numbers", todo="correct the array and use --overwrite")

    @property
    def labels(self) -> str:
        """A sentence on columns of varying whole numbers beside voxels that have others; empty where there are none."""
        labels = np.flatnonzero(self._whole & (self._high > self._low))
        n, voxels = len(labels), len(self._whole)
        if not n or 2 * n > voxels - int(self._whole.sum()):
            return ""
        first = int(labels[0])
        return (
            f"{n} of {voxels} columns of the betas hold nothing but whole numbers, unlike the others: column {first} first, "
            f"from {self._low[first]:g} to {self._high[first]:g}. If these are labels, runs or the like, leave them out: "
            "they tell which image was seen"
        )


def fill_betas(parts: Sequence[tuple[str, Store, Source]], voxels: int, context: Context) -> NanCount:
    """Fill the betas of all splits (name, store, rows), then judge the NaN in them together: only then may they be
    finished. Raises InputError as ``NanCount`` does."""
    nan = NanCount(voxels)
    located = []
    for split, store, source in parts:

        def locate(row: int, source: Source = source) -> str:
            return source.rows.locate(int(source.index[row]))

        fill_store(store, source, context.named(f"betas, {split}"), nan.looker(locate))
        located.append((store, locate))
    nan.check(located)
    return nan


def _first_nan(stores: Sequence[tuple[Store, Callable[[int], str]]], voxels: Array) -> tuple[str, int]:
    for store, locate in stores:
        for i in range(store.row_groups):
            group = store.group_rows(i)
            for k, row in enumerate(store[group.start : group.stop]):
                found = np.flatnonzero(np.isnan(row) & voxels)
                if len(found):
                    return locate(group.start + k), int(found[0])
    raise AssertionError("the NaN counted are gone")
