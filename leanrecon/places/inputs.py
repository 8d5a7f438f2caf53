"""Input files of a study: on this machine, or in a bucket, where they are read by ranges of bytes."""

import contextlib
import functools
import io
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np

from leanrecon.errors import InputError
from leanrecon.places.bucket import HELD_NBYTES, SCHEMES
from leanrecon.places.location import Location, as_location, elsewhere
from leanrecon.places.paths import expanded
from leanrecon.places.seekable import Seekable

InputFile: TypeAlias = Path | Location
"""A path of this machine, or a location in a bucket."""

PAGE = 2**18
"""Bytes of one request for small parts: headers, directories of archives, metadata of HDF5."""

MOST = 2**22
"""The most bytes of one request while a file is read sequentially in small pieces."""

DIRECT = 2**20
"""Bytes above which a piece is one request, read straight into its memory and not cached."""

KEPT = 2**23
"""Bytes of the cache for files in buckets: the last pages read, of all files together."""

NEAR = 2 * 2**20
"""The largest gap in bytes between two pieces that is read as well, which is faster than a second request."""

INPUTS_NBYTES = KEPT + 2 * MOST
"""Bytes of memory that reading inputs in buckets takes, beyond those of its requests."""


def input_file(text: str | os.PathLike[str]) -> InputFile:
    """The file that a path or a URL names; raises InputError for a URL that names no bucket."""
    return elsewhere(text) or Path(text)


def is_url(text: str) -> bool:
    """Whether a text is a URL rather than a path; a drive letter is not a scheme."""
    scheme, colon, _ = text.partition("://")
    return bool(colon) and len(scheme) > 1 and scheme.replace("+", "").isalnum()


def names_bucket(value: Any) -> bool:
    """Whether plain values hold the URL of a bucket."""
    if isinstance(value, dict | list | tuple):
        return any(map(names_bucket, value.values() if isinstance(value, dict) else value))
    return isinstance(value, str) and is_url(value) and value.partition("://")[0] in SCHEMES


def open_raw(file: InputFile) -> Any:
    """A file's bytes, unbuffered, to be read from any offset; raises InputError for a URL without a file."""
    return file.open("rb", buffering=0) if isinstance(file, Path) else RangedFile(file)


def open_buffered(file: InputFile, buffer: int = io.DEFAULT_BUFFER_SIZE) -> Any:
    """A file's bytes through a buffer; its size matters only for files in buckets."""
    return file.open("rb") if isinstance(file, Path) else io.BufferedReader(RangedFile(file), buffer)


def open_text(file: InputFile, newline: str | None = None) -> Any:
    """A file's UTF-8 text, without a byte order mark."""
    if isinstance(file, Path):
        return file.open(encoding="utf-8-sig", newline=newline)
    return io.TextIOWrapper(open_buffered(file), encoding="utf-8-sig", newline=newline)


def for_library(file: InputFile) -> Any:
    """A path or an open file, for libraries that take either."""
    return file if isinstance(file, Path) else LibraryFile(file)


def size_of(file: InputFile) -> int:
    """Bytes of a file; raises InputError for a URL without a file, OSError for such a path."""
    if isinstance(file, Path):
        return file.stat().st_size
    size = file.size()
    if size is None:
        raise missing(file)
    return size


def listed(folder: InputFile) -> AbstractContextManager[None]:
    """List a folder in a bucket once for all queries in the block."""
    return contextlib.nullcontext() if isinstance(folder, Path) else folder.place.listed(folder.key)


def folder_files(folder: InputFile) -> list[str]:
    """The names of all files in a folder and its subfolders, with a ``/`` between them."""
    if isinstance(folder, Path):
        found = ((Path(above).relative_to(folder), names) for above, _, names in os.walk(folder))
        return [(above / name).as_posix() for above, names in found for name in names]
    location = as_location(folder)
    return [file.relative_to(location) for file in location.files()]


def matching_in(folder: InputFile, pattern: str) -> list[InputFile]:
    """The files directly in a folder whose names match a pattern such as ``*.png``, sorted."""
    if isinstance(folder, Path):
        return [*sorted(folder.glob(pattern))]
    return [*folder.glob(pattern)]


def is_there(file: InputFile) -> bool:
    """Whether there is a file; for one in a bucket, a process sends one request at most."""
    return expanded(file).is_file() if isinstance(file, Path) else _is_there(file)


@functools.lru_cache(maxsize=64)
def _is_there(file: Location) -> bool:
    return file.is_file()


def requests_nbytes(study: int, inputs: bool) -> int:
    """Bytes that requests hold: ``study`` for those of the study, and more if ``inputs`` are URLs."""
    return max(study, HELD_NBYTES) + INPUTS_NBYTES if inputs else study


