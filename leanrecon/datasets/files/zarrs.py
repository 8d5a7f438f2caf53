"""Rows of a Zarr array of any program (format 2 or 3, any chunks, shards and codecs that zarr-python reads)."""

import contextlib
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from leanrecon.datasets.files.keys import choose_key
from leanrecon.datasets.files.rows import BLOCK, Block, Rows, explained_damage
from leanrecon.datasets.files.zarr_gaps import Gaps, refuse_absent
from leanrecon.errors import InputError
from leanrecon.memory import give_back
from leanrecon.places.inputs import InputFile, folder_files, listed
from leanrecon.places.location import as_location

Array = np.ndarray[Any, Any]

_METADATA = ("zarr.json", ".zarray")
"""The file that makes a folder an array, or a group: of format 3, and of format 2 for arrays."""

_KEPT = 32 * 10**6
"""Bytes of chunks that lie side by side up to which they are read together, and kept."""

_LARGE = 8 * 10**6
"""Bytes of a chunk from which what was freed is given back after each: the heaps of zarr's threads keep it otherwise."""

_REQUESTED = 10
"""Most chunks that are requested from a bucket at once, as by zarr itself; one at a time is read from a disk."""


class ZarrRows(Rows):
    """A Zarr array. Whole chunks are read, or whole shards; small ones several at a time."""

    def __init__(self, path: InputFile, key: str | None, array: Any, opened: contextlib.ExitStack) -> None:
        dtype = np.dtype(array.dtype) if array.dtype.kind in "biufSU" else np.dtype(object)
        super().__init__(path, key, array.shape, dtype, None if dtype.kind != "O" else str(array.dtype))
        self.array = array
        self.opened = opened
        self.grid = tuple(int(n) for n in (array.shards or array.chunks))
        self.chunk_nbytes = math.prod(self.grid) * int(array.dtype.itemsize)
        beside = [math.ceil(n / c) for n, c in zip(self.shape[1:], self.grid[1:], strict=True)]
        side_by_side = self.chunk_nbytes * math.prod(beside)
        self.kept = side_by_side <= _KEPT
        """Whether all chunks side by side are read together, and kept for the rows that are asked for next."""
        self.span = max(BLOCK // max(side_by_side, 1), 1) * self.grid[0]
        """Rows that are read together: several chunks where these are small."""
        self.together = self.grid[0]
        self.held = max(BLOCK, side_by_side) if self.kept else 0
        in_band = math.prod(beside) * -(-self.span // self.grid[0]) if self.kept else 1
        self.at_once = max(min(_REQUESTED, in_band, _KEPT // max(self.chunk_nbytes, 1)), 1) if self.away else 1
        """Chunks that are read at once: each takes several times its bytes."""
        picked = self.held if self.kept else self.chunk_nbytes
        self.scratch = picked + decoding_nbytes(self.chunk_nbytes, self.at_once) + BLOCK
        self.pieces = math.prod(math.ceil(n / c) for n, c in zip(self.shape, self.grid, strict=True))
        self._last: tuple[int, Array] | None = None
        self._gaps = Gaps(self.name, array) if array.shards and self.dtype.kind in "iuf" else None

    def asked(self, at_once: int) -> int:
        assert self.pieces is not None
        return self.pieces

    def blocks(self, index: Array) -> Iterator[Block]:
        if self.dtype.kind not in "biufSU":
            raise InputError(f"{self.name} holds {self.kind} of shape {self.shape}", expected="numbers")
        if not len(index):
            return
        cuts = np.flatnonzero(np.diff(index // self.span)) + 1
        for a, b in itertools.pairwise([0, *cuts.tolist(), len(index)]):
            if self.kept:
                first = int(index[a]) // self.span * self.span
                yield slice(a, b), (), self._band(first)[_picks(index[a:b] - first)]
                continue
            first, last = int(index[a]), int(index[b - 1]) + 1
            for corner in itertools.product(
                *(range(0, n, c) for n, c in zip(self.shape[1:], self.grid[1:], strict=True))
            ):
                rest = tuple(slice(at, at + step) for at, step in zip(corner, self.grid[1:], strict=True))
                yield slice(a, b), rest, self._read((slice(first, last), *rest))[_picks(index[a:b] - first)]

    def _band(self, first: int) -> Array:
        if self._last is None or self._last[0] != first:
            self._last = None
            self._last = first, self._read((slice(first, first + self.span),))
        return self._last[1]

    def _read(self, region: tuple[slice, ...]) -> Array:
        import zarr

        with explained_damage(self.name):
            with zarr.config.set({"async.concurrency": self.at_once}):
                found = np.asarray(self.array[region])
            if self._gaps is not None:
                self._gaps.refuse(region, found)
        if self.chunk_nbytes >= _LARGE:
            give_back()
        return found

    def release(self) -> None:
        self._last = None

    def close(self) -> None:
        self.release()
        self.opened.close()


def decoding_nbytes(chunk: int, at_once: int) -> int:
    """Bytes that zarr-python takes to read chunks, or shards, of ``chunk`` bytes: 7 to 8 times a small one measured.

    These are the packed and the unpacked bytes, copies of both, and what the heaps of threads keep of other chunks.
    Large chunks are given back, except for what threads may still hold. Each further chunk that is read ``at_once``
    takes 4 to 5 times its bytes.
    """
    small = min(chunk, _LARGE)
    still_held = 4 * min(chunk - small, _LARGE)
    return 9 * small + 4 * (chunk - small) + still_held + 5 * chunk * (at_once - 1)


def _picks(index: Array) -> Any:
    """Ascending rows, as a slice where none is left out between them."""
    first, last = int(index[0]), int(index[-1]) + 1
    return slice(first, last) if last - first == len(index) else index


def open_zarr(path: InputFile, key: str | None) -> ZarrRows:
    """Open an array, or one of a group; only its metadata is read, and whether its chunks are there.

    Raises InputError for damage, for chunks that are not there, and where a group has several arrays and no key is given.
    """
    import zarr

    with contextlib.ExitStack() as stack:
        stack.enter_context(listed(path))
        folder = path if key is None else path / key.strip("/")
        if not _is_array(folder):
            names = [name for name in names_in(path) if name is not None]
            key = choose_key(path, key, names, lambda name: _described(path / name))
            folder = path / key
        name = f"{path}:{key}" if key else str(path)
        with explained_damage(name):
            if isinstance(folder, Path):
                array = zarr.open_array(str(folder), mode="r")
            else:
                from leanrecon.datasets.files.zarr_store import LocationStore

                array = zarr.open_array(LocationStore(folder), mode="r")
            rows = _checked(name, path, key, array, folder, stack)
        stack.pop_all()
        return rows


def _checked(
    name: str, path: InputFile, key: str | None, array: Any, folder: InputFile, stack: contextlib.ExitStack
) -> ZarrRows:
    if not array.shape:
        raise InputError(f"{name} is a single number, without rows", expected="an array whose first axis is rows")
    rows = ZarrRows(path, key, array, contextlib.ExitStack())
    refuse_absent(name, array, rows.grid, set(folder_files(folder)))
    rows.opened = stack.pop_all()
    return rows


def _is_array(folder: InputFile) -> bool:
    """Whether a folder is an array: a group has a zarr.json too."""
    if (folder / ".zarray").is_file():
        return True
    return (folder / "zarr.json").is_file() and _metadata(folder / "zarr.json").get("node_type") == "array"


def _metadata(file: InputFile) -> dict[str, Any]:
    with explained_damage(str(file)):
        found = json.loads(as_location(file).read_bytes())
        if not isinstance(found, dict):
            raise ValueError(f"it holds a {type(found).__name__} in place of a table")
        return found


def _described(folder: InputFile) -> str:
    found = _metadata(next(folder / name for name in _METADATA if (folder / name).is_file()))
    return f"{'x'.join(map(str, found['shape']))} {found.get('data_type') or np.dtype(found['dtype'])}"


def names_in(path: InputFile) -> list[str | None]:
    """The keys of the arrays of a folder; [None] where it is one itself. Raises InputError for a folder without any."""
    with listed(path):
        if _is_array(path):
            return [None]
        parts = [name.rpartition("/") for name in folder_files(path)]
        folders = dict.fromkeys(folder for folder, _, name in parts if name in _METADATA and folder)
        found: list[str | None] = [folder for folder in folders if _is_array(path / folder)]
    if not found:
        raise InputError(
            f"there is no Zarr array in {path}", expected="a folder with zarr.json or .zarray", todo="check the path"
        )
    return found
