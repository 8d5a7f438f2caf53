"""Arrays of published folders: found below a root, joined by columns, scaled, and turned into images."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from leanrecon.datasets.files.open import open_array
from leanrecon.datasets.files.rows import BLOCK, Block, Derived, Rows, Several
from leanrecon.errors import InputError
from leanrecon.places.inputs import InputFile

Array = np.ndarray[Any, Any]


def one_of(folder: InputFile, names: Sequence[str], what: str) -> InputFile:
    """The first of these files that is in a folder; raises InputError with what the folder has."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    there = sorted(path.name for path in folder.iterdir())[:12] if folder.is_dir() else []
    raise InputError(
        f"{folder} has no {what}",
        expected=" or ".join(names),
        todo=f"the folder holds {', '.join(there) or 'nothing'}",
    )


def opened(path: InputFile, key: str | None = None, *, shape: Sequence[int | None] | None = None) -> Rows:
    """Open an array and check its shape, in which None stands for any length."""
    rows = open_array(str(path) if key is None else f"{path}:{key}")
    if shape is not None and (
        len(rows.shape) != len(shape)
        or any(want not in (None, got) for want, got in zip(shape, rows.shape, strict=True))
    ):
        rows.close()
        text = ", ".join("any" if n is None else str(n) for n in shape)
        raise InputError(f"{rows.name} has shape {rows.shape}", expected=f"({text})")
    return rows


class Joined(Several):
    """Arrays side by side: the columns of the first, then those of the second …: float32 [rows, columns]."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        first = parts[0]
        for part in parts[1:]:
            if len(part) != len(first):
                raise InputError(
                    f"{part.name} has {len(part)} rows and {first.name} {len(first)}", expected="the same number"
                )
        super().__init__(parts, (len(first), sum(part.shape[1] for part in parts)), np.float32)

    def blocks(self, index: Array) -> Iterator[Block]:
        start = 0
        for part in self.parts:
            for rows, rest, block in part.blocks(index):
                own = rest[0] if rest and isinstance(rest[0], slice) else slice(0, part.shape[1])
                yield rows, (slice(own.start + start, own.stop + start),), block
            start += part.shape[1]


class Divided(Derived):
    """The rows of an array divided by a number: float32."""

    def __init__(self, base: Rows, by: float) -> None:
        super().__init__(base, base.shape, 2 * max(BLOCK, 8 * base.shape[1]))
        self.by = by

    def blocks(self, index: Array) -> Iterator[Block]:
        for rows, rest, block in self.base.blocks(index):
            yield rows, rest, (block / self.by).astype(np.float32)


def whole_array(path: InputFile, key: str | None = None) -> Array:
    """A small array, read whole: indices, masks and labels."""
    with open_array(str(path) if key is None else f"{path}:{key}") as rows:
        if rows.dtype.kind not in "biuf":
            raise InputError(f"{rows.name} holds {rows.kind} values", expected="numbers")
        values: Array = rows[0 : len(rows)]
        return values
