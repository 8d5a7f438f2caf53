"""Where the images come from that are compared: stimuli, reconstructions, and baselines without a brain."""

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from leanrecon.images import Array, ImageShape, resize
from leanrecon.memory import buffer
from leanrecon.stores.fingerprint import fingerprint
from leanrecon.stores.images import ImageReader
from leanrecon.stores.matrix import PANEL, Matrix, column_blocks, panels, read_ahead, tile_memories
from leanrecon.stores.pictures import Pictures
from leanrecon.stores.store import Store

CORRELATED = 64_000_000
"""Bytes of correlations with all train rows that are held at once, if a panel of test rows takes no more."""


class Source(Protocol):
    """Images by test row."""

    def read(self, row: int) -> Array:
        """The image of a test row, uint8 [height, width, channels]; any size."""


class Images(Source, Protocol):
    """Images by test row, some of which may be the same one."""

    @property
    def content(self) -> str:
        """A fingerprint of all that decides the images, but for which of them a test row has."""

    def numbers(self, m: int) -> Array:
        """Which image each of ``m`` test rows has, as numbers [m] that are the same for one image."""


class Chosen:
    """Images of a store: for each test row the one in the row of the store that was chosen for it."""

    def __init__(self, images: Store, rows: Sequence[int] | Array) -> None:
        self.rows = np.asarray(rows)
        self._reader = ImageReader(images)

    def read(self, row: int) -> Array:
        at = int(self.rows[row])
        image: Array = self._reader.read(range(at, at + 1), np.empty(self._reader.images.columns, np.uint8))[0]
        return image

    @property
    def content(self) -> str:
        return self._reader.images.content

    def numbers(self, m: int) -> Array:
        return self.rows[:m]


class Drawn:
    """Reconstructions in a folder, enlarged as first images are."""

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


class Same:
    """One image for all rows."""

    def __init__(self, image: Array) -> None:
        self.image = image

    def read(self, row: int) -> Array:
        return self.image

    @property
    def content(self) -> str:
        return hashlib.sha256(repr(self.image.shape).encode() + self.image.tobytes()).hexdigest()

    def numbers(self, m: int) -> Array:
        return np.zeros(m, np.int64)


def mean_image(images: Store, rows: Sequence[int] | Array) -> Array:
    """The mean of some images of a store, uint8."""
    reader = ImageReader(images)
    total = np.zeros(images.shape[1:], np.int64)
    for _, block in reader.runs(np.asarray(rows)):
        total += block.sum(axis=0, dtype=np.int64)
    return np.rint(total / len(rows)).astype(np.uint8)


def random_rows(rows: Sequence[int] | Array, m: int, seed: int) -> Array:
    """A train row drawn at random for each of ``m`` test rows."""
    drawn: Array = np.random.default_rng([seed, m]).choice(np.asarray(rows), m)
    return drawn


def nearest_nbytes(m: int, n: int, block: int) -> int:
    """Memory that ``nearest_rows`` takes, in bytes."""
    rows = _rows_at_once(m, n)
    return 2 * rows * n * 4 + (rows + 3 * PANEL) * block * 4 * 2 + (m + n) * 32


def nearest_rows(predicted: Matrix, train: Matrix) -> Array:
    """For each predicted row the number of the train row that correlates best with it, in one pass over the train rows."""
    m, n = predicted.shape[0], train.shape[0]
    found = [_nearest(predicted, train, rows) for rows in panels(m, _rows_at_once(m, n))]
    return np.concatenate(found)


def _rows_at_once(m: int, n: int) -> int:
    return min(m, max(CORRELATED // (4 * n), 1))


def _nearest(predicted: Matrix, train: Matrix, rows: range) -> Array:
    n, d = train.shape
    products = buffer((len(rows), n), np.float32)
    block = buffer((len(rows), train.block), np.float32)
    sums, squares, own = np.zeros(n), np.zeros(n), np.zeros(len(rows))
    shift: Any = None
    items = [(columns, part) for columns in column_blocks(train) for part in panels(n)]

    def read(item: tuple[range, range], memory: Array) -> Array:
        return train.read_tile(item[1], item[0].start // train.block, memory)

    for (columns, part), tile in read_ahead(items, read, tile_memories(train)):
        width = len(columns)
        ours, theirs = block[:, :width], tile[:, :width]
        if shift is None:  # correlations don't change with it, but float32 products keep their digits
            shift = np.float32(theirs.mean(dtype=np.float64))
        if part.start == 0:
            predicted.read(rows, columns, ours)
            ours -= shift
            own += ours.sum(axis=1, dtype=np.float64)
        theirs = theirs - shift
        where = slice(part.start, part.stop)
        products[:, where] += ours @ theirs.T
        sums[where] += theirs.sum(axis=1, dtype=np.float64)
        squares[where] += np.einsum("ij,ij->i", theirs, theirs, dtype=np.float64)
    variance = squares - sums**2 / d
    varies = variance > 1e-9 * squares  # less is what rounding leaves of a constant row
    spread = np.sqrt(np.where(varies, variance, 1))
    best = np.empty(len(rows), np.int64)
    for k, row in enumerate(products):  # the length of the prediction itself changes no order
        r = np.where(varies, (row - own[k] * sums / d) / spread, -np.inf)
        best[k] = int(np.argmax(r))
    return best
