"""BData files of Kamitani Lab (Generic Object Decoding, Deep Image Reconstruction): voxels and labels as columns."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import BaseModel, Field, model_validator

from leanrecon.datasets.builder.dataset import Builder
from leanrecon.datasets.builder.settings import BuilderSettings
from leanrecon.errors import InputError
from leanrecon.places.paths import located

if TYPE_CHECKING:
    from leanrecon.datasets.builder.materials import Images, Materials

Array = np.ndarray[Any, Any]

SIMULATED = "simulated.json"
"""The file beside BData that says that a program made them, and how."""

SPLITS = ("train", "test")
DATA_TYPES = {1: "train", 2: "test"}
"""DataType of Generic Object Decoding; 3 is imagery, which is left out."""


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
        given = [Path(path).expanduser() for path in (self.path, self.train, self.test) if path]
        return any((path.parent / SIMULATED).exists() for path in given)

    def located(self, base_dir: Path | None) -> Self:
        own = super().located(base_dir)
        given = {name: value for name in ("path", "train", "test") if (value := getattr(own, name))}
        found = {name: located(value, base_dir, Path.is_file) for name, value in given.items()}
        if own.images:
            found["images"] = located(own.images, base_dir, Path.is_dir)
        return own.model_copy(update=found)

    @model_validator(mode="after")
    def _check_files(self) -> Self:
        if (self.path is None) == (self.train is None and self.test is None) or (self.train is None) != (
            self.test is None
        ):
            raise ValueError("give either path, or both train and test")
        return self


class Bdpy(Builder):
    """BData files as a dataset."""

    Settings: ClassVar[type[BaseModel]] = BdpySettings

    def materials(self, base_dir: Path | None) -> "Materials":
        """Open the files; voxels are the columns whose metadata row is 1, labels are columns beside them."""
        from leanrecon.datasets.builder.materials import Materials, Trials, VoxelTable
        from leanrecon.datasets.files.rows import Pooled, Rows
        from leanrecon.datasets.layouts.bdata import BData

        settings = self.settings
        given = [settings.path] if settings.path else [settings.train, settings.test]
        data = [BData(_file(spec, base_dir)) for spec in given]
        keys = [settings.voxels or "VoxelData"] if isinstance(settings.voxels, str | None) else settings.voxels
        columns = [np.unique(np.concatenate([of.columns_of(key) for key in keys])) for of in data]
        if len(data) == 2 and len(columns[0]) != len(columns[1]):
            raise InputError(
                f"{data[0].path} has {len(columns[0])} voxels of {', '.join(keys)} and {data[1].path} {len(columns[1])}",
                expected="as many",
            )
        stimulus, split, run = [], [], []
        for number, of in enumerate(data):
            label = of.label_key(settings.label)
            known = [key for key in ("Run", *(["DataType"] if settings.path else [])) if key in of.keys]
            numbers = of.numbers(label, *known)
            stimulus += of.labels(label, numbers[label])
            kinds = numbers.get("DataType")
            split += len(of) * [SPLITS[number]] if kinds is None else [DATA_TYPES.get(kind, "") for kind in kinds]
            run += of.whole("Run", numbers["Run"]) if "Run" in numbers else []
        ruled = settings.test_ids or settings.test_fraction or settings.folds
        told = len(data) == 2 or "DataType" in data[0].keys
        parts: list[Rows] = [of.voxels(own) for of, own in zip(data, columns, strict=True)]
        trials = Trials(stimulus, None if ruled or not told else split, run=run if len(run) == len(stimulus) else None)
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
        from leanrecon.datasets.files.folder import FolderRows, find_images, image_size
        from leanrecon.datasets.layouts.files import below

        if self.settings.images is None:
            return None
        paths = find_images(below(self.settings.images, base_dir), names)
        height, width, channels = image_size(paths[names[0]])
        side = self.settings.image_size
        shape = (side, side, channels) if side else (height, width, channels)
        rows = FolderRows([paths[name] for name in names], shape)
        return Images(rows, {name: row for row, name in enumerate(names)}, shape, rows.paths)


def _file(spec: str, base_dir: Path | None) -> Path:
    from leanrecon.datasets.files.open import find_file

    path = find_file(spec, base_dir)
    if path is None:
        raise InputError(f"there is no file {spec}", expected="a BData file (.h5 or .mat)", todo="check the path")
    return path
