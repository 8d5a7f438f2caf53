"""Rows that show the same image: found by the ids of images, counted, and averaged while they are read."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np

from leanrecon.datasets.files.rows import Block, Convert, Derived, Rows
from leanrecon.datasets.splits import rows_of
from leanrecon.memory import buffer
from leanrecon.study.rows import SplitRows, joined_groups

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Repeats:
    """The rows of one split as they lie in files, and the image that each shows."""

    index: Array
    """Rows of the array, ascending."""
    ids: list[str]
    """Id of the image of each of these rows."""
    averaged: bool
    """Whether the rows of an image become one row of betas."""
    runs: Array | None = None
    """The run of each of these rows."""
    place: Mapping[str, int] | None = None
    """Where each image lies in its file, which images are ordered by; None: they are in order of first appearance."""
    sets: Mapping[str, str] | None = None
    """The name of the test set that each image is of, where there are several."""

    @cached_property
    def rows(self) -> dict[str, list[int]]:
        """The places in ``index`` of each image, ascending; images in the order of their file or of first appearance."""
        found = rows_of(self.ids)
        return (
            found if self.place is None else {name: found[name] for name in sorted(found, key=self.place.__getitem__)}
        )

    @property
    def repeated(self) -> bool:
        """Whether any image has several rows."""
        return len(self.rows) < len(self.ids)

    @property
    def images(self) -> list[str]:
        """The id of each image once."""
        return list(self.rows)

    @property
    def first(self) -> Array:
        """The row of the array in which each image appears first, in the order of ``images``."""
        return self.index[[places[0] for places in self.rows.values()]]

    @property
    def shown_rows(self) -> list[list[int]]:
        """The rows of the array that show each image, ascending; in the order of ``images``."""
        return [self.index[places].tolist() for places in self.rows.values()]

    @property
    def trials(self) -> list[list[int]]:
        """The rows of the array that each row of betas is made of."""
        if self.averaged:
            return self.shown_rows
        return [[int(row)] for row in self.index]

    def responses(self, base: Rows, *, rescaled: bool) -> "tuple[Rows, Array]":
        """The rows that become rows of betas, and which of them: those of ``base``, or means over them.

        ``rescaled`` multiplies a mean of k rows by √k.
        """
        if not self.averaged:
            return base, self.index
        trials = self.trials
        scale = np.sqrt([len(of) for of in trials]) if rescaled else None
        return Averaged(base, trials, scale), np.arange(len(trials))

    def record(self) -> SplitRows:
        """The rows of betas as rows.json tells of them."""
        trials = self.trials
        if self.averaged:
            stimulus = np.arange(len(self.rows))
        else:
            number = {name: k for k, name in enumerate(self.rows)}
            stimulus = np.array([number[name] for name in self.ids], np.int64)
        runs = None if self.runs is None or self.averaged else self.runs.tolist()
        shown = self.images if self.averaged else self.ids
        sets = None if self.sets is None else [self.sets[name] for name in shown]
        return SplitRows(stimulus, trials, [len(of) for of in trials], run=runs, test_set=sets)

    def groups(self, *, by_run: bool, equal: Mapping[str, str] | None = None) -> list[str]:
        """What folds keep together, for each row of betas: the image, or whatever runs join.

        ``equal`` names, for images that are the same as another one, that other image.
        """
        kept = [places[0] for places in self.rows.values()] if self.averaged else list(range(len(self.ids)))
        ids = [equal.get(name, name) for name in self.ids] if equal else self.ids
        if not by_run or self.runs is None:
            return [ids[place] for place in kept]
        joined = joined_groups(ids, self.runs.tolist())
        return [str(joined[place]) for place in kept]

    def captions(self, rows: Sequence[Sequence[str]]) -> list[list[str]]:
        """The captions of each image: of its first row, then what its other rows add. ``rows``: those of the whole array."""
        found = []
        for places in self.rows.values():
            first, *others = ([*rows[int(self.index[place])]] for place in places)
            for texts in others:
                first += [text for text in texts if text not in first]
            found.append(first)
        return found

    def part(self, places: Array) -> Self:
        """Some of the rows."""
        runs = None if self.runs is None else self.runs[places]
        return replace(self, index=self.index[places], ids=[self.ids[place] for place in places], runs=runs)


class Averaged(Derived):
    """Means over rows of an array: row k is the mean of the rows ``trials[k]``, taken in float64, times ``scale[k]``."""

    working = 3
    """Bytes for each byte of the float32 rows read: these rows, and their sums in float64."""

    def __init__(self, base: Rows, trials: Sequence[Sequence[int]], scale: Array | None = None) -> None:
        super().__init__(base, (len(trials), *base.shape[1:]), base.shape[1] * 8)
        self.trials = trials
        self.scale = np.ones(len(trials)) if scale is None else scale

    def read(self, index: Array, out: Array, convert: Convert | None = None) -> None:
        """Fill ``out`` with the means ``index``. Sums run over rows in ascending order, however they are read."""
        rows = np.array([row for k in index for row in self.trials[k]], np.int64)
        of = np.repeat(np.arange(len(index)), [len(self.trials[k]) for k in index])
        order = np.argsort(rows, kind="stable")
        rows, of = rows[order], of[order]
        sums = buffer(out.shape, np.float64)
        for place, rest, block in self.base.blocks(rows):
            for k, values in zip(of[place].tolist(), convert(block) if convert else block, strict=True):
                sums[(k, *rest)] += values
        for k, row in enumerate(index):
            sums[k] *= self.scale[row]
            sums[k] /= len(self.trials[row])
        with np.errstate(over="ignore"):  # a mean beyond float32 becomes infinite, which is refused later
            np.copyto(out, sums, casting="unsafe")

    def blocks(self, index: Array) -> Iterator[Block]:
        out = np.empty((len(index), *self.shape[1:]), np.float32)
        self.read(index, out)
        yield slice(0, len(index)), (), out

    def locate(self, row: int) -> str:
        trials = self.trials[row]
        if len(trials) == 1:
            return self.base.locate(trials[0])
        return f"the mean of rows {', '.join(map(str, trials[:-1]))} and {trials[-1]} of {self.base.name}"
