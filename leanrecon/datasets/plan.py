"""What every kind of dataset says before it is read: its settings, and what it would write and take."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, model_validator

from leanrecon.study.costs import Cost

Repeats = Literal["average", "single"]


class DatasetSettings(BaseModel):
    """``[dataset]``: what the rest of the pipeline asks of any kind."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    folds: int | None = None
    """Number of folds, in which every row is tested once; absent: train and test are split once."""
    group: Literal["stimulus", "run"] = "stimulus"
    """What folds keep together: all rows of an image, or with "run" all rows of a run as well."""
    repeats: Repeats = "average"
    """Train rows: the average of all trials of an image, or single trials."""
    test_repeats: Repeats = "average"
    """Test rows: the average of all trials of an image, or single trials."""
    rescale_average: bool = False
    """Whether a test row that averages k trials is multiplied by √k (Shen et al. 2019), for decoders of single trials."""

    @property
    def simulated(self) -> bool:
        """Whether no brain was measured."""
        return False

    @property
    def tells_noise(self) -> bool:
        """Whether voxels.npz holds the noise of each voxel, and rows.json how many trials each row averages."""
        return False

    @property
    def publishes_noise(self) -> bool:
        """Whether the noise of each voxel was published with the dataset; else it is estimated from its repeats."""
        return False

    @property
    def has_images(self) -> bool:
        """Whether there are images to take features from."""
        return True

    @property
    def has_areas(self) -> bool:
        """Whether voxels.npz may say which area each voxel is in."""
        return True

    @property
    def remote(self) -> bool:
        """Whether the data are downloaded."""
        return False

    @property
    def open_terms(self) -> str:
        """Terms of use that a person still has to accept before the data are downloaded; empty where there are none."""
        return ""

    def located(self, base_dir: Path | None) -> Self:
        """The same settings with absolute paths to files that exist, so that any folder can continue the study."""
        return self

    def finders(self, base_dir: Path | None) -> "list[Callable[[], object]]":
        """What finds each file and folder that is named here, and raises InputError where there is none.

        Nothing is read, and what lies behind a URL is not asked for: a run looks for all inputs before it begins.
        """
        return []

    def averages(self, split: str) -> bool:
        """Whether each row of a split averages all trials of its image. With folds all rows are train rows."""
        return (self.repeats if split == "train" else self.test_repeats) == "average"

    def rescales(self, split: str) -> bool:
        """Whether averaged rows of a split are multiplied by the root of their number of trials."""
        return self.rescale_average and split == "test"

    @model_validator(mode="after")
    def _check_repeats(self) -> Self:
        if self.rescale_average and (self.repeats, self.test_repeats) != ("single", "average"):
            raise ValueError(
                'rescale_average is for averaged test rows under a decoder of single trials: set repeats = "single" '
                'and test_repeats = "average", or leave it out'
            )
        return self


@dataclass(frozen=True, kw_only=True)
class DatasetPlan:
    """What the stage dataset would write, from settings and headers alone."""

    n_train: int
    """Rows of betas, at most: repeats that only the images tell are found while they are read."""
    n_test: int
    """0 with folds, as all rows lie in the train stores. With test_fraction, repeats may change it a little."""
    train_images: int
    """Different images, at most."""
    test_images: int
    max_repeats: int = 1
    """Most trials of one image, as far as headers tell."""
    voxels: int
    image_shape: tuple[int, int, int] | None
    folds: int | None
    work: int
    """Most bytes of memory taken at once."""
    disk: int
    """Bytes of the stores."""
    captions: int = 0
    """Most bytes that reading and keeping the captions takes."""
    download: int = 0
    """Bytes to fetch, about."""
    requests: int = 0
    """Requests that fetch them, about; 0 where they are not known."""
    scratch: int = 0
    """Bytes on disk that are needed for a while only."""
    beside: Cost = field(default_factory=Cost)
    """What is done beside making the stores of betas and images: files in buckets and stores of the kind's own, read
    and made, about."""
    shared: Cost = field(default_factory=Cost)
    """The same of what the workers of a cluster share."""
    shares_images: bool = False
    """Whether workers share the stores of images."""
    shared_download: float = 0.0
    """The share of ``download`` and ``requests`` that workers do."""
