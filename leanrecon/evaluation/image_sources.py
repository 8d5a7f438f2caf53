"""Where the images come from that are compared: stimuli, reconstructions, and baselines without brain data."""

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from leanrecon.evaluation.plan import nearest_at_once
from leanrecon.images import Array, ImageShape, resize, with_channels
from leanrecon.memory import buffer
from leanrecon.stores.fingerprint import fingerprint
from leanrecon.stores.images import ImageReader
from leanrecon.stores.matrix import Matrix, column_blocks, panels, read_ahead, tile_memories
from leanrecon.stores.pictures import Pictures
from leanrecon.stores.store import Store


class ReadsImages(Protocol):
    """An image for every test row."""

    def read(self, row: int) -> Array:
        """The image of a test row, uint8 [height, width, channels]; any size."""


class ImageSource(ReadsImages, Protocol):
    """An image for every test row; rows may share one."""

    @property
    def content(self) -> str:
        """A fingerprint of all images, whichever of them the rows have."""

    def numbers(self, m: int) -> Array:
        """The number of the image of each of ``m`` test rows, int [m]; equal numbers are the same image."""

    def plain(self) -> dict[str, Any] | None:
        """Plain values from which ``source_from`` makes the source in another process; None where that is of no use."""


class StoredImages:
    """Images of a store: ``index[row]`` is the row of the store for a test row."""

    def __init__(self, images: Store, index: Sequence[int] | Array) -> None:
        self.index = np.asarray(index)
        self._reader = ImageReader(images)

    def read(self, row: int) -> Array:
        at = int(self.index[row])
        image: Array = self._reader.read(range(at, at + 1), np.empty(self._reader.images.columns, np.uint8))[0]
        return image

    @property
    def content(self) -> str:
        return self._reader.images.content

    def numbers(self, m: int) -> Array:
        return self.index[:m]

    def plain(self) -> dict[str, Any]:
        path = self._reader.images.path
        return {"of": "store", "path": path.place.address(path.key), "rows": self.index.tolist()}


class EveryFold:
    """The images that the test rows of several folds show, one fold after the other."""

    def __init__(self, folds: Sequence[tuple[Store, Array]]) -> None:
        self._stores = [store for store, index in folds for _ in index]
        self._index = np.concatenate([index for _, index in folds])
        self._readers: dict[str, StoredImages] = {}

    def read(self, row: int) -> Array:
        store = self._stores[row]  # folds open the same store one by one: one reader holds its chunk for all of them
        if (path := str(store.path)) not in self._readers:
            self._readers[path] = StoredImages(store, self._index)
        return self._readers[path].read(row)

    @property
    def content(self) -> str:
        stores = {str(store.path): store for store in self._stores}
        return fingerprint({"stores": [store.content for store in stores.values()]})

    def numbers(self, m: int) -> Array:
        paths = [str(store.path) for store in self._stores[:m]]
        keys = np.stack([np.unique(paths, return_inverse=True)[1], self._index[:m]], axis=1)
        numbers: Array = np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1)
        return numbers

    def plain(self) -> dict[str, Any]:
        paths = [store.path.place.address(store.path.key) for store in self._stores]
        return {"of": "folds", "paths": paths, "rows": [int(row) for row in self._index]}


class Reconstructions:
    """Images in a folder, one a test row; resized to ``shape`` as first images are, if it is given."""

    def __init__(self, pictures: Pictures, shape: ImageShape | None = None) -> None:
        self.pictures = pictures
        self.shape = shape

    def read(self, row: int) -> Array:
        image = self.pictures.read(row)
        return image if self.shape is None else resize(image, (*self.shape[:2], image.shape[2]), bicubic=True)

    @property
    def content(self) -> str:
        return fingerprint({"pictures": self.pictures.content, "enlarged": self.shape and list(self.shape[:2])})

    def numbers(self, m: int) -> Array:
        return np.arange(m)

    def plain(self) -> dict[str, Any]:
        return {"of": "pictures", **self.pictures.plain(), "shape": self.shape and list(self.shape)}


class Blended:
    """Final images with a share of first ones mixed in, level by level; first ones are resized to them bilinearly."""

    def __init__(self, final: ImageSource, stage1: ImageSource, share: float) -> None:
        self.final, self.stage1, self.share = final, stage1, share

    def read(self, row: int) -> Array:
        image, first = self.final.read(row), self.stage1.read(row)
        height, width, channels = image.shape
        first = resize(with_channels(first, channels), (height, width, channels))
        mixed = (1 - self.share) * image.astype(np.float64) + self.share * first
        return np.rint(mixed).astype(np.uint8)

    @property
    def content(self) -> str:
        return fingerprint({"final": self.final.content, "stage1": self.stage1.content, "share": self.share})

    def numbers(self, m: int) -> Array:
        return np.arange(m)

    def plain(self) -> dict[str, Any]:
        return {"of": "blend", "final": self.final.plain(), "stage1": self.stage1.plain(), "share": self.share}


