"""Whether a small file of a study can be read: all that can be said of it where no checksum is kept."""

import io
import json
import tomllib
import zipfile
from collections.abc import Callable
from typing import IO, Any

import numpy as np

from leanrecon.places import Location


def problem_of(path: Location) -> str:
    """What is wrong with a small file; nothing where it can be read."""
    read = _READERS.get(path.suffix)
    if read is None:
        return ""
    try:
        with path.open() as file:
            read(file)
    except Exception as error:  # damaged bytes surface as anything: TokenError of an .npy header, zlib.error …
        return f"{path} can't be read: {error}"
    return ""


def _read_text(file: IO[bytes]) -> None:
    for line in io.TextIOWrapper(file, encoding="utf-8"):
        if "\0" in line:
            raise ValueError("it holds zeros instead of text")


def _read_html(file: IO[bytes]) -> None:
    size = file.seek(0, io.SEEK_END)
    file.seek(max(size - 64, 0))
    if not file.read().rstrip().endswith(b"</html>"):
        raise ValueError("its end is missing")


def _read_npz(file: IO[bytes]) -> None:
    with zipfile.ZipFile(file) as archive:
        if (name := archive.testzip()) is not None:  # in pieces: the components of a PCA may be gigabytes
            raise zipfile.BadZipFile(f"its array {name} does not match its checksum")


_READERS: dict[str, Callable[[IO[bytes]], Any]] = {
    ".json": json.load,
    ".toml": tomllib.load,
    ".csv": _read_text,
    ".html": _read_html,
    ".npz": _read_npz,
    ".npy": lambda file: np.load(file, allow_pickle=False),
}
