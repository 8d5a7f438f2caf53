"""What a study knows of its voxels: the areas that they are in."""

import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from leanrecon.errors import InputError
from leanrecon.study.layout import Study
from leanrecon.validation import nearest

Array = np.ndarray[Any, Any]

MASK = "area/"
"""Names of the masks in voxels.npz begin so."""


def area_voxels(study: Study, areas: Mapping[str, Sequence[str]]) -> dict[str, Array]:
    """The voxels of each area that settings name, ascending, int [voxels]; an area joins those of its parts.

    Raises InputError for a study whose voxels have no areas, for an unknown area (with those that are there), and for
    one without voxels.
    """
    if not areas:
        return {}
    masks = read_areas(study)
    known = sorted(masks)
    chosen = {}
    for name, parts in areas.items():
        for part in parts:
            if part not in known:
                raise InputError(
                    f"areas.{name} names {part!r}, which is not an area of these voxels ({nearest(part, known)})",
                    expected=f"areas of {study.voxels}: {', '.join(known)}",
                )
        chosen[name] = np.flatnonzero(np.logical_or.reduce([masks[part] for part in parts]))
    return chosen


def read_reliability(study: Study, trials: float) -> Array | None:
    """The share of each voxel's variance that is signal in means of ``trials`` trials, float64 [voxels], by its ncsnr.

    It is k·ncsnr² / (k·ncsnr² + 1), NaN where ncsnr is. ``ncsnr_train``, of train trials alone, goes before the one of all
    trials. None for a study whose voxels.npz tells of neither.
    """
    try:
        with study.voxels.open() as file, np.load(file, allow_pickle=False) as voxels:
            name = "ncsnr_train" if "ncsnr_train" in voxels.files else "ncsnr"
            if name not in voxels.files or not np.isfinite(voxels[name]).any():
                return None
            signal = trials * np.square(voxels[name].astype(np.float64))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{study.voxels} can't be read ({error})", todo="run the stage dataset again") from None
    result: Array = signal / (signal + 1)
    return result


def read_areas(study: Study) -> dict[str, Array]:
    """The areas with voxels: bool [voxels] by name; raises InputError where voxels.npz tells of none.

    Overlapping areas are masks ``area/NAME``; otherwise ``areas`` holds one name a voxel, "" outside of all.
    """
    todo = "leave out [areas], or use a dataset that knows the areas of its voxels (nsd, simulated, nifti …)"
    try:
        with study.voxels.open() as file, np.load(file, allow_pickle=False) as voxels:
            masks = {name.removeprefix(MASK): voxels[name] for name in voxels.files if name.startswith(MASK)}
            if not masks:
                labels = voxels["areas"]
                masks = {str(name): labels == name for name in np.unique(labels) if name}
            return {name: mask for name, mask in masks.items() if mask.any()}
    except FileNotFoundError:
        raise InputError(f"there is no {study.voxels} to take areas from", todo=todo) from None
    except KeyError:
        raise InputError(f"{study.voxels} does not say which area each voxel is in", todo=todo) from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{study.voxels} can't be read ({error})", todo="run the stage dataset again") from None
