"""The Algonauts 2023 challenge (Gifford et al. 2023): NSD's betas on fsaverage, both hemispheres, areas and images."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, Field

from leanrecon.datasets.builder.dataset import Builder
from leanrecon.datasets.builder.settings import FolderSettings
from leanrecon.errors import InputError
from leanrecon.places.inputs import InputFile, matching_in

if TYPE_CHECKING:
    from leanrecon.datasets.builder.materials import Materials
    from leanrecon.datasets.files.rows import Rows

Array = np.ndarray[Any, Any]

AREAS = {
    "prf-visualrois": ("V1v", "V1d", "V2v", "V2d", "V3v", "V3d", "hV4"),
    "floc-bodies": ("EBA", "FBA-1", "FBA-2", "mTL-bodies"),
    "floc-faces": ("OFA", "FFA-1", "FFA-2", "mTL-faces", "aTL-faces"),
    "floc-places": ("OPA", "PPA", "RSC"),
    "floc-words": ("OWFA", "VWFA-1", "VWFA-2", "mfs-words", "mTL-words"),
    "streams": ("early", "midventral", "midlateral", "midparietal", "ventral", "lateral", "parietal"),
}
"""Names of the labels 1, 2 … of each map. The challenge ships them as pickles, which are never loaded."""


class AlgonautsSettings(FolderSettings):
    """``[dataset] kind = "algonauts"``: one subject of the Algonauts 2023 challenge."""

    kind: Literal["algonauts"] = "algonauts"
    """The Algonauts 2023 challenge."""
    root: str
    """The folder of the subjects (``subj01`` …), or that of the subject."""
    subject: int = Field(default=1, ge=1, le=8)
    """Subject 1 to 8."""
    hemispheres: list[Literal["lh", "rh"]] = Field(default=["lh", "rh"], min_length=1)
    """The hemispheres whose vertices are used."""
    image_size: int | None = Field(default=None, ge=8)
    """Side of the images in the study; absent: 425, as they are."""


class Algonauts(Builder):
    """The Algonauts 2023 challenge as a dataset. Its test responses were withheld, so the settings say what is tested."""

    Settings: ClassVar[type[BaseModel]] = AlgonautsSettings

    def materials(self, base_dir: Path | None) -> "Materials":
        """Open the training responses and images of the subject: row k is image k in the order of file names."""
        from leanrecon.datasets.builder.materials import Images, Materials, Trials, VoxelTable
        from leanrecon.datasets.files.folder import FolderRows, image_size
        from leanrecon.datasets.files.named import needed_folder
        from leanrecon.datasets.layouts.files import Joined, one_of, opened

        root = needed_folder(self.settings.root, base_dir, "root")
        name = f"subj{self.settings.subject:02}"
        root = root / name if (root / name).is_dir() else root
        fmri, folder = root / "training_split" / "training_fmri", root / "training_split" / "training_images"
        hemispheres = self.settings.hemispheres
        files = [one_of(fmri, [f"{side}_training_fmri.npy"], "responses") for side in hemispheres]
        parts: list[Rows] = [opened(path, shape=(None, None)) for path in files]
        paths = matching_in(folder, "*.png")
        if not paths:
            raise InputError(f"there are no images in {folder}", expected="train-0001_nsd-00013.png …")
        if len(paths) != len(parts[0]):
            raise InputError(
                f"{folder} holds {len(paths)} images and {files[0]} {len(parts[0])} rows", expected="one image a row"
            )
        areas, masks = read_areas(root / "roi_masks", hemispheres, [part.shape[1] for part in parts])
        side = self.settings.image_size
        height, width, _ = image_size(paths[0])
        shape = (side, side, 3) if side else (height, width, 3)
        names = [image_name(path) for path in paths]
        vertices = [part.shape[1] for part in parts]
        about = {"hemisphere": _sides(parts), "hemispheres": np.array(hemispheres), "vertices": np.array(vertices)}
        rows = FolderRows(paths, shape, folder)
        return Materials(
            responses=Joined(parts),
            trials=Trials(names),
            voxels=VoxelTable(sum(vertices), areas, about),
            images=Images(rows, {name: row for row, name in enumerate(names)}, shape, paths),
            files=[*files, *masks],
            held=800 * len(paths) + sum(mask.nbytes for mask in areas.values()),
        )


def image_name(path: InputFile) -> str:
    """``nsd-00013`` of ``train-0001_nsd-00013.png``: the id that all subjects share."""
    found = re.search(r"nsd-?\d+", path.stem)
    return found[0] if found else path.stem


def _sides(parts: "list[Rows]") -> Array:
    return np.concatenate([np.full(part.shape[1], number, np.int8) for number, part in enumerate(parts)])


def read_areas(
    folder: InputFile, hemispheres: list[Any], vertices: list[int]
) -> tuple[dict[str, Array], list[InputFile]]:
    """The areas of the vertices of the challenge, bool [vertices] by name, and the files that tell them."""
    from leanrecon.datasets.layouts.files import whole_array

    areas: dict[str, Array] = {}
    files: list[InputFile] = []
    for map_name, names in AREAS.items():
        paths = [folder / f"{side}.{map_name}_challenge_space.npy" for side in hemispheres]
        if not any(path.is_file() for path in paths):
            continue
        labels = []
        for path, n in zip(paths, vertices, strict=True):
            own = whole_array(path).ravel() if path.is_file() else np.zeros(n)
            if len(own) != n:
                raise InputError(f"{path} labels {len(own)} vertices", expected=f"{n}, as the responses have")
            labels.append(own)
            files += [path] if path.is_file() else []
        joined = np.concatenate(labels)
        for number, name in enumerate(names, start=1):
            if (mask := joined == number).any():
                areas[name] = mask
    for name, parts in (("V1", "V1v V1d"), ("V2", "V2v V2d"), ("V3", "V3v V3d")):
        found = [areas[part] for part in parts.split() if part in areas]
        if found:
            areas[name] = np.logical_or.reduce(found)
    return areas, files
