"""A lock on a folder of this machine, for one process at a time."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from leanrecon.errors import StoreError
from leanrecon.places.disk import explained_disk_errors


@contextlib.contextmanager
def held(folder: Path, by: str, todo: str, setting: str = "--study") -> Iterator[None]:
    """Lock a folder against other processes; the lock ends with the process, however it ends.

    Raises StoreError if another process holds it: ``by`` says what uses it, ``todo`` what to do.
    ``setting`` names the option that chooses another folder if this one can't be written. A folder that was made for
    the lock is removed again if it is still empty then.
    """
    with no_empty_folders(folder):
        with explained_disk_errors(folder, setting):
            folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder, by, todo):
            yield


@contextlib.contextmanager
def no_empty_folders(folder: Path) -> Iterator[None]:
    """Remove a folder and those above it that a block made, as far as they are empty when it ends."""
    made = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # one that is not empty is kept, and those above it
            for path in made:
                path.rmdir()


@contextlib.contextmanager
def _locked(folder: Path, by: str, todo: str) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    known = Path(os.path.abspath(folder))
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(f"{by} is using {folder}", todo=todo) from None
        except OSError:  # a file system without locks, as some mounted drives are
            pass
        _HELD[known] = _identity(os.fstat(descriptor))
        yield
    finally:
        _HELD.pop(known, None)
        os.close(descriptor)


_HELD: dict[Path, tuple[int, int]] = {}
"""Device and inode of the folders that this process holds."""


def check_there(path: Path) -> None:
    """Raise StoreError for a path in a held folder that was renamed or removed: writing would make a new folder."""
    for folder, identity in list(_HELD.items()):
        if not Path(os.path.abspath(path)).is_relative_to(folder):
            continue
        try:
            now = _identity(os.stat(folder))
        except FileNotFoundError:
            now = None
        if now != identity:
            raise StoreError(
                f"{folder} was renamed, moved or removed while it was being written to",
                todo="run the same command again with --study and the folder's present name, which continues there",
            )


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino
