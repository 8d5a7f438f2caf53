"""Opening arrays in files: which file and key a setting names, and what is in there."""

import difflib
import os
from pathlib import Path

from leanrecon.datasets.files import hdf5, mat5, npy, zarrs
from leanrecon.datasets.files.hdf5 import is_hdf5, open_h5
from leanrecon.datasets.files.mat5 import open_mat5
from leanrecon.datasets.files.npy import open_npy, open_npz
from leanrecon.datasets.files.rows import Rows, explained_damage
from leanrecon.datasets.files.zarrs import open_zarr
from leanrecon.errors import InputError
from leanrecon.places.inputs import InputFile, is_url
from leanrecon.places.location import elsewhere, written_right
from leanrecon.places.paths import expanded, find
from leanrecon.weights.needs import FETCH
from leanrecon.weights.published import FILES

SUFFIXES = (".npy", ".npz", ".mat", ".h5", ".hdf5", ".zarr")

ZARR = ".zarr"
"""The ending of a folder that is an array or a group of Zarr."""

_POINTER = 1024  # bytes: pointers of Git LFS and git-annex are shorter


def find_file(text: str, base_dir: Path | None) -> InputFile | None:
    """The file of that name in the current folder or, failing that, in ``base_dir``; None where there is none.

    A folder whose name ends in ``.zarr`` counts as a file. A URL is not asked for: whoever opens it learns whether it
    is there. Raises InputError for a URL that names no bucket.
    """
    if is_url(text):
        file, key = _of_url(text)
        return file if key is None else None
    return find(text, base_dir, _is_input)


def _is_input(path: Path) -> bool:
    return path.is_file() or (path.suffix.lower() == ZARR and path.is_dir())


def _of_url(spec: str) -> tuple[InputFile, str | None]:
    """The file and the key of ``URL`` or ``URL:KEY``: a key follows a colon behind the ending of a kind of file."""
    scheme, _, rest = spec.partition("://")
    ends = [at for at, character in enumerate(rest) if character == ":"]
    at = next((at for at in ends if Path(rest[:at]).suffix.lower() in (*SUFFIXES, ".json")), None)
    file = elsewhere(f"{scheme}://{rest if at is None else rest[:at]}")
    if file is None:
        raise _not_read(spec)
    return file, None if at is None else rest[at + 1 :]


def locate(spec: str, default_path: str | None, base_dir: Path | None) -> tuple[InputFile, str | None]:
    """Read ``FILE``, ``FILE:KEY`` or ``:KEY`` (a key of ``default_path``) as a file that exists, or a URL, and a key.

    A file whose name has a colon in it wins over a key, and so do the colons of drive letters.
    """
    text, key = spec, None
    if spec.startswith(":"):
        if default_path is None:
            raise InputError(f'"{spec}" is a key without a file', todo="name the file in `path`, or write FILE:KEY")
        text, key = default_path, spec[1:]
    if is_url(text):
        file, own = _of_url(text)
        return file, own if key is None else key
    if path := find_file(text, base_dir):
        return path, key
    if key is None:
        for at in sorted((i for i, c in enumerate(spec) if c == ":"), reverse=True):
            if path := find_file(spec[:at], base_dir):
                return path, spec[at + 1 :]
        left, _, right = spec.rpartition(":")
        text = left if Path(left).suffix.lower() in SUFFIXES and not Path(right).suffix else spec
    raise missing_file(text, base_dir)


def needed_array(spec: str, default_path: str | None, base_dir: Path | None, setting: str) -> InputFile:
    """The file of an array that a setting names, as ``locate`` reads it; raises InputError where there is none."""
    try:
        return locate(spec, default_path, base_dir)[0]
    except InputError as error:
        raise InputError(f"{setting}: {error.found}", expected=error.expected, todo=error.todo) from None


def located_array(spec: str, base_dir: Path | None) -> str:
    """``FILE`` or ``FILE:KEY`` with the file's whole path; what is not there, and ``:KEY``, stay as they are."""
    if spec.startswith(":") or is_url(spec):
        return spec
    try:
        path, key = locate(spec, None, base_dir)
    except InputError:  # the stage dataset says what is missing
        return spec
    assert isinstance(path, Path)  # URLs stay as they are
    return str(path.absolute()) if key is None else f"{path.absolute()}:{key}"


def _not_read(url: str) -> InputError:
    scheme, _, rest = url.partition("://")
    return InputError(
        f"{url} is a URL that can't be read from",
        expected="a file on a disk of this machine, or in a bucket (s3://, gs://, az://)",
        todo=written_right(scheme, rest) or "download it, and give its path",
    )


