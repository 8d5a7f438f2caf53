"""Blocks of volumes as rows: detrended, shifted by the lag of the response, in percent of the rest before them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from leanrecon.datasets.files.nifti import NiftiRows
from leanrecon.datasets.files.rows import Block, Rows
from leanrecon.errors import InputError
from leanrecon.places.inputs import InputFile

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Blocks:
    """The volumes of a run that are averaged, with the lag already added."""

    rows: list[list[int]]
    """Volumes of each row."""
    rest: list[int]
    """Volumes of the rest before the first stimulus, which percent signal change refers to."""


def stimulus_blocks(labels: Array, lag: int, *, by_volume: bool) -> Blocks:
    """Find blocks of equal neighbouring patterns, int [volumes, pixels] with -1 at rest; volumes past the end are left out."""
    volumes = len(labels)
    rest = labels[:, 0] < 0
    if rest.all() or not rest[0]:
        raise InputError("a run has no rest before its first stimulus, or no stimulus", expected="rest, then blocks")
    first = int(np.argmin(rest))
    blocks: list[list[int]] = []
    for volume in range(first, volumes):
        if rest[volume] or volume + lag >= volumes:
            continue
        same = not by_volume and not rest[volume - 1] and np.array_equal(labels[volume], labels[volume - 1])
        if same and blocks:
            blocks[-1].append(volume + lag)
        else:
            blocks.append([volume + lag])
    return Blocks(blocks, list(range(lag, first + lag)))


class BlockRows(Rows):
    """Means of blocks of volumes in percent signal change: float32 [blocks of all runs, voxels].

    One run is held: its volumes are read once, and a straight line is taken off every voxel, but for its mean.
    """

    sequential = True

    def __init__(self, runs: Sequence[NiftiRows], blocks: Sequence[Blocks]) -> None:
        self.runs, self.found = list(runs), list(blocks)
        self.starts = np.cumsum([0, *(len(of.rows) for of in blocks)])
        super().__init__(runs[0].path.parent, None, (int(self.starts[-1]), runs[0].shape[1]), np.float32)
        longest = max(len(run) for run in runs)
        self.held = max(run.held for run in runs)
        self.scratch = max(run.scratch for run in runs) + longest * self.shape[1] * (4 + 3 * 8)
        self._run = -1
        self._rows: Array | None = None

    def blocks(self, index: Array) -> Iterator[Block]:
        for run, start in enumerate(self.starts[:-1].tolist()):
            a, b = (int(at) for at in np.searchsorted(index, [start, self.starts[run + 1]]))
            if a < b:
                yield slice(a, b), (), self._of(run)[index[a:b] - start]

    def _of(self, run: int) -> Array:
        if self._run != run or self._rows is None:
            nifti, found = self.runs[run], self.found[run]
            volumes = nifti[0 : len(nifti)].astype(np.float64)
            nifti.release()
            self._rows = percent_change(detrended(volumes), found)
            self._run = run
        return self._rows

    def locate(self, row: int) -> str:
        run = int(np.searchsorted(self.starts, row, side="right")) - 1
        return f"block {row - int(self.starts[run])} of {self.runs[run].name}"

    def release(self) -> None:
        self._rows, self._run = None, -1


def detrended(volumes: Array) -> Array:
    """Take the straight line of least squares off every column, but for its mean: float64 [volumes, voxels]."""
    time = np.arange(len(volumes)) - (len(volumes) - 1) / 2
    slope = time @ volumes / (time @ time)
    volumes -= time[:, None] * slope
    return volumes


def percent_change(volumes: Array, blocks: Blocks) -> Array:
    """Means of blocks in percent of the rest: float32 [blocks, voxels]; NaN where the rest is not above 0."""
    rest = volumes[blocks.rest].mean(axis=0)
    means = np.stack([volumes[rows].mean(axis=0) for rows in blocks.rows])
    percent = np.full(means.shape, np.nan)
    np.divide(100 * (means - rest), rest, out=percent, where=rest > 0)
    changes: Array = percent.astype(np.float32)
    return changes


class InMemory(Rows):
    """A small array as rows."""

    def __init__(self, path: InputFile, array: Array) -> None:
        super().__init__(path, None, array.shape, array.dtype)
        self.array = array
        self.held = array.nbytes

    def blocks(self, index: Array) -> Iterator[Block]:
        yield slice(0, len(index)), (), self.array[index]
