"""Captions in files: a row of .txt or .json an image, or an array of strings in .npy, .npz, .h5 or .mat."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from leanrecon.datasets.files.open import find_file, locate, open_array
from leanrecon.datasets.files.rows import BLOCK, H5Rows, Mat5Rows, NpyRows, Rows, explained_damage, unreadable
from leanrecon.errors import InputError

_EXPECTED = "a string, or a list of strings, for each row"


def read_captions(spec: str, default_path: str | None = None, base_dir: Path | None = None) -> list[list[str]]:
    """The captions of every row, one or more each.

    ``.txt`` has one row a line, with tabs between the captions of one image; ``.json`` is a list of strings or of
    lists of strings (``FILE.json:KEY``: under that key); arrays of strings are [rows] or [rows, captions],
    MATLAB's cell arrays and char matrices among them. Empty strings are left out.
    """
    path = find_file(spec, base_dir)
    key = None
    if path is None and ".json:" in spec.lower():
        path, key = locate(spec, default_path, base_dir)
    if path is not None and path.suffix.lower() in (".txt", ".json"):
        name, rows = str(path), _read_text(path, key)
    else:
        with open_array(spec, default_path, base_dir) as array:
            name, rows = array.name, list(_read_array(array))
    captions = [[text.strip() for text in row if text.strip()] for row in rows]
    for k, row in enumerate(captions):
        if not row:
            raise InputError(f"row {k} of {name} has no caption", expected=_EXPECTED)
    return captions


def _read_text(path: Path, key: str | None) -> list[list[str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".txt":
            return [line.split("\t") for line in text.removesuffix("\n").split("\n")]
        found = json.loads(text)
    except ValueError as error:
        raise unreadable(str(path), error) from error
    if key is not None:
        if not isinstance(found, dict) or key not in found:
            raise InputError(f"{path} has no entry {key!r}", expected="an object with that key")
        found = found[key]
    rows = [[row] if isinstance(row, str) else row for row in found] if isinstance(found, list) else None
    if rows is None or not all(isinstance(row, list) and all(isinstance(text, str) for text in row) for row in rows):
        raise InputError(f"{path} doesn't hold captions", expected=_EXPECTED)
    return rows


def _read_array(rows: Rows) -> Iterable[list[str]]:
    if isinstance(rows, NpyRows) and rows.dtype.kind in "US" and len(rows.shape) in (1, 2):
        at_once = max(BLOCK // max(rows.row_nbytes, 1), 1)
        for start in range(0, len(rows), at_once):
            yield from (_strings(row) for row in rows[start : start + at_once])
    elif isinstance(rows, H5Rows) and rows.dtype.kind in "OS":
        with explained_damage(rows.name):
            yield from (_strings(row) for row in _read_h5(rows))
    elif isinstance(rows, Mat5Rows) and rows.kind in ("MATLAB cell", "MATLAB char"):
        from scipy.io import loadmat

        with explained_damage(rows.name):
            loaded = loadmat(rows.path, variable_names=[rows.key])[rows.key]
        loaded = loaded.T if loaded.ndim == 2 and loaded.shape[0] == 1 else loaded
        yield from (_strings(row) for row in loaded)
    else:
        raise InputError(f"{rows.name} holds {rows.kind} of shape {rows.shape}", expected=_EXPECTED)


def _read_h5(rows: H5Rows) -> Any:
    """An array of strings; MATLAB's are references to arrays of characters."""
    if rows.kind == "MATLAB char":
        codes = np.atleast_2d(rows.dataset[()].T)
        return np.array(["".join(map(chr, line)) for line in codes])
    if rows.kind == "MATLAB cell":
        cells = rows.dataset[()].T
        texts = ["".join(map(chr, rows.file[cell][()].T.ravel())) for cell in cells.ravel()]
        shaped = np.array(texts, object).reshape(cells.shape)
        return shaped.T if shaped.ndim == 2 and shaped.shape[0] == 1 else shaped
    return rows.dataset.asstr()[()] if rows.dtype.kind == "O" else rows.dataset[()]


def _strings(row: Any) -> list[str]:
    """The strings of one row, out of whatever nesting MATLAB put them in."""
    if isinstance(row, bytes):
        return [row.decode("utf-8", "replace")]
    if isinstance(row, str):
        return [str(row)]
    if isinstance(row, np.ndarray) and row.dtype.kind in "OUS":
        return [text for item in row.ravel().tolist() for text in _strings(item)]
    raise InputError(f"a caption is {type(row).__name__}", expected=_EXPECTED)
