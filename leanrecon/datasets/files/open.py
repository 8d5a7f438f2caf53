"""Opening arrays in files: which file and key a setting names, and what is in there."""

import contextlib
import difflib
import zipfile
from pathlib import Path
from typing import Any

from leanrecon.datasets.files.rows import (
    FileBytes,
    H5Rows,
    Mat5Rows,
    MemberBytes,
    NpyHeader,
    NpyRows,
    Rows,
    explained_damage,
)
from leanrecon.errors import InputError
from leanrecon.places.paths import find

SUFFIXES = (".npy", ".npz", ".mat", ".h5", ".hdf5")

LISTED = 20
"""Keys that an error message lists at most."""


def find_file(text: str, base_dir: Path | None) -> Path | None:
    """The file of that name in the current folder or, failing that, in ``base_dir``; None where there is none."""
    return find(text, base_dir, Path.is_file)


def locate(spec: str, default_path: str | None, base_dir: Path | None) -> tuple[Path, str | None]:
    """Read ``FILE``, ``FILE:KEY`` or ``:KEY`` (a key of ``default_path``) as a file that exists and a key.

    A file whose name has a colon in it wins over a key, and so do the colons of drive letters.
    """
    text, key = spec, None
    if spec.startswith(":"):
        if default_path is None:
            raise InputError(f'"{spec}" is a key without a file', todo="name the file in `path`, or write FILE:KEY")
        text, key = default_path, spec[1:]
    if path := find_file(text, base_dir):
        return path, key
    if key is None:
        for at in sorted((i for i, c in enumerate(spec) if c == ":"), reverse=True):
            if path := find_file(spec[:at], base_dir):
                return path, spec[at + 1 :]
        left, _, right = spec.rpartition(":")
        text = left if Path(left).suffix.lower() in SUFFIXES and not Path(right).suffix else spec
    raise _missing_file(text, base_dir)


def located_array(spec: str, base_dir: Path | None) -> str:
    """``FILE`` or ``FILE:KEY`` with the file's whole path; what is not there, and ``:KEY``, stay as they are."""
    if spec.startswith(":"):
        return spec
    try:
        path, key = locate(spec, None, base_dir)
    except InputError:  # the stage dataset says what is missing
        return spec
    return str(path.absolute()) if key is None else f"{path.absolute()}:{key}"


def _missing_file(text: str, base_dir: Path | None) -> InputError:
    folders = [Path.cwd(), *([base_dir.absolute()] if base_dir else [])]
    places = [(folder / Path(text).expanduser()).absolute() for folder in folders]
    neighbours = [p.name for place in places if place.parent.is_dir() for p in place.parent.iterdir()]
    near = difflib.get_close_matches(places[0].name, neighbours, 1)
    return InputError(
        f"there is no file {text}" + (" (it is a folder)" if any(place.is_dir() for place in places) else ""),
        expected=" or ".join(dict.fromkeys(map(str, places))),
        todo=f'perhaps "{near[0]}" is meant' if near else "check the path; relative ones start at the current folder",
    )


def open_array(spec: str, default_path: str | None = None, base_dir: Path | None = None) -> Rows:
    """Open one array of a file by ``FILE``, ``FILE:KEY`` or ``:KEY``; only headers are read.

    A key may be left out where the file holds one array. Raises InputError for a file or key that is missing,
    damaged, of an unknown kind, or that would need unpickling.
    """
    path, key = locate(spec, default_path, base_dir)
    suffix = path.suffix.lower()
    if suffix == ".npy":
        if key:
            raise InputError(f"{path} has no key {key!r}: an .npy file holds one array", todo=f"leave out :{key}")
        return _open_npy(path)
    if suffix == ".npz":
        return _open_npz(path, key)
    if suffix in (".h5", ".hdf5"):
        return _open_h5(path, key)
    if suffix == ".mat":
        return _open_h5(path, key) if _is_hdf5(path) else _open_mat5(path, key)
    raise InputError(f"{path} is of an unknown kind", expected=f"a file that ends in {', '.join(SUFFIXES)}")


def _open_npy(path: Path) -> NpyRows:
    with explained_damage(str(path)), path.open("rb") as file:
        header = NpyHeader(file)
    _check_npy(str(path), header, path.stat().st_size)
    return NpyRows(path, None, FileBytes(path), header)


def _open_npz(path: Path, key: str | None) -> NpyRows:
    with explained_damage(str(path)), zipfile.ZipFile(path) as archive:
        members = {info.filename[:-4]: info for info in archive.infolist() if info.filename.endswith(".npy")}
        headers = {}
        for name, info in members.items():
            with archive.open(info) as file:
                headers[name] = NpyHeader(file)
    key = choose_key(path, key, {name: (header.shape, str(header.dtype)) for name, header in headers.items()})
    _check_npy(f"{path}:{key}", headers[key], members[key].file_size)
    return NpyRows(path, key, MemberBytes(path, key), headers[key])


def _check_npy(name: str, header: NpyHeader, size: int) -> None:
    if header.dtype.hasobject:
        raise InputError(
            f"{name} holds pickled Python objects, which are never loaded: a pickle can run any program",
            expected="numbers (or, for captions, strings)",
            todo="save it again as a plain array of one dtype and rectangular shape",
        )
    if size < header.offset + header.nbytes:
        raise InputError(
            f"{name} is cut short: it has {size} bytes",
            expected=f"{header.offset + header.nbytes} for {header.dtype} numbers of shape {header.shape}",
            todo="copy or save it again",
        )


def _is_hdf5(path: Path) -> bool:
    import h5py

    return bool(h5py.is_hdf5(path))


def _open_h5(path: Path, key: str | None) -> H5Rows:
    import h5py

    with contextlib.ExitStack() as stack, explained_damage(str(path)):
        file = stack.enter_context(h5py.File(path, "r"))
        listed: dict[str, tuple[tuple[int, ...], str]] = {}

        def note(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset) and not name.startswith("#refs#"):
                rows = H5Rows(path, name, file)
                listed[name] = rows.shape, rows.kind

        file.visititems(note)
        wanted = key.strip("/") if key else None
        if wanted not in listed and wanted is not None and isinstance(file.get(wanted), h5py.Dataset):
            note(wanted, file[wanted])  # behind a link, which a walk leaves out
        rows = H5Rows(path, choose_key(path, wanted, listed), file)
        stack.pop_all()
        return rows


def _open_mat5(path: Path, key: str | None) -> Mat5Rows:
    from scipy.io import whosmat

    with explained_damage(str(path)):
        listed = {name: (tuple(shape), kind) for name, shape, kind in whosmat(path)}
    key = choose_key(path, key, listed)
    return Mat5Rows(path, key, *listed[key])


def choose_key(path: Path, key: str | None, listed: dict[str, tuple[tuple[int, ...], str]]) -> str:
    """The wanted key, or the only one; an InputError lists those that are there, with shapes and the nearest name."""
    if key in listed:
        return str(key)
    if key is None and len(listed) == 1:
        return next(iter(listed))
    names = [f"{name} {'x'.join(map(str, shape))} {kind}" for name, (shape, kind) in listed.items()]
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    there = "; ".join(names[:LISTED]) + more if names else "no arrays at all"
    near = difflib.get_close_matches(key, listed, 1, 0.4) if key else []
    found = f"{path} has no array {key!r}" if key else f"{path} holds {len(listed)} arrays and no key was given"
    todo = f'perhaps "{near[0]}" is meant' if near else 'name the array as "FILE:KEY"'
    raise InputError(found, expected=f"one of those it has: {there}", todo=todo)
