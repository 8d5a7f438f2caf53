"""Stores of images as other stages read them: checked, and chunk by chunk."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from leanrecon.errors import InputError, StoreError
from leanrecon.images import Array, ImageShape, fitted_into, resize
from leanrecon.memory import buffer
from leanrecon.stores.store import Store

Rows = Sequence[int] | Array
"""Row numbers in their store, ascending: noise is drawn from (seed, row), never from a place in a batch."""


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
        raise StoreError(f"{images.path} is not complete", todo="run the same command again to finish it")
    return height, width, channels


def row_numbers(rows: Rows | None, store: Store) -> Array:
    """Checked row numbers [n] of a store, ascending; None stands for all."""
    index = np.arange(store.rows) if rows is None else np.asarray(rows, dtype=np.int64)
    if np.any(np.diff(index) <= 0) or np.any((index < 0) | (index >= store.rows)):
        raise InputError(
            f"the row numbers of {store.path} do not ascend, or lie outside it",
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


def small_images(images: Store, rows: Sequence[int] | Array, side: int) -> Array:
    """Small versions of some images of a store, in any order: float32 [rows, pixels].

    Their longer side has ``side`` pixels, or as many as the shorter side of the stored images, where these are fewer.
    """
    shape = image_shape(images)
    small = fitted_into(shape, min(side, *shape[:2]))
    wanted = np.asarray(rows, np.int64)
    order = np.argsort(wanted, kind="stable")
    result = np.empty((len(wanted), int(np.prod(small))), np.float32)
    for run, block in ImageReader(images).runs(wanted[order]):
        result[order[run]] = [resize(image, small).reshape(-1) for image in block]
    return result
