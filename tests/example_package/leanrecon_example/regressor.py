"""Regressor ``similar-rows``: predicts the mean features of the train rows whose betas are most alike."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from leanrecon.context import Context
from leanrecon.regression.regressor import Array, Output, RegressionData, RegressionPlan, RegressionShapes

PANEL = 256  # rows of the largest block that a matrix reads for itself
OVERHEAD = 10_000_000  # bytes for what grows with no shape: BLAS threads, small arrays


class SimilarRowsSettings(BaseModel):
    """``[regression]``"""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    kind: Literal["similar-rows"] = "similar-rows"
    neighbours: int = Field(default=5, ge=1)
    """Train rows that a prediction is the mean of."""


class SimilarRows:
    """Predictions are W·Y, where row i of W [m, n] weighs the ``neighbours`` train rows most correlated with test row i."""

    Settings = SimilarRowsSettings

    def __init__(self, settings: SimilarRowsSettings) -> None:
        self.settings = settings

    @classmethod
    def notes(cls, settings: SimilarRowsSettings, space: str) -> Iterable[str]:
        return [f"Predictions of {space} are means of {settings.neighbours} train images' features."]

    def made_of(self) -> dict[str, Any]:
        return self.settings.model_dump(mode="json")

    def plan(self, shapes: RegressionShapes, free: int) -> RegressionPlan:
        numbers = 4 * (shapes.n + shapes.m) * shapes.p  # betas, standardised betas, and arrays in between
        numbers += 2 * shapes.m * shapes.n + shapes.m * shapes.s  # correlations, W by row and by image
        numbers += (shapes.s + 2 * shapes.m) * shapes.y_block  # one block of targets and of predictions
        numbers += 2 * PANEL * max(shapes.x_block, shapes.y_block)  # what reading a block takes
        return RegressionPlan(4 * numbers + OVERHEAD, f"mean of {self.settings.neighbours} similar rows")

    def predict(
        self, data: RegressionData, outputs: Sequence[Output], context: Context, shared: dict[str, Any]
    ) -> dict[str, Any]:
        shapes = _shapes_of(data)
        context.require(context.label, self.plan(shapes, context.budget.free).work)
        weights = self._weights(_read(data.betas), _read(data.test))
        for output in outputs:
            by_image = _summed(weights, _stimulus(data, output.pairing, context.seed), shapes.s)
            for j in output.store.missing_column_groups():  # a run that was killed continues here
                columns = output.store.group_columns(j)
                targets = np.empty((shapes.s, len(columns)), np.float32)
                data.targets.read(range(shapes.s), columns, targets)
                output.store.write_columns(j, by_image @ targets)
            output.store.finish()
        return {"neighbours": self.settings.neighbours}

    def _weights(self, train: Array, test: Array) -> Array:
        """W float32 [m, n]: 1 / neighbours where a train row is among the most alike, else 0."""
        mean, deviation = train.mean(axis=0), train.std(axis=0)
        usable = deviation > 0  # voxels outside the mask are NaN and don't count
        rows = [((x[:, usable] - mean[usable]) / deviation[usable]) for x in (train, test)]
        rows = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in rows]
        correlations = rows[1] @ rows[0].T
        count = min(self.settings.neighbours, len(train))
        nearest = np.argsort(-correlations, axis=1, kind="stable")[:, :count]
        weights: Array = np.zeros_like(correlations)
        np.put_along_axis(weights, nearest, 1 / count, axis=1)
        return weights


def _shapes_of(data: RegressionData) -> RegressionShapes:
    (n, p), (s, t) = data.betas.shape, data.targets.shape
    return RegressionShapes(n, p, data.test.shape[0], s, t, data.betas.block, data.targets.block)


def _read(matrix: Any) -> Array:
    out = np.empty(matrix.shape, np.float32)
    matrix.read(range(matrix.shape[0]), range(matrix.shape[1]), out)
    return out


def _stimulus(data: RegressionData, pairing: int | None, seed: int) -> Array:
    """The target that each train row [n] shows; drawn at random for a baseline."""
    stimulus = np.arange(data.betas.shape[0]) if data.stimulus is None else data.stimulus
    return stimulus if pairing is None else np.random.default_rng([seed, pairing]).permutation(stimulus)


def _summed(weights: Array, stimulus: Array, s: int) -> Array:
    """W with the columns of each image's rows added up, [m, s], so that each image's targets are read once."""
    out = np.zeros((s, len(weights)), np.float32)
    np.add.at(out, stimulus, weights.T)
    return out.T
