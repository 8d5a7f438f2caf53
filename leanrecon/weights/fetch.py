"""Downloading the weights that settings name: local files are checked, missing ones downloaded, checked and converted."""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leanrecon.errors import InputError, NetworkError, StoreError
from leanrecon.memory import format_bytes
from leanrecon.net.download import CHOOSES, Remote, digest_of, fetch, find, partial_of
from leanrecon.places.files import read_json, write_json
from leanrecon.places.hold import held
from leanrecon.places.paths import cache_folder
from leanrecon.progress import Progress
from leanrecon.weights.folders import cached_file, cached_model, converted_folder
from leanrecon.weights.hub import blob_of, is_sound, look_up, show_in_cache
from leanrecon.weights.needs import Need, files_of, is_published, where
from leanrecon.weights.pickles import convert
from leanrecon.weights.pieces import choose, pickles
from leanrecon.weights.published import FILES, address_of

RECORD = "fetched.json"
"""Beside downloaded files: the bytes and the SHA-256 that each had at first."""


@dataclass(frozen=True)
class Job:
    """The downloads for one need, and what is done with them afterwards."""

    need: Need
    files: list[tuple[str, Remote, Path]]
    """Names, sources and targets."""
    more: int
    """Bytes of disk beyond those of the files."""
    finish: Callable[[], None]

    @property
    def nbytes(self) -> int:
        return sum(remote.size or 0 for _, remote, _ in self.files)


def fetch_all(needs: Sequence[Need], progress: Progress) -> None:
    """Download missing weights, after showing their sizes; local ones are checked, and downloaded again if damaged.

    Before the first byte, raises InputError for unknown names and StoreError for a full disk. Raises NetworkError for
    servers that fail, and keeps what was downloaded for the next call.
    """
    with held(cache_folder(), "another fetch-weights", "wait for it", CHOOSES):
        jobs = []
        for need in needs:
            if (path := where(need)) is not None and _is_sound(need, path, progress):
                progress.say(f"{need.name}: {path}")
            else:
                jobs.append(_planned(need))
        for job in jobs:
            progress.say(f"downloading {job.need.name} for {job.need.setting}: {format_bytes(job.nbytes)}")
            for name, remote, _ in job.files:
                progress.say(f"  {name}: {'size unknown' if remote.size is None else format_bytes(remote.size)}")
        if jobs:
            progress.say(f"{format_bytes(sum(job.nbytes for job in jobs))} in total")
        _require_room(jobs)
        for job in jobs:
            for name, remote, target in job.files:
                fetch(remote, target, progress=progress, label=name)
            job.finish()
            progress.say(f"{job.need.name}: {where(job.need)}")
        for pickled in _pickled().glob("*.bin"):  # left by a process that ended before removing them
            pickled.unlink()


def _pickled() -> Path:
    """The folder of pickles until they are converted."""
    return cache_folder() / "downloads"


def _is_sound(need: Need, path: Path, progress: Progress) -> bool:
    """Whether downloaded files are intact; damaged ones are removed. Files that leanrecon did not download are not checked."""
    if path == cached_file(need.name):
        folder, names = path.parent, [path.name]
    elif need.pieces and path == cached_model(need.name):
        folder, names = path, files_of(need, path)
    else:
        return True
    sound, ours = True, folder in (cache_folder(), converted_folder(need.name))
    for name in names:
        file = folder / name
        if not (_as_recorded(folder, name) if ours else is_sound(file)):
            progress.say(f"{file} is damaged and will be downloaded again")
            file.resolve().unlink()
            sound = False
    return sound


# Planning downloads


