"""The keys of the arrays in a file, from its directory alone."""

import zipfile
from collections.abc import Iterator
from pathlib import Path

from leanrecon.datasets.files.rows import explained_damage

MOST = 200
"""Data sets of an HDF5 file that are looked for."""


def keys_of(path: Path) -> Iterator[str | None]:
    """The keys of an .npz, .mat or HDF5 file; None for an .npy file, which holds one array."""
    suffix = path.suffix.lower()
    if suffix == ".npy":
        yield None
        return
    with explained_damage(str(path)):
        if suffix == ".npz":
            with zipfile.ZipFile(path) as archive:
                keys = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        else:
            keys = _matlab_keys(path) if suffix == ".mat" else _hdf5_keys(path)
    yield from keys


def _matlab_keys(path: Path) -> list[str]:
    import h5py

    if h5py.is_hdf5(path):
        return _hdf5_keys(path)
    from scipy.io import whosmat

    return [name for name, _, _ in whosmat(path)]


def _hdf5_keys(path: Path) -> list[str]:
    import h5py

    found: list[str] = []

    def note(name: str, item: object) -> bool | None:
        if isinstance(item, h5py.Dataset) and not name.startswith("#"):
            found.append(name)
        return True if len(found) >= MOST else None

    with h5py.File(path, "r") as file:
        file.visititems(note)
    return found
