"""The estimator that predicts images best that it has not seen, among train rows alone."""

from typing import Any

import numpy as np

from leanrecon.context import Context
from leanrecon.memory import MemoryBudget
from leanrecon.regression.local.estimators import Betas, Block, predict_block
from leanrecon.regression.local.plan import BLOCK
from leanrecon.regression.local.settings import CHOSEN, LocalSettings
from leanrecon.regression.out_of_fold import assign_folds, fold_data
from leanrecon.regression.regressor import RegressionData

Array = np.ndarray[Any, Any]

FOLDS = 5
"""Folds of the train rows by which an estimator is chosen, or as many as there are groups."""


def choose(data: RegressionData, settings: LocalSettings, read: Any, context: Context) -> tuple[str, dict[str, float]]:
    """The name of the estimator with the least squared error over all targets, and the mean error of each.

    Rows of a group, as the dataset says, are left out together, and no image is both learned from and predicted.
    Where there is a single group nothing can be compared, and the ridge is chosen. ``read`` reads the betas of data.
    """
    folds = min(FOLDS, len(set(data.groups)))
    if folds < 2:
        return "ridge", {}
    fold = assign_folds(data.groups, folds, context.seed)
    errors = dict.fromkeys(CHOSEN, 0.0)
    for k in range(folds):
        held = np.flatnonzero(fold == k)
        part = fold_data(data, fold, k)
        betas: Betas = read(part, settings, context)
        for name in CHOSEN:
            errors[name] += _error(name, part, data, held, betas, settings, context)
    count = data.betas.shape[0] * data.targets.shape[1]
    means = {name: error / count for name, error in errors.items()}
    return min(means, key=lambda name: means[name]), means


def _error(
    name: str,
    part: RegressionData,
    whole: RegressionData,
    held: Array,
    betas: Betas,
    settings: LocalSettings,
    context: Context,
) -> float:
    """The sum of squared errors of the held rows, with an estimator fitted to the others."""
    of_name = settings.model_copy(update={"estimator": name})
    predicted = _ridge(part, settings, context) if name == "ridge" else None
    total = 0.0
    t = whole.targets.shape[1]
    for start in range(0, t, BLOCK):
        columns = range(start, min(start + BLOCK, t))
        if predicted is None:
            block = Block(targets_of(part, columns), start)
            values = predict_block(of_name, betas, block, context.seed)
        else:
            values = predicted[:, columns.start : columns.stop]
        total += float(((values - targets_of(whole, columns)[held]) ** 2).sum())
    return total


def _ridge(part: RegressionData, settings: LocalSettings, context: Context) -> Array:
    from leanrecon.regression.ridge.ridge import StreamingRidge

    ridge = StreamingRidge(
        settings.alpha,
        standardize=settings.standardize,
        budget=MemoryBudget.of(context.budget),
        seed=context.seed,
        scratch=context.scratch,
    )
    ridge.warns = False
    ridge.fit(part.betas, part.targets, stimulus=part.stimulus, test=part.test)
    return ridge.predict(part.test)


def targets_of(data: RegressionData, columns: range, order: Array | None = None) -> Array:
    """Some targets of every train row, float64 [n, b]; with ``order`` row i has those of row ``order[i]``."""
    images = np.empty((data.targets.shape[0], len(columns)))
    data.targets.read(range(len(images)), columns, images)
    index = np.arange(data.betas.shape[0]) if data.stimulus is None else np.asarray(data.stimulus)
    rows: Array = images[index if order is None else index[order]]
    return rows
