"""Which voxels of arrays are used, and the areas that they are in: from masks and names beside the betas."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leanrecon.datasets.builder.materials import VoxelTable
from leanrecon.datasets.files.captions import stream_captions
from leanrecon.datasets.files.open import SUFFIXES, array_keys, locate, open_array
from leanrecon.datasets.files.rows import Rows
from leanrecon.errors import InputError

if TYPE_CHECKING:
    from leanrecon.datasets.arrays.dataset import ArraysSettings

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Chosen:
    """The voxels that are used."""

    columns: Array
    """Columns of the betas, ascending: int64."""
    areas: Mapping[str, Array] = field(default_factory=dict)
    """bool [columns] by the name of the area; areas may overlap."""
    reliability: Array | None = None
    """How alike each of them answers to repeats, where they are chosen by it."""

    def part(self, kept: Array, reliability: Array) -> "Chosen":
        """Some of them, ``kept`` counted within them; ``reliability`` is that of all."""
        return Chosen(self.columns[kept], {name: mask[kept] for name, mask in self.areas.items()}, reliability[kept])

    def arrays(self) -> dict[str, Array]:
        """What voxels.npz tells of them."""
        found: dict[str, Array] = {"index": self.columns}
        if self.areas:
            found["areas"] = labels_of(self.areas)
            found |= {f"area/{name}": mask for name, mask in self.areas.items()}
        if self.reliability is not None:
            found["reliability"] = self.reliability
        return found


def labels_of(areas: Mapping[str, Array]) -> Array:
    """The name of each voxel's area, the smallest where it is in several, and "" outside of all."""
    size = len(next(iter(areas.values()), ()))
    labels = np.full(size, "", f"<U{max(map(len, areas), default=1)}")
    for name in sorted(areas, key=lambda name: -int(areas[name].sum())):
        labels[areas[name]] = name
    return labels


def choose_voxels(settings: "ArraysSettings", n: int, base_dir: Path | None) -> Chosen:
    """The voxels of ``n`` that the mask and the named areas leave; raises InputError where none is left."""
    masks = {} if settings.areas is None else _areas(settings.areas, settings.path, n, base_dir)
    inside = np.ones(n, bool)
    if settings.mask is not None:
        with open_array(settings.mask, settings.path, base_dir) as rows:
            inside = _mask(rows, n, "mask")
        if not inside.any():
            raise InputError(
                f"dataset.mask: {settings.mask} leaves no voxel", expected="true or 1 for the voxels to use"
            )
    table = VoxelTable(n, {name: mask & inside for name, mask in masks.items()})
    columns = table.chosen(settings.chosen_areas)
    columns = columns[inside[columns]]
    return Chosen(columns, {name: mask[columns] for name, mask in masks.items()})


def _areas(spec: str, path: str | None, n: int, base_dir: Path | None) -> dict[str, Array]:
    """Areas by name: a mask for each key of a file, or one array of the name or number of each voxel's area."""
    file, key = locate(spec, path, base_dir)
    keys = [name for name in array_keys(file) if name] if file.suffix.lower() in SUFFIXES and key is None else []
    if len(keys) > 1:
        found = {}
        for name in keys:
            with open_array(f"{file}:{name}", None, base_dir) as rows:
                found[name] = _mask(rows, n, "areas")
        return found
    if file.suffix.lower() in SUFFIXES:
        with open_array(spec, path, base_dir) as rows:
            if rows.dtype.kind in "biuf":
                _check_length(rows.name, int(np.prod(rows.shape)), n, "areas")
                numbers = np.rint(np.nan_to_num(rows[:].ravel().astype(np.float64))).astype(np.int64)
                return {str(number): numbers == number for number in np.unique(numbers) if number}
    labels: dict[int, str] = dict(stream_captions(spec, path, base_dir))
    _check_length(str(file), max(labels, default=-1) + 1, n, "areas")
    names = np.array([labels.get(voxel, "") for voxel in range(n)])
    return {str(name): names == name for name in np.unique(names) if name}


def _mask(rows: Rows, n: int, setting: str) -> Array:
    if rows.dtype.kind not in "biuf":
        raise InputError(f"dataset.{setting}: {rows.name} holds {rows.kind} values", expected="a mask of the voxels")
    _check_length(rows.name, int(np.prod(rows.shape)), n, setting)
    mask: Array = np.nan_to_num(rows[:].ravel()) != 0
    return mask


def _check_length(name: str, found: int, n: int, setting: str) -> None:
    if found != n:
        raise InputError(
            f"dataset.{setting}: {name} tells of {found} voxels and the betas have {n}",
            expected="one entry for each column of the betas, in the same order",
        )
