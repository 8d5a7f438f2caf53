"""The rows of betas by the image that they show, and the mean response to each image, a block of voxels at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from leanrecon.memory import buffer
from leanrecon.regression.normalise import Centred
from leanrecon.regression.ridge.pairing import Pairing
from leanrecon.regression.ridge.plan_form import VOXELS
from leanrecon.stores.matrix import panels, read_ahead

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class ImageRows:
    """Rows of betas by image, for the images that are shown at all."""

    images: Array
    """Rows of the targets that are shown, ascending, int [s]."""
    counts: Array
    """How many rows show each of them, float64 [s]."""
    order: Array | None
    """Rows of betas by image, int [n]; None where row i shows image i."""

    @classmethod
    def of(cls, pairing: Pairing) -> Self:
        index = np.arange(pairing.n) if pairing.index is None else pairing.index
        images = np.flatnonzero(pairing.counts)
        plain = np.array_equal(index, np.arange(pairing.n))
        return cls(images, pairing.counts[images], None if plain else np.argsort(index, kind="stable"))

    @property
    def root(self) -> Array:
        """Square roots of the numbers of rows, float64 [s]."""
        result: Array = np.sqrt(self.counts)
        return result

    def blocks(self, betas: Centred, dtype: Any = np.float64) -> Iterator[tuple[range, Array, Array, Array]]:
        """Yield ``(voxels, means [s, v], within [v], squares [v])``: mean betas of each image times √rows, and sums of squares.

        ``within`` are the squares of rows about the mean of their image, ``squares`` those of all rows. What is yielded
        is valid until the next one is asked for, which is read meanwhile. Means have the ``dtype``, squares are float64.
        """
        n, p = betas.shape
        memories = [buffer((n * min(VOXELS, p) * 8,), np.uint8) for _ in range(2)]
        starts = np.concatenate([[0], np.cumsum(self.counts)[:-1]]).astype(np.int64)
        root = self.root[:, None].astype(dtype)

        def read(voxels: range, memory: Array) -> Array:
            return betas.read(range(n), voxels, memory, dtype)

        for voxels, block in read_ahead(panels(p, voxels_at_once(dtype)), read, memories):
            squares = column_squares(block)
            if self.order is None:
                yield voxels, block, np.zeros(len(voxels)), squares
                continue
            means = np.add.reduceat(block[self.order], starts, axis=0)
            means /= root
            within = np.maximum(squares - column_squares(means), 0)
            yield voxels, means, within, squares


def voxels_at_once(dtype: Any) -> int:
    """Voxels that make a block: twice as many in float32, which take as much memory."""
    itemsize: int = np.dtype(dtype).itemsize
    return VOXELS * 8 // itemsize


def column_squares(block: Array) -> Array:
    """The sum of squares of each column, float64."""
    sums: Array = np.einsum("ij,ij->j", block, block, dtype=np.float64)
    return sums
