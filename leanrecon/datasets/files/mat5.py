"""The variables of MATLAB files of version 4 and 5 (save -v4, -v6, -v7), read from their elements as they stream by.

SciPy's reader trusts the sizes that a file states, and crashes the interpreter where they are damaged; it also holds
a variable whole. So elements are walked here, each held to the bytes that are there, after "MAT-File Format" (The
MathWorks, R2024a): the header (1-5), data elements (1-7), array formats (1-15), and version 4 (A-2).
"""

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from leanrecon.datasets.files.keys import choose_key
from leanrecon.datasets.files.rows import Block, Bytes, NpyRows, Rows, explained_damage, unreadable
from leanrecon.datasets.files.sources import FileBytes, InflatedBytes
from leanrecon.errors import InputError
from leanrecon.places.inputs import InputFile, input_file

Array = np.ndarray[Any, Any]

INT8, INT32, UINT32, MATRIX, COMPRESSED = 1, 5, 6, 14, 15
UTF8, UTF16, UTF32 = 16, 17, 18
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
"""Types of numbers as elements keep them."""
CELL, STRUCT, CHAR, OPAQUE = 1, 2, 4, 17
_NAMED = {1: "cell", 2: "struct", 3: "object", 4: "char", 5: "sparse", 16: "function handle"}
_CLASSES = {
    6: ("double", "f8"), 7: ("single", "f4"), 8: ("int8", "i1"), 9: ("uint8", "u1"), 10: ("int16", "i2"),
    11: ("uint16", "u2"), 12: ("int32", "i4"), 13: ("uint32", "u4"), 14: ("int64", "i8"), 15: ("uint64", "u8"),
}  # fmt: skip
_COMPLEX, _LOGICAL = 0x800, 0x200
_MOST_NAME = 4096
_MOST_NAMES = 2**20  # bytes of the names of a struct's fields
_MOST_DIMENSIONS = 32


@dataclass(frozen=True)
class Stretch:
    """Bytes of a file that elements lie in."""

    name: str
    source: Bytes
    order: str
    """ "<" or ">" """
    version: int = 5

    def take(self, start: int, n: int) -> bytes:
        memory = np.empty(n, np.uint8)
        self.source.read_at(start, memory)
        return memory.tobytes()

    def numbers(self, start: int, n: int, dtype: str = "u4") -> list[int]:
        memory = np.empty(n, self.order + dtype)
        self.source.read_at(start, memory.view(np.uint8))
        return [int(number) for number in memory]


