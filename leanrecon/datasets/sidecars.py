"""The small files beside a study's betas and stimuli: kept while they stay the same, and swept of what a kill left."""

import contextlib
import hashlib
import zipfile
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from leanrecon.errors import InputError, StoreError
from leanrecon.places import Location, LocationLike, as_location, files
from leanrecon.places.inputs import MOST, InputFile, input_file, listed, open_buffered, size_of
from leanrecon.stores import Store
from leanrecon.stores.fingerprint import file_fingerprint, hash_of
from leanrecon.stores.store import remove
from leanrecon.study.layout import Study
from leanrecon.study.rows import SPLITS


def sources_path(study: Study) -> Location:
    """The file that says which files a study is made from."""
    return study.betas("train").with_name("sources.json")


LARGE = 4 * 10**9
"""Bytes beyond which a file is known by its size, time of change and samples: studies read but a part of such images."""

_SAMPLES, _SAMPLE = 1024, 64 * 1024  # number and bytes of the pieces of a large file that are hashed


class SourceFiles:
    """The SHA-256 of the files that a study is made from, remembered while a file stays the very same one.

    A file counts as the same while its path, size, times of change, inode and device stay as they were. Otherwise its
    bytes are hashed again: all of them, or of files beyond ``LARGE`` bytes evenly spread samples, with the size and the
    time of the last change, so that a row which is written anew between two samples is noticed.

    Of a file in a bucket, what tells that it stayed the same is its ETag. It is asked for once, and again when stores are
    finished. Its bytes are read through once for their SHA-256, which is that of the same file on
    a disk; beyond ``LARGE`` bytes the ETag stands for them. A folder (Zarr) is known by the names and contents of its files.
    """

    def __init__(self, known: Any = None) -> None:
        self.known: dict[str, list[Any]] = {}
        for path, of in known.items() if isinstance(known, dict) else ():
            if isinstance(of, list) and len(of) == 2 and all(isinstance(one, str) for one in of):
                self.known[path] = of
        self.seen: dict[str, list[Any]] = {}
        """What this run has asked for: the stamp and the SHA-256 of each file, by its path."""

    def content(self, path: InputFile) -> str:
        """SHA-256 of a file; raises InputError for one that changes while it is read."""
        if isinstance(path, Path):
            path = path.resolve()
        elif str(path) in self.seen:  # each look is a request
            return str(self.seen[str(path)][1])
        stamp = stamp_of(path)
        of = self.seen.get(str(path)) or self.known.get(str(path))
        if of is None or of[0] != stamp:
            if str(path) in self.seen:
                raise changing(path)
            of = [stamp, _hash(path)]
            if isinstance(path, Path) and stamp_of(path) != stamp:  # others are looked at again in the end
                raise changing(path)
        self.seen[str(path)] = of
        return str(of[1])

    @contextlib.contextmanager
    def named(self) -> Iterator[None]:
        """Name the files that changed since an earlier run of the study in a StoreError of the block."""
        try:
            yield
        except StoreError as error:
            changed = [path for path, of in self.seen.items() if self.known.get(path, of)[1] != of[1]]
            if not changed:
                raise
            others = f" and {len(changed) - 1} others" if len(changed) > 1 else ""
            raise StoreError(
                f"{changed[0]}{others} changed since the study was begun: {error.found}",
                todo="put the earlier version back, choose another --study, or replace what was made with --overwrite",
            ) from error

    def refuse_changes(self, stores: Iterable[Store]) -> None:
        """Raise InputError for a file that was written to since this run has read its content.

        Removes ``stores``, which were made of both states of it.
        """
        given = {input_file(path): stamp for path, (stamp, _) in self.seen.items()}
        away = [path for path in given if isinstance(path, Location)]
        for folder in {path if path.suffix.lower() == ".zarr" else path.parent for path in away}:
            folder.place.refresh(folder.key)
        changed = next((path for path, stamp in given.items() if stamp_of(path) != stamp), None)
        if changed is not None:
            for store in stores:
                remove(store.path)
            raise changing(changed)


def _hash(path: InputFile) -> str:
    if _is_folder(path):
        return _hash_of_folder(path)
    if isinstance(path, Location):
        with open_buffered(path, MOST) as away:
            return hash_of(away) if away.raw.size <= LARGE else _sha256_of(str(away.raw.stamp).strip('"'))
    found = path.stat()
    size = found.st_size
    if size <= LARGE:
        return file_fingerprint(path)
    digest = hashlib.sha256(f"{size} bytes of {found.st_mtime_ns} in {_SAMPLES} samples".encode())
    with path.open("rb", buffering=0) as file:
        for k in range(_SAMPLES):
            file.seek(k * (size - _SAMPLE) // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE))
    return digest.hexdigest()


def _is_folder(path: InputFile) -> bool:
    """Whether it is a folder that counts as a file, as of Zarr."""
    return path.name.lower().endswith(".zarr") and path.is_dir()


def _hash_of_folder(folder: InputFile) -> str:
    """SHA-256 of the names and contents of all files in a folder; of many bytes, of the stamps of the files."""
    with listed(folder):
        names = _files_in(folder)
        if sum(size_of(folder / name) for name in names) > LARGE:
            return _sha256_of(stamp_of(folder))
        return _sha256_of("\n".join(f"{name} {_hash(folder / name)}" for name in names))


def _files_in(folder: InputFile) -> list[str]:
    location = as_location(folder)
    return sorted(file.relative_to(location) for file in location.files())


def _sha256_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def stamp_of(path: InputFile) -> str:
    """What changes whenever a file is written again: its ETag, or on a disk its size, times of change, inode and device.

    Raises InputError for a file that is gone.
    """
    if _is_folder(path):
        with listed(path):
            return _sha256_of("\n".join(f"{name} {stamp_of(path / name)}" for name in _files_in(path)))
    if isinstance(path, Location):
        stamp = path.stamp()
        if stamp is None:
            raise changing(path)
        return str(stamp).strip('"')  # a listing of Azure has it without quotes
    try:
        found = path.stat()
    except OSError:
        raise changing(path) from None
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_ino} {found.st_dev}"


def changing(path: InputFile) -> InputError:
    """The error of a file that was written to while it was read."""
    return InputError(
        f"{path} changed while it was read",
        expected="a file that stays as it is until the stage dataset is done",
        todo="run the same command again once it is written; with --overwrite if it had been read before",
    )


def keep_json(path: LocationLike, content: Any, what: str, *, overwrite: bool) -> None:
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


def remove_others(
    study: Study,
    *,
    captions: Container[str],
    folds: bool = False,
    betas: Container[str] = SPLITS,
    stimuli: Container[str] = SPLITS,
) -> None:
    """Remove the captions, betas and stimuli of all splits but these, and the folds, that an earlier dataset left."""
    for split in SPLITS:
        if split not in betas:
            remove(study.betas(split))
        if split not in stimuli:
            remove(study.stimuli(split))
        if split not in captions:
            study.captions(split).unlink(missing_ok=True)
    if not folds:
        study.folds.unlink(missing_ok=True)


def sweep(study: Study) -> None:
    """Remove what a killed run left half-written of these files; stores sweep themselves."""
    files.sweep(study.root, study.rows.parent, study.captions("train").parent)
