"""The test rows of all folds together, where a fold has too few of its own to be compared with each other."""

import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from leanrecon.places.disk import explained_disk_errors, write_array
from leanrecon.stores.matrix import BlockMatrix, Matrix, same_matrix

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Part:
    """Some reconstructions, and the stimuli of all test rows described as these reconstructions are.

    Folds may describe images in features of their own, which can't be compared with those of another fold.
    """

    reconstructions: Matrix
    """[rows, d]"""
    stimuli: Matrix
    """[rows of all parts, d]"""
    first: int = 0
    """The row of ``stimuli`` that the first reconstruction stands for."""
    most: int = 0
    """Rows that are correlated at once, at most; 0: as many as there are stimuli, if their width allows."""

    @property
    def rows(self) -> int:
        return self.reconstructions.shape[0]


def joined(parts: Sequence[Part]) -> list[Part]:
    """The same parts with neighbours joined that are compared with the same stimuli, so that these are read once."""
    runs: list[list[Part]] = []
    for part in parts:
        if runs and same_matrix(runs[-1][0].stimuli, part.stimuli):
            runs[-1].append(part)
        else:
            runs.append([part])
    return [replace(run[0], reconstructions=stacked([part.reconstructions for part in run])) for run in runs]


def stacked(matrices: Sequence[Matrix]) -> Matrix:
    """The rows of matrices one below the other."""
    return matrices[0] if len(matrices) == 1 else Stacked(matrices)


class Stacked(BlockMatrix):
    """The rows of several matrices of the same columns, one below the other."""

    def __init__(self, matrices: Sequence[Matrix]) -> None:
        self.matrices = matrices
        self.starts = np.cumsum([0, *(matrix.shape[0] for matrix in matrices)])
        self.shape = (int(self.starts[-1]), matrices[0].shape[1])
        self.dtype = matrices[0].dtype
        self.block = matrices[0].block

    @property
    def scratch_nbytes(self) -> int:
        return max(matrix.scratch_nbytes for matrix in self.matrices)

    def read(self, rows: range, columns: range, out: Array) -> None:
        at = rows.start
        while at < rows.stop:
            k = int(np.searchsorted(self.starts, at, side="right")) - 1
            start, end = int(self.starts[k]), min(int(self.starts[k + 1]), rows.stop)
            self.matrices[k].read(range(at - start, end - start), columns, out[at - rows.start : end - rows.start])
            at = end


class Spool:
    """Rows of bytes on disk for a while, in one unnamed file, so that memory does not grow with their number."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with explained_disk_errors(folder):
            self._file = tempfile.TemporaryFile("w+b", buffering=0, dir=folder)  # noqa: SIM115
        self._end = 0
        self._lock = threading.Lock()

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def rows(self, m: int, columns: int) -> "SpooledRows":
        """Room for ``m`` rows of ``columns`` bytes."""
        start, self._end = self._end, self._end + m * columns
        return SpooledRows(self, start, (m, columns))

    def clear(self) -> None:
        """Forget all rows, and give their room back."""
        self._file.truncate(0)
        self._end = 0

    def write(self, at: int, data: Array) -> None:
        with self._lock, explained_disk_errors(self._folder):
            self._file.seek(at)
            write_array(self._file, data)

    def read(self, at: int, out: Array) -> None:
        with self._lock, explained_disk_errors(self._folder):
            self._file.seek(at)
            view = out.data.cast("B")
            while len(view):
                view = view[self._file.readinto(view) or len(view) :]


class SpooledRows(BlockMatrix):
    """uint8 [rows, columns] in a spool."""

    dtype = np.dtype(np.uint8)

    def __init__(self, spool: Spool, start: int, shape: tuple[int, int]) -> None:
        self._spool, self._start, self.shape, self.block = spool, start, shape, shape[1]

    def write(self, row: int, data: Array) -> None:
        self._spool.write(self._start + row * self.shape[1], data)

    def read(self, rows: range, columns: range, out: Array) -> None:
        self.read_rows(np.arange(rows.start, rows.stop), columns, out)

    def read_rows(self, index: Array, columns: range, out: Array) -> None:
        memory = np.empty(self.shape[1], np.uint8)
        for k, row in enumerate(index.tolist()):  # one at a time: callers hold the panel in another type
            self._spool.read(self._start + row * self.shape[1], memory)
            out[k] = memory[columns.start : columns.stop]
