"""The pairing of train rows of betas with images that are shown several times.

Targets y [s, t] hold each image once, and ``index`` [n] says which of their rows each row of betas is paired with: the
targets of all rows are Y = y[index]. Their products with a hat matrix H [m, n] need each image once:

    H Y = H' y   with   H'[:, j] = Σ H[:, i] over the rows i that show image j      (m×s)
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from leanrecon.errors import InputError
from leanrecon.memory import buffer
from leanrecon.regression.ridge.triangle import DEPTH
from leanrecon.stores.matrix import panels

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Pairing:
    """The row of the targets [s, t] that each of ``n`` rows of betas is paired with; ``index`` None: row i with row i."""

    n: int
    s: int
    index: Array | None = None

    @classmethod
    def of(cls, stimulus: Sequence[int] | Array | None, n: int, s: int) -> "Pairing":
        """The pairing of ``n`` rows of betas with ``s`` rows of targets.

        Raises InputError where the numbers of rows don't agree or a stimulus is not a row of the targets.
        """
        if stimulus is None:
            if n != s:
                raise InputError(f"{n} rows of betas and {s} rows of targets", expected="the same number of each")
            return cls(n, s)
        index = np.asarray(stimulus)
        if index.shape != (n,) or index.dtype.kind not in "iu":
            raise InputError(
                f"stimulus of shape {index.shape} and type {index.dtype} for {n} rows of betas",
                expected="one whole number for each row: the row of the targets that it shows",
            )
        outside = np.flatnonzero((index < 0) | (index >= s))
        if len(outside):
            row = int(outside[0])
            raise InputError(f"row {row} shows stimulus {index[row]}, and the targets have rows 0 to {s - 1}")
        plain = n == s and np.array_equal(index, np.arange(n))
        return cls(n, s, None if plain else index.astype(np.int64))

    @cached_property
    def counts(self) -> Array:
        """How many rows of betas show each image, float64 [s]."""
        if self.index is None:
            return np.ones(self.s)
        return np.bincount(self.index, minlength=self.s).astype(np.float64)

    @cached_property
    def repeats(self) -> bool:
        """Whether some image is shown more or less often than once."""
        return self.index is not None and (self.n != self.s or bool((self.counts != 1).any()))

    @property
    def weights(self) -> Array | None:
        """How often each row of the targets counts in their moments; None: once."""
        return self.counts if self.repeats else None

    @property
    def largest(self) -> int:
        """The most rows of betas that show one image."""
        return int(self.counts.max(initial=1))

    def shuffled(self, order: Array | None) -> "Pairing":
        """The pairing of row i with the targets of row ``order[i]``."""
        if order is None:
            return self
        return Pairing(self.n, self.s, order if self.index is None else self.index[order])

    def rows_of(self, block: Array, rows: range) -> Array:
        """The targets [len(rows), w] of some rows of betas, from a block [s, w] of the targets."""
        if self.index is None:
            return block[rows.start : rows.stop]
        return block[self.index[rows.start : rows.stop]]

    def expanded(self, block: Array) -> Array:
        """The targets [n, w] of all rows of betas; ``block`` [s, w] is used up."""
        if not self.repeats:
            reorder(block, self.index)
            return block
        assert self.index is not None
        result = buffer((self.n, block.shape[1]), block.dtype)
        np.take(block, self.index, axis=0, out=result, mode="clip")
        return result

    def fold(self, hat: Array, part: Array, rows: range) -> None:
        """Add the columns of a hat matrix for some rows of betas, ``part`` [m, len(rows)], to the folded one [m, s]."""
        assert self.index is not None
        images, place = np.unique(self.index[rows.start : rows.stop], return_inverse=True)
        summed = np.empty((len(part), len(images)), part.dtype)
        for row, new in zip(part, summed, strict=True):
            new[:] = np.bincount(place, row, len(images))
        hat[:, images] += summed

    def companions(self, rows: Array) -> Array:
        """All rows of betas that show an image which some of ``rows`` show, ascending."""
        if not self.repeats:
            return rows
        assert self.index is not None
        return np.flatnonzero(np.isin(self.index, self.index[rows]))


@dataclass(frozen=True)
class Groups:
    """Rows by the image that they show: for each size, the rows of the groups of that size, [groups, size]."""

    sizes: tuple[Array, ...]

    @classmethod
    def of(cls, index: Array) -> "Groups":
        order = np.argsort(index, kind="stable")
        _, starts, counts = np.unique(index[order], return_index=True, return_counts=True)
        sizes = np.unique(counts)
        return cls(tuple(order[starts[counts == r][:, None] + np.arange(r)] for r in sizes))

    @cached_property
    def pairs(self) -> tuple[Array, Array]:
        """All pairs of rows i, j of the same group, i not after j; ordered by size, then by place in the group."""
        both = [
            (rows[:, a], rows[:, b])
            for rows in self.sizes
            for a in range(rows.shape[1])
            for b in range(a, rows.shape[1])
        ]
        left, right = zip(*both, strict=True)
        return np.concatenate(left), np.concatenate(right)

    def inverses(self, entries: Array) -> Iterator[tuple[Array, Array]]:
        """Yield ``(rows [g, r], inverse [g, r, r])``, some groups at a time, of blocks whose ``entries`` are those of ``pairs``.

        Raises LinAlgError where a block is singular.
        """
        offset = 0
        for rows in self.sizes:
            count, r = rows.shape
            at_once = max(DEPTH // r, 1)
            places = [(a, b) for a in range(r) for b in range(a, r)]
            for first in range(0, count, at_once):
                some = rows[first : first + at_once]
                blocks = np.empty((len(some), r, r))
                for k, (a, b) in enumerate(places):
                    start = offset + k * count + first
                    blocks[:, a, b] = blocks[:, b, a] = entries[start : start + len(some)]
                yield some, np.linalg.inv(blocks)
            offset += count * len(places)

    def leave_out(self, residuals: Array, entries: Array) -> None:
        """Turn residuals [n, k] of a fit into those of fits without each row's group, in place.

        ``entries`` are those of I − S of the hat matrix S for ``pairs``: the residuals of group G become
        (I − S_GG)⁻¹ (y_G − ŷ_G).
        """
        for rows, inverse in self.inverses(entries):
            residuals[rows] = inverse.astype(residuals.dtype) @ residuals[rows]


def reorder(block: Array, order: Array | None) -> None:
    """Put the rows of a block of targets in another order, in place, a few columns at a time."""
    for columns in panels(block.shape[1], 64) if order is not None else []:
        part = block[:, columns.start : columns.stop]
        part[:] = part[order]
