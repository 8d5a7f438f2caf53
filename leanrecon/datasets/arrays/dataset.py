"""A study from any lab's arrays: betas, images and captions in .npy, .npz, .mat or .h5 files.

Zarr, h5py and SciPy are imported by the functions that need them, so that settings can be checked without.
"""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from pydantic import BaseModel, Field, model_validator

from leanrecon.context import Context
from leanrecon.datasets.arrays.inputs import Inputs
from leanrecon.datasets.files.open import located_array, needed_array
from leanrecon.datasets.plan import DatasetPlan, DatasetSettings, Repeats
from leanrecon.study.costs import inputs_read
from leanrecon.study.layout import Study
from leanrecon.study.rows import refuse_earlier_format

_ROLES = ("betas", "stimuli", "captions", "runs")


class ArraysSettings(DatasetSettings):
    """``[dataset] kind = "arrays"``: which arrays hold what, and which rows are for testing.

    Arrays are given as ``FILE``, ``FILE:KEY`` or ``:KEY`` (a key of ``path``).
    """

    kind: Literal["arrays"] = "arrays"
    """Arrays of any lab."""
    path: str | None = None
    """The file that arrays given as ``:KEY`` are in."""

    betas_train: str | None = None
    """Betas to train on, [rows, voxels]."""
    betas_test: str | None = None
    """Betas to test on, [rows, voxels]."""
    stimuli_train: str | None = None
    """The image of each train row."""
    stimuli_test: str | None = None
    """The image of each test row."""
    captions_train: str | None = None
    """One or more captions for each train row."""
    captions_test: str | None = None
    """One or more captions for each test row."""
    runs_train: str | None = None
    """The number of the run of each train row."""
    runs_test: str | None = None
    """The number of the run of each test row."""

    betas: str | None = None
    """All betas, [rows, voxels], to be split by test_index, test_fraction or folds."""
    stimuli: str | None = None
    """The image of each row, to be split like the betas."""
    captions: str | None = None
    """One or more captions for each row, to be split like the betas."""
    runs: str | None = None
    """The number of the run of each row, to be split like the betas."""

    test_index: str | None = None
    """A file of test row numbers, counted from 0, or of a mask with one entry a row."""
    test_fraction: float | None = Field(default=None, gt=0, lt=1)
    """The share of rows that are drawn as test rows, all rows of an image together."""
    folds: int | None = Field(default=None, ge=2)
    """Number of folds, in which every row is tested once; absent: train and test are split once."""
    repeats: Repeats = "single"
    """Train rows: as they are given, or the average of all that show the same image."""
    test_repeats: Repeats = "single"
    """Test rows: as they are given, or the average of all that show the same image."""

    rows_last: bool = False
    """Whether rows lie along the last axis of betas and images, as in [voxels, rows]; such arrays are held whole."""
    mask: str | None = None
    """A mask with one entry a voxel: the others are left out; absent: all voxels are used."""
    areas: str | None = None
    """The name or number of each voxel's area in an array, or a file with a mask for each area under its name."""
    voxels: str | list[str] | None = Field(default=None, min_length=1)
    """The area whose voxels are used, or several, joined; absent: all voxels."""
    min_reliability: float | None = Field(default=None, gt=-1, lt=1)
    """Least correlation of a voxel's responses to the first and second showing of train images; absent: any is used."""
    image_shape: list[int] | None = Field(default=None, min_length=2, max_length=3)
    """[height, width] or [height, width, channels]; needed where images are flat rows."""
    image_order: Literal["C", "F"] = "C"
    """F: flat rows run down the columns of the image, as MATLAB flattens."""
    image_range: Literal[1, 255] | None = None
    """Largest value that floating-point images may have; absent: told from the train images."""
    allow_shared_stimuli: bool = False
    """Whether test images may be among the train images."""

    @property
    def has_images(self) -> bool:
        return bool(self.stimuli or self.stimuli_train)

    @property
    def tells_noise(self) -> bool:
        return True

    @property
    def chosen_areas(self) -> list[str] | None:
        """The areas whose voxels are used; None for all."""
        return [self.voxels] if isinstance(self.voxels, str) else self.voxels

    @property
    def _files(self) -> dict[str, str]:
        """What settings name files, and the files that they name."""
        roles = (f"{role}{split}" for role in _ROLES for split in ("", "_train", "_test"))
        names = ("path", *roles, "test_index", "mask", "areas")
        return {name: getattr(self, name) for name in names if getattr(self, name)}

    def located(self, base_dir: Path | None) -> Self:
        return self.model_copy(update={name: located_array(spec, base_dir) for name, spec in self._files.items()})

    def finders(self, base_dir: Path | None) -> list[Callable[[], object]]:
        return [
            partial(needed_array, spec, self.path, base_dir, f"dataset.{name}") for name, spec in self._files.items()
        ]

    @model_validator(mode="after")
    def _check(self) -> Self:
        pairs = [name for role in _ROLES for name in (f"{role}_train", f"{role}_test") if getattr(self, name)]
        singles = [role for role in _ROLES if getattr(self, role)]
        splits = [name for name in ("test_index", "test_fraction", "folds") if getattr(self, name) is not None]
        if pairs and singles:
            raise ValueError(
                f"{pairs[0]} and {singles[0]} are both given: give either arrays for train and test, or one to be split"
            )
        if not self.betas and not (self.betas_train or self.betas_test):
            raise ValueError("no betas are given: set betas_train and betas_test, or betas")
        for role in _ROLES:
            given = [name for name in (f"{role}_train", f"{role}_test") if getattr(self, name)]
            if len(given) == 1:
                other = f"{role}_test" if given[0].endswith("train") else f"{role}_train"
                raise ValueError(f"{given[0]} is given without {other}")
        if pairs and splits and splits != ["folds"]:
            raise ValueError(f"{pairs[0]} already says what is tested, so {splits[0]} can't; only folds can pool both")
        if singles and len(splits) != 1:
            found = f"{' and '.join(splits)} are" if splits else "none is"
            raise ValueError(f"betas are to be split by one of test_index, test_fraction and folds, and {found} given")
        others = [name for name in ("test_index", "mask", "areas") if getattr(self, name)]
        for name in (*pairs, *singles, *others):
            if str(getattr(self, name)).startswith(":") and self.path is None:
                raise ValueError(f'{name} = "{getattr(self, name)}" is a key of `path`, which is not set')
        if self.folds and self.repeats != self.test_repeats:
            raise ValueError(
                "with folds every row is trained on and tested, so repeats and test_repeats must be the same"
            )
        if self.voxels and not self.areas:
            raise ValueError("voxels names areas, which are not given: set areas")
        if self.folds and self.min_reliability is not None:
            raise ValueError(
                "min_reliability is taken from train rows alone, and with folds every row is tested: leave it out, or "
                "split by test_index or test_fraction"
            )
        if self.min_reliability is not None and not self.has_images:
            raise ValueError("min_reliability needs repeats, and only images tell which rows show the same: give them")
        if self.group == "run" and not (self.runs or self.runs_train):
            raise ValueError('group = "run" needs the run of each row: set runs, or runs_train and runs_test')
        if self.image_shape and (min(self.image_shape) < 1 or self.image_shape[2:] not in ([], [1], [3])):
            raise ValueError("image_shape is [height, width] or [height, width, channels] with 1 or 3 channels")
        return self


