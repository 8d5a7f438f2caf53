"""Bytes by their offset: of a file, of a member of an archive, and of a deflated stretch of a file."""

import zipfile
import zlib
from typing import Any

import numpy as np

from leanrecon.datasets.files.rows import BLOCK, Bytes, explained_damage, refused_by_system, unreadable
from leanrecon.places.inputs import InputFile, for_library, input_file, open_raw

Array = np.ndarray[Any, Any]

_PIECE = 64 * 1024  # bytes that are inflated together, at least


class FileBytes:
    """The bytes of a file; ``opened`` stands in for the file of that name."""

    def __init__(self, path: InputFile | str, opened: Any = None) -> None:
        self.name = str(path)
        with explained_damage(self.name):
            self.file = open_raw(input_file(path) if isinstance(path, str) else path) if opened is None else opened
            self.size = int(self.file.seek(0, 2))

    def read_at(self, offset: int, memory: Array) -> None:
        view = memory.data
        try:
            self.file.seek(offset)
            while view:
                n = self.file.readinto(view)
                if not n:
                    raise unreadable(self.name, "it ends too early")
                view = view[n:]
        except OSError as error:
            raise refused_by_system(self.name, error) or unreadable(self.name, error) from error

    def close(self) -> None:
        self.file.close()


class MemberBytes:
    """A member of an .npz file: compressed, so read forwards, and from the start again to go back."""

    def __init__(self, path: InputFile, key: str) -> None:
        self.name = f"{path}:{key}"
        self.archive = zipfile.ZipFile(for_library(path))
        self.info = self.archive.getinfo(f"{key}.npy")
        self.stream: Any = None

    def read_at(self, offset: int, memory: Array) -> None:
        with explained_damage(self.name):
            if self.stream is None or self.stream.tell() > offset:
                if self.stream is not None:
                    self.stream.close()
                self.stream = self.archive.open(self.info)
            while (gap := offset - self.stream.tell()) > 0:
                if not self.stream.read(min(gap, BLOCK)):
                    break
            view = memory.data
            while view:
                n = self.stream.readinto(view[:BLOCK])
                if not n:
                    raise unreadable(self.name, "it ends too early")
                view = view[n:]
            if self.stream.tell() == self.info.file_size:
                self.stream.read(1)  # the checksum is compared at the end

    def close(self) -> None:
        self.archive.close()


class InflatedBytes:
    """What ``nbytes`` deflated bytes from ``start`` on inflate to: read forwards, and from the start again to go back.

    ``total`` is how many bytes they should inflate to, once that is known: the checksum is compared there, and more is
    refused. A few pieces are held, however much it inflates to.
    """

    def __init__(self, name: str, source: Bytes, start: int, nbytes: int) -> None:
        self.name = name
        self.source = source
        self.start, self.stop = start, start + nbytes
        self.total: int | None = None
        self._rewind()

    def _rewind(self) -> None:
        self.at, self.raw_at = 0, self.start
        self.inflate = zlib.decompressobj()
        self.ready = memoryview(b"")

    def _more(self, most: int) -> bytes:
        """The next inflated bytes; none at the end."""
        while not self.inflate.eof:
            data = self.inflate.unconsumed_tail
            if not data:
                raw = np.empty(min(_PIECE, self.stop - self.raw_at), np.uint8)
                if not len(raw):
                    raise unreadable(self.name, "it ends too early")
                self.source.read_at(self.raw_at, raw)
                self.raw_at += len(raw)
                data = raw.tobytes()
            if out := self.inflate.decompress(data, most):
                return out
        return b""

    def read_at(self, offset: int, memory: Array) -> None:
        with explained_damage(self.name):
            if offset < self.at:
                self._rewind()
            gap, view = offset - self.at, memory.data
            while gap or view:
                if not self.ready:
                    self.ready = memoryview(self._more(max(min(gap or len(view), BLOCK), _PIECE)))
                    if not self.ready:
                        raise unreadable(self.name, "it ends too early")
                n = min(len(self.ready), gap or len(view))
                if not gap:
                    view[:n] = self.ready[:n]
                    view = view[n:]
                else:
                    gap -= n
                self.at += n
                self.ready = self.ready[n:]
            if self.at == self.total and (self.ready or self._more(1)):
                raise unreadable(self.name, "it inflates to more than it says")

    def close(self) -> None:
        self.source.close()
