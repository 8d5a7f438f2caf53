"""A second place for what a study has finished, such as a mounted drive that outlives the machine.

A mirror is itself the folder of a study: complete stores, images and records, and trainings as far as they are.
"""

import contextlib
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

from leanrecon.errors import LeanreconWarning, SettingsError, StoreError
from leanrecon.places import Location, LocationLike, as_location, seals
from leanrecon.progress import Progress
from leanrecon.stores import Store
from leanrecon.stores.copies import Kept, copy, distrust, is_copy, opened
from leanrecon.stores.fingerprint import differences
from leanrecon.study.beginning import undone
from leanrecon.study.layout import KEPT, SMALL, Found, Role, Study
from leanrecon.study.network_copies import SECONDS, NetworkCopies, copy_file, network_files, same
from leanrecon.study.networks import Network
from leanrecon.study.record import is_study, sweep


class Mirror:
    """Keeps ``folder`` a copy of what the study at ``root`` has finished, and restores what was lost there.

    Stores made with other settings stop both with StoreError; with ``overwrite`` those of the study are kept.
    """

    def __init__(
        self, root: LocationLike, folder: LocationLike, *, overwrite: bool = False, progress: Progress | None = None
    ) -> None:
        self.root = as_location(root)
        self.folder = as_location(folder)
        self.overwrite = overwrite
        self.progress = progress or Progress()
        self.networks = NetworkCopies(self.root, self.folder)

    def restore(self) -> None:
        """Copy to the study what the mirror has and the study lacks, each part checked on the way.

        What is damaged in the mirror is reported and left out: the study makes it again, and the mirror gets it anew.
        Raises SettingsError for a folder that can't be a mirror, and StoreError.
        """
        self._check_folders()
        lost = not is_study(self.root)
        if lost:
            self._discard_damaged_networks()
        for found, kept in self._finished(self.folder):
            path = self.root / found.name
            there = _opened(path)
            changed = list(differences(there.made_of, kept.made_of)) if there is not None else []
            if changed and not (self.overwrite or found.item.replaced):
                raise self._conflict(path, found.path, changed)
            if not changed and (there is None or not there.complete):
                self._bring(kept, found.name, path)
        if not lost:  # small files and networks were all restored before
            return
        for name in network_files(self.folder):
            if not (self.root / name).is_file():
                copy_file(self.folder / name, self.root / name)
        for name in [*_records(self.folder), "study.toml"]:
            if (
                (self.folder / name).is_file()
                and not (self.root / name).is_file()
                and self._is_sound(self.folder / name)
            ):
                copy_file(self.folder / name, self.root / name)
        self._restore_measurements()

    def _is_sound(self, path: Location) -> bool:
        """Whether a small file matches its checksum, where one is kept; said where it does not."""
        if seals.state(path) is seals.State.DAMAGED:
            self.progress.say(f"{path} does not match its checksum, so it is not copied: run `leanrecon verify`")
            return False
        return True

    def _restore_measurements(self) -> None:
        """Copy run.json, with the checksums of what is there now."""
        try:
            content = seals.load(self.folder)
        except StoreError as error:
            self.progress.say(f"{error.found}, so it is not copied")
            return
        if content is None or (self.root / seals.MANIFEST).is_file():
            return
        copy_file(self.folder / seals.MANIFEST, self.root / seals.MANIFEST)
        for name in content.get(seals.CHECKSUMS, {}):
            if (path := self.root / name).is_file() and seals.state(path) is seals.State.DAMAGED:
                seals.forget(path)  # begun by an earlier run that was lost

    def _keep_measurements(self) -> None:
        """Copy run.json; a file that the mirror has in another state keeps its checksum."""
        content, there = seals.load(self.root), _loaded(self.folder)
        if content is None or same(self.root / seals.MANIFEST, self.folder / seals.MANIFEST):
            return
        accepted, own = content.get(seals.CHECKSUMS, {}), there.get(seals.CHECKSUMS, {})
        other = [name for name, of in own.items() if not set(of[:1]) & set(accepted.get(name, []))]
        other = [name for name in other if (self.folder / name).is_file()]
        copy_file(self.root / seals.MANIFEST, self.folder / seals.MANIFEST)
        if other:
            seals.adopt(self.folder, [self.folder / name for name in other])

    def _discard_damaged_networks(self) -> None:
        """Leave out networks of the mirror that don't match their checksums: they are trained again."""
        for found in Study(self.folder).found(Role.NETWORK):
            network = Network.open(found.path)
            damaged = list(network.damage()) if network.complete else []
            for _, what in damaged:
                self.progress.say(f"{what}: it is trained again")
            network.discard([name for name, _ in damaged])

    def keep(self) -> None:
        """Copy to the mirror what the study has finished and the mirror lacks, the records last.

        Raises SettingsError for a folder that can't be a mirror; StoreError for damaged stores, for a mirror
        of something else, and where it can't be written.
        """
        self._check_folders()
        with undone(self.folder):
            self._keep_settings()
            self._keep_finished()

    def _keep_finished(self) -> None:
        for link in Study(self.root).links():
            self.progress.say(f"{link} is a link that leads out of the study: what it leads to is not copied")
        for found, kept in self._finished(self.root):
            path = self.folder / found.name
            there = _opened(path)
            if is_copy(kept, there):
                continue
            changed = list(differences(there.made_of, kept.made_of)) if there is not None else []
            if changed and not (self.overwrite or found.item.replaced):
                raise self._conflict(path, kept.path, changed)
            with self.progress.task(f"to the mirror: {found.name}", total=_parts(kept), unit="parts") as advance:
                damaged = copy(kept, path, advance)
            if damaged:
                raise StoreError(
                    f"{kept.path} is damaged in {len(damaged)} places, so it is not copied to {self.folder}",
                    todo=f"run `leanrecon verify {kept.path} --repair`",
                )
        self.networks.keep()
        for name in [*_records(self.root), "study.toml"]:
            sound = (self.root / name).is_file() and self._is_sound(self.root / name)
            if sound and not same(self.root / name, self.folder / name):
                copy_file(self.root / name, self.folder / name)
        self._keep_measurements()

    def _finished(self, root: Location) -> Iterator[tuple[Found, Kept]]:
        """The complete stores and folders of images of a study and its variants; says which records are damaged."""
        links = Study(root).links()
        for found in Study(root).found(*KEPT):
            if any(link.is_within(found.path) for link in links):
                continue
            try:
                kept = opened(found.path)
            except StoreError as error:
                self.progress.say(f"{error.found}, so it is not copied: run `leanrecon verify {root} --repair`")
                continue
            if kept is not None and kept.complete:
                yield found, kept

    def _keep_settings(self) -> None:
        if (self.root / "study.toml").is_file() and not is_study(self.folder):
            copy_file(self.root / "study.toml", self.folder / "study.toml")
        if seals.keeps(self.root) and not (self.folder / seals.MANIFEST).is_file():
            seals.adopt(self.folder, [self.folder / "study.toml"])

    @contextlib.contextmanager
    def following(self, seconds: float = SECONDS) -> Iterator[None]:
        """Copy the checkpoints of trainings as they are written, by a thread, until the block ends.

        So hours of training outlive the machine. A mirror that can't be written is reported as a warning.
        """
        self._check_folders()
        self._keep_settings()
        with self.networks.following("the mirror", seconds):
            yield

    def held(self) -> AbstractContextManager[None]:
        """Hold a mirror in a bucket against other runs, which lists it once; folders of this machine are not held."""
        if self.folder.place.local_path(self.folder.key) is not None:
            return contextlib.nullcontext()
        return self.folder.hold("another run", "wait for it, or choose another --mirror")

    def keep_or_warn(self) -> None:
        """As ``keep``, but with a warning where the mirror can't be written: it should not stop hours of work."""
        try:
            self.keep()
        except StoreError as error:
            warnings.warn(f"not copied to the mirror: {error}", LeanreconWarning, stacklevel=2)

    def _bring(self, kept: Kept, name: str, path: Location) -> None:
        with self.progress.task(f"from the mirror: {name}", total=_parts(kept), unit="parts") as advance:
            damaged = copy(kept, path, advance)
        if damaged:
            self.progress.say(f"{kept.path} is damaged in {len(damaged)} places, which are made again")
            kept.discard(damaged)  # so that the mirror gets them anew

    def _check_folders(self) -> None:
        if self.root.is_within(self.folder) or self.folder.is_within(self.root):
            raise SettingsError(
                f"the mirror {self.folder} and the study {self.root} are one within the other",
                todo="choose a folder of its own for the mirror",
            )
        others = [path.name for path in self.folder.iterdir()]
        if others and not is_study(self.folder):
            raise SettingsError(
                f"{self.folder} holds {others[0]} and is not a mirror of a study",
                todo="choose an empty folder, or one that is not there yet",
            )
        for folder in (self.root, self.folder):  # what an earlier copy left half-written, either way
            sweep(Study(folder))

    def _conflict(self, path: Location, other: Location, changed: list[str]) -> StoreError:
        return StoreError(
            f"{path} was made with other settings than {other}: {'; '.join(changed)}",
            todo="choose another --mirror, go back to those settings, or replace what was made with --overwrite",
        )


def _opened(path: Location) -> Kept | None:
    """The store or the images that are to become a copy; a damaged record is proven by copying."""
    try:
        return opened(path)
    except StoreError:
        distrust(path)
        return opened(path)


def _records(root: Location) -> list[str]:
    """The small files of a study and its variants, but for its study.toml and run.json, by their names in it."""
    return [found.name for found in Study(root).found(*SMALL) if found.name not in (seals.SETTINGS, seals.MANIFEST)]


def _loaded(root: Location) -> dict[str, Any]:
    """What run.json of a mirror holds; nothing where it is damaged, and so written anew."""
    try:
        return seals.load(root) or {}
    except StoreError:
        (root / seals.MANIFEST).unlink(missing_ok=True)
        seals.begin(root)
        return {}


def _parts(kept: Kept) -> int:
    return kept.row_groups * kept.column_groups if isinstance(kept, Store) else kept.rows
