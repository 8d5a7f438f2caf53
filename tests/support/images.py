"""Images for tests: in a store, and as a source that hands them out row by row."""

from pathlib import Path
from typing import Any

import numpy as np

from leanrecon.stores import Store

Array = np.ndarray[Any, Any]


def store_at(path: Path, images: Array, chunk: int = 20_000) -> Store:
    """A finished store of images."""
    store = Store.create(path, images.shape, np.uint8, made_of={"of": path.name}, chunk=chunk)
    for i in store.missing_row_groups():
        rows = store.group_rows(i)
        store.write_rows(i, images[rows.start : rows.stop])
    store.finish()
    return store


class Images:
    """A source of an array's images."""

    def __init__(self, images: Array) -> None:
        self.images = images
        self.content = f"{images.shape} {int(images.sum())}"

    def read(self, row: int) -> Array:
        image: Array = self.images[row]
        return image

    def numbers(self, m: int) -> Array:
        return np.arange(m)
