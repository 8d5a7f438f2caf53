"""The protocol of a place: a file system or a bucket whose files are read by offset and written whole."""

from collections.abc import Hashable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

Array = np.ndarray[Any, Any]


class Place(Hashable, Protocol):
    """Files under keys, such as ``betas/train.zarr/c/0/0``; folders exist only as the beginnings of keys.

    Two places are equal where the same keys name the same files. A place can be pickled. Files that are still
    being written are never listed. Writing raises StoreError with what to do, such as when the disk is full.
    """

    def name_of(self, key: str) -> str:
        """The file's name in messages."""

    def address(self, key: str) -> str:
        """The file's full address: equal for two keys of the same file, and independent of the current folder."""

    def local_path(self, key: str) -> Path | None:
        """The file's path on this machine; None for a place elsewhere."""

    def workplace(self, key: str) -> Path:
        """A path on this machine for a file or folder that libraries read and write by its path.

        On this machine it is the file's own path; elsewhere a path in the cache folder, which is removed when the lock
        of its folder is released without an error.
        """

    @property
    def held_nbytes(self) -> int:
        """Bytes of memory that reading and writing takes beyond the data."""

    def size(self, key: str) -> int | None:
        """Bytes of a file; None where there is no such file."""

    def stamp(self, key: str) -> int | str | None:
        """A value that changes whenever the file is written again; None where there is no such file."""

    def look(self, key: str) -> tuple[int, int | str] | None:
        """Size and stamp of a file, by one request; None if there is no such file."""

    def files(self, prefix: str) -> Iterator[str]:
        """The keys of all files in a folder and its subfolders, sorted."""

    def children(self, prefix: str) -> list[str]:
        """The names directly in a folder, sorted; those of subfolders end in ``/``. Empty where there is no folder."""

    def listed(self, prefix: str) -> AbstractContextManager[None]:
        """List a folder once for all queries in the block, if each query would be a request."""

    def refresh(self, prefix: str) -> None:
        """List a folder again that was listed before, because other processes may have written to it."""

    def read_into(self, key: str, memory: Array, offset: int = 0, cached: bool = True) -> int:
        """Fill ``memory`` (uint8) from an offset of a file on; returns the bytes read, fewer at the end of the file.

        With ``cached=False`` large reads may bypass the system's page cache. Raises FileNotFoundError.
        """

    def read_rows(self, key: str, out: Array, offset: int, stride: int) -> int:
        """Read row k of ``out`` from byte ``offset + k * stride``; returns how many rows were read whole.

        Raises FileNotFoundError.
        """

    def write_whole(self, key: str, *parts: Any) -> None:
        """Write a file from bytes-like parts; readers see all of it or the earlier file."""

    def writing(self, key: str) -> AbstractContextManager[IO[bytes]]:
        """A binary file to write to, which appears under its key when the block ends, and not at all if it raises."""

    def link(self, source: str, target: str) -> bool:
        """Give the same bytes a second key; returns False, with nothing done, if the place can't.

        A file that is written again under one key stays as it was under the other.
        """

    def delete(self, key: str) -> None:
        """Delete a file; one that is not there is not an error."""

    def delete_tree(self, prefix: str) -> None:
        """Delete a folder and all in it; one that is not there is not an error."""

    def sweep(self, prefix: str, deep: bool = False) -> None:
        """Delete unfinished files of a killed process in a folder, and with ``deep`` in its subfolders."""

    def hold(self, prefix: str, by: str, todo: str) -> AbstractContextManager[None]:
        """Lock a folder against other processes; the lock ends with the process, however it ends.

        Raises StoreError if another process holds it: ``by`` says what uses it, ``todo`` what to do.
        """
