"""Inputs of no-brain baselines: the mean first image and prediction, or those of another row."""

from collections.abc import Mapping

import numpy as np

from leanrecon.images import Array
from leanrecon.refinement.inputs import Images, Rows, read_rows
from leanrecon.stores.matrix import panels

AT_ONCE = 8
"""Rows of predictions that are read together for their mean."""


class MeanRow:
    """A matrix in which every row is the mean row of another matrix."""

    def __init__(self, base: Rows) -> None:
        self.shape = base.shape
        n, width = base.shape
        total = np.zeros(width)
        for rows in panels(n, AT_ONCE):
            for row in read_rows(base, rows):
                total += row
        self._mean = (total / n).astype(np.float32)

    def read(self, rows: range, columns: range, out: Array) -> None:
        out[...] = self._mean[columns.start : columns.stop]


class MeanImage:
    """Images that are all the mean of other images."""

    def __init__(self, base: Images) -> None:
        self.rows, self.shape = base.rows, base.shape
        total: Array = np.zeros(base.shape)
        for row in range(base.rows):
            total += base.read(row)
        self._mean: Array = np.rint(total / base.rows).astype(np.uint8)

    def read(self, row: int) -> Array:
        return self._mean


class ReorderedRows:
    """A matrix with its rows in another order."""

    def __init__(self, base: Rows, order: Array) -> None:
        self.base, self.order, self.shape = base, order, base.shape

    def read(self, rows: range, columns: range, out: Array) -> None:
        for k, row in enumerate(rows):
            at = int(self.order[row])
            self.base.read(range(at, at + 1), columns, out[k : k + 1])


class ReorderedImages:
    """Images in another order."""

    def __init__(self, base: Images, order: Array) -> None:
        self.base, self.order = base, order
        self.rows, self.shape = base.rows, base.shape

    def read(self, row: int) -> Array:
        return self.base.read(int(self.order[row]))


def derangement(n: int, seed: int) -> Array:
    """A random order of ``n`` rows that leaves none in its place (Sattolo 1986: one cycle through all rows)."""
    rng = np.random.default_rng([seed, n])
    order = np.arange(n)
    for k in range(n - 1, 0, -1):
        other = rng.integers(k)
        order[k], order[other] = order[other], order[k]
    return order


def prior(first: Images, predicted: Mapping[str, Rows]) -> tuple[Images, dict[str, Rows]]:
    """For every row the mean first image and the mean prediction of each role."""
    return MeanImage(first), {role: MeanRow(rows) for role, rows in predicted.items()}


def shuffled(first: Images, predicted: Mapping[str, Rows], *, seed: int) -> tuple[Images, dict[str, Rows]]:
    """For every row the first image and the predictions of another row."""
    order = derangement(first.rows, seed)
    return ReorderedImages(first, order), {role: ReorderedRows(rows, order) for role, rows in predicted.items()}


def mismatched(first: Images, predicted: Mapping[str, Rows], *, seed: int) -> tuple[Images, dict[str, Rows]]:
    """For every row its own first image, and the predictions of another row."""
    order = derangement(first.rows, seed)
    return first, {role: ReorderedRows(rows, order) for role, rows in predicted.items()}


def without_brain(
    name: str, first: Images, predicted: Mapping[str, Rows], *, seed: int
) -> tuple[Images, dict[str, Rows]]:
    """First images and predictions of the baseline ``prior``, ``shuffled`` or ``mismatched``.

    The baseline ``oracle`` is not made from predictions: the stage passes true features instead.
    """
    if name == "prior":
        return prior(first, predicted)
    if name == "shuffled":
        return shuffled(first, predicted, seed=seed)
    if name == "mismatched":
        return mismatched(first, predicted, seed=seed)
    raise ValueError(f"{name} is not a baseline made from predictions: expected prior, shuffled or mismatched")
