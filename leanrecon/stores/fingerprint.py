"""What a store was made of: settings and contents in, one hash out; never paths, dates or device names."""

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from leanrecon.places import Location, LocationLike, as_location


def fingerprint(made_of: Mapping[str, Any]) -> str:
    """SHA-256 of plain values (numbers, strings, lists, dicts), independent of the order of keys."""
    text = json.dumps(made_of, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_fingerprint(path: LocationLike) -> str:
    """SHA-256 of a file's bytes."""
    with as_location(path).open() as file:
        return hash_of(file)


def hash_of(file: Any) -> str:
    """SHA-256 of the bytes of an open file."""
    return hashlib.file_digest(file, "sha256").hexdigest()


def file_content(path: LocationLike) -> str:
    """SHA-256 of a file's bytes, computed again only when the file has changed."""
    location = as_location(path)
    return _content_of(location, location.size(), location.stamp())


@functools.lru_cache(maxsize=64)
def _content_of(path: Location, size: int | None, stamp: int | str | None) -> str:
    return file_fingerprint(path)


def differences(then: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Name each setting that differs, with both values: ``regression.alpha was 1.0, is 2.0``."""
    for key in sorted({*then, *now}):
        before, after = then.get(key), now.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from differences(before, after, f"{prefix}{key}.")
        elif before != after:
            yield f"{prefix}{key} was {_short(before)}, is {_short(after)}"


def _short(value: Any) -> str:
    text = "not set" if value is None else json.dumps(value)
    return text if len(text) <= 60 else text[:28] + "…" + text[-28:]
