"""Windows of rows: rows in a new random order every epoch, read some together, so that batches stream from disk."""

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

WINDOW_NBYTES = 64_000_000
"""Bytes of the rows that are read and shuffled together."""

RUN = 32
"""Rows that lie side by side and are read together; windows are made of such runs."""


def window_rows(row_nbytes: int, batch: int) -> int:
    """Rows of a window: whole batches."""
    return max(WINDOW_NBYTES // row_nbytes // batch, 1) * batch


def windows_of(rows: Array, size: int, seed: Sequence[int]) -> list[Array]:
    """The rows of an epoch in random order, in windows whose rows can be read without holding more than one.

    ``seed`` tells the epoch.
    """
    rng = np.random.default_rng(list(seed))
    runs = [rows[start : start + RUN] for start in range(0, len(rows), RUN)]
    order = np.concatenate([runs[k] for k in rng.permutation(len(runs))])
    return [rng.permutation(order[start : start + size]) for start in range(0, len(order), size)]


def batches_of(windows: list[Array], size: int) -> list[tuple[int, slice]]:
    """Window and place of each batch; what is left of a window after whole batches waits for another epoch."""
    found = []
    for w, rows in enumerate(windows):
        count = max(len(rows) // size, 1)
        found += [(w, slice(k * size, min((k + 1) * size, len(rows)))) for k in range(count)]
    return found
