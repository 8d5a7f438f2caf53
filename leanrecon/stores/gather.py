"""Rows of a matrix in any order, each as often as it is asked for: features of images by row of betas."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from leanrecon.memory import scratch
from leanrecon.stores.matrix import PANEL, BlockMatrix, Matrix, RowSubset

Array = np.ndarray[Any, Any]


class RowGather(BlockMatrix):
    """The rows ``index`` of a matrix, in that order; a row may occur more than once."""

    def __init__(self, base: Matrix, index: Sequence[int] | Array) -> None:
        self.base = base
        self.index = np.asarray(index, dtype=np.int64)
        self.shape = (len(self.index), base.shape[1])
        self.dtype = base.dtype
        self.block = base.block

    @property
    def scratch_nbytes(self) -> int:
        return self.base.scratch_nbytes + 2 * self.tile_nbytes

    def read(self, rows: range, columns: range, out: Array) -> None:
        for start in range(rows.start, rows.stop, PANEL):  # a panel at a time, whatever was asked for
            stop = min(start + PANEL, rows.stop)
            different, place = np.unique(self.index[start:stop], return_inverse=True)
            block = scratch((len(different), len(columns)), self.dtype)
            self.base.read_rows(different, columns, block)
            out[start - rows.start : stop - rows.start] = block[place]


def gathered(base: Matrix, index: Array) -> Matrix:
    """The rows ``index`` of a matrix: itself where these are all rows in order, a subset where they ascend."""
    if len(index) == base.shape[0] and np.array_equal(index, np.arange(len(index))):
        return base
    if len(index) and np.all(np.diff(index) > 0):
        return RowSubset(base, index)
    return RowGather(base, index)
