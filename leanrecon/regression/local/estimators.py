"""Predictions of a block of targets, each from voxels of its own."""

import inspect
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from leanrecon.errors import InputError, SettingsError, said_by
from leanrecon.regression.local.greedy import pursue
from leanrecon.regression.local.select import correlations, f_values, levels_of, picked
from leanrecon.regression.local.settings import LocalSettings

Array = np.ndarray[Any, Any]

PATHS = {
    "linear": "sklearn.linear_model.LinearRegression",
    "bayesian_ridge": "sklearn.linear_model.BayesianRidge",
    "ard": "sklearn.linear_model.ARDRegression",
    "logistic": "sklearn.linear_model.LogisticRegression",
}
"""scikit-learn's classes by the names of the settings."""

DEFAULTS: dict[str, dict[str, Any]] = {"logistic": {"C": 0.03, "max_iter": 1000}}
"""Parameters that differ from scikit-learn's own: betas of many voxels need a stronger penalty than 1."""

TURNED = ("linear", "bayesian_ridge", "logistic")
"""Estimators to which only lengths and angles of the betas matter. With fewer rows than voxels they are given the betas in
an orthonormal basis of the train rows, which changes no prediction and leaves them fewer columns."""


@dataclass(frozen=True)
class Betas:
    """Train betas [n, p] and test betas [m, p] in float64, both centred (and scaled) by the train rows."""

    train: Array
    test: Array
    voxels: int
    """Voxels that they were read from."""

    def turned_to_rows(self) -> "Betas":
        """The same betas in an orthonormal basis of the train rows, where those are fewer than voxels."""
        n, p = self.train.shape
        if n >= p:
            return self
        values, vectors = np.linalg.eigh(self.train @ self.train.T)
        kept = values > values[-1] * n * np.finfo(float).eps
        lengths = np.sqrt(values[kept])
        basis = self.train.T @ (vectors[:, kept] / lengths)
        return Betas(vectors[:, kept] * lengths, self.test @ basis, self.voxels)


@dataclass(frozen=True)
class Block:
    """A block of targets [n, b], and the number of its first one, which messages name."""

    targets: Array
    first: int = 0


def predict_block(settings: LocalSettings, betas: Betas, block: Block, seed: int) -> Array:
    """Predictions of a block of targets for the test betas, float64 [m, b]."""
    if settings.estimator == "univariate":
        return _univariate(betas, block)
    if settings.estimator == "omp":
        return pursue(betas.train, block.targets, betas.test, settings.nonzero, _allowed(settings, betas, block))
    if settings.estimator == "linear" and settings.voxels is None:
        return _fitted(settings, block.targets, betas.train, betas.test, block.first, seed)
    scores = None if settings.voxels is None or settings.select == "f" else correlations(betas.train, block.targets)
    columns = [
        _one(settings, betas, block, k, None if scores is None else scores[:, k], seed)
        for k in range(block.targets.shape[1])
    ]
    return np.stack(columns, axis=1)


def _univariate(betas: Betas, block: Block) -> Array:
    """A straight line on the voxel of the highest |r| with each target."""
    Y = block.targets
    best = correlations(betas.train, Y).argmax(axis=0)
    x, mean = betas.train[:, best], Y.mean(axis=0)
    slope = np.einsum("ij,ij->j", x, Y - mean) / np.maximum(np.einsum("ij,ij->j", x, x), np.finfo(float).tiny)
    predicted: Array = mean + betas.test[:, best] * slope
    return predicted


def _allowed(settings: LocalSettings, betas: Betas, block: Block) -> Array | None:
    """The voxels picked for each target of a block, bool [p, b]; None for all."""
    if settings.voxels is None:
        return None
    p, b = betas.train.shape[1], block.targets.shape[1]
    allowed = np.zeros((p, b), bool)
    scores = correlations(betas.train, block.targets) if settings.select == "correlation" else None
    for k in range(b):
        own = _f_scores(betas, block, k) if scores is None else scores[:, k]
        allowed[picked(own, settings.voxels), k] = True
    return allowed


