"""Finding damaged chunks, making them again, and taking stores out of a study."""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np

from leanrecon import datasets
from leanrecon.errors import InputError, StoreError
from leanrecon.places.disk import explained_disk_errors
from leanrecon.progress import Progress
from leanrecon.stages.pipeline import Pipeline
from leanrecon.stores import Store
from leanrecon.stores.pictures import Pictures
from leanrecon.study.layout import Study
from leanrecon.study.record import is_complete, is_study, only_run
from leanrecon.study.settings import read_settings

Damage = dict[Store | Pictures, list[tuple[Any, str]]]
"""The damaged chunks of a store, or rows of a folder of images, each with what is wrong."""


def find_damage(path: Path, *, progress: Progress | None = None) -> Damage:
    """Decode every chunk and check every image of what is complete at or below a path; what is damaged, and how."""
    progress = progress or Progress()
    kept = _kept(path)
    if not kept:
        raise InputError(f"there is no store in {path}", expected="a study, or one of its stores")
    damaged: Damage = {}
    with progress.task("verify", total=len(kept), unit="stores") as advance:
        for store in kept:
            if not store.complete:
                parts = "chunks" if isinstance(store, Store) else "images"
                missing = len(store.missing())
                progress.say(f"{store.path} is not finished ({missing} {parts} to go); its run has to be continued")
            elif found := list(store.damage()):
                damaged[store] = found
            advance(1)
    return damaged


def _kept(path: Path) -> list[Store | Pictures]:
    """The stores and the folders of images at or below a path."""
    stores = [Store.open(found.parent, incomplete=True) for found in sorted(path.rglob("zarr.json"))]
    folders = [
        Pictures.open(record.with_suffix(""), incomplete=True)
        for record in sorted({*path.rglob("*.json"), *path.parent.glob(f"{path.name}.json")})
        if record.parent.name == "reconstructions"
    ]
    return [*stores, *folders]


def mend(path: Path, damaged: Damage, *, progress: Progress | None = None) -> None:
    """Make damaged chunks again, by running their study from its study.toml: only these chunks are computed."""
    root = next((folder for folder in (path, *path.absolute().parents) if is_study(folder)), None)
    if root is None:
        raise StoreError(f"{path} belongs to no study", todo="make it again with what made it")
    settings, base_dir = read_settings(root / "study.toml")
    pipeline = Pipeline(settings, Study(root), base_dir=base_dir, progress=progress)
    if any(store.path.parent.name in ("betas", "stimuli") for store in damaged):
        # Before anything is removed: the arrays that these chunks come from must be there.
        datasets.plan_dataset(settings.dataset, base_dir=base_dir, chunk=settings.stores.chunk, free=0)
    with only_run(root):
        for store, chunks in damaged.items():
            store.discard([ij for ij, _ in chunks])
    pipeline.run(last_stage(root))
    for store in damaged:
        if not is_complete(store.path):
            raise StoreError(
                f"{store.path} is not made by the settings in {root / 'study.toml'}, so it stays damaged",
                todo="remove it, or run the settings that made it",
            )


def last_stage(root: Path) -> str:
    """The last stage that a study has begun."""
    study = Study(root)
    if study.metrics.exists():
        return "evaluate"
    for stage, folder in (("refine", "final"), ("stage1", "stage1")):
        if any(root.glob(f"**/reconstructions/{folder}.json")):
            return stage
    if any(root.glob("**/predictions/*/test.zarr")):
        return "regression"
    return "features" if any(root.glob("**/features/*/*.zarr")) else "dataset"


def export_npy(path: Path, file: Path, *, progress: Progress | None = None) -> None:
    """Copy a complete store into a .npy file, holding one row group at a time."""
    store = Store.open(path)
    if file.is_dir():
        raise InputError(f"{file} is a folder", expected="the name of an .npy file")
    partial = file.with_name(f"{file.name}.partial")
    progress = progress or Progress()
    with explained_disk_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as out:
                header = {"descr": store.dtype.str, "fortran_order": False, "shape": store.shape}
                np.lib.format.write_array_header_1_0(out, header)
                with progress.task("export", total=store.rows, unit="rows") as advance:
                    for i in range(store.row_groups):
                        group = store.group_rows(i)
                        out.write(np.ascontiguousarray(store[group.start : group.stop]).data)
                        advance(len(group))
            partial.replace(file)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
