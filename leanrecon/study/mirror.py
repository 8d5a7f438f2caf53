"""A second place for what a study has finished, such as a mounted drive that outlives the machine.

A mirror is the folder of a study itself: complete stores, images and records, nothing that is still being written.
"""

import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from leanrecon.errors import LeanreconWarning, SettingsError, StoreError
from leanrecon.places import files
from leanrecon.places.disk import explained_disk_errors
from leanrecon.progress import Progress
from leanrecon.stores import Store
from leanrecon.stores.copies import Kept, copy, is_copy, opened
from leanrecon.stores.fingerprint import differences
from leanrecon.study.record import is_study

STUDIES = ("", "variants/*/", "variants/*/variants/*/")
STORES = ("betas/*.zarr", "stimuli/*.zarr", "features/*/*.zarr", "predictions/*/*.zarr", "embeddings/*.zarr")
IMAGES = "reconstructions/*.json"
RECORDS = ("", "betas/", "captions/", "features/*/", "evaluation/", "evaluation/latent_r2/")
"""The folders of a study with small files, which are records; their kinds:"""
KINDS = (".toml", ".json", ".npz", ".npy", ".csv", ".html")

_PIECE = 2**20  # bytes of a record compared at once


class Mirror:
    """Keeps ``folder`` a copy of what the study at ``root`` has finished, and brings it back where it was lost.

    What was made with other settings stops both with StoreError; with ``overwrite`` the study's own counts.
    """

    def __init__(self, root: Path, folder: Path, *, overwrite: bool = False, progress: Progress | None = None) -> None:
        self.root = root
        self.folder = folder
        self.overwrite = overwrite
        self.progress = progress or Progress()

    def restore(self) -> None:
        """Bring back all that the mirror has and the study lacks, each store and image checked on the way.

        What is damaged in the mirror is left out and told, so that the study makes it again and the mirror gets it anew.
        Raises SettingsError for a folder that can't be a mirror, and StoreError.
        """
        self._check_places()
        for name, kept in _finished(self.folder):
            path = self.root / name
            there = opened(path)
            changed = list(differences(there.made_of, kept.made_of)) if there is not None else []
            if changed and not (self.overwrite or _is_of_figures(path)):
                raise self._conflict(path, self.folder / name, changed)
            if not changed and (there is None or not there.complete):
                self._bring(kept, name, path)
        if not is_study(self.root):  # it was not all brought back before
            for name in [*_records(self.folder), "study.toml"]:
                if (self.folder / name).exists() and not (self.root / name).exists():
                    _copy_record(self.folder / name, self.root / name)

    def keep(self) -> None:
        """Copy to the mirror what the study has finished and the mirror lacks, the records last.

        Raises SettingsError for a folder that can't be a mirror; StoreError for damaged stores, for a mirror
        of something else, and where it can't be written.
        """
        self._check_places()
        if (self.root / "study.toml").exists() and not is_study(self.folder):
            _copy_record(self.root / "study.toml", self.folder / "study.toml")
        for name, kept in _finished(self.root):
            path = self.folder / name
            there = opened(path)
            if is_copy(kept, there):
                continue
            changed = list(differences(there.made_of, kept.made_of)) if there is not None else []
            if changed and not (self.overwrite or _is_of_figures(path)):
                raise self._conflict(path, kept.path, changed)
            with self.progress.task(f"to the mirror: {name}", total=_parts(kept), unit="parts") as advance:
                damaged = copy(kept, path, advance)
            if damaged:
                raise StoreError(
                    f"{kept.path} is damaged in {len(damaged)} places, so it is not copied to {self.folder}",
                    todo=f"run `leanrecon verify {kept.path} --repair`",
                )
        for name in [*_records(self.root), "study.toml"]:
            if (self.root / name).exists() and not _same(self.root / name, self.folder / name):
                _copy_record(self.root / name, self.folder / name)

    def keep_or_warn(self) -> None:
        """``keep``, but a mirror that can't be written is told as a warning: it should not stop hours of work."""
        try:
            self.keep()
        except StoreError as error:
            warnings.warn(f"not copied to the mirror: {error}", LeanreconWarning, stacklevel=2)

    def _bring(self, kept: Kept, name: str, path: Path) -> None:
        with self.progress.task(f"from the mirror: {name}", total=_parts(kept), unit="parts") as advance:
            damaged = copy(kept, path, advance)
        if damaged:
            self.progress.say(f"{kept.path} is damaged in {len(damaged)} places, which are made again")
            kept.discard(damaged)  # so that the mirror gets them anew

    def _check_places(self) -> None:
        root, folder = self.root.absolute(), self.folder.absolute()
        if root == folder or root in folder.parents or folder in root.parents:
            raise SettingsError(
                f"the mirror {self.folder} and the study {self.root} are one within the other",
                todo="choose a folder of its own for the mirror",
            )
        with explained_disk_errors(folder):
            others = [] if not folder.exists() or is_study(folder) else [p.name for p in folder.iterdir()]
        if [name for name in others if not name.endswith(".partial")]:
            raise SettingsError(
                f"{self.folder} holds {sorted(others)[0]} and is no mirror of a study",
                todo="choose an empty folder, or one that is not there yet",
            )
        for place in (root, folder):  # what an earlier copy left half-written, either way
            kinds = (*RECORDS, "reconstructions/")
            files.sweep(*(found for within in STUDIES for kind in kinds for found in _folders(place, within + kind)))

    def _conflict(self, path: Path, other: Path, changed: list[str]) -> StoreError:
        return StoreError(
            f"{path} was made with other settings than {other}: {'; '.join(changed)}",
            todo="choose another --mirror, go back to those settings, or replace what was made with --overwrite",
        )


