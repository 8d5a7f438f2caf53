"""Several estimators together: the share of each is learned from rows whose images it has not seen, among train rows.

With predictions P_k of held-out train rows and targets Y, the shares w ≥ 0, Σ w = 1 minimise

    ‖Y − Σ w_k P_k‖² + PULL · mean‖P_k‖² / images · Σ (w_k − 1/K)²

(Breiman 1996, "Stacked regressions", with a pull to equal shares that fades with the number of images).
"""

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from leanrecon.context import Context
from leanrecon.errors import LeanreconWarning
from leanrecon.memory import MemoryBudget
from leanrecon.regression.local.estimators import Betas, Block, predict_block
from leanrecon.regression.local.plan import BLOCK
from leanrecon.regression.local.settings import STACKED, LocalSettings
from leanrecon.regression.out_of_fold import assign_folds, fold_data
from leanrecon.regression.regressor import RegressionData

if TYPE_CHECKING:
    from leanrecon.regression.ridge.ridge import StreamingRidge

Array = np.ndarray[Any, Any]

FOLDS = 10
"""Folds of the train rows, or as many as there are groups."""

PULL = 4.0
"""Strength of the pull to equal shares."""

ALONE = "alone"
"""The name of a single estimator, that of the settings."""

_SUM = 1e4  # weight of the row that makes shares add up to one, beside the root of the normal equations


@dataclass(frozen=True)
class Fitted:
    """What predicts a block of targets: one estimator, or several with their shares."""

    settings: LocalSettings
    betas: Betas
    data: RegressionData
    shares: dict[str, float]
    """By name of the estimator, as in ``STACKED``; those with a share of 0 are left out."""
    ridge: "StreamingRidge | None" = None
    seed: int = 0

    def of(self, name: str, columns: range, order: Array | None, ridge: "StreamingRidge | None") -> Array:
        """One estimator's predictions [m, b] of some targets; with ``order`` row i is paired with those of ``order[i]``."""
        if name == "ridge":
            assert ridge is not None
            return through_ridge(ridge, self.data, columns)
        block = Block(targets_of(self.data, columns, order), columns.start)
        return predict_block(self.settings.model_copy(update=STACKED.get(name, {})), self.betas, block, self.seed)

    def predict(self, columns: range, order: Array | None, ridge: "StreamingRidge | None") -> Array:
        parts = [share * self.of(name, columns, order, ridge) for name, share in self.shares.items()]
        total: Array = sum(parts[1:], parts[0])
        return total


def shares_of(
    data: RegressionData, settings: LocalSettings, read: Any, context: Context
) -> dict[str, dict[str, float]]:
    """The ``shares`` of the stacked estimators, and the mean squared ``errors`` of held-out rows of each and of all.

    Rows of a group, as the dataset says, are left out together, and no image is both learned from and predicted.
    With a single group nothing can be left out, and shares are equal. ``read`` reads the betas of data.
    """
    folds = min(FOLDS, len(set(data.groups)))
    equal = dict.fromkeys(STACKED, 1 / len(STACKED))
    if folds < 2:
        return {"shares": equal, "errors_held_out": {}}
    fold = assign_folds(data.groups, folds, context.seed)
    count = len(STACKED)
    gram, moment, total = np.zeros((count, count)), np.zeros(count), 0.0
    t = data.targets.shape[1]
    for k in range(folds):
        part = fold_data(data, fold, k)
        fitted = Fitted(settings, read(part, settings), part, equal, seed=context.seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LeanreconWarning)  # of an alpha at the end of the grid, in a fold
            ridge = fit_ridge(part, settings, context)
        held = np.flatnonzero(fold == k)
        for start in range(0, t, BLOCK):
            columns = range(start, min(start + BLOCK, t))
            Y = targets_of(data, columns)[held].ravel()
            P = np.stack([fitted.of(name, columns, None, ridge).ravel() for name in STACKED])
            gram += P @ P.T
            moment += P @ Y
            total += float(Y @ Y)
    shares = convex(gram, moment, data.targets.shape[0])
    size = data.betas.shape[0] * t
    errors = {name: float(gram[k, k] - 2 * moment[k] + total) / size for k, name in enumerate(STACKED)}
    errors["together"] = float(shares @ gram @ shares - 2 * shares @ moment + total) / size
    return {"shares": dict(zip(STACKED, shares.tolist(), strict=True)), "errors_held_out": errors}


def convex(gram: Array, moment: Array, images: int) -> Array:
    """The shares of least error, from the products of predictions ``gram`` [k, k] and with the targets ``moment`` [k]."""
    from scipy.optimize import nnls

    count = len(moment)
    pull = PULL * float(np.trace(gram)) / count / images
    if not pull > 0:
        return np.full(count, 1 / count)
    root = np.linalg.cholesky(gram + pull * np.eye(count)).T
    weight = _SUM * np.sqrt(np.trace(gram))
    sides = np.append(np.linalg.solve(root.T, moment + pull / count), weight)
    shares = nnls(np.vstack([root, np.full(count, weight)]), sides)[0]
    return np.asarray(shares / shares.sum())


def fit_ridge(
    data: RegressionData, settings: LocalSettings, context: Context, *, shuffled: bool = False
) -> "StreamingRidge":
    """The ridge that all targets share, for the test betas of data."""
    from leanrecon.regression.ridge.ridge import StreamingRidge

    ridge = StreamingRidge(
        settings.alpha,
        standardize=settings.standardize,
        budget=MemoryBudget.of(context.budget),
        seed=context.seed,
        scratch=context.scratch,
    )
    ridge.warns = False
    ridge.fit(data.betas, data.targets, stimulus=data.stimulus, test=data.test, shuffled=shuffled)
    return ridge


def through_ridge(ridge: "StreamingRidge", data: RegressionData, columns: range) -> Array:
    """The ridge's predictions [m, b] of some targets."""
    from leanrecon.stores.matrix import ColumnSubset

    own = ridge.with_targets(ColumnSubset(data.targets, np.arange(columns.start, columns.stop)))
    parts = [values.copy() for _, _, values in own.predict_blocks(data.test)]
    return np.concatenate(parts, axis=1)


def targets_of(data: RegressionData, columns: range, order: Array | None = None) -> Array:
    """Some targets of every train row, float64 [n, b]; with ``order`` row i has those of row ``order[i]``."""
    images = np.empty((data.targets.shape[0], len(columns)))
    data.targets.read(range(len(images)), columns, images)
    index = np.arange(data.betas.shape[0]) if data.stimulus is None else np.asarray(data.stimulus)
    rows: Array = images[index if order is None else index[order]]
    return rows
