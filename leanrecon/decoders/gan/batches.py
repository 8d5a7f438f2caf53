"""Batches of train rows: inputs beside random parts of the images that they show, window by window."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from leanrecon.decoders.gan.reduction import Inputs
from leanrecon.images import resize, with_channels
from leanrecon.memory import buffer
from leanrecon.stores.images import ImageReader
from leanrecon.stores.windows import batches_of, window_rows, windows_of

if TYPE_CHECKING:
    from leanrecon.stores.store import Store

Array = np.ndarray[Any, Any]

ORDER, PARTS = 60, 61  # streams of random numbers

FLOAT = 4


@dataclass(frozen=True)
class TrainRows:
    """Train rows of inputs and images, at the size at which they are shown."""

    inputs: Inputs
    images: "Store"
    """uint8 [images, height, width, channels]"""
    stimulus: Array
    """int [n] the image that each row shows"""
    side: int
    """The side in pixels of a part that is shown."""
    jitter: int
    """Pixels by which images are larger."""
    batch: int
    seed: int

    @property
    def framed(self) -> int:
        return self.side + self.jitter

    @property
    def window(self) -> int:
        """Rows of a window."""
        return window_rows(row_nbytes(self.framed, self.inputs.dims), self.batch)

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return len(batches_of(self._windows(0), self.batch))

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Array, Array, Array]]:
        """Yield ``(rows, inputs, images)`` of each batch from step ``start`` on; arrays are valid until the next.

        Inputs are float32 [b, dims], images float32 [b, 3, side, side] from 0 to 1: a part of each at random.
        """
        windows = self._windows(epoch)
        most = min(self.window, len(self.inputs.fit))
        given = buffer((most, self.inputs.dims), np.float32)
        shown = buffer((most, self.framed, self.framed, 3), np.uint8)
        held = -1
        for step, (w, where) in enumerate(batches_of(windows, self.batch)):
            if step < start:
                continue
            ascending = np.sort(windows[w])
            if w != held:
                self.read(ascending, given[: len(ascending)], shown[: len(ascending)])
                held = w
            rows = windows[w][where]
            places = np.searchsorted(ascending, rows)
            drawn = np.random.default_rng([self.seed, PARTS, epoch, step])
            corners = drawn.integers(0, self.jitter + 1, (len(rows), 2))
            yield rows, given[places], as_input(shown[places], corners, self.side)

    def some(self, rows: Array) -> Iterator[tuple[Array, Array]]:
        """Inputs and the centres of images of some rows, ascending, in batches as ``epoch`` gives them."""
        middle = np.full((self.batch, 2), self.jitter // 2)
        for start in range(0, len(rows), self.batch):
            part = rows[start : start + self.batch]
            given = np.empty((len(part), self.inputs.dims), np.float32)
            shown = np.empty((len(part), self.framed, self.framed, 3), np.uint8)
            self.read(part, given, shown)
            yield given, as_input(shown, middle[: len(part)], self.side)

    def read(self, rows: Array, given: Array, shown: Array) -> None:
        """Read inputs and images of some rows, ascending."""
        self.inputs.take(rows, given)
        numbers, first = np.unique(self.stimulus[rows], return_inverse=True)
        order = np.argsort(first, kind="stable")
        ends = np.searchsorted(first[order], np.arange(len(numbers) + 1))
        for where, images in ImageReader(self.images).runs(numbers):
            for number, image in zip(range(where.start, where.stop), images, strict=True):
                shown[order[ends[number] : ends[number + 1]]] = framed(image, self.framed)

    def _windows(self, epoch: int) -> list[Array]:
        return windows_of(self.inputs.fit, self.window, (self.seed, ORDER, epoch))


def row_nbytes(framed: int, dims: int) -> int:
    """Bytes of a row of a window."""
    return 3 * framed**2 + FLOAT * dims


def framed(image: Array, side: int) -> Array:
    """A uint8 image in three colours, squashed to a square of ``side`` pixels."""
    return with_channels(resize(image, (side, side, image.shape[2])), 3)


def as_input(images: Array, corners: Array, side: int) -> Array:
    """Float32 [b, 3, side, side] from 0 to 1 of the squares of uint8 images whose upper left corners are given."""
    result = np.empty((len(images), 3, side, side), np.float32)
    for image, (top, left), out in zip(images, corners, result, strict=True):
        part = image[top : top + side, left : left + side].transpose(2, 0, 1)
        np.multiply(part, np.float32(1 / 255), out=out)
    return result