def _planned(need: Need) -> Job:
    if not is_published(need):
        raise InputError(
            f"{need.setting} = {need.name!r} is neither on this machine nor a published name",
            expected="a folder, or the name of a model on the Hugging Face Hub"
            if need.pieces
            else f"the path of a file, one of torchvision's files of weights, or one of {', '.join(FILES)}",
        )
    if not need.pieces:
        return _planned_file(need)
    repository = look_up(need.name)
    chosen = choose(repository.files, need.pieces, need.name)
    pickled = pickles(chosen)
    own = converted_folder(need.name)
    if not pickled and not own.is_dir():
        places = {name: blob_of(repository, name) for name in chosen}
        # The config last: its presence implies the weights.
        last = sorted(chosen, key=lambda name: name.endswith(".json"))
        return _job(need, repository.files, places, lambda: show_in_cache(repository, last))
    places = {
        name: _pickled() / f"{blob_of(repository, name).name}.bin" if name in pickled else own / name
        for name in chosen
        if name not in pickled or not _as_recorded(own, pickled[name])
    }

    def finish() -> None:
        for name, path in places.items():
            if name in pickled:
                convert(path, own / pickled[name])
            _record(own, pickled.get(name, name))
            if name in pickled:
                path.unlink()

    return _job(need, repository.files, places, finish, more=[name for name in places if name in pickled])


def _planned_file(need: Need) -> Job:
    address, folder = address_of(need.name), cache_folder()
    assert address is not None, "only published files are planned"
    if address.dataset:
        files = look_up(address.dataset, "dataset").files
        if need.name not in files:
            raise NetworkError(
                f"the data set {address.dataset} has no {need.name} any more", todo="obtain the file elsewhere"
            )
        remote = files[need.name]
    else:
        first = (read_json(folder / RECORD) or {}).get(need.name, {}).get("sha256")
        remote = find(Remote(address.url, sha256=address.sha256 or first))
    places = {need.name: folder / need.name}

    def finish() -> None:
        _require_digits(folder / need.name, address.begins)
        _record(folder, need.name)

    return _job(need, {need.name: remote}, places, finish)


def _require_digits(path: Path, begins: str) -> None:
    """Remove a file whose SHA-256 does not begin as published, and raise NetworkError."""
    if begins and not (found := digest_of(path, "sha256")).startswith(begins):
        path.unlink()
        raise NetworkError(
            f"{path.name} came with a SHA-256 of {found[: len(begins)]}…, so it is damaged or another file",
            expected=f"one that begins with {begins}, as its name says",
            todo="run the same command again; if that does not help, obtain the file elsewhere",
        )


def _job(
    need: Need, remotes: dict[str, Remote], places: dict[str, Path], finish: Callable[[], None], more: Any = ()
) -> Job:
    """A job for those of these files that are not in place already."""
    files = [
        (name, remotes[name], path)
        for name, path in places.items()
        if not (path.exists() and (digest := remotes[name].digest) and digest_of(path, digest[0]) == digest[1])
    ]
    for _, _, path in files:
        path.unlink(missing_ok=True)
    return Job(need, files, sum(remotes[name].size or 0 for name in more), finish)


def _require_room(jobs: Sequence[Job]) -> None:
    """Raise StoreError unless the disks have room for all files."""
    needed: dict[int, int] = {}
    places: dict[int, Path] = {}
    for job in jobs:
        for _, remote, target in job.files:
            partial = partial_of(target)
            there = next(path for path in target.parents if path.exists())
            disk = os.stat(there).st_dev
            here = partial.stat().st_size if partial.exists() else 0
            needed[disk] = needed.get(disk, 0) + max((remote.size or 0) - here, 0)
            places[disk] = there
        if job.more:
            disk = os.stat(cache_folder()).st_dev
            needed[disk] = needed.get(disk, 0) + job.more
            places[disk] = cache_folder()
    for disk, nbytes in needed.items():
        free = shutil.disk_usage(places[disk]).free
        if nbytes > free:
            raise StoreError(
                f"the download needs {format_bytes(nbytes)} in {places[disk]}, where {format_bytes(free)} are free",
                todo=f"free some space, or choose another folder with {CHOOSES}",
            )


# Records of downloaded files


def _record(folder: Path, name: str) -> None:
    path = folder / name
    seen = {"bytes": path.stat().st_size, "sha256": digest_of(path, "sha256")}
    write_json(folder / RECORD, (read_json(folder / RECORD) or {}) | {name: seen}, indent=1)


def _as_recorded(folder: Path, name: str) -> bool:
    """Whether a file has the bytes that it had at first; a new file is recorded."""
    if not (folder / name).exists():
        return False
    seen = (read_json(folder / RECORD) or {}).get(name)
    if seen is None:
        _record(folder, name)
        return True
    path = folder / name
    return bool(path.stat().st_size == seen["bytes"] and digest_of(path, "sha256") == seen["sha256"])
