"""A folder held by one process at a time."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from leanrecon.errors import StoreError
from leanrecon.places.disk import explained_disk_errors


@contextlib.contextmanager
def held(folder: Path, by: str, todo: str, setting: str = "--study") -> Iterator[None]:
    """Hold a folder against other processes; the hold ends with the process, however that ends.

    Raises StoreError where it is held already: ``by`` says what uses it, ``todo`` what to do.
    ``setting`` names the option that chooses another folder where this one can't be written.
    """
    with explained_disk_errors(folder, setting):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(f"{by} is using {folder}", todo=todo) from None
        except OSError:  # a file system without locks, as some mounted drives are
            pass
        yield
    finally:
        os.close(descriptor)
