"""Rows of a dataset of an HDF5 file, those of MATLAB 7.3 among them, through h5py."""

import contextlib
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from leanrecon.datasets.files.hdf5_checks import check_heaps, check_storage, kind_of, type_of
from leanrecon.datasets.files.keys import choose_key
from leanrecon.datasets.files.rows import BLOCK, Block, Rows, block_shape, explained_damage, near, row_blocks
from leanrecon.errors import InputError
from leanrecon.places.inputs import InputFile, RangedFile, for_library, problems_told
from leanrecon.places.location import Location

Array = np.ndarray[Any, Any]

_MOST_NAMES = 2000
"""Names in a file that are looked at to say what there is."""

_NUMBERS = {"double", "single", "logical", *(f"{sign}int{n}" for sign in ("", "u") for n in (8, 16, 32, 64))}
"""MATLAB's classes of numbers."""

_HDF5_CACHE = 2**20
"""Bytes of chunks that HDF5 keeps for a dataset unless told otherwise; a larger plain chunk is read in parts."""

_SIGNATURE, _MOST_USER = b"\x89HDF\r\n\x1a\n", 2**20

_UNPACKING = 3
"""Chunks in memory while one is unpacked: as it was stored, and a buffer that is doubled until it holds it."""


class H5Rows(Rows):
    """A dataset of an HDF5 file; one that MATLAB 7.3 wrote is presented in MATLAB's own order of dimensions."""

    def __init__(self, path: InputFile, key: str, file: Any) -> None:
        dataset = file[key]
        matlab = dataset.attrs.get("MATLAB_class")
        self.transposed = matlab is not None or path.suffix.lower() == ".mat"
        shape = (dataset.shape or ())[:: -1 if self.transposed else 1]
        dtype, kind = type_of(dataset), kind_of(dataset)
        if matlab is not None:
            name = matlab.decode("utf-8", "replace") if isinstance(matlab, bytes) else str(matlab)
            plain = name in _NUMBERS and "MATLAB_object_decode" not in dataset.attrs
            kind = f"MATLAB {name}" if not kind or not plain else kind
            if not plain:  # a string, a table or an object is kept as numbers of other arrays
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
        packed = bool(self.chunks) and dataset.id.get_create_plist().get_nfilters() > 0
        self.large = chunk > BLOCK and len(self.shape) > 1
        if self.large and self.chunks:
            beside = (math.ceil(n / c) for n, c in zip(self.shape[2:], self.chunks[2:], strict=True))
            self.cache = chunk * math.prod(beside) if packed else 0
            self.scratch = 4 * BLOCK + self.cache + (_UNPACKING - 1) * chunk * packed
        else:
            self.cache = 0
            self.scratch = 3 * max(BLOCK, self._block_nbytes(len(self))) + _UNPACKING * chunk + BLOCK

    def _block_shape(self, span: int) -> tuple[int, int]:
        return block_shape(span, self.shape, self.dtype.itemsize, self.chunks, by_columns=self.transposed)

    def _block_nbytes(self, span: int) -> int:
        rows, columns = self._block_shape(span)
        return rows * columns * math.prod(self.shape[2:]) * int(self.dtype.itemsize)

    def blocks(self, index: Array) -> Iterator[Block]:
        if self.dtype.kind not in "biuf":
            raise InputError(f"{self.name} holds {self.kind} of shape {self.shape}", expected="numbers")
        if not len(index):
            return
        if self.large:
            yield from self._parts_of_chunks(index)
            return
        n_rows, n_columns = self._block_shape(int(index[-1]) + 1 - int(index[0]))
        gap = (
            None
            if self.transposed
            else max(near(self.path) // max(self.row_nbytes, 1), self.chunks[0] if self.chunks else 0)
        )
        for rows, first, last, picks in row_blocks(index, n_rows, gap):
            if len(self.shape) == 1:
                yield rows, (), self._read((slice(first, last),))[picks]
                continue
            for start in range(0, self.shape[1], n_columns):
                columns = slice(start, min(start + n_columns, self.shape[1]))
                yield rows, (columns,), self._read((slice(first, last), columns))[picks]

    def _parts_of_chunks(self, index: Array) -> Iterator[Block]:
        """Large chunks one after the other, each in parts: HDF5 keeps the one that is unpacked."""
        assert self.chunks is not None
        deep, wide = self.chunks[0], self.chunks[1]
        each = max(math.prod(self.shape[2:]) * self.dtype.itemsize, 1)
        cuts = np.flatnonzero(np.diff(index // deep)) + 1
        for a, b in itertools.pairwise([0, *cuts.tolist(), len(index)]):
            for start in range(0, self.shape[1], wide):
                stop = min(start + wide, self.shape[1])
                # By columns where the file is: what lies together is then read together.
                width = stop - start if not self.transposed else max(BLOCK // (each * deep), 1)
                for left in range(start, stop, width):
                    columns = slice(left, min(left + width, stop))
                    most = max(BLOCK // (each * (columns.stop - left)), 1)
                    for rows, first, last, picks in row_blocks(index[a:b], most):
                        block = self._read((slice(first, last), columns))[picks]
                        yield slice(a + rows.start, a + rows.stop), (columns,), block

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


def is_hdf5(path: InputFile) -> bool:
    if isinstance(path, Location):
        return _has_signature(path)
    import h5py

    with explained_damage(str(path)):
        return bool(h5py.is_hdf5(str(path)))


def _has_signature(path: Location) -> bool:
    """Whether HDF5's signature is at the start of a file, or behind a block of the user's (512 bytes, 1 KB, 2 KB …)."""
    file, at = RangedFile(path), 0
    while at < min(file.size, _MOST_USER):
        file.seek(at)
        if file.read(len(_SIGNATURE)) == _SIGNATURE:
            return True
        at = max(512, 2 * at)
    return False


@contextlib.contextmanager
def _opened(path: InputFile) -> Iterator[Any]:
    """A file of HDF5, open; raises InputError for damage."""
    import h5py

    with explained_damage(str(path)):
        source = for_library(path)
        with problems_told(source), h5py.File(source, "r") as file:
            yield file


def open_h5(path: InputFile, key: str | None) -> H5Rows:
    """Open a dataset; only the wanted one is looked at.

    Raises InputError for damage, for links that lead nowhere, and for rows that HDF5 would make up.
    """
    import h5py

    with contextlib.ExitStack() as stack, explained_damage(str(path)):
        source = for_library(path)
        stack.enter_context(problems_told(source))
        file = stack.enter_context(h5py.File(source, "r"))
        wanted = key.strip("/") if key else None
        if not wanted or not _is_dataset(path, file, wanted):
            if wanted:
                _refuse_group(path, file, wanted)
            names, more = _names(file)
            wanted = choose_key(path, wanted or None, names, lambda name: _described(path, file, name), more)
        rows = H5Rows(path, wanted, file)
        if (elsewhere := _in_another_file(rows)) is not None:
            stack.close()
            return open_h5(*elsewhere)
        check_storage(rows.name, path, rows.dataset)
        if rows.cache:
            access = rows.dataset.id.get_access_plist()
            access.set_chunk_cache(521, rows.cache + BLOCK, 0.75)
            rows.dataset = None  # a dataset that is open keeps the cache that it has
            rows.dataset = h5py.Dataset(h5py.h5d.open(file.id, wanted.encode(), access))
        with problems_told(source):
            stack.pop_all()
        return rows


def _in_another_file(rows: H5Rows) -> tuple[Path, str] | None:
    """The file and key of a dataset that a link leads to in another file; raises InputError in a bucket.

    There HDF5 would follow the link into the same file again, and take what has that name in it.
    """
    import h5py

    if h5py.h5o.get_info(rows.dataset.id).fileno == h5py.h5o.get_info(rows.file.id).fileno:
        return None
    if isinstance(rows.path, Location):
        raise InputError(
            f"{rows.name} is a link to another HDF5 file, which can't be followed in a bucket",
            expected="numbers in the file itself",
            todo="save the numbers in one file, or download all files and give the path",
        )
    other, wanted = rows.dataset.file, h5py.h5o.get_info(rows.dataset.id).addr
    # A link to that link gives its own name to the dataset.
    names = (name for name in (rows.dataset.name, *_names(other)[0]) if isinstance(other.get(name), h5py.Dataset))
    key = next((name for name in names if h5py.h5o.get_info(other[name].id).addr == wanted), None)
    if key is None:
        raise InputError(f"{rows.name} is a link to links", expected="a dataset", todo=f"name that in {other.filename}")
    return Path(other.filename), key


def names_in(path: InputFile) -> list[str]:
    """The names of the datasets of a file; raises InputError for damage."""
    with _opened(path) as file:
        return _names(file)[0]


def top_names(path: InputFile) -> list[str]:
    """The names at the top of a file, whatever they name; raises InputError for damage."""
    with _opened(path) as file:
        return list(file)


def texts_below(path: InputFile, group: str) -> dict[str, dict[str, str]]:
    """The strings two levels below a group, by both names; what is not a string is left out.

    Raises InputError for damage.
    """
    import h5py

    found: dict[str, dict[str, str]] = {}
    with _opened(path) as file:
        check_heaps(f"{path}:{group}", path)
        groups = {name: of for name, of in file[group].items() if isinstance(of, h5py.Group)}
        for name, of in groups.items():
            texts = {key: item.asstr("utf-8", errors="replace")[()] for key, item in of.items() if _is_text(item)}
            found[name] = {key: str(text) for key, text in texts.items()}
    return found


def _is_text(item: Any) -> bool:
    import h5py

    return isinstance(item, h5py.Dataset) and item.shape == () and bool(h5py.check_string_dtype(item.dtype))


def _is_dataset(path: InputFile, file: Any, key: str) -> bool:
    """Whether a key names a dataset; raises InputError for a link that leads nowhere."""
    import h5py

    link = None
    with contextlib.suppress(Exception):  # a key with a group in it that is not there
        link = file.get(key, getlink=True)
    try:
        return isinstance(file[key], h5py.Dataset)
    except Exception as error:
        if isinstance(link, h5py.SoftLink | h5py.ExternalLink):
            to = f"{link.filename}:{link.path}" if isinstance(link, h5py.ExternalLink) else link.path
            raise InputError(
                f"{path}:{key} is a link to {to}, which can't be opened ({error})",
                expected="a dataset",
                todo="copy that file too, or save the numbers themselves",
            ) from error
        if link is not None and key in file:
            raise
        return False


def _refuse_group(path: InputFile, file: Any, key: str) -> None:
    """Raise InputError for a group that is a variable of MATLAB: a sparse matrix, a struct, an object."""
    import h5py

    group = file.get(key) if key in file else None
    if not isinstance(group, h5py.Group) or (name := group.attrs.get("MATLAB_class")) is None:
        return
    words = "sparse" if "MATLAB_sparse" in group.attrs else name.decode() if isinstance(name, bytes) else str(name)
    fields = ", ".join(f"{key}/{field}" for field in itertools.islice(group, 8))
    raise InputError(
        f"{path}:{key} holds MATLAB {words}",
        expected="a plain array of real numbers" if words == "sparse" else f"one of its fields: {fields}",
        todo="convert it in MATLAB with full(…), and save it again" if words == "sparse" else None,
    )


def _names(file: Any) -> tuple[list[str], int]:
    """The names of datasets, and how many there are beside them, at least."""
    import h5py

    names: list[str] = []
    more = 0

    def note(name: str, item: Any) -> bool | None:
        nonlocal more
        if isinstance(item, h5py.Dataset) and not name.startswith("#refs#"):
            if len(names) < _MOST_NAMES:
                names.append(name)
            else:
                more += 1
        return None

    file.visititems(note)
    return names, more


def _described(path: InputFile, file: Any, name: str) -> str:
    rows = H5Rows(path, name, file)
    return f"{'x'.join(map(str, rows.shape))} {rows.kind}"
