"""A place in memory: what stores, images and records are tested on to show that they need no paths."""

import contextlib
import io
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any

import numpy as np

from leanrecon.errors import StoreError
from leanrecon.places import Location

Array = np.ndarray[Any, Any]


class MemoryPlace:
    """Files in a dictionary."""

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}
        self.stamps: dict[str, int] = {}
        self.held: set[str] = set()
        self._folder = tempfile.TemporaryDirectory()
        self.work = Path(self._folder.name)

    def at(self, key: str) -> Location:
        return Location(self, key)

    def name_of(self, key: str) -> str:
        return f"memory:{key}"

    def address(self, key: str) -> str:
        return f"memory-{id(self)}:{key}"

    def local_path(self, key: str) -> Path | None:
        return None

    def workplace(self, key: str) -> Path:
        path = self.work / key
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    @property
    def held_nbytes(self) -> int:
        return 0

    def listed(self, prefix: str) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def refresh(self, prefix: str) -> None:
        pass

    def size(self, key: str) -> int | None:
        return len(self.data[key]) if key in self.data else None

    def look(self, key: str) -> tuple[int, int] | None:
        return (len(self.data[key]), self.stamps[key]) if key in self.data else None

    def stamp(self, key: str) -> int | None:
        return self.stamps[key] if key in self.data else None

    def files(self, prefix: str) -> Iterator[str]:
        start = "" if prefix in ("", ".") else f"{prefix}/"
        yield from sorted((key for key in self.data if key.startswith(start)), key=lambda key: key.split("/"))

    def children(self, prefix: str) -> list[str]:
        start = "" if prefix in ("", ".") else f"{prefix}/"
        below = [key[len(start) :].partition("/") for key in self.data if key.startswith(start)]
        return sorted({first + slash for first, slash, _ in below}, key=lambda name: name.rstrip("/"))

    def read_into(self, key: str, memory: Array, offset: int = 0, cached: bool = True) -> int:
        data = np.frombuffer(self._bytes(key), np.uint8)[offset : offset + len(memory)]
        memory[: len(data)] = data
        return len(data)

    def read_rows(self, key: str, out: Array, offset: int, stride: int) -> int:
        data = self._bytes(key)
        for k, row in enumerate(out):
            piece = data[offset + k * stride :][: row.nbytes]
            if len(piece) < row.nbytes:
                return k
            row[:] = np.frombuffer(piece, row.dtype)
        return len(out)

    def _bytes(self, key: str) -> bytes:
        if key not in self.data:
            raise FileNotFoundError(key)
        return self.data[key]

    def write_whole(self, key: str, *parts: Any) -> None:
        self.data[key] = b"".join(bytes(part) for part in parts)
        self.stamps[key] = self.stamps.get(key, 0) + 1

    @contextlib.contextmanager
    def writing(self, key: str) -> Iterator[IO[bytes]]:
        file = io.BytesIO()
        yield file
        self.write_whole(key, file.getvalue())

    def link(self, source: str, target: str) -> bool:
        return False

    def delete(self, key: str) -> None:
        self.data.pop(key, None)

    def delete_tree(self, prefix: str) -> None:
        for key in list(self.files(prefix)):
            self.delete(key)

    def sweep(self, prefix: str, deep: bool = False) -> None:
        pass

    @contextlib.contextmanager
    def hold(self, prefix: str, by: str, todo: str) -> Iterator[None]:
        if prefix in self.held:
            raise StoreError(f"{by} is using {self.name_of(prefix)}", todo=todo)
        self.held.add(prefix)
        try:
            yield
        finally:
            self.held.remove(prefix)
