"""How much memory captions take while they are read, kept and compared: from a look at their file, never its strings."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from leanrecon.datasets.files.captions import captions_nbytes
from leanrecon.datasets.files.open import find_file, locate, open_array
from leanrecon.places.inputs import InputFile, open_buffered, size_of

TEXT = 2.8
"""Bytes for each byte of the strings: the text, what is parsed of it, and the same again while it is written. Measured
with 40 captions of 4 MB (2.6) and with 73,000 images of five captions."""

EACH = 90
"""Bytes of a caption beside its text: the string's head, and its places in two lists."""

_BLOCK = 2**20


@dataclass(frozen=True)
class CaptionSize:
    """Of the captions of one file."""

    text: int
    """Bytes of their strings in memory, at most."""
    count: int
    """How many there are, at most."""

    @property
    def nbytes(self) -> int:
        """Most bytes that reading and keeping them takes."""
        return int(TEXT * self.text) + EACH * self.count


def caption_size(spec: str, default_path: str | None, base_dir: Path | None) -> CaptionSize:
    """The size of the captions that ``files.captions.read_captions`` would read.

    Found from one pass over a text file or MATLAB's strings, or from the header of an array. Raises InputError where
    there is no such file.
    """
    path = find_file(spec, base_dir)
    if path is None and ".json:" in spec.lower():
        path, _ = locate(spec, default_path, base_dir)
    if path is not None and path.suffix.lower() in (".txt", ".json"):
        return _size_of_text(path)
    with open_array(spec, default_path, base_dir) as rows:
        count = int(np.prod(rows.shape, dtype=np.int64))
        if rows.dtype.kind in "US":
            return CaptionSize(count * rows.dtype.itemsize, count)
    sizes = captions_nbytes(spec, default_path, base_dir)  # of a packed file, the size on disk tells nothing
    return CaptionSize(sizes.held + int(sizes.scratch / TEXT), count)


def _size_of_text(path: InputFile) -> CaptionSize:
    """Characters are as wide in memory as the widest of a string; quotes tell the strings of a JSON."""
    separators = b'"' if path.suffix.lower() == ".json" else b"\t\n"
    found, width = 0, 1
    with open_buffered(path) as file:
        while block := file.read(_BLOCK):
            found += sum(block.count(bytes([separator])) for separator in separators)
            if width < 4 and (not block.isascii() or b"\\u" in block):
                widest = int(np.frombuffer(block, np.uint8).max())
                width = max(width, 4 if widest >= 0xF0 or b"\\ud" in block.lower() else 2)
    count = found // 2 if separators == b'"' else found + 1
    return CaptionSize(width * size_of(path), count)
