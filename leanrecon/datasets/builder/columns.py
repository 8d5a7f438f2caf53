"""Rows made of other rows: some of their columns, z-scored by group, or staged in a store."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from leanrecon.datasets.files.rows import BLOCK, Block, Derived, Rows, row_blocks
from leanrecon.stores.store import Store

Array = np.ndarray[Any, Any]


class Columns(Derived):
    """Some columns of an array, ascending: float32 [rows, columns]."""

    def __init__(self, base: Rows, columns: Array) -> None:
        super().__init__(base, (len(base), len(columns)), max(BLOCK, 4 * base.shape[1]) + 8 * len(columns))
        self.columns = columns

    def blocks(self, index: Array) -> Iterator[Block]:
        whole = len(self.columns) == self.base.shape[1]
        for rows, rest, block in self.base.blocks(index):
            if whole:
                yield rows, rest, block
                continue
            start, stop = (
                (rest[0].start, rest[0].stop) if rest and isinstance(rest[0], slice) else (0, self.base.shape[1])
            )
            a, b = (int(at) for at in np.searchsorted(self.columns, [start, stop]))
            if a < b:
                picked: Array = self.columns[a:b] - start
                yield rows, (slice(a, b),), block[:, picked]


class StoreRows(Rows):
    """The rows of a complete store."""

    def __init__(self, store: Store, name: str) -> None:
        super().__init__(store.path.workplace(), None, store.shape, store.dtype)
        self.store = store
        self.name = name
        self.scratch = 3 * store.buffer_nbytes()

    def blocks(self, index: Array) -> Iterator[Block]:
        for rows, first, last, picks in row_blocks(index, max(BLOCK // max(self.row_nbytes, 1), 1)):
            yield rows, (), self.store[first:last][picks]

    def locate(self, row: int) -> str:
        return f"trial {row} of {self.name}"


class Levels:
    """Mean and standard deviation of every voxel in every group of trials, summed row by row in float64."""

    def __init__(self, groups: Array, columns: int, used: Array) -> None:
        self.groups = groups
        n = int(groups.max()) + 1
        self.counts = np.bincount(groups[used], minlength=n)[:, None]
        self.shift = np.zeros((n, columns))
        self.sums, self.squares = np.zeros((2, n, columns))
        self._seen = np.zeros(n, bool)
        self._used = used

    def look(self, group: range, block: Array) -> None:
        """Count rows in: those that are used, in ascending order."""
        for row, values in zip(group, block, strict=True):
            if self._used[row]:
                k = self.groups[row]
                if not self._seen[k]:
                    self.shift[k], self._seen[k] = values, True
                centred = values - self.shift[k]
                self.sums[k] += centred
                self.squares[k] += centred * centred

    def finish(self) -> "Levels":
        """Turn sums into means and population standard deviations."""
        n = np.maximum(self.counts, 1)
        mean = self.sums / n
        self.squares = np.sqrt(np.maximum(self.squares / n - mean * mean, 0))
        self.sums = mean + self.shift
        return self

    def apply(self, row: int, values: Array) -> Array:
        """The z-scores of one row; what is constant in its group becomes 0."""
        k = self.groups[row]
        centred = values - self.sums[k]
        z: Array = np.divide(centred, self.squares[k], out=np.zeros_like(centred), where=self.squares[k] > 0)
        return z.astype(np.float32)


class Standardised(Derived):
    """Rows of an array, z-scored by the levels of their groups."""

    def __init__(self, base: Rows, levels: Levels) -> None:
        super().__init__(base, base.shape, 2 * max(BLOCK, 4 * base.shape[1]))
        self.levels = levels

    def blocks(self, index: Array) -> Iterator[Block]:
        at_once = max(BLOCK // max(4 * self.shape[1], 1), 1)
        for start in range(0, len(index), at_once):
            own = index[start : start + at_once]
            block = np.empty((len(own), self.shape[1]), np.float32)
            self.base.read(own, block)
            for k, row in enumerate(own.tolist()):
                block[k] = self.levels.apply(row, block[k])
            yield slice(start, start + len(own)), (), block
