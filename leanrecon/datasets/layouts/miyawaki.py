"""Contrast patterns of Miyawaki et al. (2008) in the folder that nilearn's ``fetch_miyawaki2008`` leaves.

Each run is linearly detrended, shifted by the lag of the response, and expressed in percent of the rest before its
first stimulus; the volumes of a block are averaged. Miyawaki et al. 2008, Neuron 60, 915-929.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, Field

from leanrecon.datasets.builder.dataset import Builder
from leanrecon.datasets.builder.settings import FolderSettings
from leanrecon.errors import InputError
from leanrecon.places.inputs import InputFile, input_file, is_there, matching_in, open_text

if TYPE_CHECKING:
    from leanrecon.datasets.builder.materials import Materials

Array = np.ndarray[Any, Any]

SIDE = 10
"""Patches along each side of an image."""

SESSIONS = {"random": "train", "figure": "test"}
"""Random patterns train the decoders; geometric figures and letters test them."""

SIMULATED = "simulated.json"
"""The file that says that a folder was simulated, and how."""

AREAS = ("V1d", "V1v", "V2d", "V2v", "V3", "VP", "V3A", "V4v")
RINGS = tuple(f"lag{n}to{n + 1}" for n in range(11))
"""Rings of eccentricity, as the masks are named."""

JOINED = {"V1": ("V1d", "V1v"), "V2": ("V2d", "V2v"), "V3VP": ("V3", "VP")}


class MiyawakiSettings(FolderSettings):
    """``[dataset] kind = "miyawaki"``: the one subject that nilearn fetches."""

    kind: Literal["miyawaki"] = "miyawaki"
    """Contrast patterns of Miyawaki et al. (2008)."""
    root: str
    """The folder ``miyawaki2008`` of nilearn's data folder."""
    subject: Literal[1] = 1
    """The subject: there is one."""
    samples: Literal["blocks", "volumes"] = "blocks"
    """A row of betas for each stimulus block, or for each volume of it."""
    lag: int = Field(default=2, ge=0, le=10)
    """Volumes (of 2 s) that the response comes after the stimulus."""
    sessions: list[Literal["random", "figure"]] = Field(default=["random", "figure"], min_length=1)
    """The sessions to use: random patterns and figures."""

    @property
    def simulated(self) -> bool:
        return is_there(input_file(self.root) / SIMULATED)


class Miyawaki(Builder):
    """Contrast patterns of Miyawaki et al. as a dataset."""

    Settings: ClassVar[type[BaseModel]] = MiyawakiSettings

    def materials(self, base_dir: Path | None) -> "Materials":
        """Open the runs, their labels and the masks; random runs are for training, figure runs for testing."""
        from leanrecon.datasets.builder.materials import Images, Materials, Trials, VoxelTable
        from leanrecon.datasets.files.named import needed_folder
        from leanrecon.datasets.files.nifti import NiftiHeader, NiftiRows, check_grid, is_inside, read_volume
        from leanrecon.datasets.images import stimulus_ids
        from leanrecon.datasets.layouts.blocks import BlockRows, InMemory, stimulus_blocks

        settings, root = self.settings, needed_folder(self.settings.root, base_dir, "root")
        mask_header, mask = read_volume(_need(root / "mask" / "mask.nii.gz"))
        index = np.flatnonzero(is_inside(mask_header, mask).reshape(-1))
        files = [root / "mask" / "mask.nii.gz"]
        patterns: dict[str, Array] = {}
        runs, names, split, run = [], [], [], []
        for session in settings.sessions:
            paths = matching_in(root / "func", f"data_{session}_run*.nii.gz")
            if not paths:
                raise InputError(
                    f"there are no runs data_{session}_run*.nii.gz in {root / 'func'}", todo="check dataset.root"
                )
            for number, path in enumerate(paths, start=1):
                header = NiftiHeader.read(path)
                check_grid(header, mask_header)
                labels_file = _need(root / "label" / f"{path.name.removesuffix('.nii.gz')}_label.csv")
                labels = read_labels(labels_file, header.volumes)
                found = stimulus_blocks(labels, settings.lag, by_volume=settings.samples == "volumes")
                runs.append((NiftiRows(header, index), found))
                for block in found.rows:
                    pattern = labels[block[0] - settings.lag].reshape(SIDE, SIDE, order="F")
                    image = np.where(pattern == 1, np.uint8(255), np.uint8(0))[:, :, None]
                    name = stimulus_ids(image[None])[0]
                    patterns.setdefault(name, image)
                    names.append(name)
                    split.append(SESSIONS[session])
                    run.append(number if session == "random" else 100 + number)
                files += [path, labels_file]
        areas = read_masks(root / "mask", index, mask_header)
        rows = InMemory(root, np.stack(list(patterns.values())))
        return Materials(
            responses=BlockRows([nifti for nifti, _ in runs], [found for _, found in runs]),
            trials=Trials(names, split if len(settings.sessions) > 1 else None, run=run),
            voxels=VoxelTable(
                len(index), areas, {"index": index, "shape": np.array(mask_header.grid), "affine": mask_header.affine}
            ),
            images=Images(rows, {name: k for k, name in enumerate(patterns)}, (SIDE, SIDE, 1), files[2::2]),
            files=files,
            made_of={"samples": settings.samples, "lag": settings.lag, "sessions": list(settings.sessions)},
            held=len(index) * (len(areas) + 16) + 2000 * len(names),
        )


def _need(path: InputFile) -> InputFile:
    if not path.is_file():
        raise InputError(f"there is no file {path}", expected="the folder that nilearn's fetch_miyawaki2008 leaves")
    return path


def read_labels(path: InputFile, volumes: int) -> Array:
    """The pattern at each volume, int [volumes, 100]; rest is -1. Raises InputError where the table does not fit."""
    try:
        with open_text(path) as file:
            labels = np.loadtxt(file, delimiter=",", dtype=np.float64, ndmin=2)
    except (ValueError, OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} is not a table of patterns: {error}", expected="100 numbers for each volume"
        ) from error
    if labels.shape != (volumes, SIDE * SIDE) or not np.isin(labels, (-1, 0, 1)).all():
        raise InputError(
            f"{path} holds {labels.shape} numbers from {labels.min(initial=0):g} to {labels.max(initial=0):g}",
            expected=f"({volumes}, {SIDE * SIDE}) of 0 and 1, and -1 at rest",
        )
    whole: Array = labels.astype(np.int8)
    return whole


def read_masks(folder: InputFile, index: Array, reference: Any) -> dict[str, Array]:
    """Areas and rings of eccentricity of both hemispheres: bool [voxels] by name."""
    from leanrecon.datasets.files.nifti import check_grid, is_inside, read_volume

    areas: dict[str, Array] = {}
    for name in (*AREAS, *RINGS):
        sides = [path for side in ("LH", "RH") if (path := folder / f"{side}{name}.nii.gz").is_file()]
        masks = []
        for path in sides:
            header, values = read_volume(path)
            check_grid(header, reference)
            masks.append(is_inside(header, values).reshape(-1)[index])
        if masks:
            areas[name] = np.logical_or.reduce(masks)
    for name, parts in JOINED.items():
        if found := [areas[part] for part in parts if part in areas]:
            areas[name] = np.logical_or.reduce(found)
    return areas
