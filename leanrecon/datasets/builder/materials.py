"""What a dataset is made of, whatever files hold it: responses, trials, images, captions and voxels."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from leanrecon.datasets.files.rows import Convert, Rows
from leanrecon.errors import InputError
from leanrecon.places.inputs import InputFile

Array = np.ndarray[Any, Any]

SPACE = ("shape", "affine", "hemispheres", "vertices")
"""Arrays of a table of voxels that tell of the space they lie in, not of each voxel."""


@dataclass(frozen=True)
class Trials:
    """What is known of each trial; every field has one entry a trial, in the order of the responses."""

    stimulus: Sequence[str]
    """Id of the image that was shown: a file name, or a number of a collection."""
    split: Sequence[str] | None = None
    """train or test; other values leave the trial out."""
    run: Sequence[int] | None = None
    session: Sequence[int] | None = None
    test_set: Sequence[str] | None = None
    """Name of the test set of each test trial, where there are several; it says nothing of the others."""

    def __len__(self) -> int:
        return len(self.stimulus)

    def groups(self, by: str) -> Array:
        """A number for the session, or for the run within its session, of each trial: int64 [trials], from 0.

        Raises InputError where the trials don't tell it.
        """
        runs = self.run if by == "run" else None
        if (by == "run" and runs is None) or (by == "session" and self.session is None):
            raise InputError(f"the trials do not tell their {by}", expected=f"a column {by} in the table of trials")
        unknown = [0] * len(self)
        keys = list(zip(self.session or unknown, runs or unknown, strict=True))
        numbers: dict[Any, int] = {}
        return np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)


@dataclass(frozen=True)
class Images:
    """Images and the row that each lies in."""

    rows: Rows
    row_of: Mapping[str, int]
    """Row of the image by its id."""
    shape: tuple[int, int, int]
    """Height, width and channels as they are stored in the study."""
    files: Sequence[InputFile]
    """The files that decide them."""
    convert: Convert | None = None
    """Turns blocks of numbers as they come into uint8 [images, height, width, channels]."""


@dataclass(frozen=True)
class VoxelTable:
    """What is known of the voxels, in the order of the columns of the responses."""

    n: int
    areas: Mapping[str, Array] = field(default_factory=dict)
    """bool [voxels] by the name of the area; areas may overlap."""
    arrays: Mapping[str, Array] = field(default_factory=dict)
    """Other arrays for voxels.npz: index, shape, affine, coordinates …"""

    def chosen(self, names: Sequence[str] | None) -> Array:
        """The voxels of the named areas, ascending: int64; all where none is named.

        Raises InputError for unknown areas, and where no voxel is left.
        """
        if names is None:
            return np.arange(self.n)
        if unknown := [name for name in names if name not in self.areas]:
            raise InputError(
                f"dataset.voxels names {unknown[0]!r}, which is not an area of these voxels",
                expected=f"areas among {', '.join(self.areas)}" if self.areas else "files that tell areas",
            )
        found = np.flatnonzero(np.logical_or.reduce([self.areas[name] for name in names]))
        if not len(found):
            raise InputError(f"the areas {', '.join(names)} have no voxels", expected="areas with voxels")
        return found


@dataclass(frozen=True)
class Materials:
    """All that a dataset is made of; only headers and tables have been read."""

    responses: Rows
    """[trials, voxels]"""
    trials: Trials
    voxels: VoxelTable
    images: Images | None
    files: Sequence[InputFile]
    """The files that decide responses, trials and voxels."""
    made_of: Mapping[str, Any] = field(default_factory=dict)
    """What else decides them: the settings of their reader, as plain values."""
    captions: Callable[[Sequence[str]], list[list[str]]] | None = None
    """The captions of images by their ids."""
    held: int = 0
    """Bytes of tables that stay in memory."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.responses.close()
        if self.images is not None:
            self.images.rows.close()

    def check(self) -> None:
        """Raise InputError where the parts do not fit together."""
        if len(self.trials) != len(self.responses):
            raise InputError(
                f"{self.responses.name} holds {len(self.responses)} trials and the table {len(self.trials)}",
                expected="one line of the table for each volume or row of betas, in the same order",
            )
        if self.voxels.n != self.responses.shape[1]:
            raise InputError(
                f"{self.responses.name} has {self.responses.shape[1]} voxels and their table {self.voxels.n}",
                expected="the same number",
            )