def _is_of_figures(path: Path) -> bool:
    """Whether a store is taken anew with the figures when settings change, without being asked to overwrite."""
    return path.parent.name == "embeddings"


def _finished(root: Path) -> Iterator[tuple[str, Kept]]:
    """The complete stores and folders of images of a study and its variants, by their names in it."""
    for place in STUDIES:
        found = [path for pattern in STORES for path in sorted(root.glob(place + pattern))]
        found += [path.with_suffix("") for path in sorted(root.glob(place + IMAGES))]
        for path in found:
            kept = opened(path)
            if kept is not None and kept.complete:
                yield path.relative_to(root).as_posix(), kept


def _records(root: Path) -> Iterator[str]:
    """The small files of a study and its variants, but for study.toml."""
    for place in STUDIES:
        for folder in (found for pattern in RECORDS for found in _folders(root, place + pattern)):
            for path in sorted(folder.iterdir()):
                if path.suffix in KINDS and path.is_file() and path != root / "study.toml":
                    yield path.relative_to(root).as_posix()


def _folders(root: Path, pattern: str) -> list[Path]:
    if not pattern:
        return [root] if root.is_dir() else []
    return [path for path in sorted(root.glob(pattern)) if path.is_dir() and path.suffix != ".zarr"]


def _parts(kept: Kept) -> int:
    return kept.row_groups * kept.column_groups if isinstance(kept, Store) else kept.rows


def _same(one: Path, other: Path) -> bool:
    try:
        if one.stat().st_size != other.stat().st_size:
            return False
        with one.open("rb") as a, other.open("rb") as b:
            while (piece := a.read(_PIECE)) == b.read(_PIECE):
                if not piece:
                    return True
    except OSError:
        pass
    return False


def _copy_record(source: Path, path: Path) -> None:
    def write(file: Any) -> None:
        with source.open("rb") as read:
            shutil.copyfileobj(read, file, _PIECE)

    files.write_whole(path, write)
    if not _same(source, path):
        raise StoreError(f"{path} does not read as it was written", todo="check the drive it is on")