def missing(file: Location) -> InputError:
    """The error of a URL without a file. Raises StoreError if there is no such bucket: a size does not show that."""
    with contextlib.suppress(FileNotFoundError):
        file.place.read_into(file.key, np.empty(1, np.uint8))
    return InputError(
        f"there is no file {file}",
        expected="an object of this key",
        todo="check the key, which must name a file, not a folder",
    )


def streamed(nbytes: int) -> int:
    """The number of requests for ``nbytes`` that are read sequentially in small pieces."""
    requests, ahead = 1, PAGE
    nbytes -= PAGE
    while nbytes > 0 and ahead < MOST:
        ahead *= 2
        nbytes -= ahead
        requests += 1
    return requests + max(-(-nbytes // MOST), 0)


def in_spans(rows: int, nbytes: int, at_once: int, block: int) -> int:
    """Requests for ``rows`` rows of ``nbytes`` in C order, ``at_once`` together, in spans of up to ``block`` bytes."""
    span = max(block // max(nbytes, 1), 1)
    if min(span, at_once) * nbytes <= DIRECT:
        return streamed(rows * nbytes)
    bands, rest = divmod(rows, at_once)
    return bands * -(-at_once // span) + -(-rest // span)


class RangedFile(Seekable):
    """A file in a bucket, read by ranges: long pieces as they are, short ones with the bytes that follow.

    Raises InputError if there is none, NetworkError and StoreError if a request fails.
    """

    def __init__(self, location: Location) -> None:
        self.location = location
        found = location.look()
        if found is None:
            raise missing(location)
        size, self.stamp = found
        super().__init__(size)
        self._state = f"{location.address()} {self.stamp}"
        self._next, self._ahead = -1, PAGE

    @property
    def name(self) -> str:
        return str(self.location)

    def readinto(self, memory: Any) -> int:
        view = np.frombuffer(cast(Any, memory), np.uint8)[: max(self.size - self._at, 0)]
        done = 0
        while done < len(view):  # HDF5 would take missing bytes as zeros
            rest = view[done:]
            n = self._fetch(self._at, rest) if len(rest) > DIRECT else self._kept(rest)
            self._at += n
            done += n
        return done

    def _fetch(self, start: int, memory: Any) -> int:
        """Fill ``memory`` from an offset of the file on; returns how many bytes that were."""
        try:
            n = self.location.place.read_into(self.location.key, memory, start)
        except FileNotFoundError:
            raise missing(self.location) from None
        if n < len(memory):
            raise InputError(
                f"{self.location} ends at byte {start + n}, and had {self.size} bytes when it was opened",
                expected="a file that stays as it is while it is read",
                todo="run the same command again once it is written",
            )
        return n

    def _kept(self, view: Any) -> int:
        """Fill a short view from the cache, up to the end of its first page; returns the bytes."""
        found = _PAGES.find(self._state, self._at)
        if found is None:
            follows = self._at == self._next
            self._ahead = min(2 * self._ahead, MOST) if follows else PAGE
            start = self._at if follows or len(view) > PAGE else self._at - self._at % PAGE
            page = np.empty(min(max(self._ahead, len(view)), self.size - start), np.uint8)
            self._fetch(start, page)
            self._next = start + len(page)
            _PAGES.keep(self._state, start, page)
            found = page[self._at - start :]
        n = min(len(view), len(found))
        view[:n] = found[:n]
        return n


class HiddenError(OSError):
    """The error of a request, as an OSError for libraries in C."""

    def __init__(self, problem: Exception) -> None:
        super().__init__(str(problem))
        self.problem = problem


class LibraryFile(RangedFile):
    """A file in a bucket for libraries in C, which pass on only OSError, and may ignore it."""

    problem: Exception | None = None
    """The error of the last failed request."""

    def readinto(self, memory: Any) -> int:
        try:
            return super().readinto(memory)
        except Exception as error:
            self.problem = error
            raise HiddenError(error) from error


@contextlib.contextmanager
def problems_told(file: Any) -> Iterator[None]:
    """Raise the error of a failed request for a file, even if a library ignored it."""
    try:
        yield
    finally:
        if (problem := getattr(file, "problem", None)) is not None:
            raise problem


class _Pages:
    """A cache of the last pages read, ``KEPT`` bytes at most; for any number of threads."""

    def __init__(self) -> None:
        self._of: OrderedDict[tuple[str, int], Any] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, file: str, at: int) -> Any:
        """The cached bytes of a file from an offset to the end of a page; None if they are not cached."""
        with self._lock:
            for (of, start), page in reversed(self._of.items()):
                if of == file and start <= at < start + len(page):
                    self._of.move_to_end((of, start))
                    return page[at - start :]
        return None

    def keep(self, file: str, start: int, page: Any) -> None:
        with self._lock:
            self._of[file, start] = page
            self._of.move_to_end((file, start))
            while sum(map(len, self._of.values())) > KEPT:
                self._of.popitem(last=False)


_PAGES = _Pages()
