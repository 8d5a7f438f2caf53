"""One BData file (bdpy 0.26): a matrix of voxels and labels side by side, and a table that says which is which."""

from typing import Any

import numpy as np

from leanrecon.datasets.builder.columns import Columns
from leanrecon.datasets.files.captions import stream_captions
from leanrecon.datasets.files.open import open_array, texts_below, top_names
from leanrecon.datasets.files.rows import Rows
from leanrecon.datasets.layouts.files import opened, whole_array
from leanrecon.errors import InputError
from leanrecon.places.inputs import InputFile

Array = np.ndarray[Any, Any]

_LONGEST = 10**5  # keys beyond which a file is taken for something else


class BData:
    """The metadata of a BData file in HDF5 or MATLAB's format; the matrix is read when asked for.

    HDF5 files hold ``/dataset`` and ``/metadata/{key,value}``, MATLAB files a matrix ``dataSet`` and a struct
    ``metaData`` with the fields ``key`` and ``value``; each spelling is read from either.
    """

    def __init__(self, path: InputFile) -> None:
        self.path = path
        top = top_names(path)
        data, meta = (next((name for name in of if name in top), None) for of in _SPELLINGS)
        if data is None or meta is None:
            raise InputError(f"{path} is not a BData file", expected="dataset, and metadata with key and value")
        self.matrix = f"{path}:{data}"
        with opened(path, data, shape=(None, None)) as matrix:
            self.rows, columns = matrix.shape
        with opened(path, f"{meta}/value", shape=(None, columns)) as flags:
            n, self.held = len(flags), 2 * len(flags) * flags.row_nbytes
        keys = dict(stream_captions(f"{path}:{meta}/key")) if n <= _LONGEST else {}
        if len(keys) != n:
            raise InputError(
                f"{path} has {n} rows of flags and {len(keys)} keys in its metadata", expected="one row of flags a key"
            )
        self.keys: dict[str, int] = {}
        for row, key in sorted(keys.items()):
            self.keys.setdefault(key, row)
        self.flags: Array = whole_array(path, f"{meta}/value")
        self.names = _by_number(texts_below(path, "vmap")) if "vmap" in top else {}

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
        return Columns(open_array(self.matrix), columns)

    def numbers(self, *keys: str) -> dict[str, Array]:
        """Label columns by key, float64 [trials], read in one pass.

        Of ``Label`` with several columns the second is taken, which is the stimulus.
        """
        columns = {}
        for key in keys:
            own = self.columns_of(key)
            columns[key] = int(own[1] if key == "Label" and len(own) > 1 else own[0])
        chosen = np.unique(list(columns.values()))
        out = np.empty((self.rows, len(chosen)))
        with Columns(open_array(self.matrix), chosen) as matrix:
            matrix.read(np.arange(self.rows), out)
        return {key: out[:, np.searchsorted(chosen, column)] for key, column in columns.items()}

    def whole(self, key: str, values: Array) -> list[int]:
        """Label values as whole numbers; raises InputError where they are none."""
        if not np.array_equal(values, np.rint(values)):
            raise InputError(
                f"{self.path} has a {key} that is not a whole number",
                expected=f"whole numbers as {key}, one for every trial",
            )
        return [int(value) for value in values.tolist()]

    def label_key(self, key: str) -> str:
        """The column to read for a stimulus: ``stimulus_name`` where only that has names in vmap."""
        return "stimulus_name" if key not in self.names and {"stimulus_name"} <= self.names.keys() & self.keys else key

    def labels(self, key: str, values: Array) -> list[str]:
        """The stimulus of every trial: its name in vmap, the name of an ImageNet image, or the number itself."""
        if np.isnan(values).any():
            raise InputError(f"{self.path} has trials without {key}", expected="a stimulus for every trial")
        names = self.names.get(key, {})
        return [names.get(value) or label_text(value) for value in values.tolist()]

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


_SPELLINGS = (("dataset", "dataSet"), ("metadata", "metaData"))


def label_text(value: float) -> str:
    """The name of a stimulus from its number: 1518878.005958 is image 5958 of WordNet's n01518878."""
    if value == int(value):
        return str(int(value))
    synset, _, image = f"{value:.6f}".partition(".")
    return f"n{int(synset):08}_{int(image)}"


def _by_number(texts: dict[str, dict[str, str]]) -> dict[str, dict[float, str]]:
    """Names of label values by key: ``/vmap/KEY/VALUE`` holds a string. What is not a number names no value."""
    return {key: {float(value): text for value, text in of.items() if _is_number(value)} for key, of in texts.items()}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
