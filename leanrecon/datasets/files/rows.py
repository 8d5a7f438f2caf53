"""Rows of an array that lies in a file: .npy by plain reads, .npz through zipfile, .mat 5 through SciPy, HDF5 through h5py.

Nothing is mapped and nothing is held whole, but a MATLAB 5 variable: SciPy has no way to read a part of one.
"""

import contextlib
import itertools
import math
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from leanrecon.errors import InputError

Array = np.ndarray[Any, Any]
Convert = Callable[[Array], Array]
Block = tuple[slice, tuple[slice | int, ...], Array]

BLOCK = 4 * 2**20
"""Bytes of a file that are looked at together."""

_NEAR_COLUMNS = 16 * 1024  # bytes between two columns below which reading through the gap beats a read for each
_MATLAB_CLASSES = {"double": "f8", "single": "f4", "logical": "?"} | {
    f"{sign}int{bits}": f"{sign or 'i'}{bits // 8}" for sign in ("", "u") for bits in (8, 16, 32, 64)
}


class Rows:
    """An array in a file whose first axis is rows; only its header is read until rows are asked for.

    ``together`` is the number of neighbouring rows that are best read at once (all of them, where the file
    goes column by column); ``held`` is how many bytes stay in memory while rows are read, ``scratch``
    how many are taken for a moment.
    """

    together = 1
    held = 0
    scratch = 4 * BLOCK
    sequential = False
    """Whether the file can only be read from its start: rows out of order cost a pass each."""

    def __init__(self, path: Path, key: str | None, shape: Sequence[int], dtype: Any, kind: str | None = None) -> None:
        self.path = path
        self.key = key
        self.name = f"{path}:{key}" if key else str(path)
        self.shape = tuple(int(n) for n in shape)
        self.dtype = np.dtype(dtype)
        self.kind = kind or str(self.dtype)

    @property
    def row_nbytes(self) -> int:
        return math.prod(self.shape[1:]) * int(self.dtype.itemsize)

    def __len__(self) -> int:
        return int(self.shape[0]) if self.shape else 0

    def blocks(self, index: Array) -> Iterator[Block]:
        """Yield ``(rows, rest, block)`` such that ``array[index][rows, *rest] == block``; ``index`` ascends."""
        raise NotImplementedError

    def read(self, index: Array, out: Array, convert: Convert | None = None) -> None:
        """Fill ``out`` [len(index), …] with the rows ``index``, each block passing through ``convert`` if there is one."""
        for rows, rest, block in self.blocks(index):
            with np.errstate(over="ignore"):  # what doesn't fit float32 becomes infinite, which is looked for later
                np.copyto(out[(rows, *rest)], convert(block) if convert else block, casting="unsafe")

    def __getitem__(self, rows: slice) -> Array:
        start, stop, step = rows.indices(len(self))
        if step != 1:
            raise IndexError("rows are read in steps of one")
        out = np.empty((max(stop - start, 0), *self.shape[1:]), self.dtype)
        self.read(np.arange(start, stop), out)
        return out

    def locate(self, row: int) -> str:
        """Name one row in words, for messages."""
        return f"row {row} of {self.name}"

    def release(self) -> None:
        """Let go of what is held; it is read again if needed."""

    def close(self) -> None:
        self.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Pooled(Rows):
    """The rows of several arrays, one after the other."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        first = parts[0]
        dtype = np.result_type(*(part.dtype for part in parts))
        super().__init__(first.path, None, (sum(map(len, parts)), *first.shape[1:]), dtype)
        self.parts = list(parts)
        self.starts = list(itertools.accumulate((len(part) for part in parts), initial=0))
        self.name = " and ".join(part.name for part in parts)
        self.together = max(part.together for part in parts)
        self.held = sum(part.held for part in parts)
        self.sequential = any(part.sequential for part in parts)
        self.scratch = max(part.scratch for part in parts)

    def blocks(self, index: Array) -> Iterator[Block]:
        for part, start in zip(self.parts, self.starts, strict=False):
            a, b = np.searchsorted(index, [start, start + len(part)])
            if a < b:
                for rows, rest, block in part.blocks(index[a:b] - start):
                    yield slice(rows.start + int(a), rows.stop + int(a)), rest, block

    def locate(self, row: int) -> str:
        k = max(k for k, start in enumerate(self.starts[:-1]) if start <= row)
        return self.parts[k].locate(row - self.starts[k])

    def release(self) -> None:
        for part in self.parts:
            part.release()


def row_blocks(index: Array, most: int) -> Iterator[tuple[slice, int, int, Any]]:
    """Cut ascending rows into spans of at most ``most`` rows: which of ``index``, span start, span stop, picks in the span."""
    start = 0
    while start < len(index):
        stop = int(np.searchsorted(index, index[start] + max(most, 1)))
        first, last = int(index[start]), int(index[stop - 1]) + 1
        picks = slice(None) if last - first == stop - start else index[start:stop] - first
        yield slice(start, stop), first, last, picks
        start = stop


class _Bytes(Protocol):
    """The bytes of an .npy file, wherever they are."""

    def read_at(self, offset: int, memory: Array) -> None: ...

    def close(self) -> None: ...


class FileBytes:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path.open("rb", buffering=0)

    def read_at(self, offset: int, memory: Array) -> None:
        view = memory.data
        try:
            self.file.seek(offset)
            while view:
                n = self.file.readinto(view)
                if not n:
                    raise unreadable(str(self.path), "it ends too early")
                view = view[n:]
        except OSError as error:
            raise unreadable(str(self.path), error) from error

    def close(self) -> None:
        self.file.close()


class MemberBytes:
    """A member of an .npz file: compressed, so read forwards, and from the start again to go back."""

    def __init__(self, path: Path, key: str) -> None:
        self.name = f"{path}:{key}"
        self.archive = zipfile.ZipFile(path)
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


class NpyRows(Rows):
    """An .npy file or a member of an .npz file, in C or in Fortran order."""

    def __init__(self, path: Path, key: str | None, source: _Bytes, header: "NpyHeader") -> None:
        super().__init__(path, key, header.shape, header.dtype)
        self.source = source
        self.offset = header.offset
        self.fortran = header.fortran and len(self.shape) > 1
        if self.fortran:
            self.together = len(self)
            self.scratch = 3 * max(BLOCK, len(self) * self.dtype.itemsize) + BLOCK
        else:
            self.scratch = 3 * max(BLOCK, self.row_nbytes) + BLOCK

    def blocks(self, index: Array) -> Iterator[Block]:
        return self._column_blocks(index) if self.fortran else self._row_blocks(index)

    def _row_blocks(self, index: Array) -> Iterator[Block]:
        memory = np.empty(max(BLOCK, self.row_nbytes), np.uint8)
        for rows, first, last, picks in row_blocks(index, BLOCK // max(self.row_nbytes, 1)):
            raw = memory[: (last - first) * self.row_nbytes]
            self.source.read_at(self.offset + first * self.row_nbytes, raw)
            yield rows, (), raw.view(self.dtype).reshape(-1, *self.shape[1:])[picks]

    def _column_blocks(self, index: Array) -> Iterator[Block]:
        """A Fortran file is columns of all rows: whole columns are read, or where few rows are wanted just their span."""
        if not len(index):
            return
        column = len(self) * self.dtype.itemsize
        first, last = int(index[0]), int(index[-1]) + 1
        whole = column <= _NEAR_COLUMNS or 2 * (last - first) >= len(self)
        span = range(len(self)) if whole else range(first, last)
        picks = slice(first, last) if last - first == len(index) else index
        picks = picks if whole else (slice(None) if isinstance(picks, slice) else index - first)
        width = len(span) * self.dtype.itemsize
        at_once = max(BLOCK // width, 1)
        memory = np.empty(min(at_once, self.shape[1]) * width, np.uint8)
        rest = self.shape[2:]
        for outer, reverse in enumerate(itertools.product(*map(range, reversed(rest)))):
            for start in range(0, self.shape[1], at_once):
                stop = min(start + at_once, self.shape[1])
                raw = memory[: (stop - start) * width]
                offset = self.offset + (outer * self.shape[1] + start) * column
                if whole:
                    self.source.read_at(offset, raw)
                else:
                    for k in range(stop - start):
                        at = offset + k * column + first * self.dtype.itemsize
                        self.source.read_at(at, raw[k * width : (k + 1) * width])
                block = raw.view(self.dtype).reshape(stop - start, len(span))[:, picks].T
                yield slice(0, len(index)), (slice(start, stop), *reversed(reverse)), block

    def close(self) -> None:
        self.source.close()


class Mat5Rows(Rows):
    """A variable of a MATLAB 5 file: held whole from the first rows read until released."""

    def __init__(self, path: Path, key: str, shape: Sequence[int], kind: str) -> None:
        super().__init__(path, key, shape, _MATLAB_CLASSES.get(kind, object), f"MATLAB {kind}")
        self.held = len(self) * self.row_nbytes
        self.scratch = 3 * max(BLOCK, self.row_nbytes) + BLOCK
        self._loaded: Array | None = None

    def blocks(self, index: Array) -> Iterator[Block]:
        if self._loaded is None:
            self._loaded = self._load()
        for rows, first, last, picks in row_blocks(index, BLOCK // max(self.row_nbytes, 1)):
            # MATLAB stores doubles that are small whole numbers in fewer bytes; they are doubles all the same.
            yield rows, (), self._loaded[first:last][picks].astype(self.dtype)

    def _load(self) -> Array:
        from scipy.io import loadmat

        with explained_damage(self.name):
            loaded = loadmat(self.path, variable_names=[self.key])[self.key]
        if not isinstance(loaded, np.ndarray) or loaded.shape != self.shape or loaded.dtype.kind not in "biuf":
            found = f"{loaded.dtype} numbers" if isinstance(loaded, np.ndarray) else type(loaded).__name__
            raise InputError(f"{self.name} holds {found}", expected=f"real numbers of shape {self.shape}")
        return loaded

    def release(self) -> None:
        self._loaded = None


class H5Rows(Rows):
    """A dataset of an HDF5 file; one that MATLAB 7.3 wrote is presented in MATLAB's own order of dimensions."""

    def __init__(self, path: Path, key: str, file: Any) -> None:
        dataset = file[key]
        matlab = dataset.attrs.get("MATLAB_class")
        self.transposed = matlab is not None or path.suffix.lower() == ".mat"
        shape = (dataset.shape or ())[:: -1 if self.transposed else 1]
        dtype = dataset.dtype
        kind = "complex" if dtype.kind in "cV" else None
        if matlab is not None:
            name = matlab.decode() if isinstance(matlab, bytes) else str(matlab)
            kind = kind or f"MATLAB {name}"
            if name in ("char", "cell"):
                dtype = np.dtype(object)
            elif name == "logical":
                dtype = np.dtype(bool)  # stored as uint8
            if dataset.attrs.get("MATLAB_empty"):
                shape = (0,) * len(shape)
        super().__init__(path, key, shape, dtype, kind)
        self.file = file
        self.dataset = dataset
        self.chunks = dataset.chunks[:: -1 if self.transposed else 1] if dataset.chunks else None
        if len(self.shape) > 1 and (self.chunks or self.transposed):
            self.together = self.chunks[0] if self.chunks else max(len(self), 1)
        chunk = math.prod(self.chunks or (0,)) * self.dtype.itemsize
        self.scratch = 3 * max(BLOCK, self._block_nbytes(len(self))) + 2 * chunk + BLOCK

    def _block_shape(self, span: int) -> tuple[int, int]:
        return block_shape(span, self.shape, self.dtype.itemsize, self.chunks, by_columns=self.transposed)

    def _block_nbytes(self, span: int) -> int:
        rows, columns = self._block_shape(span)
        return rows * columns * math.prod(self.shape[2:]) * int(self.dtype.itemsize)

    def blocks(self, index: Array) -> Iterator[Block]:
        if not len(index):
            return
        n_rows, n_columns = self._block_shape(int(index[-1]) + 1 - int(index[0]))
        for rows, first, last, picks in row_blocks(index, n_rows):
            if len(self.shape) == 1:
                yield rows, (), self._read((slice(first, last),))[picks]
                continue
            for start in range(0, self.shape[1], n_columns):
                columns = slice(start, min(start + n_columns, self.shape[1]))
                yield rows, (columns,), self._read((slice(first, last), columns))[picks]

    def _read(self, region: tuple[slice, ...]) -> Array:
        with explained_damage(self.name):
            if not self.transposed:
                block: Array = self.dataset[region]
            else:
                everything = (slice(None),) * (len(self.shape) - len(region))
                block = self.dataset[(*everything, *reversed(region))].T
        return block.astype(self.dtype, copy=False)

    def close(self) -> None:
        self.file.close()


