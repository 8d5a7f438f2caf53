"""Pairwise classification: can two stimuli, or two categories, be told apart from the betas of rows held out?

For each of many random pairs a linear support vector machine is trained on the rows of some runs and tested on those of
others. Means, principal components and the machine come from the training rows of each fold alone. The same pairs with
labels shuffled within runs show what chance gives.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from leanrecon.errors import InputError

Array = np.ndarray[Any, Any]

COMPONENTS = 20
"""Most principal components of a fold's training rows."""

FOLDS = 5
"""Most folds: runs are dealt to them."""

LEVELS = (2.5, 97.5)
"""Percentiles that bound a 95 % interval."""


@dataclass(frozen=True)
class Pairwise:
    """Accuracies over random pairs; chance is one half."""

    classes: int
    pairs: int
    rows: int
    accuracy: float
    low: float
    high: float
    """95 % interval, resampled over classes: pairs that share a class are not independent."""
    shuffled: float
    """Accuracy with labels shuffled within runs."""
    shuffled_high: float
    """97.5 % point of the mean over pairs with shuffled labels, resampled over classes as well."""

    @property
    def above_chance(self) -> bool:
        return self.low > 0.5 and self.accuracy > self.shuffled_high


def folds_of_runs(runs: Array) -> list[Array]:
    """Rows of each fold: whole runs, dealt in turn to at most ``FOLDS`` folds. Raises InputError for one run."""
    names = np.unique(runs)
    if len(names) < 2:
        raise InputError("all rows are of one run", expected="rows of two runs or more, to hold whole runs out")
    number = np.searchsorted(names, runs) % min(FOLDS, len(names))
    return [np.flatnonzero(number == fold) for fold in range(int(number.max()) + 1)]


def draw_pairs(classes: int, pairs: int, seed: int) -> Array:
    """Different pairs of classes, int [pairs, 2]: all there are, or as many as asked for, drawn from the seed."""
    first, second = np.triu_indices(classes, 1)
    chosen = np.random.default_rng(seed).permutation(len(first))[:pairs]
    return np.stack([first[chosen], second[chosen]], axis=1)


def fold_accuracy(train: Array, labels: Array, test: Array, truth: Array) -> int | None:
    """How many test rows are told right by a machine on the principal components of the train rows.

    None where a class has no train row.
    """
    from sklearn.svm import SVC

    if len(np.unique(labels)) < 2:
        return None
    mean, deviation = train.mean(axis=0), train.std(axis=0)
    scale = np.where(deviation > 0, 1 / np.where(deviation > 0, deviation, 1), 0)
    centred = (train - mean) * scale
    values, vectors = np.linalg.eigh(centred @ centred.T)
    kept = np.argsort(values)[::-1][: min(COMPONENTS, len(train) - 1)]
    kept = kept[values[kept] > 1e-6 * max(float(values[-1]), 1e-30)]
    if not len(kept):
        return None
    axes = centred.T @ (vectors[:, kept] / np.sqrt(values[kept]))
    machine = SVC(kernel="linear", C=1.0).fit(centred @ axes, labels)
    return int((machine.predict(((test - mean) * scale) @ axes) == truth).sum())


def pair_accuracy(betas: Array, labels: Array, runs: Array) -> float | None:
    """The accuracy for the rows of two classes, whole runs held out; None where no fold can be trained."""
    right = tested = 0
    for test in folds_of_runs(runs):
        train = np.setdiff1d(np.arange(len(runs)), test)
        found = fold_accuracy(betas[train], labels[train], betas[test], labels[test])
        if found is not None:
            right, tested = right + found, tested + len(test)
    return right / tested if tested else None


def pairwise(
    betas: Array, labels: Sequence[str] | Array, runs: Array, *, pairs: int = 200, seed: int = 0, resamples: int = 1000
) -> Pairwise:
    """Classify many random pairs of classes; ``betas`` [rows, voxels], a label and a run a row.

    Raises InputError for fewer than two classes, for one run, and where no pair has rows to learn from and to test.
    """
    names, of_row = np.unique(np.asarray(labels), return_inverse=True)
    if len(names) < 2:
        raise InputError(f"{len(names)} class can't be told apart", expected="two classes or more")
    chosen = draw_pairs(len(names), pairs, seed)
    rng = np.random.default_rng([seed, 1])
    kept, real, shuffled = [], [], []
    for pair in chosen:
        rows = np.flatnonzero(np.isin(of_row, pair))
        own_runs = runs[rows]
        if len(np.unique(own_runs)) < 2:
            continue
        block = np.asarray(betas[rows], np.float64)
        accuracy = pair_accuracy(block, of_row[rows], own_runs)
        by_chance = pair_accuracy(block, _shuffled(of_row[rows], own_runs, rng), own_runs)
        if accuracy is not None and by_chance is not None:
            kept.append(pair)
            real.append(accuracy)
            shuffled.append(by_chance)
    if not kept:
        raise InputError("no pair of classes has rows in two runs", expected="classes shown in two runs or more")
    (low, high), (_, most) = (
        _interval(np.array(v), np.array(kept), len(names), seed, resamples) for v in (real, shuffled)
    )
    return Pairwise(len(names), len(kept), len(runs), float(np.mean(real)), low, high, float(np.mean(shuffled)), most)


def _shuffled(labels: Array, runs: Array, rng: np.random.Generator) -> Array:
    """Labels in another order within each run; over all rows where every run has rows of one class alone."""
    result = labels.copy()
    mixed = False
    for run in np.unique(runs):
        rows = np.flatnonzero(runs == run)
        mixed = mixed or len(np.unique(labels[rows])) > 1
        result[rows] = labels[rng.permutation(rows)]
    return result if mixed else labels[rng.permutation(len(labels))]


def _interval(values: Array, pairs: Array, classes: int, seed: int, resamples: int) -> tuple[float, float]:
    """The interval of a mean over pairs, classes being drawn with replacement: a pair counts as often as both are."""
    rng = np.random.default_rng([seed, 2])
    means = []
    for _ in range(resamples):
        counts = np.bincount(rng.integers(0, classes, classes), minlength=classes)
        weights = counts[pairs[:, 0]] * counts[pairs[:, 1]]
        if weights.sum():
            means.append(float((weights * values).sum() / weights.sum()))
    low, high = np.percentile(means, LEVELS)
    return float(low), float(high)
