"""Stores of images as the feature spaces read them: checked, chunk by chunk, made smaller by Pillow."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from leanrecon.errors import InputError, StoreError
from leanrecon.features.space import Array, ImageShape, Rows
from leanrecon.memory import buffer
from leanrecon.stores import Store


def image_shape(images: Store) -> ImageShape:
    """Height, width and channels of a store's images; raises where it holds none, or is not complete."""
    if len(images.shape) != 4 or images.dtype != np.uint8:
        raise InputError(
            f"{images.path} holds {images.dtype} of shape {images.shape}",
            expected="images: uint8 of shape [rows, height, width, channels]",
        )
    height, width, channels = images.shape[1:]
    if channels not in (1, 3):
        raise InputError(f"the images in {images.path} have {channels} channels", expected="1 (grey) or 3 (RGB)")
    if not images.complete:
        raise StoreError(f"{images.path} is not complete", todo="run the stage that writes it first")
    return height, width, channels


def row_numbers(rows: Rows | None, store: Store) -> Array:
    """Checked row numbers [n] of a store, ascending; None stands for all."""
    index = np.arange(store.rows) if rows is None else np.asarray(rows, dtype=np.int64)
    if np.any(np.diff(index) <= 0) or np.any((index < 0) | (index >= store.rows)):
        raise InputError(
            f"rows of {store.path} were asked for that do not ascend or are not there",
            expected=f"each at most once, from 0 to {store.rows - 1}",
        )
    return index


class ImageReader:
    """Reads images in ascending order, so that no chunk is read twice in a row; for one thread at a time."""

    def __init__(self, images: Store) -> None:
        self.images = images
        self._memory = buffer((images.buffer_nbytes(),), np.uint8)
        self._group = -1
        self._chunk = self._memory[:0]

    def runs(self, rows: Rows) -> Iterator[tuple[slice, Array]]:
        """Cut ``rows`` into runs that lie side by side in one chunk; yields their place in ``rows`` and their images.

        The images [run, height, width, channels] are a view, valid until the next run.
        """
        index = np.asarray(rows, dtype=np.int64)
        groups = index // self.images.chunk_rows
        cuts = np.nonzero((np.diff(index) != 1) | (np.diff(groups) != 0))[0] + 1
        for a, b in pairwise([0, *cuts.tolist(), len(index)] if len(index) else []):
            group = int(groups[a])
            if group != self._group:
                self._group = -1  # a chunk that can't be read leaves its memory half-filled
                self._chunk = self.images.read_chunk(group, 0, self._memory)
                self._group = group
            start = int(index[a]) - group * self.images.chunk_rows
            yield slice(a, b), self._chunk[start : start + b - a].reshape(b - a, *self.images.shape[1:])

    def read(self, rows: range, memory: Array) -> Array:
        """The images of ``rows`` as [len(rows), height, width, channels] at the start of ``memory`` (uint8)."""
        out = memory[: len(rows) * self.images.columns].reshape(len(rows), *self.images.shape[1:])
        for place, images in self.runs(rows):
            out[place] = images
        return out


def fitted_into(shape: ImageShape, longer: int) -> ImageShape:
    """The shape of an image whose longer side is ``longer``, with the same ratio of the sides to the nearest pixel."""
    height, width, channels = shape
    scale = longer / max(height, width)
    return max(round(height * scale), 1), max(round(width * scale), 1), channels


def resize(image: Array, shape: ImageShape) -> Array:
    """One uint8 image [height, width, channels] at another size; itself, if it has that size.

    Pillow's BILINEAR, which averages over all pixels when it shrinks: what torchvision's ``resize`` of a Pillow
    image does, and so what Brain-Diffuser and VDVAE were fed.
    """
    if image.shape == shape:
        return image
    from PIL import Image

    height, width, channels = shape
    picture = Image.fromarray(image[:, :, 0] if channels == 1 else image)
    resized: Array = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))
    return resized.reshape(shape)


def to_pixels(image: Array, shape: ImageShape, out: Array) -> None:
    """Write one uint8 image, resized to ``shape``, as a row of numbers from 0 to 1: height, width, channels (C order)."""
    np.divide(resize(image, shape).reshape(-1), out.dtype.type(255), out=out, dtype=out.dtype)


def from_pixels(row: Array, shape: ImageShape) -> Array:
    """The uint8 image of a row of numbers; what lies outside 0 to 1 is clipped."""
    levels: Array = np.rint(np.clip(row, 0, 1) * 255)
    return levels.astype(np.uint8).reshape(shape)
