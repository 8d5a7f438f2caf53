"""Named arrays in one safetensors file: written whole or not at all, and checked when they are read."""

import hashlib
import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from leanrecon.errors import InputError, StoreError
from leanrecon.memory import buffer
from leanrecon.places.files import write_whole
from leanrecon.weights.safetensors import header_of, read_header

Array = np.ndarray[Any, Any]

_TYPES = {"F32": np.dtype("<f4"), "F64": np.dtype("<f8"), "I64": np.dtype("<i8")}
_NAMES = {dtype: name for name, dtype in _TYPES.items()}
_READ = 1 << 24  # bytes per read of a check


def write_tensors(path: Path, arrays: Mapping[str, Array], record: Mapping[str, Any]) -> None:
    """Write arrays (float32, float64 or int64) with a record of plain values, and the SHA-256 of them all.

    Only arrays that are not contiguous are copied.
    """
    flat = {name: np.ascontiguousarray(array).reshape(-1).view(np.uint8) for name, array in arrays.items()}
    digest = hashlib.sha256()
    for data in flat.values():
        digest.update(data.data)
    metadata = {"record": json.dumps(record, sort_keys=True, allow_nan=False), "sha256": digest.hexdigest()}
    tables = {name: (_NAMES[array.dtype], array.shape, array.nbytes) for name, array in arrays.items()}
    start = header_of(tables, metadata)

    def write(file: Any) -> None:
        file.write(start)
        for data in flat.values():
            file.write(data.data)

    write_whole(path, write)


class TensorFile:
    """A complete file of arrays; ``record`` holds the plain values that were written with them.

    Raises StoreError for another kind of file, a truncated one, or one that does not match its checksum.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.exists():
            raise StoreError(f"there is no file {path}", todo="run what writes it first")
        try:
            self._entries, metadata = read_header(path)
            self.record: dict[str, Any] = json.loads(metadata["record"])
            digest = hashlib.sha256()
            with path.open("rb") as file:
                file.seek(min((entry.start for entry in self._entries.values()), default=0))
                while self._entries and (block := file.read(_READ)):
                    digest.update(block)
            if digest.hexdigest() != metadata["sha256"]:
                raise ValueError("it does not match its checksum")
        except (InputError, OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{path} is damaged ({error})", todo="remove it and run again, which writes it anew"
            ) from None

    @property
    def names(self) -> list[str]:
        return list(self._entries)

    def read(self, name: str, out: Array | None = None) -> Array:
        """One array, in new pages or in ``out`` (contiguous, of its type and shape)."""
        entry = self._entries[name]
        dtype, shape = _TYPES[entry.dtype], entry.shape
        if out is None:
            out = buffer(shape, dtype)
        if out.dtype != dtype or out.shape != shape:
            raise StoreError(f"{name} in {self.path} is {dtype} {list(shape)}, not {out.dtype} {list(out.shape)}")
        if not prod(shape):
            return out
        with self.path.open("rb") as file:
            file.seek(entry.start)
            view = out.reshape(-1).view(np.uint8).data
            while view:
                n = file.readinto(view)
                if not n:
                    raise StoreError(f"{self.path} ends before its header says", todo="remove it and run again")
                view = view[n:]
        return out
