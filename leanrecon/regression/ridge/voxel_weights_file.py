"""The file ``voxel_weights.npz`` beside predictions: how well images predict each voxel, and its weight."""

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from leanrecon.places import Location

if TYPE_CHECKING:
    from leanrecon.regression.ridge.ridge import StreamingRidge

Array = np.ndarray[Any, Any]


def beside(predictions: Location) -> Location:
    """The file beside the predictions of a feature space."""
    return predictions.parent / "voxel_weights.npz"


def content(ridge: "StreamingRidge") -> bytes:
    """The file's bytes: the share of each voxel's variance that images explain, and its weight, 1 without weights."""
    learned, p = ridge.learned_, ridge.n_features_in_
    weights = np.where(ridge.moments_.usable, 1.0, 0.0) if learned.weights is None else learned.weights
    share = np.full(p, np.nan) if learned.share is None else learned.share
    arrays = {"share": share.astype(np.float32), "weight": weights.astype(np.float32)}
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    return file.getvalue()


def read(predictions: Location) -> Array:
    """The weight of each voxel, float64 [p]."""
    with beside(predictions).open() as file, np.load(file, allow_pickle=False) as kept:
        weights: Array = kept["weight"].astype(np.float64)
    return weights
