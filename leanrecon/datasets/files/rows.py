"""Rows of an array that lies in a file, and plain numbers in C or in Fortran order; nothing is mapped or held whole."""

import contextlib
import errno
import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, Self

import numpy as np

from leanrecon.errors import InputError, LeanreconError
from leanrecon.places.disk import advice
from leanrecon.places.inputs import MOST, HiddenError, InputFile, in_spans
from leanrecon.places.inputs import NEAR as FAR
from leanrecon.places.location import Location

Array = np.ndarray[Any, Any]
Convert = Callable[[Array], Array]
Block = tuple[slice, tuple[slice | int, ...], Array]

BLOCK = 4 * 2**20
"""Bytes of a file that are looked at together."""

NEAR = 128 * 1024
"""Bytes between two rows up to which reading through the gap beats a read for each."""

_NEAR_COLUMNS = 16 * 1024  # bytes between two columns below which reading through the gap beats a read for each


def near(file: InputFile) -> int:
    """Bytes between two rows of a file up to which reading through the gap beats a read for each."""
    return FAR if isinstance(file, Location) else NEAR


class Rows:
    """An array in a file whose first axis is rows; only its header is read until rows are asked for.

    ``together`` is the number of neighbouring rows that are best read at once: all of them, where the file goes column
    by column. ``held`` is how many bytes stay in memory while rows are read, ``scratch`` how many are taken for a moment.
    """

    together = 1
    held = 0
    scratch = 4 * BLOCK
    pieces: int | None = None
    """How many files a folder has that counts as a file; None for files."""
    spans = True
    """Whether rows near each other are read together, with what lies between them."""
    sequential = False
    """Whether the file can only be read from its start: rows out of order cost a pass each."""

    def __init__(
        self, path: InputFile, key: str | None, shape: Sequence[int], dtype: Any, kind: str | None = None
    ) -> None:
        self.path = path
        self.key = key
        self.name = f"{path}:{key}" if key else str(path)
        self.shape = tuple(int(n) for n in shape)
        self.dtype = np.dtype(dtype)
        self.kind = kind or str(self.dtype)

    @property
    def away(self) -> bool:
        """Whether the file is in a bucket, where every piece is a request."""
        return isinstance(self.path, Location)

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

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return len(self) * self.row_nbytes

    def sources(self) -> "list[Rows]":
        """The arrays in files that the rows are made of."""
        return [self]

    def asked(self, at_once: int) -> int:
        """Requests that reading all rows takes, ``at_once`` at a time, where the file is in a bucket; about."""
        return -(-self.nbytes // MOST)

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


class Derived(Rows):
    """Float32 rows made of those of another array: named, let go of and closed as these are.

    ``scratch`` are the bytes that making them takes for a moment, beside what reading the others takes.
    """

    def __init__(self, base: Rows, shape: Sequence[int], scratch: int = 0) -> None:
        super().__init__(base.path, base.key, shape, np.float32)
        self.base = base
        self.name, self.together, self.held = base.name, base.together, base.held
        self.sequential = base.sequential
        self.scratch = base.scratch + scratch

    @property
    def nbytes(self) -> int:
        return self.base.nbytes

    def sources(self) -> list[Rows]:
        return self.base.sources()

    def asked(self, at_once: int) -> int:
        return self.base.asked(at_once)

    def locate(self, row: int) -> str:
        return self.base.locate(row)

    def release(self) -> None:
        self.base.release()

    def close(self) -> None:
        self.base.close()


class Several(Rows):
    """Rows made of those of several arrays."""

    def __init__(self, parts: Sequence[Rows], shape: Sequence[int], dtype: Any) -> None:
        super().__init__(parts[0].path, None, shape, dtype)
        self.parts = list(parts)
        self.name = " and ".join(part.name for part in parts)
        self.together = max(part.together for part in parts)
        self.held = sum(part.held for part in parts)
        self.sequential = any(part.sequential for part in parts)
        self.scratch = max(part.scratch for part in parts)

    @property
    def away(self) -> bool:
        return any(part.away for part in self.parts)

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    def sources(self) -> list[Rows]:
        return [one for part in self.parts for one in part.sources()]

    def asked(self, at_once: int) -> int:
        return sum(part.asked(at_once) for part in self.parts if part.away)

    def release(self) -> None:
        for part in self.parts:
            part.release()

    def close(self) -> None:
        for part in self.parts:
            part.close()


class Pooled(Several):
    """The rows of several arrays, one after the other."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        dtype = np.result_type(*(part.dtype for part in parts))
        super().__init__(parts, (sum(map(len, parts)), *parts[0].shape[1:]), dtype)
        self.starts = list(itertools.accumulate((len(part) for part in parts), initial=0))

    def blocks(self, index: Array) -> Iterator[Block]:
        for part, start in zip(self.parts, self.starts, strict=False):
            a, b = np.searchsorted(index, [start, start + len(part)])
            if a < b:
                for rows, rest, block in part.blocks(index[a:b] - start):
                    yield slice(rows.start + int(a), rows.stop + int(a)), rest, block
                if b < len(index):
                    part.release()  # a file at a time is open, however many there are

    def locate(self, row: int) -> str:
        k = max(k for k, start in enumerate(self.starts[:-1]) if start <= row)
        return self.parts[k].locate(row - self.starts[k])


def row_blocks(index: Array, most: int, gap: int | None = None) -> Iterator[tuple[slice, int, int, Any]]:
    """Cut ascending rows into spans of at most ``most`` rows: which of ``index``, span start, span stop, picks in the span.

    Spans end where more than ``gap`` rows that are not wanted lie between two that are.
    """
    ends = np.empty(0, np.int64) if gap is None else np.flatnonzero(np.diff(index) > gap + 1) + 1
    start = 0
    while start < len(index):
        stop = int(np.searchsorted(index, index[start] + max(most, 1)))
        after = int(np.searchsorted(ends, start, side="right"))
        stop = min(stop, int(ends[after])) if after < len(ends) else stop
        first, last = int(index[start]), int(index[stop - 1]) + 1
        picks = slice(None) if last - first == stop - start else index[start:stop] - first
        yield slice(start, stop), first, last, picks
        start = stop


class Bytes(Protocol):
    """Bytes by their offset, wherever they are."""

    def read_at(self, offset: int, memory: Array) -> None: ...

    def close(self) -> None: ...


class NpyRows(Rows):
    """Plain numbers in C or in Fortran order: an .npy file, a member of an .npz file, a variable of MATLAB 5.

    ``dtype`` is what numbers are handed on as, where the file keeps them in another one.
    """

    def __init__(
        self,
        path: InputFile,
        key: str | None,
        source: Bytes,
        header: "Header",
        dtype: Any = None,
        kind: str | None = None,
    ) -> None:
        super().__init__(path, key, header.shape, header.dtype if dtype is None else dtype, kind)
        self.source = source
        self.offset = header.offset
        self.stored = header.dtype
        self.fortran = header.fortran and len(self.shape) > 1
        self.stored_nbytes = math.prod(self.shape[1:]) * int(self.stored.itemsize)
        widened = -(-self.dtype.itemsize // self.stored.itemsize) if self.dtype != self.stored else 0
        if self.fortran:
            self.together = len(self)
            self.scratch = (3 + widened) * max(BLOCK, len(self) * self.stored.itemsize) + BLOCK
        else:
            self.scratch = (3 + widened) * max(min(BLOCK, self.nbytes), self.stored_nbytes) + BLOCK

    @property
    def nbytes(self) -> int:
        return len(self) * self.stored_nbytes

    def asked(self, at_once: int) -> int:
        if self.fortran:
            return -(-len(self) // at_once) * -(-self.nbytes // BLOCK)
        return in_spans(len(self), self.stored_nbytes, at_once, BLOCK)

    def blocks(self, index: Array) -> Iterator[Block]:
        for rows, rest, block in self._column_blocks(index) if self.fortran else self._row_blocks(index):
            yield rows, rest, block.astype(self.dtype, copy=False)

    def _row_blocks(self, index: Array) -> Iterator[Block]:
        nbytes = max(self.stored_nbytes, 1)
        memory = np.empty(max(BLOCK, nbytes), np.uint8)
        for rows, first, last, picks in row_blocks(index, BLOCK // nbytes, near(self.path) // nbytes):
            raw = memory[: (last - first) * self.stored_nbytes]
            self.source.read_at(self.offset + first * self.stored_nbytes, raw)
            yield rows, (), raw.view(self.stored).reshape(-1, *self.shape[1:])[picks]

    def _column_blocks(self, index: Array) -> Iterator[Block]:
        """A Fortran file is columns of all rows: whole columns are read, or where few rows are wanted just their span."""
        if not len(index):
            return
        column = len(self) * self.stored.itemsize
        first, last = int(index[0]), int(index[-1]) + 1
        whole = column <= (FAR if self.away else _NEAR_COLUMNS) or 2 * (last - first) >= len(self)
        span = range(len(self)) if whole else range(first, last)
        picks = slice(first, last) if last - first == len(index) else index
        picks = picks if whole else (slice(None) if isinstance(picks, slice) else index - first)
        width = len(span) * self.stored.itemsize
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
                        at = offset + k * column + first * self.stored.itemsize
                        self.source.read_at(at, raw[k * width : (k + 1) * width])
                block = raw.view(self.stored).reshape(stop - start, len(span))[:, picks].T
                yield slice(0, len(index)), (slice(start, stop), *reversed(reverse)), block

    def close(self) -> None:
        self.source.close()


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


class Header(Protocol):
    """Shape, order and dtype of numbers in a file, and where they begin."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def fortran(self) -> bool: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    @property
    def offset(self) -> int: ...


WHOLE = "check that it was copied whole, or save it again"


def unreadable(name: str, error: object, todo: str = WHOLE) -> InputError:
    return InputError(f"{name} can't be read: {error}", todo=todo)


def refused_by_system(name: str, error: object) -> InputError | None:
    """The error of a file that the system does not open, whatever is in it; None for others."""
    if not isinstance(error, OSError) or error.errno not in (errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EPERM):
        return None
    forbidden = error.errno in (errno.EACCES, errno.EPERM)
    todo = "check its permissions" if forbidden else advice(error)
    return InputError(f"{name} can't be opened: {os.strerror(error.errno)}", todo=todo)


@contextlib.contextmanager
def explained_damage(name: str) -> Iterator[None]:
    """Turn what the readers of the formats raise on a damaged file into an InputError that names the file."""
    try:
        yield
    except LeanreconError:
        raise
    except HiddenError as error:
        raise error.problem from None
    except OSError as error:
        raise refused_by_system(name, error) or unreadable(name, error) from error
    except Exception as error:  # damaged bytes surface as anything: TokenError, KeyError, SystemError, OverflowError
        raise unreadable(name, error) from error