def block_shape(
    span: int, shape: Sequence[int], itemsize: int, chunks: Sequence[int] | None, *, by_columns: bool
) -> tuple[int, int]:
    """Rows and columns (along axis 1) to read together from ``span`` rows: about 4 MB, and whole chunks of the file."""
    columns = shape[1] if len(shape) > 1 else 1
    each = max(math.prod(shape[2:]) * itemsize, 1)
    if span * columns * each <= BLOCK or not (chunks or by_columns):
        return max(min(span, BLOCK // max(columns * each, 1)), 1), max(columns, 1)
    chunk_rows, chunk_columns = (chunks[0], chunks[1] if len(chunks) > 1 else 1) if chunks else (1, 1)
    width = BLOCK // (span * each) // chunk_columns * chunk_columns
    if width:
        return span, min(width, columns)
    width = min(chunk_columns, columns)
    return min(span, max(BLOCK // (width * each) // chunk_rows, 1) * chunk_rows), width


class NpyHeader:
    """Shape, order and dtype of an .npy file, and where its numbers begin; raises ValueError on anything else."""

    def __init__(self, file: Any) -> None:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version} of the format holds records, not numbers")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        self.shape, self.fortran, self.dtype = read(file)
        self.offset = int(file.tell())
        if any(n < 0 for n in self.shape):
            raise ValueError(f"its shape is {self.shape}")

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * int(self.dtype.itemsize)


def unreadable(name: str, error: object) -> InputError:
    return InputError(f"{name} can't be read: {error}", todo="check that it was copied whole, or save it again")


@contextlib.contextmanager
def explained_damage(name: str) -> Iterator[None]:
    """Turn what the readers of the formats raise on a damaged file into an InputError that names the file."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # damaged bytes surface as anything: TokenError, KeyError, MatReadError, OverflowError
        raise unreadable(name, error) from error