def _f_scores(betas: Betas, block: Block, k: int) -> Array:
    levels, labels = levels_of(block.targets[:, k], block.first + k)
    return np.zeros(betas.train.shape[1]) if len(levels) == 1 else f_values(betas.train, labels)


def _one(settings: LocalSettings, betas: Betas, block: Block, k: int, scores: Array | None, seed: int) -> Array:
    """Predictions [m] of one target by scikit-learn; a constant target is predicted as it is."""
    y, X, T = block.targets[:, k], betas.train, betas.test
    if y.min() == y.max():
        return np.full(len(T), y[0])
    if settings.voxels is not None:
        own = picked(_f_scores(betas, block, k) if scores is None else scores, settings.voxels)
        X, T = X[:, own], T[:, own]
    predicted = _fitted(settings, y, X, T, block.first + k, seed)
    if predicted.shape != (len(T),) or not np.isfinite(predicted).all():
        raise InputError(
            f"{settings.estimator} predicts {'NaN or infinite values' if predicted.shape == (len(T),) else predicted.shape}"
            f" for target {block.first + k}",
            expected=f"{len(T)} finite numbers",
        )
    return predicted


def _fitted(settings: LocalSettings, y: Array, X: Array, T: Array, target: int, seed: int) -> Array:
    """Fit scikit-learn's estimator and predict; raises InputError with its own words where it fails."""
    from sklearn.base import is_classifier

    model = make_estimator(settings, seed)
    try:
        if not is_classifier(model):
            predicted: Array = np.asarray(model.fit(X, y).predict(T), np.float64)
            return predicted
        levels, labels = levels_of(y, target)
        model.fit(X, labels)
        if settings.output == "most_probable":
            return np.asarray(levels[model.predict(T)], np.float64)
        return np.asarray(model.predict_proba(T) @ levels, np.float64)
    except (ValueError, TypeError, ArithmeticError, np.linalg.LinAlgError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{settings.estimator} can't be fitted to target {target}: {said_by(error)}",
            expected="an estimator and options that fit these betas and targets",
            todo="look at regression.estimator, regression.options and regression.output",
        ) from error


def make_estimator(settings: LocalSettings, seed: int) -> Any:
    """scikit-learn's estimator of some settings, seeded where it draws; raises SettingsError where there is none."""
    path = PATHS.get(settings.estimator, settings.estimator)
    module, _, name = path.rpartition(".")
    try:
        kind = getattr(import_module(module), name)
    except (ImportError, AttributeError):
        raise SettingsError(
            f'regression.estimator = "{settings.estimator}": scikit-learn has no {path}',
            expected="a class such as sklearn.linear_model.Lasso",
        ) from None
    if not (inspect.isclass(kind) and all(hasattr(kind, part) for part in ("fit", "predict", "get_params"))):
        raise SettingsError(
            f'regression.estimator = "{settings.estimator}" has no methods fit and predict',
            expected="a regressor or classifier of scikit-learn",
        )
    parameters = DEFAULTS.get(settings.estimator, {}) | settings.parameters
    known = inspect.signature(kind).parameters
    if unknown := [name for name in parameters if name not in known]:
        raise SettingsError(
            f"regression.options: {settings.estimator} has no parameter {unknown[0]}",
            expected=f"some of {', '.join(known)}",
        )
    if "random_state" in known:
        parameters = {"random_state": seed % 2**32} | parameters
    try:
        model = kind(**parameters)
    except TypeError as error:
        raise SettingsError(f"{settings.estimator} can't be made: {said_by(error)}") from None
    _check_output(settings, model)
    return model


def _check_output(settings: LocalSettings, model: Any) -> None:
    from sklearn.base import is_classifier

    if is_classifier(model) and settings.output == "expected" and not hasattr(model, "predict_proba"):
        raise SettingsError(
            f"{settings.estimator} gives no probabilities, so there is no expected level",
            todo='set output = "most_probable"',
        )
