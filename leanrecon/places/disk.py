"""Reads and writes of local files, without the page cache if the system can; explained errors of disks."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from leanrecon.errors import StoreError
from leanrecon.memory import format_bytes

Array = np.ndarray[Any, Any]

PAGE = 4096
"""Uncached reads and writes move whole pages from and to page-aligned memory."""

_UNCACHED = 2**20  # bytes from which a chunk bypasses the page cache


_FULL = "free some space and run the same command again; everything written so far is kept"
_ADVICE = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EMFILE: "raise the limit of open files (ulimit -n 1024) and run the same command again",
    errno.ENFILE: "close other programs and run the same command again",
    errno.EACCES: "check the permissions, or choose a folder you may write to",
    errno.EPERM: "check the permissions, or choose a folder you may write to",
    errno.EROFS: "choose a folder you may write to",
    errno.EISDIR: "give a file, not a folder",
    errno.ENOTDIR: "give a folder, not a file",
    errno.EEXIST: "a file or a broken link has this name: give a folder",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f), or choose a disk that takes larger ones",
    errno.ENAMETOOLONG: "give a shorter name",
}


def advice(error: OSError) -> str | None:
    """What to do about an error of the system; None if that is not known."""
    return _ADVICE.get(error.errno or 0)


class explained_disk_errors:
    """Turns errors of a full disk, a read-only folder or a path that can't be written into StoreErrors that advise."""

    def __init__(self, path: str | os.PathLike[str], setting: str = "--study") -> None:
        self.path = Path(path)
        self.setting = setting

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, OSError) or isinstance(error, StoreError):
            return
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = next(p for p in (self.path, *self.path.absolute().parents) if p.exists())
            free = format_bytes(shutil.disk_usage(where).free)
            raise StoreError(
                f"the disk is full: {self.path} could not be written ({free} free)",
                todo=_FULL,
            ) from error
        forbidden = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
        raise StoreError(
            f"{self.path} can't be written: {error.strerror or error}",
            todo=f"choose a folder you may write to with {self.setting}"
            if forbidden
            else advice(error) or "check the path",
        ) from error


def read_file(path: Path, memory: Array, *, offset: int, cached: bool) -> int:
    """Fill ``memory`` (uint8) from an offset of a file on; returns the bytes read.

    Reading without the page cache needs page-aligned memory of whole pages; otherwise the cache is used.
    """
    if not cached and hasattr(os, "O_DIRECT"):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
        except OSError as error:
            if error.errno != errno.EINVAL:  # a file system without uncached reads
                raise
        else:
            try:
                return _read_all(descriptor, memory, offset, direct=True)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
            finally:
                os.close(descriptor)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return _read_all(descriptor, memory, offset)
    finally:
        os.close(descriptor)


def read_rows(path: Path, out: Array, offset: int, stride: int) -> int:
    """Read row k of ``out`` from byte ``offset + k * stride`` of a file; returns how many rows were read whole.

    One positioned read a row: a third less time than copying out of a mapped file, and nothing mapped.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        for k, row in enumerate(out):
            if read_at(descriptor, [row], offset + k * stride) != row.nbytes:
                return k
    finally:
        os.close(descriptor)
    return len(out)


def write_file(path: Path, *parts: Any) -> None:
    """Write a new file from bytes-like parts; a large, page-aligned first array bypasses the page cache.

    So the cache keeps files that are read again, and filling it takes no processor time.
    """
    done = _write_uncached(path, parts[0]) if parts and isinstance(parts[0], np.ndarray) else 0
    with path.open("ab", buffering=0) as file:
        for k, part in enumerate(parts):
            view = memoryview(part)[done if k == 0 else 0 :]
            while view:
                view = view[file.write(view) :]


def _read_at_without_preadv(descriptor: int, rows: list[Any], offset: int) -> int:
    os.lseek(descriptor, offset, os.SEEK_SET)  # Windows has no positioned reads
    view = memoryview(rows[0]).cast("B")
    data = os.read(descriptor, len(view))
    view[: len(data)] = data
    return len(data)


read_at = getattr(os, "preadv", _read_at_without_preadv)


def _write_uncached(path: Path, data: Array) -> int:
    """Begin a file with the whole pages of ``data``; returns the bytes written, fewer if the disk is full."""
    pages = len(data) // PAGE * PAGE
    if pages < _UNCACHED or data.ctypes.data % PAGE or not hasattr(os, "O_DIRECT"):
        return 0
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system without uncached writes
            raise
        return 0
    try:
        return os.write(descriptor, data[:pages].data)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return 0
    finally:
        os.close(descriptor)


def _read_all(descriptor: int, memory: Array, offset: int, *, direct: bool = False) -> int:
    view = memory.data
    done = 0
    while done < len(view):
        n = read_at(descriptor, [view[done:]], offset + done)
        done += n
        if n == 0 or (direct and done % PAGE):  # a part of a page comes only at the end of a file
            break
    return done


def write_array(file: Any, array: Array) -> None:
    """Write all bytes of an array to an unbuffered file, which may take only a part of them at once."""
    view = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    while view:
        view = view[file.write(view) :]
