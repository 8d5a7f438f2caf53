"""Maps of a study as files in the space of its data: NIfTI volumes, or vectors over the vertices of hemispheres."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from leanrecon.datasets.space import Space, read_space
from leanrecon.errors import InputError
from leanrecon.places import Location, LocationLike, as_location
from leanrecon.places.files import read_json
from leanrecon.stages.maps import AREA, Map, make_maps
from leanrecon.stages.stage import Run
from leanrecon.stores.store import Store

Array = np.ndarray[Any, Any]

RECORD = "maps.json"
"""The file that records the contents of each map, and the betas that they belong to."""


def export_maps(
    run: Run, folder: LocationLike, names: Sequence[str] = (), variant: str = "", *, overwrite: bool = False
) -> list[str]:
    """Write maps into a folder, and their contents into its maps.json; returns the names of the files.

    Existing maps of the same study are replaced, and its other maps are kept. Raises InputError if the voxels have no
    positions, for maps that the study does not have, and for a folder with other files, unless ``overwrite``;
    BudgetError before any work is done.
    """
    space, out = read_space(run.study), as_location(folder)
    betas = Store.open(run.study.betas("train"))
    if space.voxels != betas.columns:
        raise InputError(
            f"{run.study.voxels} has {space.voxels} voxels and the betas have {betas.columns}",
            todo="run the stage dataset again with --overwrite",
        )
    record = _record_of(out, betas.content, overwrite)
    masks: dict[str, Array] = {}
    written = []
    for made in make_maps(run, names, variant, beside=space.nbytes + 8 * space.voxels):
        _write_record(out, record)  # first, so that files of a killed run are known to belong to this study
        if made.name.startswith(AREA):
            masks[made.name.removeprefix(AREA)] = made.values
            continue
        name = file_name(f"{variant}:{made.name}" if variant else made.name)
        space.write(out, name, made.values)
        written += [_noted(record, file, made) for file in space.files(name)]
    if masks:
        written += _write_areas(space, out, masks, record)
    _write_record(out, record)
    return written


def file_name(name: str) -> str:
    """The file name of a map: ``pattern-luminance-12-40`` for ``pattern:luminance:12,40``."""
    return re.sub(r"[^\w.+-]", "-", name)


def _noted(record: dict[str, Any], file: str, made: Map) -> str:
    record["maps"][file] = {"map": made.name, **made.about}
    return file


def _write_areas(space: Space, out: Location, masks: Mapping[str, Array], record: dict[str, Any]) -> list[str]:
    """Write one label image with a table of its numbers; if areas overlap, one mask for each area in a folder."""
    if np.sum([*masks.values()], axis=0).max() > 1:
        files = []
        for name, mask in masks.items():
            space.write(out / "areas", file_name(name), mask)
            shows = Map(f"{AREA}{name}", mask, {"shows": f"1 in the voxels of {name}"})
            files += [_noted(record, f"areas/{file}", shows) for file in space.files(file_name(name))]
        return files
    labels = np.zeros(space.voxels, np.int16)
    for number, mask in enumerate(masks.values(), start=1):
        labels[mask] = number
    space.write(out, "areas", labels)
    lines = ["index\tname", *(f"{number}\t{name}" for number, name in enumerate(masks, start=1))]
    (out / "areas.tsv").write_text("\n".join(lines) + "\n")
    shows = Map("areas", labels, {"shows": "the number of the area of each voxel, listed in areas.tsv"})
    return [*(_noted(record, file, shows) for file in space.files("areas")), "areas.tsv"]


def _record_of(out: Location, content: str, overwrite: bool) -> dict[str, Any]:
    """The record of maps of these betas in a folder; raises InputError if it holds other files."""
    there = read_json(out / RECORD)
    if isinstance(there, dict) and there.get("betas") == content and isinstance(there.get("maps"), dict):
        return there
    if out.is_dir() and any(out.glob("*")) and not overwrite:
        raise InputError(
            f"{out} holds other files", expected="a new folder, or maps of this study",
            todo="choose another --out, or add --overwrite to write among them",
        )  # fmt: skip
    return {"betas": content, "maps": {}}


def _write_record(out: Location, record: dict[str, Any]) -> None:
    (out / RECORD).write_text(json.dumps(record, ensure_ascii=False, indent=1, sort_keys=True) + "\n")
