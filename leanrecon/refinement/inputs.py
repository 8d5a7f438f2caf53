"""The inputs of a generator: first images and predictions of the same rows, and nothing else."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from leanrecon.errors import InputError
from leanrecon.images import Array, ImageShape


class Rows(Protocol):
    """A matrix of predictions, read block by block, as stores.matrix.Matrix is."""

    shape: tuple[int, int]

    def read(self, rows: range, columns: range, out: Array) -> None:
        """Read any block into ``out`` [len(rows), len(columns)], cast to its dtype."""


class Images(Protocol):
    """Images of one shape by their rows, as stores.pictures.Pictures are."""

    @property
    def rows(self) -> int:
        """The number of images."""

    @property
    def shape(self) -> ImageShape:
        """Height, width and channels."""

    def read(self, row: int) -> Array:
        """The image of a row, uint8."""


@dataclass(frozen=True)
class Inputs:
    """First images, and the predictions of each role: text, vision, latents."""

    first: Images
    predicted: dict[str, Rows]

    def check_finite(self, batches: Iterable[range]) -> None:
        """Raise InputError for a prediction with NaN or infinite numbers in batches of rows, which are read together."""
        for role, matrix in self.predicted.items():
            for rows in batches:
                finite = np.isfinite(read_rows(matrix, rows)).all(axis=1)
                if not finite.all():
                    raise InputError(
                        f"row {rows[int(finite.argmin())]} of the predicted {role} is not finite",
                        todo="run the regression again",
                    )

    def check_counts(self, images: int) -> None:
        """Raise InputError unless there is one first image and one row of each role for each of ``images``."""
        counts = {"first images": self.first.rows, "images to draw": images}
        counts |= {f"rows of {role}": matrix.shape[0] for role, matrix in self.predicted.items()}
        if len(set(counts.values())) > 1:
            raise InputError(", ".join(f"{n} {name}" for name, n in counts.items()), expected="the same number of each")


def read_rows(matrix: Rows, rows: range) -> Array:
    """Rows of a matrix, float32 [len(rows), columns]."""
    out: Array = np.empty((len(rows), matrix.shape[1]), np.float32)
    matrix.read(rows, range(matrix.shape[1]), out)
    return out
