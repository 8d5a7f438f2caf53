"""Rows of an array in any order."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from leanrecon.datasets.files.rows import BLOCK, Convert, Rows

Array = np.ndarray[Any, Any]


class Picked(Rows):
    """The rows ``index`` of an array, in that order: what is read together is read in the order of its file.

    ``convert`` turns blocks of numbers as they come into those of ``shape`` and ``dtype``.
    """

    def __init__(
        self,
        base: Rows,
        index: Sequence[int] | Array,
        shape: Sequence[int] | None = None,
        dtype: Any = None,
        convert: Convert | None = None,
    ) -> None:
        self.index = np.asarray(index, np.int64)
        own = base.shape[1:] if shape is None else shape
        super().__init__(base.path, base.key, (len(self.index), *own), base.dtype if dtype is None else dtype)
        self.base, self.convert = base, convert
        self.name, self.together, self.held, self.scratch = base.name, base.together, base.held, base.scratch

    def read(self, index: Array, out: Array, convert: Convert | None = None) -> None:
        """Fill ``out`` with the rows ``index``; the file is read in ascending order, each row once."""
        different, place = np.unique(self.index[index], return_inverse=True)
        at_once = max(BLOCK // max(self.base.row_nbytes, 1), 1)
        for start in range(0, len(different), at_once):
            own = different[start : start + at_once]
            memory = np.empty((len(own), *self.base.shape[1:]), self.base.dtype)
            self.base.read(own, memory)
            values = (self.convert(memory) if self.convert else memory).reshape(len(own), *self.shape[1:])
            with np.errstate(over="ignore"):  # what doesn't fit becomes infinite, which is looked for later
                for k in np.flatnonzero((place >= start) & (place < start + len(own))).tolist():
                    out[k] = values[place[k] - start]

    def locate(self, row: int) -> str:
        return self.base.locate(int(self.index[row]))

    def release(self) -> None:
        self.base.release()
