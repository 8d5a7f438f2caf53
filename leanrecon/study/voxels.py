"""What a study knows of its voxels: the areas that they are in."""

import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from leanrecon.errors import InputError
from leanrecon.study.layout import Study
from leanrecon.validation import nearest

Array = np.ndarray[Any, Any]


def area_voxels(study: Study, areas: Mapping[str, Sequence[str]]) -> dict[str, Array]:
    """The voxels of each area that settings name, ascending, int [voxels]; an area joins those of its parts.

    Raises InputError for a study whose voxels have no areas, for an unknown area (with those that are there), and for
    one without voxels.
    """
    if not areas:
        return {}
    labels = read_areas(study)
    known = sorted({str(label) for label in labels if label})
    chosen = {}
    for name, parts in areas.items():
        for part in parts:
            if part not in known:
                raise InputError(
                    f"areas.{name} names {part!r}, which is no area of these voxels ({nearest(part, known)})",
                    expected=f"areas of {study.voxels}: {', '.join(known)}",
                )
        chosen[name] = np.flatnonzero(np.isin(labels, parts))
    return chosen


def read_areas(study: Study) -> Array:
    """The area of every voxel by name, "" where it is in none; raises InputError where voxels.npz has no areas."""
    todo = "leave out [areas], or use a dataset that knows the areas of its voxels (nsd, simulated)"
    try:
        with study.voxels.open() as file, np.load(file, allow_pickle=False) as voxels:
            labels: Array = voxels["areas"]
            return labels
    except FileNotFoundError:
        raise InputError(f"there is no {study.voxels} to take areas from", todo=todo) from None
    except KeyError:
        raise InputError(f"{study.voxels} does not say which area each voxel is in", todo=todo) from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{study.voxels} can't be read ({error})", todo="run the stage dataset again") from None
