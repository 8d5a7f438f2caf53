"""Betas and features as matrices read block by block, wherever they lie: stores, Zarr, Dask, NumPy."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from leanrecon.errors import InputError
from leanrecon.memory import buffer, scratch
from leanrecon.stores.layout import BLOCK as BLOCK
from leanrecon.stores.layout import PANEL as PANEL
from leanrecon.stores.layout import subset_block
from leanrecon.stores.store import Store

Array = np.ndarray[Any, Any]
Item = TypeVar("Item")


NUMBERS = "biuf"
"""What NumPy calls the kinds of real numbers, with which truth values count here."""


class Matrix(Protocol):
    """A matrix of [rows, columns] that hands out blocks into memory the caller owns.

    ``block`` is the number of columns that are best read together; tiles are ``PANEL`` rows by ``block``
    columns. A tile may be wider than the matrix at its right edge, where its columns mean nothing.
    """

    shape: tuple[int, int]
    dtype: np.dtype[Any]
    block: int

    @property
    def tile_nbytes(self) -> int:
        """Bytes that ``read_tile`` needs."""

    @property
    def scratch_nbytes(self) -> int:
        """Bytes that reading takes at most for itself, for a while."""

    def read_tile(self, rows: range, j: int, memory: Array) -> Array:
        """Rows (one panel of them) of column block ``j``, as [len(rows), block] in ``memory``, in the matrix's own dtype."""

    def read(self, rows: range, columns: range, out: Array) -> None:
        """Any block, into ``out`` [len(rows), len(columns)], cast to its dtype."""

    def read_rows(self, index: Array, columns: range, out: Array) -> None:
        """Any rows, ascending, into ``out`` [len(index), len(columns)], cast to its dtype.

        It takes at most the bytes of a tile beyond ``scratch_nbytes``, where ``columns`` are those of a block.
        """


class BlockMatrix:
    """A matrix that reads its tiles, and rows that lie apart, as blocks of neighbouring rows."""

    shape: tuple[int, int]
    dtype: np.dtype[Any]
    block: int

    @property
    def tile_nbytes(self) -> int:
        return PANEL * self.block * int(self.dtype.itemsize)

    @property
    def scratch_nbytes(self) -> int:
        return 0

    def read(self, rows: range, columns: range, out: Array) -> None:
        raise NotImplementedError

    def read_tile(self, rows: range, j: int, memory: Array) -> Array:
        columns = range(j * self.block, min((j + 1) * self.block, self.shape[1]))
        nbytes = len(rows) * len(columns) * self.dtype.itemsize
        tile = memory[:nbytes].view(self.dtype).reshape(len(rows), len(columns))
        self.read(rows, columns, tile)
        return tile

    def read_rows(self, index: Array, columns: range, out: Array) -> None:
        panel_of = index // PANEL
        for panel in np.unique(panel_of):
            wanted = np.nonzero(panel_of == panel)[0]
            start = int(index[wanted[0]])
            span = range(start, int(index[wanted[-1]]) + 1)
            block = scratch((len(span), len(columns)), self.dtype)
            self.read(span, columns, block)
            out[wanted[0] : wanted[-1] + 1] = block[index[wanted] - start]


