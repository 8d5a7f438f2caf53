"""The calibration ``linear``: ridge from features of a pixel's surroundings to its true value, all pixels together."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, Field

from leanrecon.calibration.calibration import (
    CalibrationData,
    CalibrationPlan,
    CalibrationSettings,
    CalibrationShapes,
    LearnedCalibration,
    Model,
    pairs,
)
from leanrecon.context import Context
from leanrecon.images import Array
from leanrecon.weights.checkpoint import Folder

FEATURES = 13

_SCIPY_NBYTES = 45_000_000  # scipy.ndimage, imported
_SLACK = 8_000_000


class LinearCalibrationSettings(CalibrationSettings):
    """``[stage1.calibrate]`` with ``kind = "linear"``."""

    kind: Literal["linear"] = "linear"
    """Ridge regression from features of a pixel's surroundings."""
    alpha: Annotated[float, Field(gt=0)] = 1e-6
    """Penalty of the squared weights, beside the mean square of a pixel's features."""


class LinearCalibration(LearnedCalibration):
    """Ridge from powers, hinges, blurs and the mean of an image to true pixels: contrast is stretched where it pays."""

    Settings: ClassVar[type[BaseModel]] = LinearCalibrationSettings
    least: ClassVar[int] = 10

    def plan(self, shapes: CalibrationShapes) -> CalibrationPlan:
        numbers = int(np.prod(shapes.image))
        image = numbers * (FEATURES * (4 + 8) + 8 * 4)
        work = _SCIPY_NBYTES + _SLACK + image
        return CalibrationPlan(work, image + _SLACK, f"ridge on {FEATURES} features of each pixel", disk=4096)

    def _fit(self, data: CalibrationData, rows: Array, held: Array, folder: Folder, context: Context) -> dict[str, Any]:
        gram, moments, count = np.zeros((FEATURES, FEATURES)), np.zeros(FEATURES), 0
        with context.task(total=len(rows), unit="images") as advance:
            for _, first, true in pairs(data, rows):
                features = local_features(first).astype(np.float64)
                gram += features.T @ features
                moments += features.T @ true.reshape(-1)
                count += len(features)
                advance(1)
        penalty = self.settings.alpha * count * np.eye(FEATURES)
        penalty[-1, -1] = 0  # the intercept
        return {"weights": np.linalg.solve(gram + penalty, moments)}

    def _model(self, learned: Mapping[str, Any]) -> Model:
        weights = learned["weights"].astype(np.float32)

        def calibrated(image: Array) -> Array:
            result: Array = (local_features(image) @ weights).reshape(image.shape)
            return result

        return calibrated


def local_features(image: Array) -> Array:
    """Float32 [pixels × channels, 13] of a float32 image: what a pixel's true value is regressed on; the last is 1."""
    from scipy.ndimage import gaussian_filter

    near, far = (gaussian_filter(image, (sigma, sigma, 0)) for sigma in (1.0, 2.5))
    mean = np.broadcast_to(image.mean(axis=(0, 1)), image.shape)
    columns = (
        image, image**2, image**3, near, near**2, far, mean, image * mean, image * near, mean**2,
        np.maximum(image - 0.25, 0), np.maximum(image - 0.5, 0), np.ones_like(image),
    )  # fmt: skip
    return np.stack([column.reshape(-1) for column in columns], axis=1).astype(np.float32)
