"""Arrays whose rows lie along the last axis, as MATLAB's often do."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from leanrecon.datasets.files.rows import Block, Rows
from leanrecon.errors import InputError

Array = np.ndarray[Any, Any]


class Turned(Rows):
    """The last axis of another array as rows, the first one last: [..., rows] as [rows, ...]. It is held whole."""

    def __init__(self, base: Rows) -> None:
        if len(base.shape) < 2:
            raise InputError(
                f"{base.name} has shape {base.shape}", expected="two axes or more, the last of which is rows"
            )
        super().__init__(base.path, base.key, (base.shape[-1], *base.shape[:-1]), base.dtype, base.kind)
        self.base = base
        self.held = base.held + len(base) * base.row_nbytes
        self.scratch = base.scratch
        self._whole: Array | None = None

    def blocks(self, index: Array) -> Iterator[Block]:
        if self._whole is None:
            self._whole = np.moveaxis(self.base[0 : len(self.base)], -1, 0)
            self.base.release()
        yield slice(0, len(index)), (), self._whole[index]

    def release(self) -> None:
        self._whole = None
        self.base.release()

    def close(self) -> None:
        self.release()
        self.base.close()
