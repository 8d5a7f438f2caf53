"""BData files of Kamitani Lab (Generic Object Decoding, Deep Image Reconstruction): voxels and labels as columns."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from re import fullmatch
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from leanrecon.datasets.builder.dataset import Builder
from leanrecon.datasets.builder.settings import BuilderSettings
from leanrecon.datasets.files.named import needed_file, needed_folder
from leanrecon.errors import InputError
from leanrecon.places.inputs import input_file, is_there
from leanrecon.places.paths import located

if TYPE_CHECKING:
    from leanrecon.datasets.builder.materials import Images, Materials

Array = np.ndarray[Any, Any]

SIMULATED = "simulated.json"
"""The file beside BData that says that a program made them, and how."""

DATA_TYPES = {1: "train", 2: "test"}
"""DataType of Generic Object Decoding; 3 is imagery, which is left out."""


class TestSet(BaseModel):
    """One of several test sets."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    path: str
    """The file of its trials."""
    images: str | None = None
    """The folder of its images below the folder of all images: stimuli are called FOLDER/STIMULUS then."""


class BdpySettings(BuilderSettings):
    """``[dataset] kind = "bdpy"``: one subject's BData, in one file or in one for each split."""

    kind: Literal["bdpy"] = "bdpy"
    """BData files of Kamitani Lab."""
    path: str | None = None
    """A file of all trials; its column DataType says train (1) and test (2), unless another split is set."""
    train: str | None = None
    """The file of the train trials."""
    test: str | None = None
    """The file of the test trials."""
    tests: dict[str, TestSet] | None = Field(default=None, min_length=1)
    """In place of test: several test sets by name, each a file or {path = FILE, images = FOLDER}; the first is the main one."""
    voxels: str | list[str] | None = "VoxelData"
    """The voxels to use: the key of their metadata row, such as ROI_VC, or several keys, joined."""
    label: str = "stimulus_id"
    """The column that tells the stimulus, or Label for its second column in older files."""
    images: str | None = None
    """The folder of the images: ``n01518878_5958.*`` for the id 1518878.005958, or the name that vmap gives."""
    image_size: int | None = Field(default=None, ge=8)
    """Side of the images in the study; absent: the size of the first image."""

    @property
    def chosen_areas(self) -> list[str] | None:
        """None: the columns of the chosen keys are picked as the file is opened."""
        return None

    @property
    def has_images(self) -> bool:
        return self.images is not None

    @property
    def simulated(self) -> bool:
        given = [input_file(path) for path in (self.path, self.train, self.test) if path]
        return any(is_there(path.parent / SIMULATED) for path in given)

    def located(self, base_dir: Path | None) -> Self:
        own = super().located(base_dir)
        given = {name: value for name in ("path", "train", "test") if (value := getattr(own, name))}
        found = {name: located(value, base_dir, Path.is_file) for name, value in given.items()}
        if own.images:
            found["images"] = located(own.images, base_dir, Path.is_dir)
        if own.tests:
            files = {name: located(of.path, base_dir, Path.is_file) for name, of in own.tests.items()}
            tests = {name: of.model_copy(update={"path": files[name]}) for name, of in own.tests.items()}
            return own.model_copy(update={**found, "tests": tests})
        return own.model_copy(update=found)

    def finders(self, base_dir: Path | None) -> list[Callable[[], object]]:
        found: list[Callable[[], object]] = [
            partial(needed_file, spec, base_dir, name) for name, spec in self.files.items()
        ]
        if self.images:
            found.append(partial(needed_folder, self.images, base_dir, "images"))
        return [*found, *super().finders(base_dir)]

    @property
    def files(self) -> dict[str, str]:
        """The BData files, each by the setting that names it: that of all or of train trials first."""
        first = {"path": self.path} if self.path else {"train": str(self.train)}
        return first | {f"tests.{name}" if name else "test": of.path for name, of in self.test_files.items()}

    @field_validator("tests", mode="before")
    @classmethod
    def _named(cls, tests: Any) -> Any:
        if not isinstance(tests, dict):
            return tests
        found = {name: {"path": of} if isinstance(of, str) else of for name, of in tests.items()}
        for name, of in found.items():
            if isinstance(of, dict) and ("path" not in of or set(of) - set(TestSet.model_fields)):
                raise ValueError(f"{name} has {', '.join(of) or 'nothing'}: a file, or {{path, images}} is expected")
        return found

    @model_validator(mode="after")
    def _check_files(self) -> Self:
        tested = self.test is not None or self.tests is not None
        if (self.path is None) == (self.train is None and not tested) or (self.train is None) == tested:
            raise ValueError("give either path, or both train and test (or tests)")
        if self.tests and not self.images:
            raise ValueError("tests needs images, by which each test set is judged: set images")
        if self.test is not None and self.tests is not None:
            raise ValueError("test and tests are both given: name the file of test among tests")
        if rule := next(
            (name for name in ("test_ids", "test_fraction", "folds") if self.tests and getattr(self, name)), None
        ):
            raise ValueError(f"tests says what is tested, so {rule} can't")
        if wrong := [name for name in self.tests or {} if not fullmatch(r"[A-Za-z0-9_-]+", name)]:
            raise ValueError(f"{wrong[0]!r} can't be a test set's name: letters, digits, _ and - are expected")
        return self

    @property
    def test_files(self) -> dict[str, TestSet]:
        """The test sets by name; without names there is one, of no name."""
        return self.tests or ({"": TestSet(path=self.test)} if self.test else {})