class StoreMatrix(BlockMatrix):
    """The rows of a store; tiles are its chunks, read whole and checked."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.shape = (store.rows, store.columns)
        self.dtype = store.dtype
        self.block = store.chunk_columns

    @property
    def tile_nbytes(self) -> int:
        chunks = max(PANEL // self.store.chunk_rows, 1)
        return (chunks - 1) * self.store.chunk_nbytes + self.store.buffer_nbytes()

    @property
    def scratch_nbytes(self) -> int:
        return self.store.buffer_nbytes()

    def read_tile(self, rows: range, j: int, memory: Array) -> Array:
        store = self.store
        offset = 0
        for i in range(rows.start // store.chunk_rows, -(-rows.stop // store.chunk_rows)):
            # A chunk's checksum lands where the next chunk then goes. Only a lone chunk is page-aligned.
            store.read_chunk(i, j, memory[offset:], cached=store.chunk_rows != PANEL)
            offset += store.chunk_nbytes
        return memory[:offset].view(self.dtype).reshape(-1, self.block)[: len(rows)]

    def read(self, rows: range, columns: range, out: Array) -> None:
        store = self.store
        for i in range(rows.start // store.chunk_rows, -(-rows.stop // store.chunk_rows)):
            group = store.group_rows(i)
            a, b = max(rows.start, group.start), min(rows.stop, group.stop)
            for j in range(columns.start // self.block, -(-columns.stop // self.block)):
                wanted = store.group_columns(j)
                c, d = max(columns.start, wanted.start), min(columns.stop, wanted.stop)
                target = out[a - rows.start : b - rows.start, c - columns.start : d - columns.start]
                narrow = a == group.start and 4 * (d - c) < self.block
                if narrow and (i, j) in store.checked:  # the first read of a chunk is of all of it
                    rows_in_place = out.dtype == self.dtype and target.strides[1] == self.dtype.itemsize
                    some = target if rows_in_place else scratch(target.shape, self.dtype)
                    store.read_columns(i, j, range(c - wanted.start, d - wanted.start), some)
                    if not rows_in_place:
                        target[...] = some
                else:
                    chunk = store.read_chunk(i, j, scratch((store.buffer_nbytes(),), np.uint8))
                    target[...] = chunk[a - group.start : b - group.start, c - wanted.start : d - wanted.start]


class ArrayMatrix(BlockMatrix):
    """Anything two-dimensional that is sliced as ``array[a:b, c:d]``: NumPy, Zarr, Dask, h5py."""

    def __init__(self, array: Any) -> None:
        self.array = array
        self.in_memory = isinstance(array, np.ndarray)
        """Whether slices are views and any rows can be taken, so that reading needs no memory of its own."""
        self.shape = (int(array.shape[0]), int(array.shape[1]))
        self.dtype = np.dtype(array.dtype)
        chunks = getattr(array, "chunks", None)
        width = chunks[1] if chunks else BLOCK
        self.block = max(min(width if isinstance(width, int) else max(width), BLOCK, self.shape[1]), 1)

    @property
    def scratch_nbytes(self) -> int:
        return 0 if self.in_memory else self.tile_nbytes

    def read(self, rows: range, columns: range, out: Array) -> None:
        np.copyto(out, np.asarray(self.array[rows.start : rows.stop, columns.start : columns.stop]), casting="unsafe")

    def read_rows(self, index: Array, columns: range, out: Array) -> None:
        if not self.in_memory:
            super().read_rows(index, columns, out)
            return
        for part in panels(len(index)):
            some = index[part.start : part.stop]
            out[part.start : part.stop] = self.array[some, columns.start : columns.stop]


class RowSubset(BlockMatrix):
    """Some rows of a matrix, in ascending order: the train or test rows of a fold."""

    def __init__(self, base: Matrix, index: Sequence[int] | Array) -> None:
        self.base = base
        self.index = np.asarray(index, dtype=np.int64)
        if np.any(np.diff(self.index) <= 0):
            raise ValueError("rows of a subset must ascend")
        self.shape = (len(self.index), base.shape[1])
        self.dtype = base.dtype
        self.block = base.block

    @property
    def scratch_nbytes(self) -> int:
        return self.base.scratch_nbytes + self.tile_nbytes

    def read(self, rows: range, columns: range, out: Array) -> None:
        self.base.read_rows(self.index[rows.start : rows.stop], columns, out)

    def read_rows(self, index: Array, columns: range, out: Array) -> None:
        self.base.read_rows(self.index[index], columns, out)


class ColumnSubset(BlockMatrix):
    """Some columns of a matrix, in ascending order: the voxels of an area.

    Reading takes from the base only the blocks of columns that hold them.
    """

    def __init__(self, base: Matrix, columns: Sequence[int] | Array) -> None:
        self.base = base
        self.index = np.asarray(columns, dtype=np.int64)
        if np.any(np.diff(self.index) <= 0):
            raise ValueError("columns of a subset must ascend")
        self.shape = (base.shape[0], len(self.index))
        self.dtype = base.dtype
        self.block = subset_block(base.block, len(self.index))

    @property
    def scratch_nbytes(self) -> int:
        return self.base.scratch_nbytes + PANEL * self.base.block * self.dtype.itemsize

    def read(self, rows: range, columns: range, out: Array) -> None:
        index = self.index[columns.start : columns.stop]
        starts = np.unique(index // self.base.block, return_index=True)[1]
        stops = np.append(starts[1:], len(index))
        for part in panels(len(rows)):
            some = range(rows.start + part.start, rows.start + part.stop)
            for start, stop in zip(starts, stops, strict=True):
                picked = index[start:stop]
                span = range(int(picked[0]), int(picked[-1]) + 1)
                target = out[part.start : part.stop, start:stop]
                if len(span) == len(picked):
                    self.base.read(some, span, target)
                    continue
                block = scratch((len(some), len(span)), self.dtype)
                self.base.read(some, span, block)
                target[...] = block[:, picked - span.start]


class Reblocked(BlockMatrix):
    """A matrix in blocks of another number of columns."""

    def __init__(self, base: Matrix, block: int) -> None:
        self.base = base
        self.shape = base.shape
        self.dtype = base.dtype
        self.block = block

    @property
    def scratch_nbytes(self) -> int:
        return self.base.scratch_nbytes

    def read(self, rows: range, columns: range, out: Array) -> None:
        self.base.read(rows, columns, out)

    def read_rows(self, index: Array, columns: range, out: Array) -> None:
        self.base.read_rows(index, columns, out)


def as_matrix(source: Any) -> Matrix:
    """View a store, a path to one, or a NumPy, Zarr or Dask array as a Matrix; no data is read."""
    if isinstance(source, StoreMatrix | ArrayMatrix | RowSubset | ColumnSubset | Reblocked):
        return source
    if isinstance(source, str | os.PathLike):
        source = Store.open(source)
    if isinstance(source, Store):
        return StoreMatrix(source)
    if (path := _store_path(source)) is not None:
        return StoreMatrix(Store.open(path))
    if len(getattr(source, "shape", ())) != 2:
        found = getattr(source, "shape", type(source).__name__)
        raise InputError(f"{found} is not a matrix", expected="an array of two dimensions, [rows, columns]")
    dtype = getattr(source, "dtype", None)
    if getattr(dtype, "kind", "") not in NUMBERS or hasattr(source, "tocsr"):
        found = "a sparse matrix" if hasattr(source, "tocsr") else f"an array of {dtype}"
        todo = "use its method toarray()" if hasattr(source, "tocsr") else None
        raise InputError(found, expected="an array of real numbers, dense", todo=todo)
    if any(n != n for n in source.shape):  # NaN: how Dask says that it does not know
        raise InputError(
            f"the array has shape {tuple(source.shape)}: Dask does not know how many rows a filter left",
            expected="an array of known shape",
            todo="call array.compute_chunk_sizes() first",
        )
    return ArrayMatrix(source)


def same_matrix(a: Matrix, b: Matrix) -> bool:
    """Whether two matrices read the same rows and columns of the same place."""
    if isinstance(a, StoreMatrix) and isinstance(b, StoreMatrix):
        return a.store.path == b.store.path
    if isinstance(a, ArrayMatrix) and isinstance(b, ArrayMatrix):
        return a.array is b.array
    if type(a) is type(b) and isinstance(a, RowSubset | ColumnSubset) and isinstance(b, RowSubset | ColumnSubset):
        return same_matrix(a.base, b.base) and np.array_equal(a.index, b.index)
    return a is b


def _store_path(source: Any) -> Path | None:
    """The folder behind a Zarr array that is one of our stores."""
    root = getattr(getattr(source, "store", None), "root", None)
    attributes = getattr(source, "attrs", {})
    return root if isinstance(root, Path) and not source.path and "leanrecon" in attributes else None


def column_blocks(matrix: Matrix) -> list[range]:
    """The column blocks of a matrix, the last one cut at its right edge."""
    return panels(matrix.shape[1], matrix.block)


def panels(rows: int, size: int = PANEL) -> list[range]:
    """Cut ``range(rows)`` into panels of a fixed size, the last one shorter."""
    return [range(start, min(start + size, rows)) for start in range(0, rows, size)]


def read_ahead(
    items: Iterable[Item], read: Callable[[Item, Array], Array], memories: Sequence[Array]
) -> Iterator[tuple[Item, Array]]:
    """Yield ``(item, read(item, memory))`` in order, the next items being read by a thread meanwhile.

    ``memories`` are used in turn: what is yielded is valid until the next one is asked for.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as reader:
        pending: list[tuple[Item, Future[Array]]] = []
        for k, item in enumerate(items):
            pending.append((item, reader.submit(read, item, memories[k % len(memories)])))
            if len(pending) == len(memories):
                done, future = pending.pop(0)
                yield done, future.result()
        for done, future in pending:
            yield done, future.result()


def tile_memories(*matrices: Matrix, count: int = 2) -> list[Array]:
    """Memory for the tiles of any of some matrices, to read ahead into."""
    return [buffer((max(m.tile_nbytes for m in matrices),), np.uint8) for _ in range(count)]
