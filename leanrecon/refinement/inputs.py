"""What the stage is handed: first images and predictions of the same rows, and nothing else."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from leanrecon.errors import InputError
from leanrecon.images import Array, ImageShape


class Rows(Protocol):
    """A matrix of predictions, read block by block, as stores.matrix.Matrix is."""

    shape: tuple[int, int]

    def read(self, rows: range, columns: range, out: Array) -> None:
        """Any block, into ``out`` [len(rows), len(columns)], cast to its dtype."""


class Images(Protocol):
    """Images of one shape by their rows, as stores.pictures.Pictures are."""

    @property
    def rows(self) -> int:
        """How many there are."""

    @property
    def shape(self) -> ImageShape:
        """Height, width and channels."""

    def read(self, row: int) -> Array:
        """The image of a row, uint8."""


@dataclass(frozen=True)
class Inputs:
    """All that a brain gave: first images, and by role what was predicted: text, vision, latents."""

    first: Images
    predicted: dict[str, Rows]

    def check_finite(self, rows: list[int]) -> None:
        """Raise InputError for a prediction with NaN or infinite numbers."""
        for name, matrix in self.predicted.items():
            for row in rows:
                if not np.isfinite(read_rows(matrix, range(row, row + 1))).all():
                    raise InputError(
                        f"row {row} of the predicted {name} is not finite", todo="run the regression again"
                    )


def read_rows(matrix: Rows, rows: range) -> Array:
    """Rows of a matrix, float32."""
    out: Array = np.empty((len(rows), matrix.shape[1]), np.float32)
    matrix.read(rows, range(matrix.shape[1]), out)
    return out
