"""Trained networks and trainings that go on, copied to a mirror, or to the bucket that their study lies in.

PyTorch reads and writes networks by paths. So those of a study in a bucket are trained in a folder of this machine, where
what the bucket has is copied to first, and are copied back as they are written.
"""

import contextlib
import hashlib
import shutil
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from leanrecon.errors import LeanreconWarning, StoreError
from leanrecon.places import Location, as_location, seals
from leanrecon.stores.fingerprint import file_fingerprint
from leanrecon.stores.pictures import beside
from leanrecon.study.layout import Study

SECONDS = 60.0
"""How often the checkpoints of a training are looked at, to be copied."""

_PIECE = 2**20  # bytes of a file that are compared or copied at once


class NetworkCopies:
    """Keeps the networks of the study at ``folder`` as those of the study at ``root`` are."""

    def __init__(self, root: Location, folder: Location) -> None:
        self.root, self.folder = root, folder
        self._copied: dict[Location, int | str | None] = {}  # stamps of the files of networks

    def keep(self) -> None:
        """Copy the files of networks that are new, finished or not, and remove those that a training has removed."""
        names = list(network_files(self.root))
        for name in names:
            source, target = self.root / name, self.folder / name
            stamp = source.stamp()
            if self._copied.get(source) != stamp or target.size() != source.size():
                if not same(source, target):
                    copy_file(source, target)
                self._copied[source] = stamp
        trained = {name.rpartition("/")[0] for name in names}
        for name in network_files(self.folder):
            if name not in names and name.rpartition("/")[0] in trained:
                (self.folder / name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def following(self, where: str, seconds: float = SECONDS) -> Iterator[None]:
        """Copy checkpoints as they are written, by a thread, until the block ends; so hours outlive the machine.

        Where they can't be written, a warning says that they are not copied to ``where``.
        """
        done = threading.Event()
        failed: list[StoreError] = []

        def follow() -> None:
            while not done.wait(seconds) and not failed:
                try:
                    self.keep()
                except FileNotFoundError:
                    continue  # a checkpoint that was removed while it was copied
                except StoreError as error:
                    failed.append(error)

        thread = threading.Thread(target=follow, name="copy-networks", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
        if failed:
            warnings.warn(f"checkpoints are not copied to {where}: {failed[0]}", LeanreconWarning, stacklevel=3)


def brought(network: Location) -> Path:
    """The folder of a network on this machine: its own, or a copy of what the bucket has of it."""
    folder = network.workplace()
    if network.place.local_path(network.key) is None and not folder.is_dir() and network.is_dir():
        coming = folder.with_name(f"{folder.name}.coming")
        shutil.rmtree(coming, ignore_errors=True)
        for file in network.files():
            copy_file(file, as_location(coming) / file.relative_to(network))
        coming.rename(folder)
    return folder


@contextlib.contextmanager
def copied_back(networks: Sequence[Location]) -> Iterator[None]:
    """Copy what is trained in the block to the bucket, where these networks lie in one: as it is written, and at last."""
    away = [network for network in networks if network.place.local_path(network.key) is None]
    roots = dict.fromkeys(network.parent.parent for network in away)
    with contextlib.ExitStack() as stack:
        for root in roots:
            copies = NetworkCopies(as_location(root.workplace()), root)
            stack.callback(copies.keep)
            stack.enter_context(copies.following(str(root)))
        yield


def discard_workplaces(study: Study) -> None:
    """Remove copies of networks that an earlier run left on this machine: another may have trained on since."""
    if study.root.place.local_path(study.root.key) is None:
        for of in (study, *study.variants()):
            shutil.rmtree((of.root / "networks").workplace(), ignore_errors=True)


def network_files(root: Location) -> Iterator[str]:
    """The files of trained networks and of trainings, and last their records, by their names in the study."""
    for study in (Study(root), *Study(root).variants()):
        folders = [path for path in (study.root / "networks").iterdir() if path.suffix != ".json"]
        folders = [path for path in folders if not path.leads_out_of(root)]
        for folder in folders:
            yield from (file.relative_to(root) for file in folder.files())
        yield from (beside(folder).relative_to(root) for folder in folders if beside(folder).is_file())


def same(one: Location, other: Location) -> bool:
    """Whether two files hold the same bytes."""
    if one.size() != other.size():
        return False
    try:
        with one.open() as a, other.open() as b:
            while (piece := a.read(_PIECE)) == b.read(_PIECE):
                if not piece:
                    return True
    except OSError:
        pass
    return False


def copy_file(source: Location, path: Location) -> None:
    """Copy a file whole and read it back; the source may be replaced meanwhile."""
    digest = hashlib.sha256()
    known = source.suffix == ".json" or seals.state(source) is not seals.State.UNKNOWN
    with source.open() as read, seals.writing(path) if known else path.writing() as file:
        while piece := read.read(_PIECE):
            digest.update(piece)
            file.write(piece)
    if file_fingerprint(path) != digest.hexdigest():
        raise StoreError(f"{path} does not read as it was written", todo="check the drive it is on")
