"""Locations: a place and a key, written and joined as paths are."""

import fnmatch
import io
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypeAlias, Union

import numpy as np

from leanrecon.errors import InputError, StoreError, has_credentials, shown
from leanrecon.places.bucket import SCHEMES
from leanrecon.places.local import LocalPlace
from leanrecon.places.objects import ObjectPlace
from leanrecon.places.place import Place

LocationLike: TypeAlias = Union[str, "os.PathLike[str]", "Location"]
"""A path as text or as an object, or a Location."""


@dataclass(frozen=True)
class Location:
    """A file or folder in a place. The methods are those of ``pathlib.Path`` that every place can offer.

    A location on this machine is accepted wherever a path is; elsewhere ``local_path`` raises StoreError.
    """

    place: Place
    key: str
    written_by: str = field(default="", compare=False)
    """The stage that writes it, where that is known; for messages."""

    def __truediv__(self, name: str) -> "Location":
        return Location(self.place, str(PurePosixPath(self.key, name)))

    def __str__(self) -> str:
        return self.place.name_of(self.key)

    def __fspath__(self) -> str:
        return str(self.local_path())

    @property
    def name(self) -> str:
        return PurePosixPath(self.key).name

    @property
    def stem(self) -> str:
        return PurePosixPath(self.key).stem

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.key).suffix

    @property
    def parent(self) -> "Location":
        return Location(self.place, str(PurePosixPath(self.key).parent))

    @property
    def parents(self) -> "list[Location]":
        """The folders above, the nearest first, up to the root of the place."""
        return list(self.above())

    def above(self) -> "Iterator[Location]":
        """The folders above, the nearest first, as a lazy iterator, because each one takes time."""
        own = self.address()
        for key in self._keys_above():
            folder = Location(self.place, str(key))
            if _lies_in(own, folder.address()):
                yield folder

    def _keys_above(self) -> "Iterator[PurePosixPath]":
        yield from PurePosixPath(self.key).parents
        if self.place.local_path(".") is not None:
            yield from PurePosixPath(Location(self.place, ".").address()).parents

    def relative_to(self, folder: "Location") -> str:
        """The key within a folder, such as ``betas/rows.json``; raises ValueError for what lies elsewhere."""
        return str(PurePosixPath(self.key).relative_to(folder.key))

    def is_within(self, folder: "Location") -> bool:
        """Whether it is this folder, or is in it."""
        return _lies_in(self.address(), folder.address())

    def with_name(self, name: str) -> "Location":
        return Location(self.place, str(PurePosixPath(self.key).with_name(name)))

    def todo(self) -> str:
        """What to do if there is nothing at this location, for messages."""
        return f"run the stage {self.written_by} first" if self.written_by else "run the stage that writes it first"

    def address(self) -> str:
        """The full address: equal for two locations exactly where they are the same file."""
        return self.place.address(self.key)

    def local_path(self) -> Path:
        """The path on this machine; raises StoreError where the place is elsewhere."""
        path = self.place.local_path(self.key)
        if path is None:
            raise StoreError(f"{self} is not on a disk of this machine", todo="use a local folder for it")
        return path

    def workplace(self) -> Path:
        """The path on this machine; for a place elsewhere, the path of a copy to work on."""
        return self.place.workplace(self.key)

    # Queries

    def exists(self) -> bool:
        """Whether there is a file, or a folder that holds something."""
        return self.is_file() or self.is_dir()

    def is_file(self) -> bool:
        return self.place.size(self.key) is not None

    def is_dir(self) -> bool:
        """Whether there is a folder that holds something."""
        return bool(self.place.children(self.key))

    def is_link(self) -> bool:
        """Whether it is a symbolic link; places elsewhere have none."""
        path = self.place.local_path(self.key)
        return path is not None and path.is_symlink()

    def leads_out_of(self, folder: "Location") -> bool:
        """Whether a link on the way from a folder to this location leads out of the folder."""
        path, root = self.place.local_path(self.key), folder.place.local_path(folder.key)
        if path is None or root is None:
            return False
        try:
            return not path.resolve().is_relative_to(root.resolve())
        except (OSError, RuntimeError):  # links that lead to each other
            return True

    def size(self) -> int | None:
        """Bytes of the file; None where there is none."""
        return self.place.size(self.key)

    def stamp(self) -> int | str | None:
        """A value that changes whenever the file is written again; None where there is none."""
        return self.place.stamp(self.key)

    def look(self) -> tuple[int, int | str] | None:
        """Size and stamp of the file, by one request; None if there is none."""
        return self.place.look(self.key)

    def iterdir(self) -> Iterator["Location"]:
        """The files and subfolders of a folder, sorted by name."""
        for name in self.place.children(self.key):
            yield self / name.rstrip("/")

    def glob(self, pattern: str) -> Iterator["Location"]:
        """The files and subfolders directly in a folder whose names match a pattern such as ``*.zarr``, sorted."""
        return (path for path in self.iterdir() if fnmatch.fnmatchcase(path.name, pattern))

    def files(self) -> Iterator["Location"]:
        """All files in a folder and its subfolders."""
        for key in self.place.files(self.key):
            yield Location(self.place, key)

    # Reading

    def read_bytes(self) -> bytes:
        """The whole file; raises FileNotFoundError."""
        size = self.size()
        if size is None:
            raise FileNotFoundError(str(self))
        memory = np.empty(size, np.uint8)
        return memory[: self.place.read_into(self.key, memory)].tobytes()

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)

    def open(self) -> IO[bytes]:
        """The file, to be read as bytes from any offset; raises FileNotFoundError."""
        path = self.place.local_path(self.key)
        return io.BufferedReader(_Reader(self), _AT_ONCE) if path is None else path.open("rb")

    # Writing

    def write_bytes(self, *parts: Any) -> None:
        """Write the file whole, or not at all."""
        self.place.write_whole(self.key, *parts)

    def write_text(self, text: str, encoding: str = "utf-8") -> None:
        self.write_bytes(text.encode(encoding))

    def writing(self) -> AbstractContextManager[IO[bytes]]:
        """A binary file to write to, which appears when the block ends, and not at all if it raises."""
        return self.place.writing(self.key)

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete the file; raises FileNotFoundError unless it may be missing."""
        if not missing_ok and not self.is_file():
            raise FileNotFoundError(str(self))
        self.place.delete(self.key)

    def delete_tree(self) -> None:
        """Delete the folder and all in it."""
        self.place.delete_tree(self.key)

    def sweep(self, *, deep: bool = False) -> None:
        """Delete unfinished files of a killed process in the folder, and with ``deep`` in its subfolders."""
        self.place.sweep(self.key, deep)

    def hold(self, by: str, todo: str) -> AbstractContextManager[None]:
        """Hold the folder against other processes; raises StoreError where ``by`` holds it already."""
        return self.place.hold(self.key, by, todo)


class _Reader(io.RawIOBase):
    """The bytes of a file in any place."""

    def __init__(self, location: Location) -> None:
        size = location.size()
        if size is None:
            raise FileNotFoundError(str(location))
        self._location, self._size, self._offset = location, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._offset = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._offset, os.SEEK_END: self._size}[whence]
        return self._offset

    def readinto(self, memory: Any) -> int:
        view = np.frombuffer(memory, np.uint8)[: max(self._size - self._offset, 0)]
        n = self._location.place.read_into(self._location.key, view, self._offset) if len(view) else 0
        self._offset += n
        return n


_AT_ONCE = 2**22  # bytes of one request for an open file elsewhere

_URL = re.compile(r"(s3|gs|az):/{1,2}([^/]+)/*(.*)")

_OTHER_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(/.*)", re.DOTALL)
_NO_BUCKET = re.compile(r"(s3|gs|az|gcs|https?|ftp|file):/*", re.IGNORECASE)
_ALIASES = {"gcs": "gs", "s3a": "s3", "s3n": "s3", "abfs": "az", "abfss": "az", "azure": "az"}


def elsewhere(where: LocationLike) -> Location | None:
    """The location if it is not on this machine; else None."""
    if not isinstance(where, Location) and not _URL.fullmatch(_text(where)):
        return None
    location = as_location(where)
    return location if location.place.local_path(location.key) is None else None


def as_location(where: LocationLike) -> Location:
    """The location that a path or the URL of a bucket names; raises InputError for other URLs.

    A ``Path`` made of a URL has lost one of its slashes; this is allowed for. So a local folder such as ``s3:`` must be
    given by its absolute path.
    """
    if isinstance(where, Location):
        return where
    text = _text(where)
    if not text:
        raise InputError("the path is empty", expected='a folder or the URL of one; "." is the current folder')
    if "\0" in text:
        raise InputError(f"{text} holds a zero byte, which no path has")
    if found := _URL.fullmatch(text):
        scheme, bucket, key = found.groups()
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", bucket) or ".." in key.split("/") or has_credentials(text):
            raise InputError(
                f"{text} names no bucket",
                expected=f"the URL of a folder, such as {scheme}://bucket/folder",
                todo="leave credentials out of it: they belong in environment variables",
            )
        return Location(ObjectPlace(f"{scheme}://{bucket}"), str(PurePosixPath(key)))
    if _NO_BUCKET.fullmatch(text):
        raise InputError(f"{text} names no bucket", expected="the URL of a folder, such as s3://bucket/folder")
    if found := _OTHER_URL.fullmatch(text):
        raise InputError(
            f"{found[1]}://{found[2].lstrip('/')} is a URL",
            expected="a folder on a disk of this machine, or in a bucket (s3://, gs://, az://)",
            todo=written_right(*found.groups()),
        )
    return Location(LocalPlace(), Path(text).as_posix())


def _text(where: Any) -> str:
    """The text of a path; raises InputError for anything else."""
    text = os.fspath(where) if isinstance(where, str | os.PathLike) else None
    if not isinstance(text, str):
        raise InputError(f"{shown(where)} is not a path", expected="a path or a URL, as text or pathlib.Path")
    return text


def written_right(scheme: str, rest: str) -> str | None:
    """What to do about a URL of a bucket with another name of its scheme, such as ``gcs``; None for other URLs."""
    own = _ALIASES.get(scheme.lower(), scheme.lower())
    return f"write it as {own}://{rest.strip('/')}" if own in SCHEMES and rest.strip("/") else None


def _lies_in(address: str, folder: str) -> bool:
    """Whether an address is a folder's, or of something in it."""
    return address == folder or address.startswith(folder.rstrip("/") + "/")
