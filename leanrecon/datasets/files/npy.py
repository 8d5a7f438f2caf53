"""Opening .npy files and the members of .npz files; only headers are read."""

import contextlib
import math
import zipfile
from typing import Any

import numpy as np

from leanrecon.datasets.files.keys import choose_key
from leanrecon.datasets.files.rows import NpyRows, explained_damage
from leanrecon.datasets.files.sources import FileBytes, MemberBytes
from leanrecon.errors import InputError
from leanrecon.places.inputs import InputFile, for_library

_MOST_DIMENSIONS = 32


class NpyHeader:
    """Shape, order and dtype of an .npy file, and where its numbers begin; raises ValueError on anything else."""

    def __init__(self, file: Any) -> None:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version} of the format holds records, not numbers")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        self.shape, self.fortran, self.dtype = read(file)
        self.offset = int(file.tell())
        if any(n < 0 for n in self.shape) or len(self.shape) > _MOST_DIMENSIONS:
            raise ValueError(f"its shape is {self.shape}")

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * int(self.dtype.itemsize)


def open_npy(path: InputFile) -> NpyRows:
    """Open an .npy file; raises InputError for damage, Python objects, records, and bytes behind the array."""
    source = FileBytes(path)
    with contextlib.ExitStack() as stack:
        stack.callback(source.close)
        with explained_damage(str(path)):
            source.file.seek(0)
            header = NpyHeader(source.file)
        _check(str(path), header, source.size)
        stack.pop_all()
        return NpyRows(path, None, source, header)


def open_npz(path: InputFile, key: str | None) -> NpyRows:
    """Open a member of an .npz file; raises InputError as ``open_npy`` does, and where two members have one name."""
    with explained_damage(str(path)), zipfile.ZipFile(for_library(path)) as archive:
        members = [info for info in archive.infolist() if info.filename.endswith(".npy")]

        def describe(name: str) -> str:
            with archive.open(f"{name}.npy") as file:
                header = NpyHeader(file)
            return f"{'x'.join(map(str, header.shape))} {header.dtype}"

        key = choose_key(path, key, [info.filename[:-4] for info in members], describe)
        (info,) = [info for info in members if info.filename == f"{key}.npy"]
        with archive.open(info) as file:
            header = NpyHeader(file)
    _check(f"{path}:{key}", header, info.file_size)
    return NpyRows(path, key, MemberBytes(path, key), header)


def names_in(path: InputFile) -> list[str]:
    """The names of the arrays of an .npz file; raises InputError for damage."""
    with explained_damage(str(path)), zipfile.ZipFile(for_library(path)) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]


def _check(name: str, header: NpyHeader, size: int) -> None:
    if header.dtype.hasobject:
        raise InputError(
            f"{name} holds pickled Python objects, which are never loaded: a pickle can run any program",
            expected="numbers (or, for captions, strings)",
            todo="save it again as a plain array of one dtype and rectangular shape",
        )
    if header.dtype.kind == "V" or not header.dtype.itemsize:
        fields = f" of {', '.join(header.dtype.names)}" if header.dtype.names else ""
        raise InputError(
            f"{name} holds {f'records{fields}' if header.dtype.kind == 'V' else 'empty strings only'}",
            expected="numbers (or, for captions, strings)",
            todo="save the wanted field as an array of its own" if fields else "save it again",
        )
    end = header.offset + header.nbytes
    if size < end:
        raise InputError(
            f"{name} is cut short: it has {size} bytes",
            expected=f"{end} for {header.dtype} numbers of shape {header.shape}",
            todo="copy or save it again",
        )
    if size > end:
        raise InputError(
            f"{name} has {size - end} bytes behind its array of shape {header.shape}, as of a second array appended",
            expected=f"{end} bytes and no more",
            todo="read each array with numpy.load, join them, and save one array",
        )
