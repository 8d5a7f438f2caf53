"""Verifying a study: every chunk, image, network and record is read, and what is damaged is named."""

import io
import json
import tomllib
import zipfile
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

import numpy as np

from leanrecon.errors import InputError, StoreError
from leanrecon.places import Location, LocationLike, as_location
from leanrecon.progress import Progress
from leanrecon.stores import Store
from leanrecon.stores.copies import opened
from leanrecon.stores.pictures import Pictures, beside
from leanrecon.study.layout import KEPT, SMALL, Role
from leanrecon.study.networks import Network
from leanrecon.study.record import study_above


class SmallFile:
    """A record or another small file: all that can be said of it is whether it can be read."""

    complete = True

    def __init__(self, path: Location, problem: str = "") -> None:
        self.path = path
        self.problem = problem

    def missing(self) -> list[str]:
        return []

    def damage(self) -> Iterator[tuple[str, str]]:
        """The file itself, if it can't be read, with what is wrong."""
        if problem := self.problem or _problem(self.path):
            yield self.path.name, problem

    def discard(self, names: Sequence[str]) -> None:
        """Remove the file, so that the next run writes it again."""
        if names:
            self.path.unlink(missing_ok=True)


Verified = Store | Pictures | Network | SmallFile

Damage = dict[Verified, list[tuple[Any, str]]]
"""The damaged chunks of a store, rows of a folder of images or files of a network, each with what is wrong."""

_PARTS: dict[type, str] = {Store: "chunks", Pictures: "images", Network: "files"}


def find_damage(path: LocationLike, *, progress: Progress | None = None) -> Damage:
    """Read and check all that is complete at or below a location of a study; returns what is damaged, and how.

    A record that can't be read is damage as well; the rest is verified all the same. Raises InputError where there
    is nothing to verify.
    """
    path = as_location(path)
    progress = progress or Progress()
    kept = _kept(path)
    if not kept:
        raise InputError(f"there is no store in {path}", expected="a study, or one of its stores")
    damaged: Damage = {}
    with progress.task("verify", total=len(kept), unit="stores") as advance:
        for one in kept:
            if not one.complete:
                parts, missing = _PARTS[type(one)], len(one.missing())
                progress.say(f"{one.path} is not finished ({missing} {parts} to go): run the same command again")
            elif damage := list(one.damage()):
                damaged[one] = damage
            advance(1)
    return damaged


def _kept(path: Location) -> list[Verified]:
    """What there is to verify at or below a location: by the layout of its study, or by looking where it has none."""
    study = study_above(path)
    if study is None:
        stores = [file.parent for file in path.files() if file.name == "zarr.json"]
        records = [file for file in (*path.files(), beside(path)) if file.suffix == ".json" and file.is_file()]
        images = [file.with_name(file.stem) for file in records if file.parent.name == "reconstructions"]
        return [_opened(where, Role.STORE) for where in dict.fromkeys((*stores, *images))]
    within = [found for found in study.found(*KEPT, Role.NETWORK, *SMALL) if found.path.is_within(path)]
    return [_opened(found.path, found.item.role) for found in within]


def _opened(path: Location, role: Role) -> Verified:
    if role in SMALL:
        return SmallFile(path)
    try:
        kept = Network.open(path) if role is Role.NETWORK else opened(path)
    except StoreError as error:
        record = path / "zarr.json"
        return SmallFile(record if record.is_file() else beside(path), error.found)
    assert kept is not None, f"{path} was there a moment ago"
    return kept


def _problem(path: Location) -> str:
    """What is wrong with a small file; nothing where it can be read."""
    read = _READERS.get(path.suffix)
    if read is None:
        return ""
    try:
        with path.open() as file:
            read(file)
    except (ValueError, EOFError, OSError, KeyError, zipfile.BadZipFile) as error:
        return f"{path} can't be read: {error}"
    return ""


def _read_text(file: IO[bytes]) -> None:
    for _ in io.TextIOWrapper(file, encoding="utf-8"):
        pass


def _read_npz(file: IO[bytes]) -> None:
    with zipfile.ZipFile(file) as archive:
        if (name := archive.testzip()) is not None:  # in pieces: the components of a PCA may be gigabytes
            raise zipfile.BadZipFile(f"its array {name} does not match its checksum")


_READERS: dict[str, Callable[[IO[bytes]], Any]] = {
    ".json": json.load,
    ".toml": tomllib.load,
    ".csv": _read_text,
    ".html": _read_text,
    ".npz": _read_npz,
    ".npy": lambda file: np.load(file, allow_pickle=False),
}
