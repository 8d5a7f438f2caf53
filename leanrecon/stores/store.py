"""One row store: a top-level Zarr v3 array whose chunks are written whole, checked by crc32c, and resumable.

Encoding: little-endian bytes and a crc32c, no compression (float32 latents compress by 7 % and then read
2-3 times slower), so a chunk file is its rows followed by four bytes. Any Zarr reader opens it.
"""

import hashlib
import itertools
import json
import math
import os
import shutil
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec

from leanrecon.errors import LeanreconWarning, StoreError
from leanrecon.memory import buffer, parse_bytes
from leanrecon.places.disk import PAGE, explained_disk_errors, read_at, read_file, write_file
from leanrecon.places.files import write_json
from leanrecon.stores.fingerprint import differences, fingerprint
from leanrecon.stores.layout import DEFAULT_CHUNK, plan_chunks

__all__ = ["Store", "explained_disk_errors", "remove"]

Array = np.ndarray[Any, Any]

FORMAT = 1
_CRC = 4  # bytes of the checksum behind a chunk
_ATTRIBUTE = "leanrecon"


class Store:
    """A row store on disk, being written or complete.

    ``Store.create`` opens one for writing and continues where an earlier run stopped; ``Store.open`` opens a
    complete one. ``shape``, ``dtype`` and ``chunks`` are those of the Zarr array. All reading and writing
    treats a row as flat: an image store of [rows, height, width, channels] has height·width·channels columns.
    """

    def __init__(self, path: Path, array: "zarr.Array[Any]") -> None:
        self.path = path
        self.shape: tuple[int, ...] = array.shape
        self.dtype: np.dtype[Any] = np.dtype(array.dtype)
        self.chunks: tuple[int, ...] = array.chunks
        self.fill_value = array.fill_value
        attributes: Mapping[str, Any] = array.attrs
        self._record: dict[str, Any] = dict(attributes.get(_ATTRIBUTE, {}))
        self.rows = self.shape[0]
        self.columns = math.prod(self.shape[1:])
        self.chunk_rows = self.chunks[0]
        self.chunk_columns = math.prod(self.chunks[1:])
        self.chunk_nbytes = self.chunk_rows * self.chunk_columns * self.dtype.itemsize
        self.row_groups = math.ceil(self.rows / self.chunk_rows)
        self.column_groups = math.ceil(self.columns / self.chunk_columns)
        self.checked: set[tuple[int, int]] = set()
        """Chunks that matched their checksum since the store was opened."""

    # Opening

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        shape: Sequence[int],
        dtype: Any,
        *,
        made_of: Mapping[str, Any],
        chunk: str | int = DEFAULT_CHUNK,
        overwrite: bool = False,
        notes: Mapping[str, Any] | None = None,
    ) -> "Store":
        """Open a store for writing: a new one, or an earlier one made of the same things, to be continued.

        ``made_of`` holds all that decides the contents: settings, seeds, and the ``content`` of the input
        stores. A store made of something else raises StoreError with the settings that differ, or is
        replaced, with ``overwrite``. Files left half-written by a killed run are removed. ``notes`` are kept with a new store
        for later runs (the batch size it was begun with) and are no part of what it is made of.
        """
        path = Path(path)
        dtype = np.dtype(dtype)
        chunks = plan_chunks(shape, dtype, parse_bytes(chunk))
        layout = {"shape": list(shape), "dtype": dtype.name, "stores.chunk": list(chunks)}
        now = {"format": FORMAT, **layout, **made_of}
        if (path / "zarr.json").exists():
            store = cls(path, _open_array(path))
            changed = list(differences(store.made_of, now))
            if not changed:
                store.sweep()
                return store
            if not overwrite and any(path.glob("c/**/*")):  # of one that holds nothing yet, nothing is lost
                raise StoreError(
                    f"{path} was made with other settings: {'; '.join(changed)}",
                    todo="go back to those settings, choose another --study, or replace what was made with --overwrite",
                )
        remove(path)
        with explained_disk_errors(path):
            array = zarr.create_array(
                str(path),
                shape=tuple(shape),
                dtype=dtype,
                chunks=chunks,
                fill_value=np.nan if dtype.kind == "f" else 0,
                filters=None,
                serializer=BytesCodec(endian="little" if dtype.itemsize > 1 else None),
                compressors=[Crc32cCodec()],
                attributes={
                    _ATTRIBUTE: {
                        "made_of": now,
                        "fingerprint": fingerprint(now),
                        "notes": dict(notes or {}),
                        "complete": False,
                    }
                },
            )
        return cls(path, array)

    @classmethod
    def begin_copy(cls, source: "Store", path: Path) -> "Store":
        """Open a store for writing that is to become a copy of another one, or continue an earlier copy.

        What is there of a store made of something else is removed first.
        """
        there = (path / "zarr.json").exists() and cls(path, _open_array(path))
        if there and there.made_of == source.made_of:
            there.sweep()
        else:
            remove(path)
        described = json.loads((source.path / "zarr.json").read_bytes())
        record = described["attributes"][_ATTRIBUTE]
        record["complete"] = False
        record.pop("content", None)  # fixed again once all chunks are there
        write_json(path / "zarr.json", described, indent=2)
        return cls(path, _open_array(path))

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, incomplete: bool = False) -> "Store":
        """Open a store for reading; raises StoreError where there is none, or while it is not complete."""
        path = Path(path)
        if not (path / "zarr.json").exists():
            raise StoreError(f"there is no store at {path}", todo="run the stage that writes it first")
        store = cls(path, _open_array(path))
        if not store.is_ours:
            raise StoreError(f"{path} is a Zarr array but not one of leanrecon's stores", todo="pass the array itself")
        if not (store.complete or incomplete):
            raise StoreError(
                f"{path} is not complete: {len(store.missing())} of {store.row_groups * store.column_groups} chunks "
                "are missing",
                todo="run the same command again to finish it",
            )
        return store

    @property
    def is_ours(self) -> bool:
        return bool(self._record)

    @property
    def made_of(self) -> dict[str, Any]:
        return dict(self._record.get("made_of", {}))

    @property
    def notes(self) -> dict[str, Any]:
        """What the run that created the store noted down for those that continue it."""
        return dict(self._record.get("notes", {}))

    @property
    def complete(self) -> bool:
        return bool(self._record.get("complete"))

    @property
    def content(self) -> str:
        """SHA-256 over the checksums of all chunks, fixed when the store was completed: what later stages are made of."""
        return str(self._record["content"])

    # Chunks

    def chunk_path(self, i: int, j: int = 0) -> Path:
        """The file of the chunk in row group ``i`` and column group ``j``."""
        return self.path.joinpath("c", str(i), str(j), *["0"] * (len(self.shape) - 2))

    def name_of(self, i: int, j: int = 0) -> str:
        return str(self.chunk_path(i, j).relative_to(self.path))

    def has(self, i: int, j: int = 0) -> bool:
        """Whether the chunk's file is there at its full size (a rename put it there, so it was written whole)."""
        try:
            return self.chunk_path(i, j).stat().st_size == self.chunk_nbytes + _CRC
        except OSError:
            return False

    def missing(self) -> list[tuple[int, int]]:
        """The chunks that are still to be written, row group by row group."""
        return [ij for ij in itertools.product(range(self.row_groups), range(self.column_groups)) if not self.has(*ij)]

    def missing_row_groups(self) -> list[int]:
        """The groups of rows that lack a chunk, in order."""
        return sorted({i for i, _ in self.missing()})

    def missing_column_groups(self) -> list[int]:
        """The blocks of columns that lack a chunk, in order."""
        return sorted({j for _, j in self.missing()})

    def group_rows(self, i: int) -> range:
        return range(i * self.chunk_rows, min((i + 1) * self.chunk_rows, self.rows))

    def group_columns(self, j: int) -> range:
        return range(j * self.chunk_columns, min((j + 1) * self.chunk_columns, self.columns))

    # Writing

    def write_rows(self, i: int, rows: Array) -> None:
        """Write row group ``i``: all its columns, [rows of the group, …]; chunks that are there are kept."""
        flat = rows.reshape(len(rows), -1)
        for j in range(self.column_groups):
            if not self.has(i, j):
                columns = self.group_columns(j)
                self.write_chunk(i, j, flat[:, columns.start : columns.stop])

    def write_columns(self, j: int, block: Array, *, first_row: int = 0) -> None:
        """Write whole row groups of column group ``j``, [rows, columns of the group]; chunks that are there are kept."""
        for i in range(first_row // self.chunk_rows, math.ceil((first_row + len(block)) / self.chunk_rows)):
            if not self.has(i, j):
                rows = self.group_rows(i)
                self.write_chunk(i, j, block[rows.start - first_row : rows.stop - first_row])

    def write_chunk(self, i: int, j: int, block: Array) -> None:
        """Write one chunk whole: to a file beside it, then renamed over it."""
        if block.shape != (len(self.group_rows(i)), len(self.group_columns(j))):
            raise ValueError(f"{self.name_of(i, j)} of {self.path} can't take a block of shape {block.shape}")
        if block.shape != (self.chunk_rows, self.chunk_columns):  # chunks at the edge are stored at full size
            padded = buffer((self.chunk_rows, self.chunk_columns), self.dtype)
            padded[:] = self.fill_value
            padded[: block.shape[0], : block.shape[1]] = block
            block = padded
        data = np.ascontiguousarray(block, self.dtype).reshape(-1).view(np.uint8)
        target = self.chunk_path(i, j)
        partial = target.with_name(f"{target.name}.{uuid.uuid4().hex}.partial")
        with explained_disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                write_file(partial, data, _checksum(data))
                partial.replace(target)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise

    def finish(self) -> None:
        """Mark the store complete, once every chunk is there, and fix its ``content``."""
        if self.complete:
            return
        if missing := self.missing():
            raise StoreError(
                f"{self.path} lacks {len(missing)} chunks, {self.name_of(*missing[0])} first",
                todo="run the same command again to write them",
            )
        content = self._content_now()
        if self._record.get("content", content) != content:
            warnings.warn(
                f"{self.path} was made again, but not to the same bytes: another kind of processor or another version "
                "of a library made the rest. What was made of it has to be made again too (--overwrite)",
                LeanreconWarning,
                stacklevel=2,
            )
        self._update(complete=True, content=content)

    def discard(self, damaged: Sequence[tuple[int, int]]) -> None:
        """Remove chunks and mark the store incomplete, so that the next run writes just these again."""
        if damaged:
            self._update(complete=False)
        with explained_disk_errors(self.path):
            for i, j in damaged:
                self.chunk_path(i, j).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove what a killed run left half-written."""
        with explained_disk_errors(self.path):
            for partial in self.path.rglob("*.partial"):
                partial.unlink(missing_ok=True)

    def _update(self, **entries: Any) -> None:
        self._record |= entries
        with explained_disk_errors(self.path):
            zarr.open_array(str(self.path), mode="r+").attrs[_ATTRIBUTE] = self._record

    def checksum(self, i: int, j: int = 0) -> bytes:
        """The checksum that was written behind a chunk."""
        with self.chunk_path(i, j).open("rb") as file:
            file.seek(self.chunk_nbytes)
            return file.read(_CRC)

    def _content_now(self) -> str:
        digest = hashlib.sha256(repr((self.shape, self.dtype.name, self.chunks)).encode())
        for i, j in itertools.product(range(self.row_groups), range(self.column_groups)):
            digest.update(self.checksum(i, j))
        return digest.hexdigest()

    # Reading

    def buffer_nbytes(self) -> int:
        """Bytes that ``read_chunk`` needs: the chunk, its checksum, and the rest of the last page."""
        return -(-(self.chunk_nbytes + _CRC) // PAGE) * PAGE

    def read_chunk(self, i: int, j: int, memory: Array, *, cached: bool = True) -> Array:
        """Read and check one whole chunk into ``memory`` (uint8, ``buffer_nbytes`` long); returns it as [rows, columns].

        The view has the chunk's full shape; beyond the store's edge it holds the fill value. Uncached reads
        bypass the page cache where the system can, which leaves the memory bus to the arithmetic.
        """
        path = self.chunk_path(i, j)
        try:
            n = read_file(path, memory[: self.buffer_nbytes()], cached=cached)
        except FileNotFoundError:
            raise self._damage(i, j, "is missing") from None
        if n != self.chunk_nbytes + _CRC:
            raise self._damage(i, j, f"has {n} bytes instead of {self.chunk_nbytes + _CRC}")
        data = memory[: self.chunk_nbytes]
        if bytes(memory[self.chunk_nbytes : n]) != _checksum(data):
            raise self._damage(i, j, "does not match its checksum")
        self.checked.add((i, j))
        return data.view(self.dtype).reshape(self.chunk_rows, self.chunk_columns)

    def read_columns(self, i: int, j: int, columns: range, out: Array) -> None:
        """Read some columns of the first ``len(out)`` rows of one chunk, unchecked; ``columns`` count from its left edge.

        One positioned read a row: a third less time than copying out of a mapped file, and nothing mapped.
        """
        itemsize = self.dtype.itemsize
        width, stride = len(columns) * itemsize, self.chunk_columns * itemsize
        offset = columns.start * itemsize
        try:
            descriptor = os.open(self.chunk_path(i, j), os.O_RDONLY)
        except FileNotFoundError:
            raise self._damage(i, j, "is missing") from None
        try:
            for row in out:
                if read_at(descriptor, [row], offset) != width:
                    raise self._damage(i, j, "is truncated")
                offset += stride
        finally:
            os.close(descriptor)

    def __getitem__(self, rows: slice) -> Array:
        """Rows ``start:stop`` as an array of the store's own shape, [rows, …]; only their chunks are read."""
        start, stop, step = rows.indices(self.rows)
        if step != 1:
            raise IndexError("rows are read in steps of one")
        out = np.empty((max(stop - start, 0), self.columns), self.dtype)
        memory = np.empty(self.buffer_nbytes(), np.uint8)
        for i in range(start // self.chunk_rows, math.ceil(stop / self.chunk_rows) if stop > start else 0):
            group = self.group_rows(i)
            a, b = max(start, group.start), min(stop, group.stop)
            for j in range(self.column_groups):
                columns = self.group_columns(j)
                chunk = self.read_chunk(i, j, memory)
                out[a - start : b - start, columns.start : columns.stop] = chunk[
                    a - group.start : b - group.start, : len(columns)
                ]
        return out.reshape(-1, *self.shape[1:])

    def damage(self, memory: Array | None = None) -> Iterator[tuple[tuple[int, int], str]]:
        """Decode every chunk and yield those that are missing, truncated or altered, with what is wrong."""
        memory = np.empty(self.buffer_nbytes(), np.uint8) if memory is None else memory
        for ij in itertools.product(range(self.row_groups), range(self.column_groups)):
            try:
                self.read_chunk(*ij, memory)
            except StoreError as error:
                yield ij, error.found

    def _damage(self, i: int, j: int, what: str) -> StoreError:
        return StoreError(
            f"chunk {self.name_of(i, j)} of {self.path} {what}",
            todo=f"run `leanrecon verify {self.path} --repair`, which makes only this chunk again",
        )


def remove(path: Path) -> None:
    """Remove a store, its metadata first: what a kill leaves of it can't be taken for a complete one.

    Raises StoreError, and removes nothing, where a folder holds something else.
    """
    names = sorted(found.name for found in path.iterdir()) if path.is_dir() else []
    if others := [name for name in names if name not in ("zarr.json", "c") and not name.endswith(".partial")]:
        raise StoreError(f"{path} is no store: it holds {others[0]}", todo="choose another path, or empty this folder")
    with explained_disk_errors(path):
        (path / "zarr.json").unlink(missing_ok=True)
        if path.exists():
            shutil.rmtree(path)


def _open_array(path: Path) -> "zarr.Array[Any]":
    try:
        array = zarr.open_array(str(path), mode="r")
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path / 'zarr.json'} can't be read: {error}", todo=f"remove {path} and run again") from error
    return array


def _checksum(data: Array) -> bytes:
    return int(google_crc32c.value(data)).to_bytes(_CRC, "little")
