"""How fast a machine and its places are: as ``doctor --bench`` measured them, or stated rates where it did not."""

import errno
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from leanrecon.places import Location
from leanrecon.places.disk import explained_disk_errors
from leanrecon.places.files import read_json, write_json
from leanrecon.places.paths import cache_folder

RECORD = "rates.json"
"""The record, in the cache of downloaded files."""

LEAST, MOST = 1.0, 1e24
"""Operations or bytes a second that a kept rate can be; others were not measured."""


@dataclass(frozen=True)
class Rates:
    """Operations and bytes a second. The values here are those of a plan where nothing was measured."""

    gemm: float = 50e9
    """Floating-point operations of a float32 matrix product a second, one multiplication and one addition each: about one core with AVX2."""
    write: float = 200e6
    """Bytes of a file written a second, until the disk has them; to a bucket, in one request after another."""
    read: float = 400e6
    """Bytes of a file read a second, past the page cache."""
    store_write: float = 200e6
    """Bytes of chunks written a second, their checksums included."""
    store_read: float = 400e6
    """Bytes of chunks read a second, their checksums checked."""
    latency: float = 0.0
    """Seconds that a small request takes; 0 on a disk."""
    measured: str = ""
    """The day of the measurement; empty: nothing was measured."""


BUCKET = Rates(write=50e6, read=80e6, store_write=50e6, store_read=80e6, latency=0.03)
"""Rates of a bucket that was not measured."""


def place_of(where: Location) -> str:
    """What rates are kept by: the bucket, or the disk that a folder lies on, by its mount point."""
    path = where.place.local_path(where.key)
    if path is None:
        return where.place.address("")
    path = Path(os.path.abspath(path))
    return next(str(folder) for folder in (path, *path.parents) if folder.exists() and os.path.ismount(folder))


def rates_of(where: Location) -> Rates:
    """The rates that were measured here, of this process's threads and of a place; the stated ones for the rest."""
    default = Rates() if where.place.local_path(where.key) is not None else BUCKET
    found = _kept().get(place_of(where))
    if not isinstance(found, dict):
        return default
    known = {field.name for field in fields(Rates)}
    kept = {name: value for name, value in found.items() if name in known}
    if not all(_is_rate(name, value) for name, value in kept.items()):
        return default  # damaged, or of another version: measured again by the next doctor --bench
    return Rates(**{**asdict(default), **kept})


def _is_rate(name: str, value: Any) -> bool:
    """Whether a value that was read is one that ``doctor --bench`` writes."""
    if name == "measured":
        return isinstance(value, str)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and (0 if name == "latency" else LEAST) <= value <= MOST


def keep(where: Location, rates: Rates) -> Path:
    """Keep the rates of a place; returns the file. Raises StoreError where the cache can't be written."""
    file = cache_folder() / RECORD
    with explained_disk_errors(file, "the variable LEANRECON_CACHE"):
        file.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(file.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    write_json(file, {**_kept(), place_of(where): asdict(rates)}, indent=2)
    return file


def _kept() -> Mapping[str, Any]:
    found = read_json(cache_folder() / RECORD)
    return found if isinstance(found, dict) else {}
