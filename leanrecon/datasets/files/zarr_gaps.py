"""Chunks that a Zarr array lacks: Zarr gives its fill value for them without a word."""

import itertools
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from leanrecon.errors import InputError

Array = np.ndarray[Any, Any]


def refuse_absent(name: str, array: Any, chunk: Sequence[int], files: set[str]) -> None:
    """Raise InputError where a chunk, or a shard, is not among the files of an array.

    The time goes with the number of files, whatever the shape says: that of damaged metadata may be of any size.
    """
    grid = [-(-n // c) for n, c in zip(array.shape, chunk, strict=True)]
    total, there = math.prod(grid), sum(_is_chunk(file, array, grid) for file in files)
    if there == total:
        return
    corners = (_corner(k, grid) for k in range(total))
    first = next(corner for corner in corners if array.metadata.encode_chunk_key(corner) not in files)
    raise _lacking(f"{name}: {total - there} of its {total} chunks are not there; the first is {first}")


def _is_chunk(file: str, array: Any, grid: Sequence[int]) -> bool:
    corner = tuple(int(number) for number in re.findall(r"[0-9]{1,18}", file))
    inside = len(corner) == len(grid) and all(at < n for at, n in zip(corner, grid, strict=True))
    return inside and bool(array.metadata.encode_chunk_key(corner) == file)


def _corner(k: int, grid: Sequence[int]) -> tuple[int, ...]:
    """The place of the k-th chunk of a grid in C order."""
    place = []
    for n in reversed(grid):
        k, at = divmod(k, n)
        place.append(at)
    return tuple(reversed(place))


def _lacking(found: str) -> InputError:
    return InputError(
        found,
        expected="every chunk, as Zarr would give its fill value for those that are not there",
        todo="write it again with write_empty_chunks = True; the program that made it may have been stopped",
    )


class Gaps:
    """The chunks that shards lack."""

    def __init__(self, name: str, array: Any) -> None:
        self.name = name
        self.array = array
        self._other: Any = None

    def refuse(self, region: tuple[slice, ...], found: Array) -> None:
        """Raise InputError where a chunk of a region, which was read into ``found``, is in no shard.

        A chunk that holds the fill value alone is read again with another one: it changes if it is not there.
        """
        starts = [of.start for of in region] + [0] * (found.ndim - len(region))
        sides = [(start, start + n) for start, n in zip(starts, found.shape, strict=True)]
        chunks = self.array.chunks
        for place in itertools.product(*(range(a // c, -(-b // c)) for (a, b), c in zip(sides, chunks, strict=True))):
            spans = [(max(at * c, a), min((at + 1) * c, b)) for at, c, (a, b) in zip(place, chunks, sides, strict=True)]
            part = found[tuple(slice(a - start, b - start) for (a, b), start in zip(spans, starts, strict=True))]
            if not self._is_fill(part[(0,) * part.ndim]) or not np.all(self._is_fill(part)):
                continue
            if not self._is_fill(self._with_other_fill()[tuple(a for a, _ in spans)]):
                begins = [at * c for at, c in zip(place, chunks, strict=True)]
                raise _lacking(f"{self.name}: the chunk that begins at {begins} is not in its shard")

    def _is_fill(self, values: Any) -> Any:
        fill = self.array.fill_value
        return np.isnan(values) if fill != fill else values == fill

    def _with_other_fill(self) -> Any:
        if self._other is None:
            import zarr

            metadata: Any = {**self.array.metadata.to_dict(), "fill_value": int(self.array.fill_value == 0)}
            self._other = zarr.Array(zarr.AsyncArray(metadata=metadata, store_path=self.array.store_path))
        return self._other
