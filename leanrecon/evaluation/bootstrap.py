"""Figures with their uncertainty: bootstrap intervals over test images, averaged over folds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from leanrecon.evaluation.plan import resamples_at_once

Array = np.ndarray[Any, Any]

LEVELS = (2.5, 97.5)
"""Percentiles of the bootstrap that bound a 95 % interval (Efron & Tibshirani 1993, chapter 13)."""

Figures = dict[str, dict[str, float | None]]


@dataclass(frozen=True)
class Resampling:
    """Bootstrap resampling of test rows by stimulus, since repeats of one stimulus are not independent.

    One resampling serves all figures of a fold, so that their differences are paired.
    """

    stimuli: Array
    """The number of the stimulus of every test row, int [m]: any numbers, the same for the same stimulus."""
    resamples: int
    seed: int
    fold: int = 0

    @property
    def distinct(self) -> int:
        return len(np.unique(self.stimuli))

    def means(self, rows: Array, weights: Array | None = None) -> Array:
        """Means of scores [m, k] in every resample, float64 [resamples, k]; never all draws at once.

        ``weights`` [m] says how much each row counts; None: all alike.
        """
        of_row = np.unique(self.stimuli, return_inverse=True)[1]
        n = int(of_row.max()) + 1
        sums = np.zeros((n, rows.shape[1]))
        np.add.at(sums, of_row, rows if weights is None else rows * weights[:, None])
        sizes = np.bincount(of_row, weights).astype(np.float64)
        result = np.empty((self.resamples, rows.shape[1]))
        at_once = resamples_at_once(n)
        for start in range(0, self.resamples, at_once):
            many = min(at_once, self.resamples - start)
            drawn = np.random.default_rng([self.seed, self.fold, start]).integers(0, n, (many, n))
            drawn += np.arange(many)[:, None] * n
            counts = np.bincount(drawn.ravel(), minlength=many * n).reshape(many, n).astype(np.float64)
            result[start : start + many] = counts @ sums / (counts @ sizes)[:, None]
        return result


def numbered(names: Sequence[Sequence[str]]) -> list[Array]:
    """The number of each row's stimulus, int [m] for every fold: a stimulus has the same number in all of them."""
    numbers = np.unique([name for of_fold in names for name in of_fold], return_inverse=True)[1]
    return np.split(numbers, np.cumsum([len(of_fold) for of_fold in names])[:-1])


def needs_pooling(drawn: Sequence[Resampling]) -> bool:
    """Whether a fold has too few stimuli to be resampled, or identified among, by itself."""
    return len(drawn) > 1 and min(resampling.distinct for resampling in drawn) == 1


@dataclass
class Scores:
    """The scores of one set of images in one fold, before they are averaged to figures.

    ``rows`` holds a score a test row, float64 [m], whose mean is the figure; ``chance`` its level without information.
    """

    rows: dict[str, Array] = field(default_factory=dict)
    chance: dict[str, float] = field(default_factory=dict)

    def part(self, rows: slice | Array) -> "Scores":
        """The scores of some rows; their chance levels stay those of all."""
        return Scores({name: values[rows] for name, values in self.rows.items()}, dict(self.chance))

    def add(self, other: "Scores") -> None:
        """Add other scores of the same reconstructions."""
        self.rows |= other.rows
        self.chance |= other.chance


def average(permutations: Sequence[Scores]) -> Scores:
    """One set of scores from several of the same rows: their mean, figure by figure."""
    first = permutations[0]
    return Scores(
        {name: np.mean([scores.rows[name] for scores in permutations], axis=0) for name in first.rows},
        {name: float(np.mean([scores.chance[name] for scores in permutations])) for name in first.chance},
    )


def figures(folds: Sequence[Scores], drawn: Sequence[Resampling]) -> Figures:
    """Each figure's mean over the folds, its 95 % interval and its chance level (None where it has none).

    Stimuli are drawn within each fold; or, where a fold has a single one, from all folds together, and each row keeps
    its weight in the mean. The interval is None where all test rows show a single stimulus.
    """
    result = _figures([scores.rows for scores in folds], drawn)
    for metric, figure in result.items():
        known = [scores.chance[metric] for scores in folds if metric in scores.chance]
        figure["chance"] = float(np.mean(known)) if known else None
    return result


def margins(final: Sequence[Scores], baseline: Sequence[Scores], drawn: Sequence[Resampling]) -> Figures:
    """How far each figure lies above that of a baseline, with the 95 % interval of the paired difference."""
    differences = [
        {metric: ours.rows[metric] - theirs.rows[metric] for metric in ours.rows if metric in theirs.rows}
        for ours, theirs in zip(final, baseline, strict=True)
    ]
    return _figures(differences, drawn)


def _figures(folds: Sequence[Mapping[str, Array]], drawn: Sequence[Resampling]) -> Figures:
    metrics = [name for name in folds[0] if all(name in rows for rows in folds)]
    if not metrics:
        return {}
    tables = [np.stack([rows[name] for name in metrics], axis=1) for rows in folds]
    values = np.mean([table.mean(axis=0) for table in tables], axis=0)
    pooled = np.concatenate([resampling.stimuli for resampling in drawn])
    if len(np.unique(pooled)) == 1:
        return {
            name: {"value": float(value), "low": None, "high": None}
            for name, value in zip(metrics, values, strict=True)
        }
    if needs_pooling(drawn):
        weights = np.concatenate([np.full(len(table), 1 / len(table)) for table in tables])
        means = replace(drawn[0], stimuli=pooled).means(np.concatenate(tables), weights)
    else:
        of_folds = [resampling.means(table) for resampling, table in zip(drawn, tables, strict=True)]
        means = np.mean(of_folds, axis=0)
    low, high = np.percentile(means, LEVELS, axis=0)
    return {
        name: {"value": float(values[k]), "low": float(low[k]), "high": float(high[k])}
        for k, name in enumerate(metrics)
    }
