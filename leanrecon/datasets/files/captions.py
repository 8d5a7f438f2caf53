"""Captions in files: a row of .txt or .json an image, or an array of strings in .npy, .npz, .h5 or .mat."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leanrecon.datasets.files.hdf5 import H5Rows
from leanrecon.datasets.files.mat5 import Mat5Rows
from leanrecon.datasets.files.mat5_text import texts_of, units_to_text
from leanrecon.datasets.files.open import find_file, locate, open_array, refuse_pointer
from leanrecon.datasets.files.rows import BLOCK, NpyRows, Rows, explained_damage
from leanrecon.datasets.files.text import json_rows, text_rows
from leanrecon.errors import InputError

Array = np.ndarray[Any, Any]

_EXPECTED = "a string, or a list of strings, for each row"
_OBJECT = 16  # bytes that Python's allocator may add to an object
_PIECES = 8  # strings, or blocks of an array, that reading takes beside those that are kept (7 were seen)
_HIGHEST = 0x10FFFF


@dataclass(frozen=True)
class CaptionsSize:
    """What captions take in memory."""

    rows: int
    held: int
    """Bytes of all strings and lists, as ``read_captions`` returns them."""
    scratch: int
    """Bytes that reading them takes for a moment."""


def read_captions(spec: str, default_path: str | None = None, base_dir: Path | None = None) -> list[list[str]]:
    """The captions of every row, one or more each.

    ``.txt`` has one row a line, with tabs between the captions of one image. ``.json`` is a list of strings or of
    lists of strings (``FILE.json:KEY``: under that key). Arrays of strings are [rows] or [rows, captions], MATLAB's
    cell arrays and char matrices among them. Empty strings are left out.
    """
    captions: list[list[str]] = []
    name = _name(spec, default_path, base_dir)
    for row, text in stream_captions(spec, default_path, base_dir):
        while row >= len(captions):
            captions.append([])
        if text:
            captions[row].append(text)
    for k, row_captions in enumerate(captions):
        if not row_captions:
            raise InputError(f"row {k} of {name} has no caption", expected=_EXPECTED)
    return captions


def captions_nbytes(spec: str, default_path: str | None = None, base_dir: Path | None = None) -> CaptionsSize:
    """What ``read_captions`` would take, found by reading through the file once with little in memory."""
    rows, held, largest = 0, 0, 0
    for row, text in stream_captions(spec, default_path, base_dir):
        rows = max(rows, row + 1)
        if text:
            nbytes = sys.getsizeof(text) + _OBJECT
            largest = max(largest, nbytes)
            held += nbytes + 16  # a list keeps room for more
    held += rows * (sys.getsizeof([]) + 64 + _OBJECT + 16)
    return CaptionsSize(rows, held, _PIECES * max(largest, BLOCK))


def stream_captions(
    spec: str, default_path: str | None = None, base_dir: Path | None = None
) -> Iterator[tuple[int, str]]:
    """Yield every caption, stripped, with the number of its row, in the order of the file; "" where one is empty.

    Files that go column by column (MATLAB's) give the first captions of all rows before the second ones. Raises
    InputError for what holds no captions, and for halves of characters, which no file of text can hold.
    """
    path, key = find_file(spec, base_dir), None
    if path is None and ".json:" in spec.lower():
        path, key = locate(spec, default_path, base_dir)
    suffix = path.suffix.lower() if path is not None else ""
    if path is not None and suffix in (".txt", ".json"):
        refuse_pointer(path)
    if path is not None and suffix == ".txt":
        yield from _checked(str(path), text_rows(path))
    elif path is not None and suffix == ".json":
        yield from _checked(str(path), json_rows(path, key))
    else:
        with open_array(spec, default_path, base_dir) as array:
            yield from _checked(array.name, _read_array(array))


def _name(spec: str, default_path: str | None, base_dir: Path | None) -> str:
    return str(find_file(spec, base_dir) or (default_path if spec.startswith(":") else spec))


def _checked(name: str, texts: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    for row, text in texts:
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise InputError(
                    f"row {row} of {name} holds half of a character (U+{ord(text[error.start]):04X})",
                    expected="whole characters",
                    todo="take it out: the program that cut the text cut an emoji or a rare letter in two",
                ) from error
        yield row, text.strip()


def _read_array(rows: Rows) -> Iterator[tuple[int, str]]:
    with explained_damage(rows.name):
        if isinstance(rows, NpyRows) and rows.dtype.kind in "US" and len(rows.shape) in (1, 2):
            yield from _read_npy(rows)
        elif isinstance(rows, H5Rows) and rows.dtype.kind in "OS" and len(rows.shape) in (1, 2):
            yield from _read_h5(rows)
        elif isinstance(rows, Mat5Rows) and rows.variable.dtype is None:
            yield from texts_of(rows.variable)
        else:
            raise InputError(f"{rows.name} holds {rows.kind} of shape {rows.shape}", expected=_EXPECTED)


def _read_npy(rows: NpyRows) -> Iterator[tuple[int, str]]:
    at_once = max(BLOCK // max(rows.row_nbytes, 1), 1)
    for start in range(0, len(rows), at_once):
        block = rows[start : start + at_once]
        for row, line in enumerate(block.reshape(len(block), -1), start):
            for k in range(len(line)):
                yield row, cell_text(rows.name, row, line[k : k + 1])


def cell_text(name: str, row: int, cell: Array) -> str:
    """The text of one cell, [1], of an array of strings; raises InputError where its numbers are not characters."""
    if cell.dtype.kind == "S":
        return str(cell.tobytes().rstrip(b"\0").decode("utf-8"))
    codes = np.ascontiguousarray(cell).view(cell.dtype.byteorder.replace("|", "=") + "u4")
    if codes.max(initial=0) > _HIGHEST:
        raise InputError(
            f"row {row} of {name} holds {codes.max()}, which is not the code of a character: the file is damaged",
            expected="text",
            todo="copy or save it again",
        )
    return units_to_text(codes.astype("<u4")).rstrip("\0")


def _read_h5(rows: H5Rows) -> Iterator[tuple[int, str]]:
    """Strings in an HDF5 file; MATLAB's are references to arrays of UTF-16."""
    if rows.kind == "MATLAB char":
        codes = np.atleast_2d(rows.dataset[()].T)
        yield from ((row, _utf16(line)) for row, line in enumerate(codes))
    elif rows.kind == "MATLAB cell":
        shape = rows.shape
        n = shape[1] if len(shape) == 2 and shape[0] == 1 else shape[0]
        at = 0
        for line in range(rows.dataset.shape[0]):
            for cell in np.atleast_1d(rows.dataset[line]).ravel():
                yield at % n, _h5_cell(rows, at % n, cell)
                at += 1
    else:
        import h5py

        if rows.dtype.kind == "O" and not h5py.check_string_dtype(rows.dataset.dtype):
            raise InputError(f"{rows.name} holds {rows.kind} of shape {rows.shape}", expected=_EXPECTED)
        for row in range(len(rows)):
            for item in np.atleast_1d(rows.dataset[row]).ravel().tolist():
                yield row, item.decode("utf-8") if isinstance(item, bytes) else str(item)


def _h5_cell(rows: H5Rows, row: int, cell: Any) -> str:
    target = rows.file[cell]
    if target.attrs.get("MATLAB_empty"):
        return ""
    kind = target.attrs.get("MATLAB_class", b"char")
    if kind not in (b"char", "char"):
        raise InputError(f"row {row} of {rows.name} holds MATLAB {kind!r}", expected="char")
    return _utf16(target[()].T.ravel())


def _utf16(codes: Array) -> str:
    if codes.dtype.kind not in "iu":
        raise ValueError(f"characters as {codes.dtype}")
    return units_to_text(np.asarray(codes).astype("<u2")).rstrip("\0")