class Arrays:
    """Arrays of any lab as a dataset."""

    Settings: ClassVar[type[BaseModel]] = ArraysSettings

    def __init__(self, settings: ArraysSettings) -> None:
        self.settings = settings

    @classmethod
    def notes(cls, settings: ArraysSettings) -> Iterable[str]:
        """Sentences that a reader of the report must know."""
        if settings.allow_shared_stimuli:
            yield "Test images may be among the train images (dataset.allow_shared_stimuli)."

    def plan(self, *, base_dir: Path | None, chunk: int, free: int) -> DatasetPlan:
        """Say what ingesting would write and take, from headers alone; ``free`` is the memory in bytes that it may take.

        Raises InputError for arrays that are missing, unreadable or don't fit together.
        """
        with ExitStack() as opened:
            return plan_inputs(Inputs(self.settings, base_dir, opened), chunk, free)

    def ingest(self, study: Study, *, base_dir: Path | None, context: Context) -> dict[str, Any]:
        """Write a study's betas, stimuli and captions from the arrays, continuing where an earlier run stopped.

        With ``folds`` all rows go into the train stores (given test arrays after the train ones) and ``folds.json``
        says which rows each fold tests. The seed decides folds and test_fraction; the memory budget decides nothing
        but speed. Relative paths start at the current folder or, failing that, at ``base_dir``. Returns what the record
        of the stage tells.
        Raises InputError for data that can't be used, StoreError for stores made of something else, BudgetError.
        """
        from leanrecon.datasets.arrays.ingest import Ingest

        if not context.overwrite:
            refuse_earlier_format(study)
        with ExitStack() as opened:
            inputs = Inputs(self.settings, base_dir, opened)
            context.require("reading the arrays", plan_inputs(inputs, context.chunk, context.budget.free).work)
            return Ingest(inputs, study, context).run()


def plan_inputs(inputs: Inputs, chunk: int, free: int) -> DatasetPlan:
    """The plan of arrays whose headers are known, as if no image were repeated."""
    n = inputs.n_rows
    n_test = inputs.expected_test_rows()
    parts = [
        (role, split, inputs.plan_store(role, split, len(split.index), chunk, free))
        for split in inputs.splits(np.arange(n_test))
        for role in inputs.roles
    ]
    plans, copies = [plan for _, _, plan in parts], inputs.plan_copies(chunk, free)
    asked = inputs.asked(parts, chunk)
    return DatasetPlan(
        n_train=n - n_test,
        n_test=n_test,
        train_images=n - n_test,
        test_images=n_test,
        voxels=inputs.voxels,
        image_shape=inputs.image_shape,
        folds=inputs.settings.folds,
        work=max(*(plan.work for plan in (*plans, *copies)), inputs.noise_nbytes()),
        disk=sum(plan.disk for plan in plans),
        scratch=sum(copy.disk for copy in copies),
        captions=inputs.captions_nbytes,
        beside=inputs_read(asked.requests, asked.nbytes),
    )
