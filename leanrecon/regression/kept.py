"""What several fits of a stage have in common, kept between them so that it is computed once.

Small things are held, large arrays lie in unnamed files that vanish with the process: a run that was killed computes
them again.
"""

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from leanrecon.memory import buffer
from leanrecon.places.disk import explained_disk_errors, write_array

Array = np.ndarray[Any, Any]

KEPT = "kept"
"""The key under which regressors find a ``Kept`` in what their fits share."""

KERNELS = "kernels of folds"
"""The name of the kernels that forms of decoders are compared by."""

VARIANT = ("moments", "gram matrix", "eigenvectors", KERNELS)
"""What holds for the betas of one variant alone."""


class Kept:
    """What earlier fits left for later ones, by name; ``folder`` takes the files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.to_come = 0
        """Fits from the same betas that are still to come: nothing large is written for none."""
        self._found: dict[str, list[Any]] = {}

    def find(self, name: str, same: Callable[[Any], bool]) -> Any:
        """What was kept under a name and is the ``same``; None where nothing is."""
        return next((value for value in self._found.get(name, []) if same(value)), None)

    def add(self, name: str, value: Any) -> None:
        """Keep a value beside others of its name."""
        self._found.setdefault(name, []).append(value)

    def forget(self, *names: str) -> None:
        """Drop what was kept under some names, or everything."""
        for name in names or list(self._found):
            self._found.pop(name, None)


class KeptArray:
    """A copy of an array in an unnamed file."""

    def __init__(self, array: Array, folder: Path) -> None:
        self.shape, self.dtype, self.folder = array.shape, array.dtype, folder
        with explained_disk_errors(folder):
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
            write_array(self._file, array)

    @property
    def nbytes(self) -> int:
        """Bytes of its file."""
        result: int = math.prod(self.shape) * self.dtype.itemsize
        return result

    def load(self) -> Array:
        """The array, in memory of its own."""
        result = buffer(self.shape, self.dtype)
        view = result.reshape(-1).view(np.uint8).data
        self._file.seek(0)
        while view:
            if not (count := self._file.readinto(view)):
                raise OSError("a scratch file is shorter than what was written to it")
            view = view[count:]
        return result
