"""What stages do beside memory: operations, bytes that are moved, and requests where a study lies in a bucket.

Arithmetic on shapes. Requests are those of a run that nothing interrupts, while it holds the study and knows its files.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np

from leanrecon.images import ImageShape
from leanrecon.stores.layout import plan_chunks, store_nbytes


@dataclass(frozen=True)
class Cost:
    """What a piece of work does; costs add up."""

    operations: float = 0.0
    """Floating-point operations of matrix products and networks; a multiplication and an addition are two."""
    read: int = 0
    """Bytes of chunks and images that are read."""
    written: int = 0
    """Bytes of chunks and images that are written; images as if they were not compressed."""
    puts: int = 0
    """Requests that write, copy or list: the dearer ones."""
    gets: int = 0
    """Requests that read."""
    asked: int = 0
    """Of the requests that read, those for inputs in buckets: they are sent wherever the study lies."""
    received: int = 0
    """Of the bytes that are read, those of inputs in buckets."""
    uncounted: tuple[str, ...] = ()
    """Names of networks whose operations, and so whose time, are not counted."""

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.operations + other.operations,
            self.read + other.read,
            self.written + other.written,
            self.puts + other.puts,
            self.gets + other.gets,
            self.asked + other.asked,
            self.received + other.received,
            tuple(dict.fromkeys((*self.uncounted, *other.uncounted))),
        )

    def __mul__(self, times: float) -> "Cost":
        return Cost(
            self.operations * times,
            round(self.read * times),
            round(self.written * times),
            round(self.puts * times),
            round(self.gets * times),
            round(self.asked * times),
            round(self.received * times),
            self.uncounted if times else (),
        )


def total(costs: Iterable[Cost]) -> Cost:
    """The sum of costs."""
    return reduce(Cost.__add__, costs, Cost())


RUN = Cost(puts=7, gets=5)
"""Of a run as a whole: its hold, the listing of the study, study.toml and run.json."""

STAGE = Cost(gets=5)
"""Of every stage: which rows there are, and study.toml that is written again."""


AREAS = Cost(gets=5)
"""Of every stage where there are areas: the voxels of each."""


def piece(products: int) -> Cost:
    """Of the record in run.json of a piece of a stage that makes so many stores, folders of images or files."""
    return Cost(puts=1, gets=3 + products)


OWN_RECORD = Cost(puts=1, gets=1)
"""Of a piece beside that, where its variant has a run.json of its own, whose checksum the study keeps."""


def files_made(count: int = 1) -> Cost:
    """Of small files: each has its checksum written to run.json before it."""
    return Cost(puts=2 * count, gets=count)


def inputs_read(requests: int, nbytes: int) -> Cost:
    """Of inputs in buckets."""
    return Cost(read=nbytes, gets=requests, asked=requests, received=nbytes)


def chunks_of(shape: Sequence[int], dtype: Any, chunk: int) -> int:
    """How many chunks a store has."""
    cells = plan_chunks(shape, dtype, chunk)
    return math.prod(-(-int(n) // c) for n, c in zip(shape, cells, strict=True))


def store_made(shape: Sequence[int], dtype: Any, chunk: int) -> Cost:
    """Of a store: its metadata twice, each chunk once, two listings, and every chunk's checksum at the end."""
    chunks = chunks_of(shape, dtype, chunk)
    return files_made(2) + Cost(written=store_nbytes(shape, dtype, chunk), puts=2 + chunks, gets=1 + chunks)


def store_read(shape: Sequence[int], dtype: Any, chunk: int, times: float = 1) -> Cost:
    """Of a store whose chunks are all read, so many times; it is opened once."""
    return Cost(gets=1) + Cost(read=store_nbytes(shape, dtype, chunk), gets=chunks_of(shape, dtype, chunk)) * times


def rows_read(rows: int, shape: Sequence[int], dtype: Any, chunk: int, times: float = 1) -> Cost:
    """Of so many rows of a store, drawn at random: the chunks from the first to the last of them are read."""
    tall = plan_chunks(shape, dtype, chunk)[0]
    expected = shape[0] if rows == shape[0] else shape[0] * (rows - 1) / (rows + 1) + tall
    return store_read(shape, dtype, chunk, times * min(expected / shape[0], 1))


def images_made(count: int, shape: ImageShape, *, linked: bool = False) -> Cost:
    """Of a folder of images, each read back for its checksum; linked ones are copied within the place."""
    nbytes = count * math.prod(shape)
    return files_made(2) + Cost(read=nbytes, written=0 if linked else nbytes, puts=count, gets=count)


def images_read(count: int, shape: ImageShape) -> Cost:
    """Of a folder of images that is opened and read once."""
    return Cost(read=count * math.prod(shape), gets=1 + count)


def drawn_rows(count: int, shape: Sequence[int], chunk: int) -> Cost:
    """Of images in a store, read one by one in any order: a chunk for each, unless the last one holds it."""
    chunks = chunks_of(shape, np.uint8, chunk)
    reads = max(round(count * (1 - 1 / chunks)), 1)
    return Cost(read=reads * (store_nbytes(shape, np.uint8, chunk) // chunks), gets=reads)
