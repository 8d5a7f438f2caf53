"""Sources of images made again in another process, from plain values that a task carries."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from leanrecon.evaluation.image_sources import Blended, EveryFold, ImageSource, Reconstructions, StoredImages
from leanrecon.evaluation.some_pictures import SomePictures
from leanrecon.stores.pictures import Pictures
from leanrecon.stores.store import Store


def source_from(plain: Mapping[str, Any]) -> ImageSource:
    """The source that ``ImageSource.plain`` told of."""
    return _MADE[plain["of"]](plain)


def _stored(plain: Mapping[str, Any]) -> ImageSource:
    return StoredImages(Store.open(plain["path"]), np.asarray(plain["rows"], np.int64))


def _pictures(plain: Mapping[str, Any]) -> ImageSource:
    pictures, shape = Pictures.open(plain["path"]), plain["shape"]
    if plain["rows"] is not None:
        pictures = SomePictures(pictures, np.asarray(plain["rows"], np.int64))
    return Reconstructions(pictures, None if shape is None else (shape[0], shape[1], shape[2]))


def _blended(plain: Mapping[str, Any]) -> ImageSource:
    return Blended(source_from(plain["final"]), source_from(plain["stage1"]), plain["share"])


def _folds(plain: Mapping[str, Any]) -> ImageSource:
    stores = {path: Store.open(path) for path in dict.fromkeys(plain["paths"])}
    return EveryFold([(stores[path], np.array([row])) for path, row in zip(plain["paths"], plain["rows"], strict=True)])


_MADE = {"store": _stored, "folds": _folds, "pictures": _pictures, "blend": _blended}
