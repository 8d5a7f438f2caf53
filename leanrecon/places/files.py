"""Small files beside the stores, written whole or not at all, with their checksums where a study keeps them."""

import contextlib
import hashlib
import json
from collections.abc import Callable
from typing import IO, Any

from leanrecon.errors import StoreError
from leanrecon.places import seals
from leanrecon.places.location import Location, LocationLike, as_location


def write_whole(where: LocationLike, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file whole or not at all; ``write`` gets the binary file."""
    location = as_location(where)
    with location.writing() if seals.sealing_root(location) is None else seals.writing(location) as file:
        write(file)


def write_bytes(where: LocationLike, data: bytes) -> None:
    """Write a small file whole, its checksum first."""
    location = as_location(where)
    seals.expect(location, hashlib.sha256(data).hexdigest())
    location.write_bytes(data)


def write_text(where: LocationLike, text: str) -> None:
    """Write a text, unless the file holds it already."""
    location = as_location(where)
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if location.read_text() == text:
            seals.expect(location, hashlib.sha256(text.encode()).hexdigest())
            return
    write_bytes(location, text.encode())


def write_json(where: LocationLike, content: Any, *, indent: int | None = None) -> None:
    """Write plain values as JSON."""
    location = as_location(where)
    if seals.is_manifest(location):
        return seals.write_manifest(location, content)
    text = json.dumps(content, ensure_ascii=False, indent=indent, allow_nan=False) + ("\n" if indent else "")
    write_bytes(location, text.encode())


def sweep(*folders: LocationLike) -> None:
    """Delete unfinished small files of a killed process in these folders."""
    for folder in folders:
        as_location(folder).sweep()


def read_json(where: LocationLike) -> Any:
    """The values in a JSON file; None if there is no file, or it is not JSON.

    Raises StoreError for a file that does not match the checksum that its study keeps.
    """
    location = as_location(where)
    try:
        data = location.read_bytes()
    except FileNotFoundError:
        return None
    seals.check(location, data)
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def read_record(where: LocationLike) -> dict[str, Any] | None:
    """The table in a JSON file of a study; None if there is no file. Raises StoreError for anything else."""
    location = as_location(where)
    content = read_json(location)
    if content is None and not location.is_file():
        return None
    if not isinstance(content, dict):
        raise unreadable(location, "it does not hold a table")
    return content


def unreadable(location: Location, problem: object) -> StoreError:
    """The error of a record of a study that can't be used."""
    root = seals.sealing_root(location) or location.parent
    return StoreError(f"{location} is damaged: {problem}", todo=seals.repair(root))
