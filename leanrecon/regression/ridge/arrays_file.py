"""Arrays in one file with a checksum, which the driver and workers of a fit exchange."""

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from leanrecon.errors import StoreError
from leanrecon.memory import buffer
from leanrecon.places import Location

Array = np.ndarray[Any, Any]

AGAIN = "run the same command again, which makes them again"

_ALIGNED = 64  # bytes
_DIGEST = 32  # bytes of the checksum at the end
_LONGEST = 2**20  # bytes of the first line at most


def write_arrays(path: Location, about: Mapping[str, Any], arrays: Sequence[Array]) -> str:
    """Write arrays whole: a line of JSON, the numbers, and a checksum, which is returned.

    ``about`` holds plain values.
    """
    header = dict(about) | {"arrays": [[list(array.shape), array.dtype.str] for array in arrays]}
    line = json.dumps(header).encode()
    line += b" " * (-(len(line) + 1) % _ALIGNED) + b"\n"
    parts = [line, *(np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in arrays)]
    digest = _checksum(parts)
    path.write_bytes(*parts, digest)
    return digest.hex()


def read_arrays(path: Location, what: str, into: Sequence[Array] | None = None) -> tuple[dict[str, Any], list[Array]]:
    """Read the arrays of a file into new memory, or ``into`` arrays with contiguous rows.

    ``what`` names the arrays in messages. Raises StoreError for a file that is missing or damaged.
    """
    try:
        with path.open() as file:
            line = file.readline(_LONGEST)
            header = json.loads(line)
            listed = [(tuple(shape), np.dtype(dtype)) for shape, dtype in header.pop("arrays")]
            needed = sum(math.prod(shape) * dtype.itemsize for shape, dtype in listed)
            if len(line) + needed + _DIGEST != path.size():  # before memory is taken for what a damaged line says
                raise ValueError("its size differs from that in its first line")
            if into is not None and [(array.shape, array.dtype) for array in into] != listed:
                raise ValueError("it holds other arrays")
            arrays = [buffer(shape, dtype) for shape, dtype in listed] if into is None else list(into)
            parts = [line, *(array.reshape(-1).view(np.uint8) for array in arrays)]
            for part in parts[1:]:
                file.readinto(part)  # type: ignore[attr-defined]
            if file.read() != _checksum(parts):
                raise ValueError("it does not match its checksum")
        return header, arrays
    except FileNotFoundError:
        raise StoreError(f"there are no {what} at {path}", todo=AGAIN) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(f"the {what} in {path} are damaged: {error}", todo=AGAIN) from None


def checksum_of(path: Location) -> str:
    """The checksum at the end of a file of arrays, which is not compared with them; empty where there is no such file."""
    try:
        with path.open() as file:
            if (path.size() or 0) < _DIGEST:
                return ""
            file.seek(-_DIGEST, os.SEEK_END)
            return file.read().hex()
    except FileNotFoundError:
        return ""


def _checksum(parts: Sequence[Any]) -> bytes:
    """SHA-256 of all parts together."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.digest()
