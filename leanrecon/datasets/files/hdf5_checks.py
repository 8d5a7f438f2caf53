"""What an HDF5 dataset holds, in words, and whether all of its numbers were written."""

import itertools
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from leanrecon.errors import InputError
from leanrecon.places.inputs import InputFile, open_buffered, size_of
from leanrecon.places.location import Location

_LISTED = 3  # missing files that an error names at most
_SCAN = 2**20  # bytes that are looked through together
_MOST_SCANNED = 256 * 10**6  # bytes of a file in a bucket whose strings are looked for
_DEEPEST = 4  # virtual datasets made of virtual datasets


def type_of(dataset: Any) -> np.dtype[Any]:
    """The dtype that numbers are read as; object where NumPy has none."""
    try:
        dtype = np.dtype(dataset.dtype)
    except (TypeError, ValueError):
        return np.dtype(object)
    return np.dtype(object) if dtype.kind == "V" else dtype


def kind_of(dataset: Any) -> str | None:
    """What a dataset holds other than plain numbers, in words."""
    import h5py

    of = dataset.id.get_type()
    number = of.get_class()
    if number == h5py.h5t.COMPOUND:
        fields = [of.get_member_name(k).decode("utf-8", "replace") for k in range(of.get_nmembers())]
        plain = fields in (["r", "i"], ["real", "imag"])
        return "complex numbers" if plain else f"records of {', '.join(fields)}"
    names = {
        h5py.h5t.TIME: "times", h5py.h5t.OPAQUE: "opaque bytes", h5py.h5t.ARRAY: "small arrays",
        h5py.h5t.VLEN: "lists of varying length", h5py.h5t.REFERENCE: "references", h5py.h5t.BITFIELD: "bits",
    }  # fmt: skip
    if number == h5py.h5t.STRING:
        return "strings"
    if number == h5py.h5t.ARRAY:
        return f"small arrays of {of.get_super().dtype} in each place"
    found: str | None = names.get(number)
    if found is None and number == h5py.h5t.FLOAT and type_of(dataset).kind != "f":
        return f"numbers of {of.get_size()} bytes that NumPy lacks"
    return found


def check_storage(name: str, path: InputFile, dataset: Any, depth: int = 0) -> None:
    """Refuse a dataset in whose place HDF5 would give zeros, and one whose filters are not there; raises InputError."""
    import h5py

    if dataset.shape is None or dataset.shape == ():
        what = "an empty dataset" if dataset.shape is None else "a single number"
        raise InputError(f"{name} is {what}, without rows", expected="an array whose first axis is rows")
    plist = dataset.id.get_create_plist()
    for k in range(plist.get_nfilters()):
        code, _, _, label = plist.get_filter(k)
        if not h5py.h5z.filter_avail(code):
            words = label.decode("utf-8", "replace")
            raise InputError(
                f"{name} is packed by filter {code} ({words}), which this h5py lacks",
                expected="gzip, lzf, shuffle or none",
                todo="save it with gzip, or install hdf5plugin and repack it: h5repack -f GZIP=4",
            )
    if 0 in dataset.shape:
        return
    if dataset.id.get_type().detect_class(h5py.h5t.STRING) and type_of(dataset).kind == "O":
        check_heaps(name, path)
    if dataset.is_virtual:
        _check_virtual(name, _here(name, path), dataset, depth)
    elif plist.get_external_count():
        _here(name, path)
        _check_external(name, dataset, plist)
    elif dataset.chunks:
        _check_chunks(name, dataset)
    elif plist.get_layout() == h5py.h5d.CONTIGUOUS:
        if dataset.id.get_offset() is None:
            raise _unwritten(name, "its numbers were never written")
        end = dataset.id.get_offset() + dataset.id.get_storage_size()
        if (
            end > size_of(path)
            or dataset.id.get_storage_size() < math.prod(dataset.shape) * dataset.id.get_type().get_size()
        ):
            raise InputError(f"{name} is cut short: its numbers end at byte {end}", todo="copy the file again")


def _here(name: str, path: InputFile) -> Path:
    """The path of a file that is on this machine, as the files must be that it leads to; raises InputError."""
    if isinstance(path, Location):
        raise InputError(
            f"{name} keeps its numbers in other files, which are not looked for in a bucket",
            expected="numbers in the file itself",
            todo="save them in one file, or download all of these files and give the path",
        )
    return path


def _unwritten(name: str, what: str) -> InputError:
    return InputError(
        f"{name}: {what}, and HDF5 would give its fill value for them",
        expected="every number written",
        todo="write the file again; the program that made it may have been stopped",
    )


def _check_chunks(name: str, dataset: Any) -> None:
    grid = [math.ceil(n / c) for n, c in zip(dataset.shape, dataset.chunks, strict=True)]
    there, wanted = dataset.id.get_num_chunks(), math.prod(grid)
    if there >= wanted:
        return
    found = {dataset.id.get_chunk_info(k).chunk_offset for k in range(min(there, 10_000))} if there < 10_000 else set()
    corners = itertools.product(*(range(0, n * c, c) for n, c in zip(grid, dataset.chunks, strict=True)))
    first = next((corner for corner in corners if corner not in found), None) if there < 10_000 else None
    where = f"; the first begins at {list(first)}" if first is not None else ""
    raise _unwritten(name, f"{wanted - there} of its {wanted} chunks were never written{where}")


