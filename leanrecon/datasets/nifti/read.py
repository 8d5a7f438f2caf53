"""The materials of a study from NIfTI files: headers, the mask, areas, the table and the names of images."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from leanrecon.datasets.builder.materials import Images, Materials, Trials, VoxelTable
from leanrecon.datasets.files.folder import FolderRows, find_images, shape_of
from leanrecon.datasets.files.named import matching, needed_file, needed_folder
from leanrecon.datasets.files.nifti import NiftiHeader, NiftiRows, check_grid, is_inside, read_volume
from leanrecon.datasets.files.rows import Pooled, Rows
from leanrecon.datasets.files.table import Table, read_table, table_nbytes
from leanrecon.datasets.nifti.dataset import NiftiSettings
from leanrecon.errors import InputError
from leanrecon.places.inputs import InputFile

Array = np.ndarray[Any, Any]


def read_materials(settings: NiftiSettings, base_dir: Path | None) -> Materials:
    """Open the files that settings name; raises InputError where they are missing or don't fit together."""
    betas = [NiftiHeader.read(path) for path in matching(settings.betas, base_dir, "betas")]
    for header in betas[1:]:
        check_grid(header, betas[0])
    inside = _mask(settings, betas[0], base_dir)
    index = np.flatnonzero(inside.reshape(-1))
    if not len(index):
        raise InputError(f"{settings.mask or betas[0].path} has no voxels", expected="a mask with values above 0")
    parts: list[Rows] = [NiftiRows(header, index) for header in betas]
    table_path = needed_file(settings.trials, base_dir, "trials")
    table = read_table(table_path)
    trials = trials_of(table)
    check_files(betas, trials)
    files = [header.path for header in betas] + [table_path]
    if settings.mask:
        files.append(needed_file(settings.mask, base_dir, "mask"))
    areas: dict[str, Array] = {}
    area_files: list[InputFile] = []
    if settings.areas is not None:
        areas, area_files = area_masks(settings.areas, settings.area_names, betas[0], index, base_dir)
    trials, images = shown_images(settings.images, trials, settings.image_size, base_dir)
    corners = np.stack(np.unravel_index(index, betas[0].grid), axis=1)
    affine = betas[0].affine
    about = {
        "index": index,
        "shape": np.array(betas[0].grid),
        "affine": affine,
        "coordinates": (corners @ affine[:3, :3].T + affine[:3, 3]).astype(np.float32),
    }
    return Materials(
        responses=Pooled(parts) if len(parts) > 1 else parts[0],
        trials=trials,
        voxels=VoxelTable(len(index), areas, about),
        images=images,
        files=[*files, *area_files],
        held=table_nbytes(table_path) + 40 * len(index),
    )


def check_files(betas: Sequence[NiftiHeader], trials: Trials) -> None:
    """Refuse a table whose runs or sessions, as many as there are files, do not begin and end with the files."""
    if len(betas) == 1 or sum(header.volumes for header in betas) != len(trials):
        return
    starts = np.cumsum([0, *(header.volumes for header in betas)])
    for by in ("session", "run"):
        if getattr(trials, by) is None:
            continue
        groups = trials.groups(by)
        parts = [np.unique(groups[start:stop]) for start, stop in itertools.pairwise(starts)]
        if groups.max() + 1 != len(betas) or len(np.unique([part[0] for part in parts])) < 2:
            continue
        if mixed := next((header for header, part in zip(betas, parts, strict=True) if len(part) > 1), None):
            raise InputError(
                f"the table gives the volumes of {mixed.path} to several {by}s, though there is one file a {by}",
                expected=f"the rows of each {by} together, in the order of the files sorted by name",
                todo="sort the table as the volumes lie in the files",
            )


def trials_of(table: Table) -> Trials:
    """The trials of a table with a column ``stimulus`` (or ``stim_file``, as BIDS has it)."""
    column = "stim_file" if "stimulus" not in table and "stim_file" in table else "stimulus"
    return Trials(
        stimulus=table.texts(column),
        split=table.columns["split"] if "split" in table else None,
        run=table.numbers("run") if "run" in table else None,
        session=table.numbers("session") if "session" in table else None,
    )


def _mask(settings: NiftiSettings, betas: NiftiHeader, base_dir: Path | None) -> Array:
    if settings.mask is not None:
        header, values = read_volume(needed_file(settings.mask, base_dir, "mask"))
        check_grid(header, betas)
        return is_inside(header, values)
    with NiftiRows(betas, np.arange(1)) as rows:
        values = rows.whole()
    found: Array = np.isfinite(values) & (values != 0)
    return found


def area_masks(
    areas: str, names: str | None, reference: NiftiHeader, index: Array, base_dir: Path | None
) -> tuple[dict[str, Array], list[InputFile]]:
    """Areas by name, bool [voxels]: a mask a file, or the labels of one image; and the files they are from."""
    paths = matching(areas, base_dir, "areas")
    if len(paths) > 1 or names is None:
        found = {}
        for path in paths:
            header, values = read_volume(path)
            check_grid(header, reference)
            found[path.name.partition(".")[0]] = is_inside(header, values).reshape(-1)[index]
        return found, paths
    header, values = read_volume(paths[0])
    check_grid(header, reference)
    labels = np.rint(np.nan_to_num(values.reshape(-1)[index])).astype(np.int64)
    table_path = needed_file(names, base_dir, "area_names")
    table = read_table(table_path)
    named = dict(zip(table.texts("name"), table.numbers("index"), strict=True))
    return {name: labels == number for name, number in named.items()}, [*paths, table_path]


def shown_images(
    folder: str | None, trials: Trials, size: Sequence[int] | None, base_dir: Path | None
) -> tuple[Trials, Images | None]:
    """The images of trials in a folder, by name; their size is ``size``, or that of the first.

    The trials come back with one name for each file: a table may name it with and without its ending.
    """
    if folder is None:
        return trials, None
    where = needed_folder(folder, base_dir, "images")
    paths = find_images(where, dict.fromkeys(trials.stimulus))
    names: dict[str, str] = {}
    trials = replace(trials, stimulus=[names.setdefault(str(paths[name]), name) for name in trials.stimulus])
    files = [paths[name] for name in names.values()]
    shape = shape_of(files, size)
    rows = FolderRows(files, shape, where)
    return trials, Images(rows, {name: row for row, name in enumerate(names.values())}, shape, rows.paths)