def missing_file(text: str, base_dir: Path | None) -> InputError:
    """The error of a file that is not there: what is in its place, or a name like it."""
    folders = [Path.cwd(), *([base_dir.absolute()] if base_dir else [])]
    places = [(folder / expanded(text)).absolute() for folder in folders]
    for place in places:
        if place.is_symlink():
            to = os.readlink(place)
            annex = ".git/annex" in to.replace("\\", "/")
            return InputError(
                f"{place} is a link to {to}, which is not there",
                expected="the file itself",
                todo=f"fetch it: `datalad get {text}` or `git annex get {text}`" if annex else "copy what it links to",
            )
        if place.is_dir():
            return InputError(f"{place} is a folder", expected="a file", todo="name one of the files in it")
        if place.exists():  # a pipe, a device, or a socket, which has an end at best
            return InputError(
                f"{place} is a pipe or a device",
                expected="a file",
                todo="write what comes from it to a file, and name that",
            )
    neighbours = [p.name for place in places if place.parent.is_dir() for p in place.parent.iterdir()]
    near = difflib.get_close_matches(places[0].name, neighbours, 1)
    todo = f'perhaps "{near[0]}" is meant' if near else "check the path; relative paths start at the current folder"
    return InputError(
        f"there is no file {text}",
        expected=" or ".join(dict.fromkeys(map(str, places))) if str(places[0]) != text else None,
        todo=FETCH if text in FILES else todo,
    )


def refuse_pointer(path: InputFile) -> None:
    """Refuse what Git LFS or git-annex leave in place of a file that was not fetched; raises InputError."""
    if not isinstance(path, Path) or path.is_dir() or path.stat().st_size > _POINTER:
        return  # what is put into a bucket was fetched
    with explained_damage(str(path)), path.open("rb") as file:
        text = file.read(_POINTER)
    if text.startswith(b"version https://git-lfs"):
        raise InputError(f"{path} is a pointer of Git LFS", expected="the file itself", todo="fetch it: `git lfs pull`")
    if text.startswith((b"/annex/objects/", b"../.git/annex/", b".git/annex/")):
        raise InputError(
            f"{path} is a pointer of git-annex", expected="the file itself", todo=f"fetch it: `datalad get {path.name}`"
        )


def open_array(spec: str, default_path: str | None = None, base_dir: Path | None = None) -> Rows:
    """Open one array of a file by ``FILE``, ``FILE:KEY`` or ``:KEY``; only headers are read.

    A key may be left out where the file holds one array. Raises InputError for a file or key that is missing,
    damaged, of an unknown kind, or that would need unpickling.
    """
    path, key = locate(spec, default_path, base_dir)
    refuse_pointer(path)
    rows = _open(path, key)
    if not rows.shape and rows.dtype.kind != "O":
        rows.close()
        what = "string" if rows.dtype.kind in "US" else "number"
        raise InputError(f"{rows.name} holds a single {what}", expected="an array whose first axis is rows")
    return rows


def _open(path: InputFile, key: str | None) -> Rows:
    suffix = path.suffix.lower()
    if suffix == ".npy":
        if key:
            raise InputError(f"{path} has no key {key!r}: an .npy file holds one array", todo=f"leave out :{key}")
        return open_npy(path)
    if suffix == ".npz":
        return open_npz(path, key)
    if suffix == ZARR:
        return open_zarr(path, key)
    if suffix in (".h5", ".hdf5"):
        return open_h5(path, key)
    if suffix == ".mat":
        return open_h5(path, key) if is_hdf5(path) else open_mat5(path, key)
    raise InputError(f"{path} is of an unknown kind", expected=f"a file that ends in {', '.join(SUFFIXES)}")


def top_names(path: InputFile) -> list[str]:
    """The names at the top of a MATLAB or HDF5 file, its groups and structs among them; raises InputError for damage."""
    refuse_pointer(path)
    return (hdf5.top_names if path.suffix.lower() != ".mat" or is_hdf5(path) else mat5.names_in)(path)


def texts_below(path: InputFile, group: str) -> dict[str, dict[str, str]]:
    """The strings two levels below a group of an HDF5 file, by both names; nothing for MATLAB 5, which has no groups."""
    return hdf5.texts_below(path, group) if is_hdf5(path) else {}


def array_keys(path: InputFile) -> list[str | None]:
    """The keys of the arrays of a file, from its directory alone; None for the one array of an .npy file.

    Raises InputError for damage.
    """
    refuse_pointer(path)
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return [None]
    if suffix == ".npz":
        return [*npy.names_in(path)]
    if suffix == ZARR:
        return zarrs.names_in(path)
    return [*(hdf5 if suffix != ".mat" or is_hdf5(path) else mat5).names_in(path)]