def _check_external(name: str, dataset: Any, plist: Any) -> None:
    """External files are sought in the current folder, and what they lack is read as zeros."""
    missing = []
    prefix = os.environ.get("HDF5_EXTFILE_PREFIX", "")
    room = 0
    for k in range(plist.get_external_count()):
        file, offset, size = plist.get_external(k)
        text = file.decode("utf-8", "replace") if isinstance(file, bytes) else str(file)
        path = Path(prefix) / text
        there = path.stat().st_size if path.is_file() else 0
        room += min(max(there - offset, 0), size)
        if not path.is_file():
            missing.append(text)
    needed = math.prod(dataset.shape) * dataset.id.get_type().get_size()
    if missing or room < needed:
        raise InputError(
            f"{name} keeps its numbers in other files, and {_listed(missing) or f'{needed - room} bytes'} "
            f"{'are' if len(missing) != 1 else 'is'} not there",
            expected="all of them, in the current folder",
            todo="copy them too, or save the numbers in one file",
        )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")


def _check_virtual(name: str, path: Path, dataset: Any, depth: int) -> None:
    """Every source has to be there, hold what is mapped, and be written; together they cover the dataset."""
    import h5py

    if depth >= _DEEPEST:
        raise InputError(f"{name} is made of virtual datasets {depth} deep", todo="save it as one array")
    covered, missing = 0, []
    for of in dataset.virtual_sources():
        covered += of.vspace.get_select_npoints()
        where = path if of.file_name == "." else _source_path(path, of.file_name)
        if where is None:
            missing.append(of.file_name)
            continue
        try:
            with h5py.File(where, "r") as file:
                source = file[of.dset_name]
                # A space without dimensions stands for the whole source.
                extent = of.src_space.get_simple_extent_dims() or source.shape
                room = len(extent) == len(source.shape) and all(
                    a <= b for a, b in zip(extent, source.shape, strict=True)
                )
                if not room or math.prod(source.shape) < of.vspace.get_select_npoints():
                    missing.append(f"{of.file_name}:{of.dset_name} of shape {extent}")
                    continue
                check_storage(f"{where}:{of.dset_name}", where, source, depth + 1)
        except KeyError:
            missing.append(f"{of.file_name}:{of.dset_name}")
    if missing:
        raise InputError(
            f"{name} is joined out of other files, and {_listed(missing)} is not there; HDF5 would give zeros",
            expected="every file that it is joined from",
            todo="copy them beside it, or save the numbers in one file",
        )
    if covered < math.prod(dataset.shape):
        raise _unwritten(name, f"{dataset.size - covered} of its {dataset.size} numbers come from no file")


def _source_path(path: Path, name: str) -> Path | None:
    """Where HDF5 looks for a source: beside the joining file, and then from the current folder."""
    return next((p for p in (path.absolute().parent / name, Path(name)) if p.is_file()), None)


def check_heaps(name: str, path: InputFile) -> None:
    """Refuse strings in a heap with an object of no size, over which HDF5 would stand still for ever; raises InputError.

    Global heaps as in the HDF5 File Format Specification 3.0, III.E.
    """
    if isinstance(path, Location) and size_of(path) > _MOST_SCANNED:
        raise InputError(
            f"{name} holds strings in an HDF5 file of {size_of(path) / 1e9:.1f} GB, all of which would be fetched for them",
            expected=f"at most {_MOST_SCANNED // 10**6} MB in a bucket",
            todo="save the strings as .json or .npy, or download the file and give its path",
        )
    with open_buffered(path) as file:
        tail, at = b"", 0
        while block := file.read(_SCAN):
            block = tail + block
            start = at - len(tail)
            found = block.find(b"GCOL\x01\0\0\0")
            while found >= 0:
                here = file.tell()
                _check_heap(name, file, start + found)
                file.seek(here)
                found = block.find(b"GCOL\x01\0\0\0", found + 8)
            at, tail = start + len(block), block[-7:]


def _check_heap(name: str, file: Any, address: int) -> None:
    file.seek(address + 8)
    size = int.from_bytes(file.read(8), "little")
    at, end = address + 16, address + size
    while at + 16 <= end:
        file.seek(at)
        head = file.read(16)
        number, nbytes = int.from_bytes(head[:2], "little"), int.from_bytes(head[8:], "little")
        step = -(-nbytes // 8) * 8 + (16 if number else 0)  # free space counts its own head
        if len(head) < 16 or step <= 0 or at + step > end:
            raise InputError(
                f"{name} is damaged: its heap of strings holds an object of {nbytes} bytes at byte {at}",
                expected="strings that fill it",
                todo="copy or save the file again",
            )
        at += step
