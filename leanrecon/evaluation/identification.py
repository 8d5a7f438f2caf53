"""Identification and distance by the correlation of rows: is a reconstruction nearest to its own stimulus?"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from leanrecon.evaluation.bootstrap import Scores
from leanrecon.evaluation.plan import panel_rows
from leanrecon.evaluation.pool import Part
from leanrecon.memory import buffer
from leanrecon.stores.matrix import Matrix, panels

Array = np.ndarray[Any, Any]

TIE = 1e-6
"""Correlations nearer to each other than this are ties, which lose: float32 products differ by as much."""


def identify(parts: Sequence[Part], names: Sequence[str], suffix: str) -> Scores | None:
    """Identify the reconstructions of all parts among the stimuli of all parts by Pearson's r.

    ``two_way_SUFFIX``: the share of other stimuli that a reconstruction is less like than its own; ties lose.
    ``top1_SUFFIX``: 1 where it is less like all of them. ``…_reverse``: the same for a stimulus among the reconstructions.
    ``names`` says which stimulus a row shows: rows of the same one are not distractors of each other. None where
    all show the same.
    """
    stimulus, others = _others(names)
    if not others.all():
        return None
    n_stimuli = int(stimulus.max()) + 1
    wins, wins_reverse, _ = wins_of(parts, names)
    return Scores(
        {
            f"two_way_{suffix}": wins / others,
            f"two_way_{suffix}_reverse": wins_reverse / others,
            f"top1_{suffix}": (wins == others).astype(np.float64),
            f"top1_{suffix}_reverse": (wins_reverse == others).astype(np.float64),
        },
        {
            f"two_way_{suffix}": 0.5,
            f"two_way_{suffix}_reverse": 0.5,
            f"top1_{suffix}": 1 / n_stimuli,
            f"top1_{suffix}_reverse": float(np.mean(1 / (1 + others))),
        },
    )


def wins_of(parts: Sequence[Part], names: Sequence[str], *, centred: bool = True) -> tuple[Array, Array, Array]:
    """How many rows of other stimuli each reconstruction is less like than its own, and each stimulus in turn.

    By Pearson's r, or by the cosine where rows are not ``centred``; ties are not wins. With them how many rows show
    another stimulus; all float64 [m].
    """
    stimulus, others = _others(names)
    own = paired_correlations(parts, centred=centred) - TIE
    wins, wins_reverse = np.zeros(len(stimulus)), np.zeros(len(stimulus))
    for rows, columns, r in all_correlations(parts, centred=centred):
        a, b = slice(rows.start, rows.stop), slice(columns.start, columns.stop)
        distractor = stimulus[a, None] != stimulus[None, b]
        wins[a] += np.count_nonzero((own[a, None] > r) & distractor, axis=1)
        wins_reverse[b] += np.count_nonzero((own[None, b] > r) & distractor, axis=0)
    return wins, wins_reverse, others


def distances(parts: Sequence[Part], names: Sequence[str], suffix: str) -> Scores:
    """``distance_SUFFIX``: the correlation distance, 1 − Pearson's r, of reconstructions and their stimuli.

    A constant row has a distance of 1 to every other. The chance level is the mean over all pairs of a reconstruction
    and another stimulus; there is none where all rows show the same one.
    """
    key = f"distance_{suffix}"
    scores = Scores({key: 1 - paired_correlations(parts)})
    stimulus, others = _others(names)
    if others.any():
        total = 0.0
        for rows, columns, r in all_correlations(parts):
            mismatched = stimulus[rows.start : rows.stop, None] != stimulus[None, columns.start : columns.stop]
            total += float(np.sum(r, dtype=np.float64, where=mismatched))
        scores.chance[key] = 1 - total / float(others.sum())
    return scores


def squared_differences(parts: Sequence[Part], names: Sequence[str], suffix: str) -> Scores:
    """``mse_SUFFIX``: the mean squared difference of rows of reconstructions and of their stimuli.

    The chance level is the mean over all pairs of a reconstruction and another stimulus; there is none where all rows
    show the same one.
    """
    key = f"mse_{suffix}"
    stimulus, others = _others(names)
    own, total = np.empty(len(stimulus)), 0.0
    for part in parts:
        size, one, two = _memories(part)
        for rows in panels(part.rows, size):
            shown = range(part.first + rows.start, part.first + rows.stop)
            a, less = _read(part.reconstructions, rows, one), _read(part.stimuli, shown, two)
            less -= a
            own[shown.start : shown.stop] = _squares(less)
            here = slice(shown.start, shown.stop)
            total += float(_squares(a) @ others[here])
            for columns in panels(part.stimuli.shape[0], size):
                b = _read(part.stimuli, columns, two)
                mismatched = stimulus[here, None] != stimulus[None, columns.start : columns.stop]
                total += float(_squares(b) @ np.count_nonzero(mismatched, axis=0))
                total -= 2 * float(np.sum(a @ b.T, dtype=np.float64, where=mismatched))
    d = parts[0].stimuli.shape[1]
    scores = Scores({key: own / d})
    if others.any():
        scores.chance[key] = total / d / float(others.sum())
    return scores


def _squares(rows: Array) -> Array:
    """The sum of squares of each row, float64."""
    found: Array = np.einsum("ij,ij->i", rows, rows, dtype=np.float64)
    return found


def _read(matrix: Matrix, rows: range, memory: Array) -> Array:
    """Rows as they are, float32."""
    result = memory[: len(rows)]
    matrix.read(rows, range(matrix.shape[1]), result)
    return result


def _others(names: Sequence[str]) -> tuple[Array, Array]:
    """The number of each row's stimulus, int [m], and how many rows show another one, float64 [m]."""
    stimulus = np.unique(np.asarray(names), return_inverse=True)[1]
    return stimulus, (len(stimulus) - np.bincount(stimulus)[stimulus]).astype(np.float64)


