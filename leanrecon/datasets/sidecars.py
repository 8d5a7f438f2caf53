"""The small files beside a study's betas and stimuli: kept while they stay the same, and swept of what a kill left."""

import zipfile
from collections.abc import Container
from typing import Any

import numpy as np

from leanrecon.errors import StoreError
from leanrecon.places import Location, LocationLike, files
from leanrecon.stores import Store
from leanrecon.study.layout import Study


def sources_path(study: Study) -> Location:
    """The file that says which files a study is made from."""
    return study.betas("train").with_name("sources.json")


def keep_json(path: LocationLike, content: Any, what: str, *, overwrite: bool = False) -> None:
    """Write plain values as JSON unless they are there already; raises StoreError where others are, or replaces them."""
    there = files.read_json(path)
    if there is None or (overwrite and there != content):
        files.write_json(path, content)
    elif there != content:
        raise StoreError(
            f"{path} was made with other {what}",
            todo="go back to them, choose another --study, or replace what was made with --overwrite",
        )


def n_voxels(study: Study, key: str) -> int | None:
    """How many voxels the array ``key`` of voxels.npz tells of; None where it can't be read."""
    try:
        with study.voxels.open() as file, np.load(file, allow_pickle=False) as voxels:
            return len(voxels[key])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def forget_other_kind(study: Study, kind: str) -> None:
    """Remove what tells of the voxels and the files of another kind of dataset, which is about to be replaced."""
    try:
        made_of = Store.open(study.betas("train"), incomplete=True).made_of
    except StoreError:
        return
    if kind not in (made_of.get("kind"), made_of.get("dataset", {}).get("kind")):
        for path in (study.voxels, sources_path(study)):
            path.unlink(missing_ok=True)


def remove_others(study: Study, *, captions: Container[str] = (), folds: bool = False) -> None:
    """Remove the captions of all splits but these, and the folds, that an earlier dataset left."""
    for split in ("train", "test"):
        if split not in captions:
            study.captions(split).unlink(missing_ok=True)
    if not folds:
        study.folds.unlink(missing_ok=True)


def sweep(study: Study) -> None:
    """Remove what a killed run left half-written of these files; stores sweep themselves."""
    files.sweep(study.root, study.rows.parent, study.captions("train").parent)
