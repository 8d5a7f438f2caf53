"""Small files beside the stores, written whole or not at all."""

import contextlib
import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from leanrecon.places.disk import explained_disk_errors


def write_whole(path: Path, write: Callable[[Any], Any]) -> None:
    """Write a small file beside its place and rename it there; ``write`` is given the binary file."""
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    with explained_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("xb") as file:
                write(file)
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    """Write a text, unless the file holds it already."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if path.read_text(encoding="utf-8") == text:
            return
    write_whole(path, lambda file: file.write(text.encode()))


def write_json(path: Path, content: Any, *, indent: int | None = None) -> None:
    """Write plain values as JSON."""
    text = json.dumps(content, ensure_ascii=False, indent=indent, allow_nan=False) + ("\n" if indent else "")
    write_whole(path, lambda file: file.write(text.encode()))


def sweep(*folders: Path) -> None:
    """Remove what a killed run left half-written of the small files in these folders."""
    for folder in folders:
        with explained_disk_errors(folder):
            for partial in folder.glob("*.partial"):
                partial.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """The values in a JSON file, or None where there is no readable one."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
