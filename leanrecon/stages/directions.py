"""Directions of maps: one dimension of a feature space, or the luminance of a pixel."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from leanrecon.errors import InputError, shown
from leanrecon.images import GREY
from leanrecon.stores.gather import gathered
from leanrecon.stores.matrix import Matrix, as_matrix
from leanrecon.stores.store import Store
from leanrecon.study.variants import Variant
from leanrecon.validation import nearest

Array = np.ndarray[Any, Any]

LUMINANCE = "luminance"
"""The prefix of a pixel's luminance, as in ``luminance:ROW,COLUMN``."""

_PLACE = re.compile(r"(?P<space>[^:]+):(?P<row>\d{1,18})(,(?P<column>\d{1,18}))?", re.ASCII)


@dataclass(frozen=True)
class Direction:
    """One dimension of a feature space, or a pixel of the images."""

    space: str
    """Name of the feature space; "luminance" for a pixel."""
    place: tuple[int, ...]
    """The number of the dimension, from 0; or row and column of a pixel."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``pca:3`` or ``luminance:12,40``; raises InputError for anything else."""
        found = _PLACE.fullmatch(text)
        if found is None or (found["column"] is not None and found["space"] != LUMINANCE):
            raise InputError(
                f"{shown(text)} is not a direction",
                expected=f"SPACE:NUMBER, as in pca:0, or {LUMINANCE}:ROW,COLUMN",
            )
        return cls(found["space"], tuple(int(part) for part in (found["row"], found["column"]) if part is not None))

    def __str__(self) -> str:
        return f"{self.space}:{','.join(map(str, self.place))}"

    @property
    def is_pixel(self) -> bool:
        return len(self.place) == 2

    def check(self, variant: Variant, spaces: dict[str, Any]) -> None:
        """Raise InputError for a direction that the study does not have."""
        if self.is_pixel:
            _, height, width, _ = Store.open(variant.parent.stimuli("train")).shape
            if not (self.place[0] < height and self.place[1] < width):
                raise InputError(f"{self} lies outside of the images", expected=f"a pixel of {height}x{width}")
        elif self.space not in spaces:
            raise InputError(
                f"{self} names no feature space of this study ({nearest(self.space, spaces)})",
                expected=f"{', '.join(spaces) or 'a study with features'}, or {LUMINANCE}:ROW,COLUMN",
            )
        else:
            dims = variant.train_features(self.space, spaces[self.space].learns).shape[1]
            if self.place[0] >= dims:
                raise InputError(f"{self}: rows of {self.space} have {dims} numbers", expected=f"0 to {dims - 1}")


def read_directions(variant: Variant, directions: Sequence[Direction], spaces: dict[str, Any]) -> Array:
    """The directions of the train images, each image once: float64 [images, directions]; luminance is from 0 to 1."""
    found = np.empty((len(variant.train_images), len(directions)))
    for column, direction in zip(found.T, directions, strict=True):
        if direction.is_pixel:
            column[:] = _luminance(variant, *direction.place)
        else:
            features = variant.train_features(direction.space, spaces[direction.space].learns)
            column[:] = _columns(features, range(direction.place[0], direction.place[0] + 1))[:, 0]
    return found


def reading_nbytes(variant: Variant, directions: Sequence[Direction], spaces: dict[str, Any]) -> int:
    """The most bytes that ``read_directions`` takes."""
    scratch = 0
    for one in directions:
        source = _stimuli(variant) if one.is_pixel else variant.train_features(one.space, spaces[one.space].learns)
        scratch = max(scratch, source.scratch_nbytes)
    return 2 * scratch + len(variant.train_images) * 8 * (len(directions) + 4)


def _stimuli(variant: Variant) -> Matrix:
    return gathered(as_matrix(Store.open(variant.parent.stimuli("train"))), variant.train_images)


def _luminance(variant: Variant, row: int, column: int) -> Array:
    _, _, width, channels = Store.open(variant.parent.stimuli("train")).shape
    first = (row * width + column) * channels
    pixels = _columns(_stimuli(variant), range(first, first + channels))
    grey: Array = pixels[:, 0] if channels == 1 else pixels @ np.array(GREY)
    return grey / 255


def _columns(matrix: Matrix, columns: range) -> Array:
    out = np.empty((matrix.shape[0], len(columns)))
    matrix.read(range(matrix.shape[0]), columns, out)
    return out
