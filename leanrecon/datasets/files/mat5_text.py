"""The strings in MATLAB files of version 4 and 5: char matrices, and cell arrays of them, as they stream by."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from leanrecon.datasets.files.mat5 import (
    CELL,
    CHAR,
    MATRIX,
    NUMBERS,
    UTF8,
    UTF16,
    UTF32,
    Element,
    Variable,
    read_matrix,
)
from leanrecon.datasets.files.rows import unreadable
from leanrecon.errors import InputError

Array = np.ndarray[Any, Any]

_DEEPEST = 8  # cells within cells


def texts_of(variable: Variable) -> Iterator[tuple[int, str]]:
    """Every string with the number of its row, in the order of the file: column by column.

    A cell array's rows are those of its first dimension, but for a single row of cells, which has one a column; a char
    matrix has a string a line.
    """
    if variable.number == CHAR:
        yield from enumerate(_lines(variable))
    elif variable.number == CELL:
        shape = variable.shape
        rows = shape[1] if len(shape) == 2 and shape[0] == 1 else shape[0]
        for k, cell in enumerate(_cells(variable)):
            yield from ((k % rows, text) for text in _within(cell, 1))
    else:
        raise InputError(
            f"{variable.of.name}:{variable.name} holds MATLAB {variable.kind}",
            expected="a cell array of char, or a char matrix",
            todo="convert it in MATLAB: cellstr(…)",
        )


def _cells(variable: Variable) -> Iterator[Variable]:
    of, at = variable.of, variable.data
    for _ in range(math.prod(variable.shape)):
        element = Element.read(of, at, variable.end)
        if element.kind != MATRIX:
            raise unreadable(of.name, f"a cell holds an element of type {element.kind}")
        if element.nbytes:
            yield read_matrix(of, element.start, element.start + element.nbytes)
        else:  # []: no string, but a place
            yield Variable(of, "", (0, 0), CHAR, "char", None, element.start, element.start)
        at = element.after


def _within(cell: Variable, depth: int) -> Iterator[str]:
    if cell.number == CHAR or 0 in cell.shape:
        yield from _lines(cell)
    elif cell.number == CELL and depth < _DEEPEST:
        for inner in _cells(cell):
            yield from _within(inner, depth + 1)
    else:
        raise InputError(f"a caption in {cell.of.name} is a MATLAB {cell.kind}", expected="char")


def _lines(variable: Variable) -> Iterator[str]:
    """The lines of a char matrix."""
    if 0 in variable.shape:
        return
    rows, n = variable.shape[0], math.prod(variable.shape)
    units = _units(variable, n)
    for line in units.reshape(n // rows, rows).T:
        yield units_to_text(line)


def _units(variable: Variable, n: int) -> Array:
    """The characters of a char matrix by columns: UTF-16 or UTF-32, one a place."""
    of = variable.of
    if of.version == 4:
        width = (variable.end - variable.data) // n
        codes = np.frombuffer(of.take(variable.data, width * n), np.dtype(f"{of.order}{'f8' if width == 8 else 'u1'}"))
        if not ((codes >= 0) & (codes < 2**16)).all():
            raise unreadable(of.name, f"{variable.name} holds numbers that are not codes of characters")
        return codes.astype("<u2")
    element = Element.read(of, variable.data, variable.end)
    data = of.take(element.start, element.nbytes)
    if element.kind == UTF8:
        text = data.decode()
    elif element.kind in (UTF16, UTF32):
        text = data.decode(f"utf-{8 * 2 ** (element.kind - UTF8)}-{'le' if of.order == '<' else 'be'}", "surrogatepass")
    else:
        code = NUMBERS.get(element.kind, "")
        if code not in ("i1", "u1", "u2"):
            raise unreadable(of.name, f"characters in an element of type {element.kind}")
        codes = np.frombuffer(data, np.dtype(of.order + code.replace("i1", "u1")))
        text = codes.astype("<u2").tobytes().decode("utf-16-le", "surrogatepass")
    units = np.frombuffer(text.encode("utf-16-le", "surrogatepass"), "<u2")
    if len(units) != n:  # MATLAB counts UTF-16, SciPy whole characters
        units = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    if len(units) != n:
        raise unreadable(of.name, f"{len(text)} characters for {variable.described}")
    return units


def units_to_text(units: Array) -> str:
    """Text out of UTF-16 or UTF-32; halves of pairs stay, and are looked for later."""
    code = "utf-16-le" if units.dtype.itemsize == 2 else "utf-32-le"
    return np.ascontiguousarray(units).tobytes().decode(code, "surrogatepass")