class ConstantImage:
    """One image for all test rows."""

    def __init__(self, image: Array) -> None:
        self.image = image

    def read(self, row: int) -> Array:
        return self.image

    @property
    def content(self) -> str:
        return hashlib.sha256(repr(self.image.shape).encode() + self.image.tobytes()).hexdigest()

    def numbers(self, m: int) -> Array:
        return np.zeros(m, np.int64)

    def plain(self) -> None:
        """A single image is not worth sharing."""


def mean_image(images: Store, index: Sequence[int] | Array) -> Array:
    """The mean over rows of the images that they show, uint8: an image counts once for every row that shows it."""
    different, counts = np.unique(np.asarray(index), return_counts=True)
    total = np.zeros(images.shape[1:], np.int64)
    for place, block in ImageReader(images).runs(different):
        if (counts[place] == 1).all():
            total += block.sum(axis=0, dtype=np.int64)
        else:
            for image, count in zip(block, counts[place].tolist(), strict=True):
                total += count * image.astype(np.int64)
    return np.rint(total / len(index)).astype(np.uint8)


def random_images(index: Sequence[int] | Array, m: int, seed: int) -> Array:
    """The image of a train row drawn at random for each of ``m`` test rows, int [m]."""
    drawn: Array = np.random.default_rng([seed, m]).choice(np.asarray(index), m)
    return drawn


def nearest_rows(predicted: Matrix, train: Matrix) -> Array:
    """For each predicted row the number of the row of ``train`` that correlates best with it, int [m]."""
    return nearest(predicted, train, 1)[0][:, 0]


def nearest(predicted: Matrix, others: Matrix, k: int) -> tuple[Array, Array]:
    """For each predicted row the ``k`` rows of ``others`` that correlate best with it, the best first; of ties the first.

    Their numbers, int [m, k], and Pearson's r, float64 [m, k]; r is 0 where either row is constant. The other rows are
    read once for each part of the predictions whose correlations fit into ``plan.CORRELATED`` bytes.
    """
    m, n = predicted.shape[0], others.shape[0]
    found = [_nearest(predicted, others, rows, min(k, n)) for rows in panels(m, nearest_at_once(m, n))]
    return np.concatenate([numbers for numbers, _ in found]), np.concatenate([r for _, r in found])


def _nearest(predicted: Matrix, train: Matrix, rows: range, k: int) -> tuple[Array, Array]:
    n, d = train.shape
    products = buffer((len(rows), n), np.float32)
    block = buffer((len(rows), train.block), np.float32)
    sums, squares = np.zeros(n), np.zeros(n)
    predicted_sums, predicted_squares = np.zeros(len(rows)), np.zeros(len(rows))
    shift: Any = None
    items = [(columns, part) for columns in column_blocks(train) for part in panels(n)]

    def read(item: tuple[range, range], memory: Array) -> Array:
        return train.read_tile(item[1], item[0].start // train.block, memory)

    for (columns, part), tile in read_ahead(items, read, tile_memories(train)):
        width = len(columns)
        prediction, features = block[:, :width], tile[:, :width]
        if shift is None:  # correlations don't change with it, but float32 products keep their digits
            shift = np.float32(features.mean(dtype=np.float64))
        if part.start == 0:
            predicted.read(rows, columns, prediction)
            prediction -= shift
            predicted_sums += prediction.sum(axis=1, dtype=np.float64)
            predicted_squares += np.einsum("ij,ij->i", prediction, prediction, dtype=np.float64)
        features = features - shift
        where = slice(part.start, part.stop)
        products[:, where] += prediction @ features.T
        sums[where] += features.sum(axis=1, dtype=np.float64)
        squares[where] += np.einsum("ij,ij->i", features, features, dtype=np.float64)
    varies, spread = _spread(sums, squares, d)
    own_varies, own_spread = _spread(predicted_sums, predicted_squares, d)
    best, correlations = np.empty((len(rows), k), np.int64), np.empty((len(rows), k))
    for i, row in enumerate(products):  # the length of the prediction itself changes no order
        r = np.where(varies, (row - predicted_sums[i] * sums / d) / spread, -np.inf)
        best[i] = np.argmax(r) if k == 1 else np.argsort(-r, kind="stable")[:k]
        found = np.where(varies[best[i]], r[best[i]], 0)
        correlations[i] = np.clip(found / own_spread[i], -1, 1) if own_varies[i] else 0
    return best, correlations


def _spread(sums: Array, squares: Array, d: int) -> tuple[Array, Array]:
    """Whether rows vary, and their length about their mean; 1 for those that do not."""
    variance = squares - sums**2 / d
    varies = variance > 1e-9 * squares  # less is what rounding leaves of a constant row
    return varies, np.sqrt(np.where(varies, variance, 1))
