"""What every kind of dataset says of itself before it is read: its settings, and what it would make and take."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict


class DatasetSettings(BaseModel):
    """``[dataset]``: what the rest of the pipeline asks of any kind."""

    model_config = ConfigDict(extra="forbid")

    folds: int | None = None
    """Every row is tested once, in one of so many folds; None where train and test are split once."""

    @property
    def simulated(self) -> bool:
        """Whether no brain was measured."""
        return False

    @property
    def tells_noise(self) -> bool:
        """Whether it says how noisy each voxel is, and how many trials each row is the mean of."""
        return False

    @property
    def has_images(self) -> bool:
        """Whether there are images to take features from."""
        return True

    def located(self, base_dir: Path | None) -> Self:
        """The same settings with whole paths to the files that are there, so that any folder can continue the study."""
        return self


@dataclass(frozen=True)
class DatasetPlan:
    """What the stage dataset would make, from settings and headers alone."""

    n_train: int
    n_test: int
    """0 with folds: all rows lie in the train stores. With test_fraction repeats may shift it a little."""
    voxels: int
    image_shape: tuple[int, int, int] | None
    folds: int | None
    work: int
    """Most bytes of memory taken at once."""
    disk: int
    """Bytes of the stores."""
    download: int = 0
    """Bytes to fetch, about."""
    scratch: int = 0
    """Bytes on disk that are there for a while only."""
