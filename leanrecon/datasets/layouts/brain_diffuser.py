"""The prepared folder of Brain-Diffuser (Ozcelik & VanRullen 2023): float64 betas, images and captions a subject."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, Field

from leanrecon.datasets.builder.dataset import Builder
from leanrecon.datasets.builder.settings import FolderSettings
from leanrecon.errors import InputError
from leanrecon.places.inputs import InputFile

if TYPE_CHECKING:
    from leanrecon.datasets.builder.materials import Images, Materials
    from leanrecon.datasets.files.rows import Rows

Array = np.ndarray[Any, Any]

SCALE = 300
"""NSD stores percent signal change times 300; the prepared files keep that."""

SPLITS = ("train", "test")


class BrainDiffuserSettings(FolderSettings):
    """``[dataset] kind = "brain-diffuser"``: the files that its ``prepare_nsddata.py`` writes."""

    kind: Literal["brain-diffuser"] = "brain-diffuser"
    """Brain-Diffuser's prepared folder."""
    root: str
    """The folder ``processed_data``, or that of the subject in it."""
    subject: Literal[1, 2, 5, 7] = 1
    """The subject."""
    image_size: int | None = Field(default=None, ge=8)
    """Side of the images in the study; absent: 425, as prepared."""


class BrainDiffuser(Builder):
    """Brain-Diffuser's prepared folder as a dataset."""

    Settings: ClassVar[type[BaseModel]] = BrainDiffuserSettings

    def materials(self, base_dir: Path | None) -> "Materials":
        """Open the arrays of both splits. Images have no ids in these files, so each row is an image of its own."""
        from leanrecon.datasets.builder.materials import Materials, Trials, VoxelTable
        from leanrecon.datasets.files.named import needed_folder
        from leanrecon.datasets.files.rows import Pooled
        from leanrecon.datasets.layouts.files import Divided, one_of, opened

        subject = self.settings.subject
        root = needed_folder(self.settings.root, base_dir, "root")
        root = next((f for name in (f"subj{subject:02}", f"subj0{subject}") if (f := root / name).is_dir()), root)
        files: dict[str, list[InputFile]] = {
            what: [one_of(root, [f"nsd_{split}_{name}_sub{subject}.npy"], what) for split in SPLITS]
            for what, name in (("betas", "fmriavg_nsdgeneral"), ("images", "stim"))
        }
        betas: list[Rows] = [Divided(opened(path, shape=(None, None)), SCALE) for path in files["betas"]]
        if betas[0].shape[1] != betas[1].shape[1]:
            raise InputError(
                f"{betas[0].name} has {betas[0].shape[1]} voxels and {betas[1].name} {betas[1].shape[1]}",
                expected="the same number",
            )
        names = [[f"{split}-{row:05}" for row in range(len(part))] for split, part in zip(SPLITS, betas, strict=True)]
        every = names[0] + names[1]
        split = [split for split, own in zip(SPLITS, names, strict=True) for _ in own]
        captions = [root / f"nsd_{split}_cap_sub{subject}.npy" for split in SPLITS]
        return Materials(
            responses=Pooled(betas),
            trials=Trials(every, split),
            voxels=VoxelTable(betas[0].shape[1]),
            images=self._images(files["images"], names),
            files=files["betas"],
            captions=_Captions(captions, names) if all(path.is_file() for path in captions) else None,
            held=600 * len(every),
        )

    def _images(self, files: list[InputFile], names: list[list[str]]) -> "Images":
        from leanrecon.datasets.builder.materials import Images
        from leanrecon.datasets.files.rows import Pooled
        from leanrecon.datasets.layouts.files import opened
        from leanrecon.images import resize

        parts = [opened(path, shape=(len(own), None, None, 3)) for path, own in zip(files, names, strict=True)]
        if parts[0].shape[1:] != parts[1].shape[1:]:
            raise InputError(f"{parts[0].name} and {parts[1].name} have images of other sizes", expected="one size")
        height, width = parts[0].shape[1:3]
        side = self.settings.image_size
        shape = (side, side, 3) if side else (height, width, 3)

        def convert(block: Array) -> Array:
            images = whole_images(block)
            return images if side is None else np.stack([resize(image, shape) for image in images])

        row_of = {name: row for row, name in enumerate(names[0] + names[1])}
        return Images(Pooled(parts), row_of, shape, files, convert)


class _Captions:
    """Up to five captions of each row, read when they are asked for."""

    def __init__(self, files: list[InputFile], names: list[list[str]]) -> None:
        self.files, self.names = files, names

    def __call__(self, wanted: Any) -> list[list[str]]:
        from leanrecon.datasets.files.captions import read_captions

        texts: dict[str, list[str]] = {}
        for path, names in zip(self.files, self.names, strict=True):
            rows = read_captions(str(path))
            if len(rows) != len(names):
                raise InputError(f"{path} has {len(rows)} rows and the betas {len(names)}", expected="the same number")
            texts |= dict(zip(names, rows, strict=True))
        return [texts[name] for name in wanted]


def whole_images(block: Array) -> Array:
    """Numbers from 0 to 255 as uint8."""
    if block.dtype == np.uint8:
        return block
    if not np.isfinite(block).all() or block.min() < 0 or block.max() > 255:
        raise InputError(f"an image has values from {block.min():g} to {block.max():g}", expected="0 to 255")
    return np.rint(block).astype(np.uint8)
