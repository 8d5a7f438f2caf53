"""All that settings name, brought here once: what is here is checked, the rest is shown, fetched, checked and converted."""

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
from leanrecon.progress import Progress
from leanrecon.weights.folders import HUB_NAME, cache_folder, cached_file, cached_model, converted_folder
from leanrecon.weights.hub import blob_of, is_sound, look_up, show_in_cache
from leanrecon.weights.pickles import convert
from leanrecon.weights.pieces import Piece, choose, pickles
from leanrecon.weights.published import FILES

RECORD = "fetched.json"
"""Beside fetched files: the bytes and the SHA-256 that each had when it was first here."""


@dataclass(frozen=True)
class Want:
    """A model or a file that a setting names."""

    setting: str
    name: str
    """A path, the name of a model on the hub, or that of a published file."""
    pieces: tuple[Piece, ...] = ()
    """What is needed of a model; none: it is one file."""


@dataclass(frozen=True)
class Job:
    """What is to be fetched for one want, and what is done with it once it is here."""

    want: Want
    files: list[tuple[str, Remote, Path]]
    """Names, sources and targets."""
    more: int
    """Bytes of disk that are taken beyond those of the files."""
    finish: Callable[[], None]

    @property
    def nbytes(self) -> int:
        return sum(remote.size or 0 for _, remote, _ in self.files)


def where(want: Want) -> Path | None:
    """Where it is, if it is here, without a network."""
    path = Path(want.name).expanduser()
    if path.exists():
        return path
    if not want.pieces:
        return cached_file(want.name)
    folder = cached_model(want.name)
    return folder if folder is not None and _whole(want, folder) else None


def is_published(want: Want) -> bool:
    """Whether it may be had elsewhere: the name of a published file or, as it seems, of a model on the hub."""
    return bool(HUB_NAME.fullmatch(want.name)) if want.pieces else want.name in FILES


def fetch_all(wants: Sequence[Want], progress: Progress) -> None:
    """Bring here what is not, after showing how much that is; what is here is checked, and fetched again if damaged.

    Raises InputError for what is neither here nor published, StoreError where the disk has no room, before the first
    byte; NetworkError for servers that fail, which leaves what was fetched so far for the next call.
    """
    with held(cache_folder(), "another fetch-weights", "wait for it", CHOOSES):
        jobs = []
        for want in wants:
            if (path := where(want)) is not None and _is_sound(want, path, progress):
                progress.say(f"{want.name} is here: {path}")
            else:
                jobs.append(_planned(want))
        for job in jobs:
            progress.say(f"{job.want.name} is fetched for {job.want.setting}: {format_bytes(job.nbytes)}")
            for name, remote, _ in job.files:
                progress.say(f"  {name}: {'size unknown' if remote.size is None else format_bytes(remote.size)}")
        if jobs:
            progress.say(f"{format_bytes(sum(job.nbytes for job in jobs))} in all")
        _require_room(jobs)
        for job in jobs:
            for name, remote, target in job.files:
                fetch(remote, target, progress=progress, label=name)
            job.finish()
            progress.say(f"{job.want.name} is here: {where(job.want)}")
        for pickled in _pickled().glob("*.bin"):  # of a process that ended between converting and removing
            pickled.unlink()


def _pickled() -> Path:
    """The folder of pickles that are on their way."""
    return cache_folder() / "downloads"


def _whole(want: Want, folder: Path) -> list[str]:
    """The files of a model's folder that are needed; none if they are not all there, as safetensors."""
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    try:
        chosen = choose(names, want.pieces, want.name)
    except InputError:
        return []
    return [] if pickles(chosen) else chosen


def _is_sound(want: Want, path: Path, progress: Progress) -> bool:
    """Whether fetched files are as they were; those that are not are removed. What came otherwise is taken as it is."""
    if path == cached_file(want.name):
        folder, names = path.parent, [path.name]
    elif want.pieces and path == cached_model(want.name):
        folder, names = path, _whole(want, path)
    else:
        return True
    sound, ours = True, folder in (cache_folder(), converted_folder(want.name))
    for name in names:
        file = folder / name
        if not (_as_recorded(folder, name) if ours else is_sound(file)):
            progress.say(f"{file} is damaged, and fetched again")
            file.resolve().unlink()
            sound = False
    return sound


# What is to be done


def _planned(want: Want) -> Job:
    if not is_published(want):
        raise InputError(
            f"{want.setting} = {want.name!r} is not here, and leanrecon knows of no place that publishes it",
            expected="a folder, or the name of a model on the Hugging Face Hub"
            if want.pieces
            else f"the path of a file, or one of {', '.join(FILES)}",
        )
    if not want.pieces:
        return _planned_file(want)
    repository = look_up(want.name)
    chosen = choose(repository.files, want.pieces, want.name)
    pickled = pickles(chosen)
    own = converted_folder(want.name)
    if not pickled and not own.is_dir():
        places = {name: blob_of(repository, name) for name in chosen}
        last = sorted(chosen, key=lambda name: name.endswith(".json"))  # a config that is there stands for its weights
        return _job(want, repository.files, places, lambda: show_in_cache(repository, last))
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

    return _job(want, repository.files, places, finish, more=[name for name in places if name in pickled])


def _planned_file(want: Want) -> Job:
    address, folder = FILES[want.name], cache_folder()
    if address.dataset:
        files = look_up(address.dataset, "dataset").files
        if want.name not in files:
            raise NetworkError(f"the data set {address.dataset} has no {want.name} any more", todo="bring the file")
        remote = files[want.name]
    else:
        first = (read_json(folder / RECORD) or {}).get(want.name, {}).get("sha256")
        remote = find(Remote(address.url, sha256=address.sha256 or first))
    places = {want.name: folder / want.name}
    return _job(want, {want.name: remote}, places, lambda: _record(folder, want.name))


def _job(
    want: Want, remotes: dict[str, Remote], places: dict[str, Path], finish: Callable[[], None], more: Any = ()
) -> Job:
    """A job for those of these files that are not in their places already."""
    files = [
        (name, remotes[name], path)
        for name, path in places.items()
        if not (path.exists() and (digest := remotes[name].digest) and digest_of(path, digest[0]) == digest[1])
    ]
    for _, _, path in files:
        path.unlink(missing_ok=True)
    return Job(want, files, sum(remotes[name].size or 0 for name in more), finish)


def _require_room(jobs: Sequence[Job]) -> None:
    """Raise StoreError unless the disks have room for all of it."""
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
                f"{format_bytes(nbytes)} are to be fetched into {places[disk]}, where {format_bytes(free)} are free",
                todo=f"free some space, or choose another place with {CHOOSES}",
            )


# What was fetched


def _record(folder: Path, name: str) -> None:
    path = folder / name
    seen = {"bytes": path.stat().st_size, "sha256": digest_of(path, "sha256")}
    write_json(folder / RECORD, (read_json(folder / RECORD) or {}) | {name: seen}, indent=1)


def _as_recorded(folder: Path, name: str) -> bool:
    """Whether a file has the bytes that it had when it was first here, which is noted if it is new."""
    if not (folder / name).exists():
        return False
    seen = (read_json(folder / RECORD) or {}).get(name)
    if seen is None:
        _record(folder, name)
        return True
    path = folder / name
    return bool(path.stat().st_size == seen["bytes"] and digest_of(path, "sha256") == seen["sha256"])
