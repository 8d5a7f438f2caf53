"""Settings that all datasets of the builder share: splits, repeats, z-scores and the choice of voxels."""

import glob
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from leanrecon.datasets.files.named import matching, needed_file, needed_folder
from leanrecon.datasets.files.open import located_array
from leanrecon.datasets.plan import DatasetSettings
from leanrecon.places.inputs import is_url
from leanrecon.places.paths import expanded, located

ZScore = Literal["none", "run", "session", "train"]


class BuilderSettings(DatasetSettings):
    """What is done with trials once they are read, whatever files they come from."""

    test_ids: str | None = None
    """A text file of the stimuli to test on, one a line; all other trials are for training."""
    test_fraction: float | None = Field(default=None, gt=0, lt=1)
    """The share of trials that are drawn as test trials, all trials of an image together."""
    folds: int | None = Field(default=None, ge=2)
    """Number of folds, in which every row is tested once; absent: train and test are split once."""
    zscore: ZScore = "none"
    """Whether each voxel is z-scored: within each run, within each session, or by the train trials."""
    voxels: str | list[str] | None = Field(default=None, min_length=1)
    """The area whose voxels are used, or several, joined; absent: all voxels."""
    min_reliability: float | None = Field(default=None, gt=-1, lt=1)
    """Least correlation of a voxel's responses to the first and second showing of train images; absent: any is used."""
    allow_shared_stimuli: bool = False
    """Whether test images may be among the train images."""
    check: Literal["stop", "warn"] = "stop"
    """What to do when the responses to repeats of an image are no more alike than those to different images."""

    @property
    def chosen_areas(self) -> list[str] | None:
        """The areas whose voxels are used; None for all."""
        return [self.voxels] if isinstance(self.voxels, str) else self.voxels

    @property
    def tells_noise(self) -> bool:
        return True

    def located(self, base_dir: Path | None) -> Self:
        if self.test_ids is None:
            return self
        return self.model_copy(update={"test_ids": located_array(self.test_ids, base_dir)})

    def finders(self, base_dir: Path | None) -> list[Callable[[], object]]:
        return [] if self.test_ids is None else [partial(needed_file, self.test_ids, base_dir, "test_ids")]

    @model_validator(mode="after")
    def _check_builder(self) -> Self:
        rules = [name for name in ("test_ids", "test_fraction", "folds") if getattr(self, name) is not None]
        if len(rules) > 1:
            raise ValueError(f"{' and '.join(rules)} are given: only one can say what is tested")
        if self.folds and self.repeats != self.test_repeats:
            raise ValueError(
                "with folds every row is trained on and tested, so repeats and test_repeats must be the same"
            )
        if self.folds and self.min_reliability is not None:
            raise ValueError(
                "min_reliability is taken from train rows alone, and with folds every row is tested: leave it out, or "
                "split by test_ids or test_fraction"
            )
        return self


class FolderSettings(BuilderSettings):
    """A dataset that lies in one folder."""

    root: str
    """The folder of the data."""

    def located(self, base_dir: Path | None) -> Self:
        own = super().located(base_dir)
        return own.model_copy(update={"root": located(own.root, base_dir)})

    def finders(self, base_dir: Path | None) -> list[Callable[[], object]]:
        return [partial(self._find_root, base_dir), *super().finders(base_dir)]

    def _find_root(self, base_dir: Path | None) -> object:
        return needed_folder(self.root, base_dir, "root")


class TrialsSettings(BuilderSettings):
    """A dataset with a table of trials, a folder of images, and a mask and areas in NIfTI files."""

    trials: str
    """A TSV or CSV table, one line a trial in the order of the betas: ``stimulus``; also ``run``, ``session``, ``split``."""
    images: str | None = None
    """The folder of the images; a stimulus is the name of a file, with or without its ending."""
    mask: str | None = None
    """A NIfTI mask of the voxels to use; absent: voxels that are neither NaN nor, in NIfTI files, 0 in the first trial."""
    areas: str | None = None
    """A pattern of NIfTI masks, each named by its file, or one label image."""
    area_names: str | None = None
    """A table of the label image: ``index`` and ``name``."""
    image_size: list[int] | None = Field(default=None, min_length=2, max_length=2)
    """[height, width] of the images in the study; absent: those of the first image."""

    @property
    def has_images(self) -> bool:
        return self.images is not None

    def located(self, base_dir: Path | None) -> Self:
        own = super().located(base_dir)
        given = {name: text for name in _TRIALS_FILES if (text := getattr(own, name))}
        return own.model_copy(update={name: located_files(text, base_dir) for name, text in given.items()})

    def finders(self, base_dir: Path | None) -> list[Callable[[], object]]:
        found = super().finders(base_dir)
        for name, find in _TRIALS_FILES.items():
            if (text := getattr(self, name)) and not (is_url(text) and glob.has_magic(text)):
                found.append(partial(find, text, base_dir, name))
        return found


_TRIALS_FILES: dict[str, Callable[[str, Path | None, str], object]] = {
    "trials": needed_file,
    "images": needed_folder,
    "mask": needed_file,
    "areas": matching,
    "area_names": needed_file,
}
"""The settings that name files of these datasets, and what finds them."""


def located_files(text: str, base_dir: Path | None) -> str:
    """The absolute path or pattern of what a setting names, or the text itself where nothing is there."""
    if is_url(text):
        return text
    path = expanded(text)
    if not glob.has_magic(text) or path.is_absolute():
        return located(text, base_dir)
    folders = [Path.cwd(), *([base_dir] if base_dir else [])]
    found = next((folder for folder in folders if any(folder.glob(text))), None)
    return text if found is None else str((found / text).absolute())
