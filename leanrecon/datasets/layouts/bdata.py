"""One BData file (bdpy 0.26): a matrix of voxels and labels side by side, and a table that says which is which."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from leanrecon.datasets.builder.columns import Columns
from leanrecon.datasets.files.hdf5 import is_hdf5
from leanrecon.datasets.files.open import open_array
from leanrecon.datasets.files.rows import Rows, explained_damage
from leanrecon.datasets.layouts.files import whole_array
from leanrecon.errors import InputError

Array = np.ndarray[Any, Any]

_ROWS = 256  # trials whose labels are read together
_LONGEST = 10**5  # keys beyond which a file is taken for something else


class BData:
    """The metadata of a BData file in HDF5; the matrix is read by rows when asked for."""

    def __init__(self, path: Path) -> None:
        import h5py

        self.path = path
        if not is_hdf5(path):
            raise InputError(
                f"{path} is no HDF5 file",
                expected="a BData file in HDF5",
                todo="save it as .h5 with bdpy: data.save(PATH)",
            )
        with explained_damage(str(path)), h5py.File(path, "r") as file:
            data, meta = _child(file, "dataset", "dataSet"), _child(file, "metadata", "metaData")
            if data is None or meta is None or "key" not in meta or "value" not in meta:
                raise InputError(f"{path} is no BData file", expected="/dataset, /metadata/key and /metadata/value")
            self.matrix = data.name.strip("/")
            keys = meta["key"]
            if keys.ndim != 1 or len(keys) > _LONGEST or meta["value"].shape != (len(keys), data.shape[-1]):
                raise InputError(
                    f"{path} has metadata of shape {meta['value'].shape} for {keys.shape} keys and {data.shape} numbers",
                    expected="one row of flags a key, one column a column of the matrix",
                )
            self.keys = {_text(key): row for row, key in enumerate(keys[()])}
            values = meta["value"].name
            self.names = _value_maps(file)
            self.rows = int(data.shape[0])
        self.flags: Array = whole_array(path, values.strip("/"))
        self.held = 2 * int(self.flags.nbytes)

    def __len__(self) -> int:
        return self.rows

    def columns_of(self, key: str) -> Array:
        """The columns whose metadata row ``key`` is 1, ascending."""
        if key not in self.keys:
            known = [name for name in self.keys if name.startswith(("ROI", "Voxel"))] or list(self.keys)
            raise InputError(f"{self.path} has no metadata {key!r}", expected=f"one of {', '.join(known[:30])}")
        columns = np.flatnonzero(self.flags[self.keys[key]] == 1)
        if not len(columns):
            raise InputError(f"{self.path} has no column of {key}", expected="columns whose flag is 1")
        return columns

    def voxels(self, columns: Array) -> Rows:
        """The chosen columns of all trials."""
        return Columns(open_array(f"{self.path}:{self.matrix}"), columns)

    def numbers(self, key: str) -> Array:
        """A label column; of ``Label`` with several columns the second, which is the stimulus."""
        columns = self.columns_of(key)
        column = columns[1] if key == "Label" and len(columns) > 1 else columns[0]
        out = np.empty((self.rows, 1))
        with open_array(f"{self.path}:{self.matrix}") as matrix:
            for start in range(0, self.rows, _ROWS):
                index = np.arange(start, min(start + _ROWS, self.rows))
                one: Array = np.empty((len(index), matrix.shape[1]), matrix.dtype)
                matrix.read(index, one)
                out[index, 0] = one[:, column]
        return out[:, 0]

    def labels(self, key: str) -> list[str]:
        """The stimulus of every trial: its name in vmap, the name of an ImageNet image, or the number itself."""
        names = self.names.get("stimulus_name" if key not in self.names and "stimulus_name" in self.keys else key)
        values = self.numbers("stimulus_name" if names and key not in self.names else key)
        if np.isnan(values).any():
            raise InputError(f"{self.path} has trials without {key}", expected="a stimulus for every trial")
        if names:
            return [names.get(float(value)) or label_text(float(value)) for value in values]
        return [label_text(float(value)) for value in values]

    def areas(self, columns: Array) -> dict[str, Array]:
        """The areas of the chosen voxels: bool [voxels] by name, without ``ROI_``."""
        found = {}
        for key, row in self.keys.items():
            if key.startswith("ROI_"):
                mask = self.flags[row, columns] == 1
                if mask.any():
                    found[key.removeprefix("ROI_")] = mask
        return found

    def places(self, columns: Array) -> dict[str, Array]:
        """Coordinates of the chosen voxels in millimetres, where the file tells them."""
        axes = [f"voxel_{axis}" for axis in "xyz"]
        if not all(axis in self.keys for axis in axes):
            return {}
        rows = [self.keys[axis] for axis in axes]
        return {"coordinates": np.stack([self.flags[row, columns] for row in rows], axis=1).astype(np.float32)}


def label_text(value: float) -> str:
    """The name of a stimulus from its number: 1518878.005958 is image 5958 of WordNet's n01518878."""
    if value == int(value):
        return str(int(value))
    synset, _, image = f"{value:.6f}".partition(".")
    return f"n{int(synset):08}_{int(image)}"


def _child(file: Any, *names: str) -> Any:
    return next((file[name] for name in names if name in file), None)


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _value_maps(file: Any) -> dict[str, dict[float, str]]:
    """Names of label values: ``/vmap/KEY/VALUE`` holds a string."""
    maps: dict[str, dict[float, str]] = {}
    for key, values in _items(file.get("vmap")):
        named = {}
        for value, text in _items(values):
            with contextlib.suppress(ValueError):
                named[float(value)] = _text(text[()])
        maps[key] = named
    return maps


def _items(group: Any) -> Iterator[tuple[str, Any]]:
    return iter(group.items()) if hasattr(group, "items") else iter(())
