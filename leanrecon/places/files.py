"""Small files beside the stores, written whole or not at all."""

import contextlib
import json
from collections.abc import Callable
from typing import IO, Any

from leanrecon.places.location import LocationLike, as_location


def write_whole(where: LocationLike, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file whole or not at all; ``write`` gets the binary file."""
    with as_location(where).writing() as file:
        write(file)


def write_text(where: LocationLike, text: str) -> None:
    """Write a text, unless the file holds it already."""
    location = as_location(where)
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if location.read_text() == text:
            return
    location.write_text(text)


def write_json(where: LocationLike, content: Any, *, indent: int | None = None) -> None:
    """Write plain values as JSON."""
    text = json.dumps(content, ensure_ascii=False, indent=indent, allow_nan=False) + ("\n" if indent else "")
    as_location(where).write_text(text)


def sweep(*folders: LocationLike) -> None:
    """Delete what a killed process left half-written of the small files in these folders."""
    for folder in folders:
        as_location(folder).sweep()


def read_json(where: LocationLike) -> Any:
    """The values in a JSON file; None where there is no file, or none that can be read."""
    try:
        return json.loads(as_location(where).read_bytes())
    except (FileNotFoundError, ValueError):
        return None
