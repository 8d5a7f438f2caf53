"""Inputs without this brain: what the generator makes of the mean prediction, or of another row's."""

from collections.abc import Mapping

import numpy as np

from leanrecon.images import Array
from leanrecon.refinement.inputs import Images, Rows


class MeanRow:
    """A matrix whose every row is the mean of another's."""

    def __init__(self, base: Rows) -> None:
        self.shape = base.shape
        n, width = base.shape
        total, row = np.zeros(width), np.empty((1, width), np.float32)
        for k in range(n):
            base.read(range(k, k + 1), range(width), row)
            total += row[0]
        self._mean = (total / n).astype(np.float32)

    def read(self, rows: range, columns: range, out: Array) -> None:
        out[...] = self._mean[columns.start : columns.stop]


class MeanImage:
    """Images that are all the mean of others."""

    def __init__(self, base: Images) -> None:
        self.rows, self.shape = base.rows, base.shape
        total: Array = np.zeros(base.shape)
        for row in range(base.rows):
            total += base.read(row)
        self._mean: Array = np.rint(total / base.rows).astype(np.uint8)

    def read(self, row: int) -> Array:
        return self._mean


class OtherRows:
    """A matrix with its rows in another order."""

    def __init__(self, base: Rows, order: Array) -> None:
        self.base, self.order, self.shape = base, order, base.shape

    def read(self, rows: range, columns: range, out: Array) -> None:
        for k, row in enumerate(rows):
            at = int(self.order[row])
            self.base.read(range(at, at + 1), columns, out[k : k + 1])


class OtherImages:
    """Images in another order."""

    def __init__(self, base: Images, order: Array) -> None:
        self.base, self.order = base, order
        self.rows, self.shape = base.rows, base.shape

    def read(self, row: int) -> Array:
        return self.base.read(int(self.order[row]))


def another_row(n: int, seed: int) -> Array:
    """An order of ``n`` rows that leaves none in its place (Sattolo 1986: one cycle through all)."""
    rng = np.random.default_rng([seed, n])
    order = np.arange(n)
    for k in range(n - 1, 0, -1):
        other = rng.integers(k)
        order[k], order[other] = order[other], order[k]
    return order


def without_brain(
    name: str, first: Images, predicted: Mapping[str, Rows], *, seed: int
) -> tuple[Images, dict[str, Rows]]:
    """First images and predictions for a baseline: ``prior``, the mean of each; ``shuffled``, those of another row.

    The oracle's inputs are true features, which only whoever holds them can hand over.
    """
    if name == "prior":
        return MeanImage(first), {role: MeanRow(rows) for role, rows in predicted.items()}
    if name != "shuffled":
        raise ValueError(f"{name} is no baseline that predictions alone can give")
    order = another_row(first.rows, seed)
    return OtherImages(first, order), {role: OtherRows(rows, order) for role, rows in predicted.items()}
