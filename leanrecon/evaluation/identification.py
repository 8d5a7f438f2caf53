"""Identification: does a reconstruction, or a prediction, find its own stimulus among others?"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from leanrecon.evaluation.bootstrap import Scores
from leanrecon.memory import buffer
from leanrecon.stores.matrix import Matrix, panels

Array = np.ndarray[Any, Any]

PANEL_NBYTES = 48_000_000
"""Most bytes of a panel of float32 rows that are correlated with another at once, if that is 16 rows or more."""

MOST_ROWS = 2560
"""Most rows of a panel: narrow rows have as many correlations with each other as wide ones."""

TIE = 1e-6
"""Correlations nearer to each other than this are ties, which lose: float32 products differ by as much."""


def panel_rows(m: int, columns: int) -> int:
    """Rows of a panel: arithmetic on the shape alone, so that no budget changes a product."""
    return min(m, MOST_ROWS, max(PANEL_NBYTES // (4 * columns), 16))


def identify_nbytes(m: int, columns: int) -> int:
    """Memory that ``identify`` takes, in bytes: two panels of rows, their correlations, and what reading one takes."""
    rows = panel_rows(m, columns)
    return 3 * rows * columns * 4 + rows * rows * (4 + 3) + 16 * m * 8


def identify(reconstructions: Matrix, stimuli: Matrix, names: Sequence[str], what: str) -> Scores | None:
    """Identify by Pearson correlation of rows, reconstructions [m, d] with stimuli [m, d].

    ``two_way_WHAT``: the share of other stimuli that a reconstruction is less like than its own; ties lose.
    ``top1_WHAT``: 1 where it is less like all of them. ``…_reverse``: the same for a stimulus among the reconstructions.
    ``names`` says which stimulus a row shows: rows of the same one are no distractors to each other. None where
    all show the same.
    """
    _, kind = np.unique(np.asarray(names), return_inverse=True)
    m, kinds = len(kind), int(kind.max()) + 1
    if kinds < 2:
        return None
    others = (m - np.bincount(kind)[kind]).astype(np.float64)
    own = _own_correlations(reconstructions, stimuli) - TIE
    wins, wins_reverse = np.zeros(m), np.zeros(m)
    for rows, columns, r in _correlations(reconstructions, stimuli):
        a, b = slice(rows.start, rows.stop), slice(columns.start, columns.stop)
        distractor = kind[a, None] != kind[None, b]
        wins[a] += np.count_nonzero((own[a, None] > r) & distractor, axis=1)
        wins_reverse[b] += np.count_nonzero((own[None, b] > r) & distractor, axis=0)
    return Scores(
        {
            f"two_way_{what}": wins / others,
            f"two_way_{what}_reverse": wins_reverse / others,
            f"top1_{what}": (wins == others).astype(np.float64),
            f"top1_{what}_reverse": (wins_reverse == others).astype(np.float64),
        },
        {
            f"two_way_{what}": 0.5,
            f"two_way_{what}_reverse": 0.5,
            f"top1_{what}": 1 / kinds,
            f"top1_{what}_reverse": float(np.mean(1 / (1 + others))),
        },
    )


def unit_rows(matrix: Matrix, rows: range, memory: Array) -> Array:
    """Rows less their mean, of length 1, in float32; constant rows become zeros, which correlate with nothing."""
    result = memory[: len(rows)]
    matrix.read(rows, range(matrix.shape[1]), result)
    for row in result:
        constant = row.min() == row.max()
        row -= row.mean(dtype=np.float64).astype(np.float32)
        row *= 0 if constant else np.float32(1 / np.sqrt(np.einsum("i,i", row, row, dtype=np.float64)))
    return result


def _memories(a: Matrix) -> tuple[int, Array, Array]:
    m, columns = a.shape
    size = panel_rows(m, columns)
    return size, buffer((size, columns), np.float32), buffer((size, columns), np.float32)


def _own_correlations(reconstructions: Matrix, stimuli: Matrix) -> Array:
    size, one, two = _memories(stimuli)
    own = np.empty(stimuli.shape[0])
    for rows in panels(stimuli.shape[0], size):
        a, b = unit_rows(reconstructions, rows, one), unit_rows(stimuli, rows, two)
        own[rows.start : rows.stop] = np.einsum("ij,ij->i", a, b, dtype=np.float64)
    return own


def _correlations(reconstructions: Matrix, stimuli: Matrix) -> Iterator[tuple[range, range, Array]]:
    """Yield ``(rows, columns, r)``: Pearson correlations of some reconstructions with some stimuli."""
    size, one, two = _memories(stimuli)
    parts = panels(stimuli.shape[0], size)
    for rows in parts:
        a = unit_rows(reconstructions, rows, one)
        for columns in parts:
            yield rows, columns, a @ unit_rows(stimuli, columns, two).T
