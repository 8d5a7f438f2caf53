"""Judges that compare two images at a time: what is kept of a reconstruction is distances, not an embedding."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from leanrecon.evaluation.bootstrap import Scores
from leanrecon.evaluation.image_sources import ImageSource
from leanrecon.evaluation.judges.judge import Judge
from leanrecon.evaluation.pool import Part
from leanrecon.images import Array
from leanrecon.stores.matrix import panels

KEPT = 2
"""Distances that are kept of a reconstruction: to its own stimulus, and to one other, for the chance level."""

NO_OTHER = -1
"""The number, and the distance, of the other stimulus where all rows show the same one."""

_AT_ONCE = 4096  # rows


@dataclass(frozen=True)
class Seen:
    """The stimuli of some test rows, among which the rows that are compared are a run."""

    images: ImageSource
    rows: int
    first: int = 0
    """The first of the rows that are compared."""

    def numbers(self, m: int) -> tuple[Array, Array]:
        """The number of the own stimulus, and that of another one, of each of ``m`` rows that are compared, int [m]."""
        every = self.images.numbers(self.rows)
        here = slice(self.first, self.first + m)
        return every[here], wrong_pairs(every)[here]

    def rows_of(self, numbers: Array) -> Array:
        """A row that shows each stimulus of these numbers."""
        every, row_of = np.unique(self.images.numbers(self.rows), return_index=True)
        rows: Array = row_of[np.searchsorted(every, numbers)]
        return rows


class ComparesPairs(Judge, Protocol):
    """A judge with ``dims`` of ``KEPT`` and the measure perceptual."""

    def compare(self, drawn: Array, seen: Array, pairs: Array) -> Array:
        """Distances float32 [b, k] of images.

        ``drawn`` are uint8 [b, height, width, channels], ``seen`` uint8 [s, …], and ``pairs`` int [b, k] says which of
        the seen images each drawn one is compared with.
        """


def seen_in(stimuli: ImageSource, m: int, every: Seen | None) -> Seen:
    """The stimuli of ``m`` rows themselves; those of all folds where these rows show a single one."""
    alone = len(np.unique(stimuli.numbers(m))) == 1
    return every if every is not None and alone else Seen(stimuli, m)


def wrong_pairs(seen: Array) -> Array:
    """The number of another stimulus for each row, int [m]: the next larger one of ``seen``, after the last the first."""
    every = np.unique(seen)
    if len(every) == 1:
        return np.full(len(seen), NO_OTHER)
    other: Array = every[(np.searchsorted(every, seen) + 1) % len(every)]
    return other


def pair_distances(parts: Sequence[Part], names: Sequence[str], suffix: str) -> Scores:
    """``perceptual_SUFFIX``: the distance of reconstructions and their stimuli, as the judge gives it.

    ``parts`` hold the kept distances. The chance level is the mean distance of a reconstruction to another stimulus, over
    one such pair a row; there is none where all rows show the same stimulus.
    """
    kept = np.empty((sum(part.rows for part in parts), KEPT), np.float32)
    for part in parts:
        for rows in panels(part.rows, _AT_ONCE):
            at = slice(part.first + rows.start, part.first + rows.stop)
            part.reconstructions.read(rows, range(KEPT), kept[at])
    key = f"perceptual_{suffix}"
    scores = Scores({key: kept[:, 0].astype(np.float64)})
    if len(wrong := kept[kept[:, 1] != NO_OTHER, 1]):
        scores.chance[key] = float(wrong.mean(dtype=np.float64))
    return scores
