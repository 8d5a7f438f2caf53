"""Figures with their uncertainty: bootstrap intervals over test images, averaged over folds."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

LEVELS = (2.5, 97.5)
"""Percentiles of the bootstrap that bound a 95 % interval (Efron & Tibshirani 1993, chapter 13)."""

Figures = dict[str, dict[str, float | None]]


def resampling(m: int, resamples: int, seed: int, fold: int = 0) -> Array:
    """How often each of ``m`` test rows is drawn in each resample, float64 [resamples, m]; rows sum to m.

    One resampling serves all figures of a fold, so that their differences are paired.
    """
    drawn = np.random.default_rng([seed, fold]).integers(0, m, (resamples, m))
    counts = np.zeros((resamples, m))
    np.add.at(counts, (np.arange(resamples)[:, None], drawn), 1)
    return counts


@dataclass
class Scores:
    """The figures of one set of reconstructions in one fold, before they are averaged.

    ``rows`` holds a score a test row, float64 [m], whose mean is the figure; ``chance`` its level without information.
    """

    rows: dict[str, Array] = field(default_factory=dict)
    chance: dict[str, float] = field(default_factory=dict)

    def add(self, other: "Scores") -> None:
        """Take up other figures of the same reconstructions."""
        self.rows |= other.rows
        self.chance |= other.chance


def average(permutations: Sequence[Scores]) -> Scores:
    """One set of scores from several of the same rows: their mean, figure by figure."""
    first = permutations[0]
    return Scores(
        {name: np.mean([scores.rows[name] for scores in permutations], axis=0) for name in first.rows},
        {name: float(np.mean([scores.chance[name] for scores in permutations])) for name in first.chance},
    )


def figures(folds: Sequence[Scores], counts: Sequence[Array]) -> Figures:
    """Each figure's mean over the folds, its 95 % interval and its chance level (None where it has none).

    The interval is None where a fold has a single test row.
    """
    result = {}
    for metric in _shared(folds):
        levels = [scores.chance.get(metric) for scores in folds]
        known = [level for level in levels if level is not None]
        result[metric] = _figure([scores.rows[metric] for scores in folds], counts)
        result[metric]["chance"] = float(np.mean(known)) if known else None
    return result


def margins(final: Sequence[Scores], baseline: Sequence[Scores], counts: Sequence[Array]) -> Figures:
    """How far each figure lies above that of a baseline, with the 95 % interval of the paired difference."""
    pairs = list(zip(final, baseline, strict=True))
    return {
        metric: _figure([ours.rows[metric] - theirs.rows[metric] for ours, theirs in pairs], counts)
        for metric in _shared([*final, *baseline])
    }


def _shared(folds: Sequence[Scores]) -> list[str]:
    return [name for name in folds[0].rows if all(name in scores.rows for scores in folds)]


def _figure(folds: Sequence[Array], counts: Sequence[Array]) -> dict[str, float | None]:
    value = float(np.mean([rows.mean() for rows in folds]))
    if min(map(len, folds)) == 1:
        return {"value": value, "low": None, "high": None}
    draws = np.mean([drawn @ rows / len(rows) for rows, drawn in zip(folds, counts, strict=True)], axis=0)
    low, high = np.percentile(draws, LEVELS)
    return {"value": value, "low": float(low), "high": float(high)}
