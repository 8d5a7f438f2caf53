"""One row store: a top-level Zarr v3 array whose chunks are written whole, checked by crc32c, and resumable.

Encoding: little-endian bytes and a crc32c, no compression (float32 latents compress by 7 % and then read
2-3 times slower), so a chunk file is its rows followed by four bytes. Any Zarr reader opens it.
"""

import hashlib
import itertools
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import google_crc32c
import numpy as np

from leanrecon.errors import LeanreconWarning, StoreError
from leanrecon.memory import buffer, parse_bytes, scratch
from leanrecon.places import Location, LocationLike, as_location
from leanrecon.stores import metadata
from leanrecon.stores.chunks import CRC, Chunks
from leanrecon.stores.fingerprint import differences, fingerprint
from leanrecon.stores.layout import DEFAULT_CHUNK, chunks_of_many_rows, plan_chunks
from leanrecon.stores.metadata import Metadata

__all__ = ["Store", "remove"]

Array = np.ndarray[Any, Any]

FORMAT = 1
_PIECE = 2**20  # bytes of a chunk that are checked at once


class Store(Chunks):
    """A row store, being written or complete.

    ``Store.create`` opens one for writing and continues where an earlier run stopped; ``Store.open`` opens a
    complete one. ``shape``, ``dtype`` and ``chunks`` are those of the Zarr array. All reading and writing
    treats a row as flat: an image store of [rows, height, width, channels] has height·width·channels columns.
    """

    def __init__(self, path: Location, described: Metadata) -> None:
        super().__init__(path, described)
        self.checked: set[tuple[int, int]] = set()
        """Chunks that matched their checksum since the store was opened."""

    # Opening

    @classmethod
    def create(
        cls,
        path: LocationLike,
        shape: Sequence[int],
        dtype: Any,
        *,
        made_of: Mapping[str, Any],
        chunk: str | int = DEFAULT_CHUNK,
        overwrite: bool = False,
        notes: Mapping[str, Any] | None = None,
    ) -> "Store":
        """Open a store for writing: a new one, or an earlier one made of the same things, to be continued.

        ``made_of`` holds all that decides the contents: settings, seeds, and the ``content`` of the input stores.
        ``notes`` are kept with a new store for later runs (such as its batch size) and decide nothing.
        A store made of something else raises StoreError with the settings that differ; with ``overwrite`` it is
        replaced. Files left half-written by a killed run are removed.
        """
        path = as_location(path)
        dtype = np.dtype(dtype)
        chunks = plan_chunks(shape, dtype, parse_bytes(chunk))
        layout = {"shape": list(shape), "dtype": dtype.name, "stores.chunk": list(chunks)}
        now = {"format": FORMAT, **layout, **made_of}
        if (there := metadata.read(path)) is not None:
            if there.chunks == chunks_of_many_rows(shape, dtype, parse_bytes(chunk)):
                now["stores.chunk"] = list(there.chunks)  # begun when few rows were padded to a whole chunk
            changed = list(differences(there.record.get("made_of", {}), now))
            unproven = there.record.get(metadata.UNPROVEN, False)
            if not changed:
                path.sweep(deep=True)
                if unproven:
                    there = metadata.new(shape, dtype, chunks, _begun(now, notes))
                store = cls(path, there)
                store._discard_damage()
                if unproven:
                    store._update()
                return store
            if not overwrite and not unproven and (path / "c").is_dir():  # an empty store is replaced without asking
                raise StoreError(
                    f"{path} was made with other settings: {'; '.join(changed)}",
                    todo="go back to those settings, choose another --study, or replace what was made with --overwrite",
                )
        remove(path)
        now["stores.chunk"] = list(chunks)
        store = cls(path, metadata.new(shape, dtype, chunks, _begun(now, notes)))
        store._update()
        return store

    @classmethod
    def begin_copy(cls, source: "Store", path: LocationLike) -> "Store":
        """Open a store for writing that is to become a copy of another one, or continue an earlier copy.

        A store made of something else is removed first.
        """
        path = as_location(path)
        there = metadata.read(path)
        if there is not None and there.record.get("made_of") == source.made_of:
            path.sweep(deep=True)
        else:
            remove(path)
        # ``content`` is set again once all chunks are there.
        record = {key: value for key, value in source._record.items() if key != "content"}
        store = cls(path, replace(source._metadata, record=record))
        store._discard_damage()
        store._update(complete=False)
        return store

    @classmethod
    def open(cls, path: LocationLike, *, incomplete: bool = False) -> "Store":
        """Open a store for reading; raises StoreError where there is none, or while it is not complete."""
        path = as_location(path)
        metadata.load_library()
        there = metadata.read(path)
        if there is None:
            raise StoreError(f"there is no store at {path}", todo=path.todo())
        if not there.record:
            raise StoreError(f"{path} is a Zarr array but not one of leanrecon's stores", todo="pass the array itself")
        store = cls(path, there)
        if not (store.complete or incomplete):
            raise StoreError(
                f"{path} is not complete: {len(store.missing())} of {store.row_groups * store.column_groups} chunks "
                "are missing",
                todo="run the same command again to finish it",
            )
        return store

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
        """Write one chunk, whole or not at all."""
        if block.shape != (len(self.group_rows(i)), len(self.group_columns(j))):
            raise ValueError(f"{self.name_of(i, j)} of {self.path} can't take a block of shape {block.shape}")
        if block.shape != (self.chunk_rows, self.chunk_columns):  # chunks at the edge are stored at full size
            padded = buffer((self.chunk_rows, self.chunk_columns), self.dtype)
            padded[:] = self.fill_value
            padded[: block.shape[0], : block.shape[1]] = block
            block = padded
        data = np.ascontiguousarray(block, self.dtype).reshape(-1).view(np.uint8)
        self.chunk_path(i, j).write_bytes(data, _checksum(data))

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

    def note(self, **notes: Any) -> None:
        """Note something down for later runs, as ``create`` does with a new store."""
        self._update(notes=self.notes | notes)

    def discard(self, damaged: Sequence[tuple[int, int]]) -> None:
        """Remove chunks and mark the store incomplete, so that the next run writes just these again."""
        if damaged:
            self._update(complete=False)
        for i, j in damaged:
            self.chunk_path(i, j).unlink(missing_ok=True)

    def _update(self, **entries: Any) -> None:
        self._record.update(entries)
        metadata.write(self.path, self._metadata)

    def _content_now(self) -> str:
        digest = hashlib.sha256(repr((self.shape, self.dtype.name, self.chunks)).encode())
        for i, j in itertools.product(range(self.row_groups), range(self.column_groups)):
            digest.update(self.checksum(i, j))
        return digest.hexdigest()

    # Reading

    def read_chunk(self, i: int, j: int, memory: Array, *, cached: bool = True) -> Array:
        """Read and check one whole chunk into ``memory`` (uint8, ``buffer_nbytes`` long); returns it as [rows, columns].

        The view has the chunk's full shape; beyond the store's edge it holds the fill value. Uncached reads
        bypass the page cache where the system can, which leaves the memory bus to the arithmetic.
        """
        target = memory[: self.buffer_nbytes()]
        try:
            n = self.path.place.read_into(self.chunk_path(i, j).key, target, cached=cached)
        except FileNotFoundError:
            raise self._damage(i, j, "is missing") from None
        if n != self.chunk_nbytes + CRC:
            raise self._damage(i, j, f"has {n} bytes instead of {self.chunk_nbytes + CRC}")
        data = memory[: self.chunk_nbytes]
        if bytes(memory[self.chunk_nbytes : n]) != _checksum(data):
            raise self._damage(i, j, "does not match its checksum")
        self.checked.add((i, j))
        return data.view(self.dtype).reshape(self.chunk_rows, self.chunk_columns)

    def read_columns(self, i: int, j: int, columns: range, out: Array) -> None:
        """Read some columns of the first ``len(out)`` rows of one chunk, unchecked.

        ``columns`` count from the chunk's left edge.
        """
        itemsize = self.dtype.itemsize
        offset, stride = columns.start * itemsize, self.chunk_columns * itemsize
        try:
            done = self.path.place.read_rows(self.chunk_path(i, j).key, out, offset, stride)
        except FileNotFoundError:
            raise self._damage(i, j, "is missing") from None
        if done < len(out):
            raise self._damage(i, j, "is truncated")

    def __getitem__(self, rows: slice) -> Array:
        """Rows ``start:stop`` as an array of the store's own shape, [rows, …]; only their chunks are read."""
        start, stop, step = rows.indices(self.rows)
        if step != 1:
            raise IndexError("rows are read in steps of one")
        out = np.empty((max(stop - start, 0), self.columns), self.dtype)
        memory = scratch((self.buffer_nbytes(),), np.uint8)
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

    def damage(self) -> Iterator[tuple[tuple[int, int], str]]:
        """Check every chunk and yield those that are missing, truncated or altered, with what is wrong.

        Of a store that is not complete the chunks that are there are checked. Chunks are read in pieces.
        """
        memory = scratch((min(_PIECE, self.buffer_nbytes()),), np.uint8)
        for ij in itertools.product(range(self.row_groups), range(self.column_groups)):
            if (self.complete or self.has(*ij)) and (problem := self._problem(*ij, memory)):
                yield ij, self._damage(*ij, problem).found

    def _problem(self, i: int, j: int, memory: Array) -> str:
        """What is wrong with a chunk; empty where it is sound."""
        place, path = self.path.place, self.chunk_path(i, j)
        if (size := path.size()) is None:
            return "is missing"
        if size != self.chunk_nbytes + CRC:
            return f"has {size} bytes instead of {self.chunk_nbytes + CRC}"
        value = 0
        for start in range(0, self.chunk_nbytes, len(memory)):
            piece = memory[: min(len(memory), self.chunk_nbytes - start)]
            n = place.read_into(path.key, piece, start)
            value = google_crc32c.extend(value, piece[:n].tobytes())
        return "" if value.to_bytes(CRC, "little") == self.checksum(i, j) else "does not match its checksum"

    def _discard_damage(self) -> None:
        """Remove what a power cut left damaged of an unfinished store, so that it is made again."""
        damaged = [] if self.complete else list(self.damage())
        for ij, what in damaged:
            warnings.warn(f"{what}: it is made again", LeanreconWarning, stacklevel=3)
            self.chunk_path(*ij).unlink(missing_ok=True)

    def _damage(self, i: int, j: int, what: str) -> StoreError:
        return StoreError(
            f"chunk {self.name_of(i, j)} of {self.path} {what}",
            todo=f"run `leanrecon verify {self.path} --repair`, which makes only this chunk again",
        )


def _begun(made_of: dict[str, Any], notes: Mapping[str, Any] | None) -> dict[str, Any]:
    """The record of a store that has no chunks yet."""
    return {"made_of": made_of, "fingerprint": fingerprint(made_of), "notes": dict(notes or {}), "complete": False}


def remove(path: LocationLike) -> None:
    """Remove a store, its metadata first: what a kill leaves of it can't be taken for a complete one.

    Raises StoreError, and removes nothing, where a folder holds something else.
    """
    path = as_location(path)
    if path.is_link():
        path.delete_tree()
        return
    if others := [name for name in path.place.children(path.key) if name not in (metadata.NAME, "c/")]:
        raise StoreError(
            f"{path} is not a store: it holds {others[0].rstrip('/')}", todo="choose another path, or empty this folder"
        )
    (path / metadata.NAME).unlink(missing_ok=True)
    path.delete_tree()


def _checksum(data: Array) -> bytes:
    return int(google_crc32c.value(data)).to_bytes(CRC, "little")