class Bdpy(Builder):
    """BData files as a dataset."""

    Settings: ClassVar[type[BaseModel]] = BdpySettings

    def materials(self, base_dir: Path | None) -> "Materials":
        """Open the files; voxels are the columns whose metadata row is 1, labels are columns beside them."""
        from leanrecon.datasets.builder.materials import Materials, Trials, VoxelTable
        from leanrecon.datasets.files.rows import Pooled, Rows
        from leanrecon.datasets.layouts.bdata import BData

        settings = self.settings
        tests = settings.test_files
        data = [BData(needed_file(spec, base_dir, name)) for name, spec in settings.files.items()]
        keys = [settings.voxels or "VoxelData"] if isinstance(settings.voxels, str | None) else settings.voxels
        columns = [np.unique(np.concatenate([of.columns_of(key) for key in keys])) for of in data]
        for of, own in zip(data, columns, strict=True):
            if len(own) != len(columns[0]):
                raise InputError(
                    f"{data[0].path} has {len(columns[0])} voxels of {', '.join(keys)} and {of.path} {len(own)}",
                    expected="the same number",
                )
        stimulus, split, run, test_set = [], [], [], []
        for name, of in zip((None, *tests), data, strict=True):
            label = of.label_key(settings.label)
            known = [key for key in ("Run", *(["DataType"] if settings.path else [])) if key in of.keys]
            numbers = of.numbers(label, *known)
            folder = f"{tests[name].images}/" if name and tests[name].images else ""
            stimulus += [folder + text for text in of.labels(label, numbers[label])]
            kinds = numbers.get("DataType")
            own_split = "train" if name is None else "test"
            split += len(of) * [own_split] if kinds is None else [DATA_TYPES.get(kind, "") for kind in kinds]
            test_set += len(of) * [name or ""]
            run += of.whole("Run", numbers["Run"]) if "Run" in numbers else []
        ruled = settings.test_ids or settings.test_fraction or settings.folds
        told = len(data) > 1 or "DataType" in data[0].keys
        parts: list[Rows] = [of.voxels(own) for of, own in zip(data, columns, strict=True)]
        trials = Trials(
            stimulus,
            None if ruled or not told else split,
            run=run if len(run) == len(stimulus) else None,
            test_set=test_set if settings.tests else None,
        )
        return Materials(
            responses=Pooled(parts) if len(parts) > 1 else parts[0],
            trials=trials,
            voxels=VoxelTable(len(columns[0]), data[0].areas(columns[0]), data[0].places(columns[0])),
            images=self._images(list(dict.fromkeys(stimulus)), base_dir),
            files=[of.path for of in data],
            made_of={"keys": keys, "label": settings.label},
            held=sum(of.held for of in data),
        )

    def _images(self, names: Sequence[str], base_dir: Path | None) -> "Images | None":
        from leanrecon.datasets.builder.materials import Images
        from leanrecon.datasets.files.folder import FolderRows, find_images, shape_of

        if self.settings.images is None:
            return None
        folder = needed_folder(self.settings.images, base_dir, "images")
        paths = find_images(folder, names)
        files, side = [paths[name] for name in names], self.settings.image_size
        shape = shape_of(files, (side, side) if side else None)
        rows = FolderRows(files, shape, folder)
        return Images(rows, {name: row for row, name in enumerate(names)}, shape, rows.paths)
