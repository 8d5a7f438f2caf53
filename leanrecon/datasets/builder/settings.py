"""Settings that all datasets of the builder share: splits, repeats, z-scores and the choice of voxels."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from leanrecon.datasets.files.open import located_array
from leanrecon.datasets.plan import DatasetSettings

ZScore = Literal["none", "run", "session", "train"]


class BuilderSettings(DatasetSettings):
    """What is done with trials once they are read, whatever files they come from."""

    test_ids: str | None = None
    """A text file of the stimuli to test on, one a line; all other trials are for training."""
    test_fraction: float | None = Field(default=None, gt=0, lt=1)
    """The share of trials that are drawn as test trials, all trials of an image together."""
    folds: int | None = Field(default=None, ge=2)
    """Number of folds, in which every row is tested once."""
    zscore: ZScore = "none"
    """Whether each voxel is z-scored: within each run, within each session, or by the train trials."""
    voxels: str | list[str] | None = Field(default=None, min_length=1)
    """The area whose voxels are used, or several, joined; absent: all voxels."""
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

    @model_validator(mode="after")
    def _check_builder(self) -> Self:
        rules = [name for name in ("test_ids", "test_fraction", "folds") if getattr(self, name) is not None]
        if len(rules) > 1:
            raise ValueError(f"{' and '.join(rules)} are given: only one can say what is tested")
        if self.folds and self.repeats != self.test_repeats:
            raise ValueError("with folds every row is trained on and tested, so repeats and test_repeats must be alike")
        return self
