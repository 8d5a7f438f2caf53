"""Rows that go through a small network together, always at the same places, so that none depends on the others."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from leanrecon.features.space import Array, Rows

PANEL = 16
"""Rows of a panel. Row r lies at r mod 16, and what is not asked for is filled up: sums are then added up in the same
order whatever else is asked for."""


@dataclass(frozen=True)
class Panel:
    """Rows that go together."""

    asked: slice
    """Which of those that are asked for."""
    rows: Array
    """The number of the row at each place."""
    places: Array
    """Where those that are asked for lie."""

    def filled(self, every: Array) -> Array:
        """Its part of an array with a row for each that is asked for, and zeros at the other places."""
        asked = every[self.asked]
        if len(asked) == len(self.rows):
            return asked
        filled = np.zeros((len(self.rows), *every.shape[1:]), every.dtype)
        filled[self.places] = asked
        return filled


def panels(rows: Rows, size: int) -> Iterator[Panel]:
    """Cut rows with these numbers, in any order, into panels of ``size``."""
    numbers, start = np.asarray(rows, np.int64), 0
    for end in range(1, len(numbers) + 1):
        first = numbers[start] // size * size
        if end == len(numbers) or not numbers[end - 1] < numbers[end] < first + size:
            yield Panel(slice(start, end), np.arange(first, first + size), numbers[start:end] - first)
            start = end
