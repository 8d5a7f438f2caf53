"""The calibration ``boost``: gradient-boosted trees from features of a pixel's surroundings to its true value.

scikit-learn grows the trees (HistGradientBoostingRegressor; Ke et al. 2017, LightGBM). They are kept as plain arrays.
"""

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
from leanrecon.calibration.trees import MOST_LEAVES, Trees, trees_of
from leanrecon.context import Context
from leanrecon.errors import InputError
from leanrecon.images import Array, ImageShape
from leanrecon.memory import buffer
from leanrecon.weights.checkpoint import Folder

MOST_PIXELS = 500_000
"""Most pixels that trees are grown on; of more, every k-th one is taken from a start drawn from the seed."""

SIGMAS = (0.8, 1.6, 3.0)
"""Blurs in pixels."""

_SKLEARN_NBYTES = 150_000_000  # scikit-learn with its ensembles, imported
_SLACK = 20_000_000
_BINNED = 200_000  # pixels that scikit-learn looks at for the bins of a feature


class BoostCalibrationSettings(CalibrationSettings):
    """``[stage1.calibrate]`` with ``kind = "boost"``."""

    kind: Literal["boost"] = "boost"
    """Gradient-boosted trees on features of a pixel's surroundings."""
    iterations: Annotated[int, Field(strict=True, ge=1, le=1000)] = 80
    """Number of trees."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 0.08
    """Share of each tree that is added."""
    leaves: Annotated[int, Field(strict=True, ge=2, le=MOST_LEAVES)] = 12
    """Most leaves of a tree."""
    least_leaf: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] = 300
    """Fewest pixels of a leaf."""
    l2: Annotated[float, Field(ge=0)] = 10.0
    """Penalty of the squared values of leaves."""


class BoostCalibration(LearnedCalibration):
    """Boosted trees from a pixel, its neighbours, blurs, place, and the mean train image to its true value."""

    Settings: ClassVar[type[BaseModel]] = BoostCalibrationSettings

    def plan(self, shapes: CalibrationShapes) -> CalibrationPlan:
        numbers = int(np.prod(shapes.image))
        features, pixels = n_features(shapes.image), min(shapes.rows * numbers, MOST_PIXELS)
        nodes = 2 * self.settings.leaves * self.settings.iterations
        image = numbers * (features * (4 + 8 + 8) + 64)
        growing = pixels * (9 * features + 64) + min(pixels, _BINNED) * features * 8 + nodes * 200
        taken = f"{pixels} of {shapes.rows * numbers}" if pixels < shapes.rows * numbers else str(pixels)
        return CalibrationPlan(
            _SKLEARN_NBYTES + _SLACK + image + growing,
            _SLACK + image + self.settings.iterations * 2**self.settings.leaves * 8,
            f"{self.settings.iterations} trees on {taken} pixels",
            disk=nodes * 40 + 4 * numbers + 4096,
            held=_SKLEARN_NBYTES,
        )

    def _fit(self, data: CalibrationData, rows: Array, held: Array, folder: Folder, context: Context) -> dict[str, Any]:
        from sklearn.ensemble import HistGradientBoostingRegressor

        mean = mean_image(data, rows)
        given, true = sampled(data, rows, mean, self.seed, context)
        settings = self.settings
        grown = HistGradientBoostingRegressor(
            max_iter=settings.iterations, learning_rate=settings.learning_rate, max_leaf_nodes=settings.leaves,
            min_samples_leaf=settings.least_leaf, l2_regularization=settings.l2, early_stopping=False,
            random_state=np.random.RandomState(self.seed % 2**32),
        ).fit(given, true)  # fmt: skip
        trees = trees_of(grown)
        some = given[:: max(len(given) // 1000, 1)]
        if not np.array_equal(trees.predict(some.T), grown.predict(some)):
            raise InputError(
                "the trees that scikit-learn grew can't be read: its own predictions of them differ",
                expected="a version of scikit-learn that this version of leanrecon was tested with",
                todo='install an earlier scikit-learn, or set stage1.calibrate = "linear"',
            )
        return {**trees.arrays(), "mean": mean, "pixels": len(given), "pixels_there": len(rows) * mean.size}

    def _model(self, learned: Mapping[str, Any]) -> Model:
        trees, mean = Trees.of(learned), np.asarray(learned["mean"])

        def calibrated(image: Array) -> Array:
            features = pixel_features(image, mean).astype(np.float64)
            result: Array = trees.predict(features).astype(np.float32).reshape(image.shape)
            return result

        return calibrated


def mean_image(data: CalibrationData, rows: Array) -> Array:
    """The mean of the true images of some rows, float32 [height, width, channels]."""
    total = np.zeros(data.true.shape[1:])
    for _, _, true in pairs(data, rows):
        total += true
    result: Array = (total / len(rows)).astype(np.float32)
    return result


def stride_of(there: int, most: int) -> int:
    """The least step that takes at most ``most`` of the pixels that are there; odd, so that no column is left out."""
    step = -(-there // most)
    return step if step == 1 or step % 2 else step + 1


def sampled(data: CalibrationData, rows: Array, mean: Array, seed: int, context: Context) -> tuple[Array, Array]:
    """Features [pixels, features] and true values [pixels] in float64 of the pixels that trees are grown on."""
    size = mean.size
    step = stride_of(len(rows) * size, MOST_PIXELS)
    start = int(np.random.default_rng([seed, 31]).integers(step))
    count = len(range(start, len(rows) * size, step))
    given, wanted = buffer((count, n_features(mean.shape)), np.float64), buffer((count,), np.float64)
    done = 0
    with context.task(total=len(rows), unit="images") as advance:
        for k, (_, first, true) in enumerate(pairs(data, rows)):
            here = np.arange((start - k * size) % step, size, step)
            given[done : done + len(here)] = pixel_features(first, mean)[:, here].T
            wanted[done : done + len(here)] = true.reshape(-1)[here]
            done += len(here)
            advance(1)
    assert done == count
    return given, wanted


def n_features(shape: ImageShape) -> int:
    return 8 + len(SIGMAS) + 2 + (2 if shape[2] > 1 else 0)


def pixel_features(image: Array, mean: Array) -> Array:
    """Float32 [features, pixels × channels] of a float32 image: what the trees look at.

    A pixel and its four neighbours, blurs, the mean and spread of its image, the mean train image, row and column. Of
    coloured images also the mean of its channels, and which channel it is.
    """
    from scipy.ndimage import gaussian_filter

    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
    row, column, channel = np.indices(image.shape)
    columns = [
        image, *(gaussian_filter(image, (sigma, sigma, 0)) for sigma in SIGMAS),
        padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:],
        np.broadcast_to(image.mean(axis=(0, 1)), image.shape), np.broadcast_to(image.std(axis=(0, 1)), image.shape),
        mean, row, column,
    ]  # fmt: skip
    if image.shape[2] > 1:
        columns += [np.broadcast_to(image.mean(axis=2, keepdims=True), image.shape), channel]
    return np.stack([values.reshape(-1) for values in columns]).astype(np.float32)