def unit_rows(matrix: Matrix, rows: range, memory: Array, *, centred: bool) -> Array:
    """Rows less their mean, of length 1, in float32; constant rows become zeros, which correlate with nothing.

    Not ``centred``: rows of length 1 alone, for the cosine; rows of zeros stay.
    """
    result = _read(matrix, rows, memory)
    for row in result:
        constant = row.min() == row.max() if centred else not row.any()
        if centred:
            row -= row.mean(dtype=np.float64).astype(np.float32)
        row *= 0 if constant else np.float32(1 / np.sqrt(np.einsum("i,i", row, row, dtype=np.float64)))
    return result


def paired_correlations(parts: Sequence[Part], *, centred: bool = True) -> Array:
    """Pearson's r, or the cosine, of each reconstruction with its own stimulus, float64 [rows of all parts]."""
    paired = np.empty(sum(part.rows for part in parts))
    for part in parts:
        size, one, two = _memories(part)
        for rows in panels(part.rows, size):
            own = range(part.first + rows.start, part.first + rows.stop)
            a = unit_rows(part.reconstructions, rows, one, centred=centred)
            b = unit_rows(part.stimuli, own, two, centred=centred)
            paired[own.start : own.stop] = np.einsum("ij,ij->i", a, b, dtype=np.float64)
    return paired


def all_correlations(parts: Sequence[Part], *, centred: bool = True) -> Iterator[tuple[range, range, Array]]:
    """Yield ``(rows, columns, r)``: Pearson's r, or the cosine, of a panel of reconstructions and one of stimuli."""
    for part in parts:
        size, one, two = _memories(part)
        for rows in panels(part.rows, size):
            a = unit_rows(part.reconstructions, rows, one, centred=centred)
            for columns in panels(part.stimuli.shape[0], size):
                r = a @ unit_rows(part.stimuli, columns, two, centred=centred).T
                yield range(part.first + rows.start, part.first + rows.stop), columns, r


def _memories(part: Part) -> tuple[int, Array, Array]:
    m, columns = part.stimuli.shape
    size = panel_rows(min(m, part.most or m), columns)
    return size, buffer((size, columns), np.float32), buffer((size, columns), np.float32)
