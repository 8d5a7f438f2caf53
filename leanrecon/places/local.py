"""Files on the disks of this machine: atomic renames, reads and writes without the page cache, locks."""

import contextlib
import errno
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from leanrecon.places.disk import explained_disk_errors, read_file, read_rows, write_file
from leanrecon.places.hold import check_there, held
from leanrecon.places.place import Array

PARTIAL = ".partial"
"""The ending of the names of unfinished files."""

_DELETIONS = 5  # attempts at deleting a folder that other processes still write to


@dataclass(frozen=True)
class LocalPlace:
    """A folder of this machine. The default is the current folder; absolute keys are absolute paths."""

    folder: Path = Path()

    def _path(self, key: str) -> Path:
        return self.folder / key

    def name_of(self, key: str) -> str:
        return str(self._path(key))

    def address(self, key: str) -> str:
        return os.path.abspath(self._path(key)).replace(os.sep, "/")

    def local_path(self, key: str) -> Path:
        return self._path(key)

    workplace = local_path

    @property
    def held_nbytes(self) -> int:
        return 0

    def listed(self, prefix: str) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def refresh(self, prefix: str) -> None:
        """Do nothing: the system always shows files as they are."""

    def size(self, key: str) -> int | None:
        found = self._stat(key)
        return None if found is None else found.st_size

    def stamp(self, key: str) -> str | None:
        found = self._stat(key)
        return None if found is None else f"{found.st_size} {found.st_mtime_ns} {found.st_ino}"

    def look(self, key: str) -> tuple[int, str] | None:
        size, stamp = self.size(key), self.stamp(key)
        return None if size is None or stamp is None else (size, stamp)

    def _stat(self, key: str) -> os.stat_result | None:
        try:
            found = os.stat(self._path(key))
        except (OSError, ValueError):  # a name that no file can have
            return None
        return found if stat.S_ISREG(found.st_mode) else None

    def files(self, prefix: str) -> Iterator[str]:
        for name in self.children(prefix):
            key = str(PurePosixPath(prefix, name))
            if name.endswith("/"):
                yield from self.files(key)
            else:
                yield key

    def children(self, prefix: str) -> list[str]:
        path = self._path(prefix)
        try:
            with explained_disk_errors(path), os.scandir(path) as entries:
                names = [f"{e.name}/" if e.is_dir() else e.name for e in entries if not e.name.endswith(PARTIAL)]
        except OSError as error:
            absent = isinstance(error.__cause__, FileNotFoundError)  # another process may have made it since
            if path.is_dir() and not absent:
                raise
            return []
        return sorted(names, key=lambda name: name.rstrip("/"))

    def read_into(self, key: str, memory: Array, offset: int = 0, cached: bool = True) -> int:
        return read_file(self._path(key), memory, offset=offset, cached=cached)

    def read_rows(self, key: str, out: Array, offset: int, stride: int) -> int:
        return read_rows(self._path(key), out, offset, stride)

    def write_whole(self, key: str, *parts: Any) -> None:
        with self._replacing(key) as partial:
            write_file(partial, *parts)

    @contextlib.contextmanager
    def writing(self, key: str) -> Iterator[IO[bytes]]:
        with self._replacing(key) as partial, partial.open("xb") as file:
            yield file

    def link(self, source: str, target: str) -> bool:
        try:
            with self._replacing(target) as partial:
                try:
                    os.link(self._path(source), partial)
                except (OSError, NotImplementedError) as error:
                    raise _NoLinksError from error
        except _NoLinksError:
            return False
        self._path(target).with_name(partial.name).unlink(missing_ok=True)  # left where both named one file already
        return True

    @contextlib.contextmanager
    def _replacing(self, key: str) -> Iterator[Path]:
        """The path of a new file, renamed to its key when the block ends and removed if it raises."""
        path = self._path(key)
        partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL}")
        check_there(path)
        with explained_disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                yield partial
                partial.replace(path)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise

    def delete(self, key: str) -> None:
        path = self._path(key)
        with explained_disk_errors(path):
            path.unlink(missing_ok=True)

    def delete_tree(self, prefix: str) -> None:
        path = self._path(prefix)
        with explained_disk_errors(path):
            if path.is_symlink():
                path.unlink()  # the link alone: what it leads to is somebody else's
                return
            for left in reversed(range(_DELETIONS)):
                try:
                    if path.exists():
                        shutil.rmtree(path)
                    return
                except OSError as error:  # another process wrote, renamed or deleted a file meanwhile
                    if error.errno not in (errno.ENOTEMPTY, errno.ENOENT) or not left:
                        raise

    def sweep(self, prefix: str, deep: bool = False) -> None:
        path = self._path(prefix)
        with explained_disk_errors(path):
            for partial in path.rglob(f"*{PARTIAL}") if deep else path.glob(f"*{PARTIAL}"):
                partial.unlink(missing_ok=True)

    def hold(self, prefix: str, by: str, todo: str) -> AbstractContextManager[None]:
        return held(self._path(prefix), by, todo)


class _NoLinksError(Exception):
    """A file system without hard links, or two files on different ones."""