@dataclass(frozen=True)
class Element:
    """One data element: its type, where its data lie, and where the next begins."""

    kind: int
    start: int
    nbytes: int
    after: int

    @classmethod
    def read(cls, of: Stretch, at: int, end: int) -> "Element":
        """The element at ``at``, all of it before ``end``; raises InputError where it isn't."""
        if at + 8 > end:
            raise unreadable(of.name, f"an element begins at byte {at} of {end}")
        first, nbytes = of.numbers(at, 2)
        if first >> 16:  # a small element: its data in the tag itself
            kind, nbytes, start, after = first & 0xFFFF, first >> 16, at + 4, at + 8
            if nbytes > 4:
                raise unreadable(of.name, f"a small element of {nbytes} bytes")
        else:
            kind, start = first, at + 8
            # Elements fill whole groups of 8 bytes, but for deflated ones and the last.
            after = start + nbytes if kind == COMPRESSED else min(start + -(-nbytes // 8) * 8, end)
        if start + nbytes > end:
            raise unreadable(of.name, f"an element of {nbytes} bytes at byte {at} goes beyond {end}")
        return cls(kind, start, nbytes, after)


@dataclass(frozen=True)
class Variable:
    """A variable, or the cell of one; nothing of its data has been read."""

    of: Stretch
    name: str
    shape: tuple[int, ...]
    number: int
    """MATLAB's number of its class."""
    kind: str
    """The name of its class."""
    dtype: np.dtype[Any] | None
    """None where it holds no real numbers."""
    data: int
    """Where the elements with its data begin."""
    end: int

    @property
    def described(self) -> str:
        return f"{'x'.join(map(str, self.shape))} {self.kind}".strip()


def read_matrix(of: Stretch, start: int, end: int) -> Variable:
    """The header of the matrix whose elements lie in ``start:end``; raises InputError where it makes no sense."""
    flags = Element.read(of, start, end)
    if flags.kind != UINT32 or flags.nbytes != 8:
        raise unreadable(of.name, f"a matrix begins with an element of type {flags.kind}")
    word = of.numbers(flags.start, 1)[0]
    number = word & 0xFF
    if number == OPAQUE:
        return _read_opaque(of, flags.after, end)
    if number not in _NAMED and number not in _CLASSES:
        raise unreadable(of.name, f"a variable of class {number}, which MATLAB doesn't have")
    sizes = Element.read(of, flags.after, end)
    if sizes.kind not in (INT32, UINT32) or sizes.nbytes % 4 or not 8 <= sizes.nbytes <= 4 * _MOST_DIMENSIONS:
        raise unreadable(of.name, f"a variable with dimensions in {sizes.nbytes} bytes of type {sizes.kind}")
    shape = tuple(of.numbers(sizes.start, sizes.nbytes // 4, "i4"))
    if min(shape) < 0:
        raise unreadable(of.name, f"a variable of shape {shape}")
    name = Element.read(of, sizes.after, end)
    text = _name(of, name)
    kind, code = _CLASSES.get(number, (_NAMED.get(number, ""), ""))
    if word & _LOGICAL and code:
        kind, code = "logical", "?"
    if word & _COMPLEX:
        kind, code = f"complex {kind}", ""
    return Variable(of, text, shape, number, kind, np.dtype(code) if code else None, name.after, end)


def _read_opaque(of: Stretch, at: int, end: int) -> Variable:
    """A string, table, datetime, … : name, system and class stand where others have dimensions."""
    texts = []
    for _ in range(3):
        element = Element.read(of, at, end)
        texts.append(_name(of, element))
        at = element.after
    return Variable(of, texts[0], (), OPAQUE, texts[2], None, at, end)


def _name(of: Stretch, element: Element) -> str:
    if element.kind not in (INT8, UTF8) or element.nbytes > _MOST_NAME:
        raise unreadable(of.name, f"a name of {element.nbytes} bytes of type {element.kind}")
    return of.take(element.start, element.nbytes).rstrip(b"\0").decode("utf-8", "replace")


def variables(name: str, source: Bytes, size: int) -> Iterator[Variable]:
    """The variables of a file of ``size`` bytes, one after the other; raises InputError for other files."""
    top = Stretch(name, source, "<")
    head = top.take(0, min(size, 128))
    if len(head) == 128 and 0 not in head[:4]:
        if head[126:] not in (b"IM", b"MI"):
            raise unreadable(
                name,
                f"it is not a MATLAB file: it begins with {head[:20]!r}",
                "save it with MATLAB's save, or name the file by its kind",
            )
        order = "<" if head[126:] == b"IM" else ">"
        version = head[125] if order == "<" else head[124]
        if version != 1:
            raise unreadable(name, f"its header says version {version}, and it holds no HDF5")
        yield from _variables_5(Stretch(name, source, order), size)
    else:
        yield from _variables_4(name, source, size)


def _variables_5(top: Stretch, size: int) -> Iterator[Variable]:
    at = 128
    while at < size:
        element = Element.read(top, at, size)
        of, start, end = top, element.start, element.start + element.nbytes
        kind = element.kind
        if kind == COMPRESSED:
            inflated = InflatedBytes(top.name, top.source, element.start, element.nbytes)
            of = Stretch(top.name, inflated, top.order)
            kind, nbytes = of.numbers(0, 2)
            start, end = 8, 8 + nbytes
            inflated.total = end
        if kind != MATRIX:
            raise unreadable(top.name, f"an element of type {kind} at byte {at}, where variables are")
        if end > start and (variable := read_matrix(of, start, end)).name:  # without a name: MATLAB's own
            yield variable
        at = element.after


def _variables_4(name: str, source: Bytes, size: int) -> Iterator[Variable]:
    """Variables of version 4: five numbers, a name, and numbers by columns."""
    at = 0
    while at < size or not at:
        if at + 20 > size:
            raise unreadable(name, f"a variable begins at byte {at} of {size}")
        little = Stretch(name, source, "<", 4)
        of = little if little.numbers(at, 1)[0] < 5000 else Stretch(name, source, ">", 4)
        kind, rows, columns, imaginary, length = of.numbers(at, 5)
        order, zero, precision, form = kind // 1000, kind // 100 % 10, kind // 10 % 10, kind % 10
        sound = kind < 5000 and order == (of.order == ">") and not zero and precision < 6 and form < 3
        sound = sound and (form == 0 or precision in (0, 5))  # text is kept as doubles or bytes
        if not sound or imaginary > 1 or not 0 < length <= _MOST_NAME:
            raise unreadable(
                name, "it is not a MATLAB file", "save it with MATLAB's save, or name the file by its kind"
            )
        dtype = np.dtype(of.order + ("f8", "f4", "i4", "i2", "u2", "u1")[precision])
        start = at + 20 + length
        end = start + rows * columns * dtype.itemsize * (1 + imaginary)
        if end > size:
            raise unreadable(name, f"a variable at byte {at} goes beyond its end at {size}")
        text = of.take(at + 20, length).rstrip(b"\0").decode("utf-8", "replace")
        words = ("complex " if imaginary else "") + ("double" if form == 0 else ("char", "sparse")[form - 1])
        plain = dtype if form == 0 and not imaginary else None
        yield Variable(of, text, (rows, columns), (6, CHAR, 5)[form], words, plain, start, end)
        at = end


@dataclass(frozen=True)
class Numbers:
    """Where the numbers of a variable lie."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int
    fortran: bool = True


def numbers_of(variable: Variable) -> Numbers:
    """Where the real numbers of a variable lie; raises InputError where their size isn't that of its shape."""
    of = variable.of
    if variable.of.version == 4:
        assert variable.dtype is not None
        return Numbers(variable.shape, variable.dtype, variable.data)
    element = Element.read(of, variable.data, variable.end)
    code = NUMBERS.get(element.kind)
    dtype = np.dtype(of.order + (code or "u1"))
    if code is None or element.nbytes != math.prod(variable.shape) * dtype.itemsize:
        raise unreadable(
            f"{of.name}:{variable.name}",
            f"it has {element.nbytes} bytes of type {element.kind} for {variable.described}",
        )
    return Numbers(variable.shape, dtype, element.start)


class Mat5Rows(NpyRows):
    """A variable of numbers, which MATLAB keeps by columns and often in fewer bytes than its class has."""

    def __init__(self, path: InputFile, variable: Variable) -> None:
        self.variable = variable
        key = variable.name
        if variable.dtype is None:  # refused by whoever wanted numbers, in words that name the class
            Rows.__init__(self, path, key, variable.shape, object, f"MATLAB {variable.kind}")
            self.source = variable.of.source
            return
        super().__init__(path, key, variable.of.source, numbers_of(variable), variable.dtype, f"MATLAB {variable.kind}")

    def blocks(self, index: Array) -> Iterator[Block]:
        if self.variable.dtype is None:
            raise InputError(
                f"{self.name} holds {self.kind}",
                expected="a plain array of real numbers",
                todo="convert it in MATLAB, as by full(…), double(…) or cell2mat(…), and save it again",
            )
        yield from super().blocks(index)


def open_mat5(path: InputFile, key: str | None) -> Mat5Rows:
    """Open a variable; raises InputError for a damaged file, and where two variables have the name."""
    source = FileBytes(path)
    with explained_damage(str(path)):
        return Mat5Rows(path, find_variable(str(path), source, source.size, key))


def names_in(path: InputFile) -> list[str]:
    """The names of the variables of a file; raises InputError for damage."""
    source = FileBytes(path)
    try:
        with explained_damage(str(path)):
            return [variable.name for variable in variables(str(path), source, source.size)]
    finally:
        source.close()


def find_variable(name: str, source: Bytes, size: int, key: str | None) -> Variable:
    """The variable named ``key``, or the only one; ``STRUCT/FIELD`` names a field of a struct, as HDF5 does."""
    found = list(variables(name, source, size))
    names = [variable.name for variable in found]
    parents = (key or "").split("/")[:-1]
    for depth in range(1, len(parents) + 1):
        struct = "/".join(parents[:depth])
        if struct not in names or key in names:
            break
        fields = fields_of(next(variable for variable in found if variable.name == struct))
        found += fields
        names += [field.name for field in fields]
    described = {variable.name: variable.described for variable in found}
    key = choose_key(name, key, names, described.__getitem__)
    return next(variable for variable in found if variable.name == key)


def fields_of(variable: Variable) -> list[Variable]:
    """The fields of a single struct, each named ``STRUCT/FIELD``; none for other variables and for arrays of structs."""
    of = variable.of
    if variable.number != STRUCT or math.prod(variable.shape) != 1:
        return []
    length = Element.read(of, variable.data, variable.end)
    names = Element.read(of, length.after, variable.end)
    width = of.numbers(length.start, 1, "i4")[0] if length.kind == INT32 and length.nbytes == 4 else 0
    if not 0 < width <= _MOST_NAME or names.kind != INT8 or names.nbytes % width or names.nbytes > _MOST_NAMES:
        raise unreadable(of.name, f"{variable.name} has names of fields in {names.nbytes} bytes of {width} each")
    fields, at = [], names.after
    for k in range(names.nbytes // width):
        name = of.take(names.start + k * width, width).partition(b"\0")[0].decode("utf-8", "replace")
        element = Element.read(of, at, variable.end)
        if element.kind != MATRIX:
            raise unreadable(of.name, f"a field of {variable.name} is an element of type {element.kind}")
        if element.nbytes:  # else []
            field = read_matrix(of, element.start, element.start + element.nbytes)
            fields.append(replace(field, name=f"{variable.name}/{name}"))
        at = element.after
    return fields


def read_numbers(name: str, data: bytes, key: str) -> Array:
    """A variable of numbers out of the bytes of a file, in whole; raises InputError for anything else."""
    with explained_damage(name):
        source = FileBytes(name, io.BytesIO(data))
        rows = Mat5Rows(input_file(name), find_variable(name, source, source.size, key))
        return rows[:]
