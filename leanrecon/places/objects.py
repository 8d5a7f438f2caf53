"""Files in a bucket (S3, Google Cloud Storage, Azure): written whole by one request, read by ranges of bytes."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np

from leanrecon.errors import StoreError
from leanrecon.places.bucket import HELD_NBYTES, Bucket, bucket_of
from leanrecon.places.disk import explained_disk_errors
from leanrecon.places.hold import no_empty_folders
from leanrecon.places.lease import NAME as HOLD
from leanrecon.places.lease import Lease
from leanrecon.places.listing import Entry, Listing
from leanrecon.places.paths import cache_folder
from leanrecon.places.place import Array

SPOOLED = 8 * 2**20
"""Bytes of a file being written that are kept in memory; longer files are written to a temporary file first."""

_GAP = 2 * 2**20  # bytes between two rows that are read as well, which is faster than a second request


@dataclass(frozen=True)
class ObjectPlace:
    """A bucket, as in ``s3://bucket``. Keys are those of its objects.

    While this process holds a folder, the files in it were listed once and are known without requests.
    """

    url: str

    @property
    def _bucket(self) -> Bucket:
        return bucket_of(self.url)

    def name_of(self, key: str) -> str:
        return f"{self.url}/{_key(key)}".rstrip("/")

    address = name_of

    def local_path(self, key: str) -> Path | None:
        return None

    def workplace(self, key: str) -> Path:
        path = cache_folder() / "studies" / sha256(self.url.encode()).hexdigest()[:16] / _key(key)
        with explained_disk_errors(path.parent, "the variable LEANRECON_CACHE"):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return path

    @property
    def held_nbytes(self) -> int:
        return HELD_NBYTES

    # Queries

    def size(self, key: str) -> int | None:
        found = self._entry(key)
        return None if found is None else found.size

    def stamp(self, key: str) -> str | None:
        found = self._entry(key)
        return None if found is None else found.stamp

    def look(self, key: str) -> tuple[int, str] | None:
        found = self._entry(key)
        return None if found is None else (found.size, found.stamp)

    def _entry(self, key: str) -> Entry | None:
        key = _key(key)
        if not key:
            return None
        known = self._known(key)
        return self._bucket.head(key) if known is None else known.get(key)

    def files(self, prefix: str) -> Iterator[str]:
        start = _start(prefix)
        known = self._known(start)
        keys = known.below(start) if known is not None else [key for key, _ in self._bucket.list(start[:-1])]
        yield from sorted((key for key in keys if not _is_hold(key)), key=lambda key: key.split("/"))

    def children(self, prefix: str) -> list[str]:
        start = _start(prefix)
        known = self._known(start)
        names = known.children(start) if known is not None else self._bucket.children(start[:-1])
        return sorted((name for name in names if name != HOLD), key=lambda name: name.rstrip("/"))

    def refresh(self, prefix: str) -> None:
        if (known := self._known(_start(prefix))) is not None:
            found = dict(self._bucket.list(_key(prefix)))
            for key in known.below(_start(prefix)):
                if key not in found:
                    known.discard(key)
            for key, entry in found.items():
                known.put(key, entry)

    # Reading

    def read_into(self, key: str, memory: Array, offset: int = 0, cached: bool = True) -> int:
        if len(memory) == 0:
            return 0
        done = 0
        for piece in self._pieces(key, offset, offset + len(memory)):
            memory[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
            done += len(piece)
        return done

    def read_rows(self, key: str, out: Array, offset: int, stride: int) -> int:
        nbytes = out[0].nbytes if len(out) else 0
        if nbytes == 0 or stride - nbytes > _GAP:
            for k, row in enumerate(out):
                if self.read_into(key, row.view(np.uint8), offset + k * stride) != nbytes:
                    return k
            return len(out)
        position, stop = offset, offset + (len(out) - 1) * stride + nbytes
        for piece in self._pieces(key, offset, stop):
            data = np.frombuffer(piece, np.uint8)
            first = max((position - offset - nbytes) // stride + 1, 0)
            last = min((position + len(data) - 1 - offset) // stride, len(out) - 1)
            for k in range(first, last + 1):
                start = offset + k * stride
                a, b = max(start, position), min(start + nbytes, position + len(data))
                if a < b:
                    out[k].view(np.uint8)[a - start : b - start] = data[a - position : b - position]
            position += len(data)
        return len(out) if position == stop else max((position - offset - nbytes) // stride + 1, 0)

    def _pieces(self, key: str, start: int, stop: int) -> Iterator[memoryview]:
        key = _key(key)
        known = self._known(key)
        if known is not None:
            found = known.get(key)
            if found is None:
                raise FileNotFoundError(self.name_of(key))
            if start >= found.size:
                return
        yield from self._bucket.pieces(key, start, stop)

    # Writing

    def write_whole(self, key: str, *parts: Any) -> None:
        self._note(key, lambda name: self._bucket.put(name, parts))

    @contextlib.contextmanager
    def writing(self, key: str) -> Iterator[IO[bytes]]:
        with tempfile.SpooledTemporaryFile(max_size=SPOOLED) as file:
            yield file
            size = file.seek(0, os.SEEK_END)
            if size <= SPOOLED:
                file.seek(0)
                self.write_whole(key, file.read())
            else:
                self._note(key, lambda name: self._bucket.upload(name, file, size))

    def link(self, source: str, target: str) -> bool:
        found = self._entry(source)
        if found is None:
            return False
        if _key(source) != _key(target):

            def copied(name: str) -> Entry:
                self._bucket.copy(_key(source), name)
                return found

            self._note(target, copied)
        return True

    def _note(self, key: str, write: Any) -> None:
        key = _key(key)
        for one in tuple(_KNOWN.get(self.url, ())):
            if key.startswith(one.start):
                if one.lease is not None:
                    one.lease.check()
                one.listing.put(key, write(key))
                return
        write(key)

    def delete(self, key: str) -> None:
        key = _key(key)
        known = self._known(key)
        if known is None or known.get(key) is not None:
            self._bucket.delete(key)
        if known is not None:
            known.discard(key)

    def delete_tree(self, prefix: str) -> None:
        keys = list(self.files(prefix))
        self._bucket.delete(*keys)
        if (known := self._known(_start(prefix))) is not None:
            for key in keys:
                known.discard(key)

    def sweep(self, prefix: str, deep: bool = False) -> None:
        """Nothing is left half-written in a bucket: a file appears when the last of its bytes has arrived."""

    # Holding

    @contextlib.contextmanager
    def hold(self, prefix: str, by: str, todo: str) -> Iterator[None]:
        prefix = _key(prefix)
        lease = Lease(self._bucket, prefix, by, todo)
        with lease.held(), self._listed(prefix, lease):
            work = self.workplace(prefix)
            with no_empty_folders(work):
                with explained_disk_errors(work, "the variable LEANRECON_CACHE"):
                    work.mkdir(parents=True, exist_ok=True, mode=0o700)
                yield
        shutil.rmtree(work, ignore_errors=True)  # after an error it stays, so that the next run continues there
        with contextlib.suppress(OSError):
            work.parent.rmdir()

    def listed(self, prefix: str) -> AbstractContextManager[None]:
        return self._listed(_key(prefix), None)

    @contextlib.contextmanager
    def _listed(self, prefix: str, lease: Lease | None) -> Iterator[None]:
        found = ((key, entry) for key, entry in self._bucket.list(prefix) if not _is_hold(key))
        one = _Known(_start(prefix), Listing(found), lease)
        _KNOWN.setdefault(self.url, []).append(one)
        try:
            yield
        finally:
            _KNOWN[self.url].remove(one)

    def _known(self, key: str) -> Listing | None:
        """The listing that covers a key; None if no folder above it is held or listed."""
        return next((one.listing for one in tuple(_KNOWN.get(self.url, ())) if key.startswith(one.start)), None)


@dataclass(frozen=True, eq=False)
class _Known:
    """A folder whose files are listed: the beginning of its keys, and the lock of this process, if there is one."""

    start: str
    listing: Listing
    lease: Lease | None


_KNOWN: dict[str, list[_Known]] = {}
"""The folders that this process has listed, by bucket."""


def _key(key: str) -> str:
    """The key of an object: no dot for the root, no slash at the ends."""
    normal = str(PurePosixPath(key))
    if ".." in PurePosixPath(normal).parts:
        raise StoreError(f"{key} leads out of its folder", todo='give a name without ".." in it')
    return "" if normal == "." else normal.strip("/")


def _start(prefix: str) -> str:
    """The beginning of the keys of a folder."""
    key = _key(prefix)
    return f"{key}/" if key else ""


def _is_hold(key: str) -> bool:
    return key.rpartition("/")[2] == HOLD
