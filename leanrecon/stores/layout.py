"""Which rows and columns share a chunk file: arithmetic only."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from leanrecon.memory import parse_bytes

DEFAULT_CHUNK = "8MB"
"""Size of a chunk file where the setting `stores.chunk` says nothing."""

MAX_ROWS = 256
"""Most rows of a chunk: what an extraction holds back, and loses when killed, is one group of rows."""

PANEL = 256
"""Rows of a tile: the fixed depth of products that run over rows. A multiple of every store's chunk rows."""

BLOCK = 4096
"""Columns of a tile, where the source has no chunks of its own to go by."""

MIN_COLUMNS = 1024
"""Fewest columns that rows are split into (4 kB of float32: one disk page a row)."""

_COLUMN_STEP = 16  # columns of a split chunk are a multiple of this (64 bytes of float32: a cache line)


def chunk_nbytes(chunk: str | int | None) -> int:
    """Bytes of a chunk file, of a setting such as ``"8MB"``; the default where nothing is said."""
    return parse_bytes(DEFAULT_CHUNK if chunk is None else chunk)


def plan_chunks(shape: Sequence[int], dtype: Any, chunk_bytes: int) -> tuple[int, ...]:
    """Chunk shape of a row store.

    Rows a chunk are a power of two up to 256, so that fixed panels of rows hold whole chunks, and no more than
    the store's rows need. Wide matrices are split into near-equal blocks of columns, whose width no number of
    rows changes; images are never split within a row.
    """
    rows, *width = chunks_of_many_rows(shape, dtype, chunk_bytes)
    return (min(rows, 2 ** (max(int(shape[0]), 1) - 1).bit_length()), *width)


def chunks_of_many_rows(shape: Sequence[int], dtype: Any, chunk_bytes: int) -> tuple[int, ...]:
    """Chunk shape of a row store of any number of rows; stores of few rows had it too, once."""
    shape = tuple(int(n) for n in shape)
    itemsize = np.dtype(dtype).itemsize
    columns = math.prod(shape[1:])
    width = columns
    if len(shape) == 2 and columns > MIN_COLUMNS and columns * itemsize * MAX_ROWS > chunk_bytes:
        widest = max(chunk_bytes // (itemsize * MAX_ROWS), MIN_COLUMNS)
        n_blocks = math.ceil(columns / widest)
        width = math.ceil(columns / n_blocks / _COLUMN_STEP) * _COLUMN_STEP
    rows = max(chunk_bytes // max(width * itemsize, 1), 1)
    rows = min(2 ** (rows.bit_length() - 1), MAX_ROWS)
    return (rows, width) if len(shape) == 2 else (rows, *shape[1:])


def store_nbytes(shape: Sequence[int], dtype: Any, chunk_bytes: int) -> int:
    """Bytes of a store's chunk files, those at the edge at full size."""
    chunks = plan_chunks(shape, dtype, chunk_bytes)
    cells = math.prod(math.ceil(n / c) * c for n, c in zip(shape, chunks, strict=True))
    return cells * int(np.dtype(dtype).itemsize)


def subset_block(block: int, columns: int) -> int:
    """Columns of a tile of a subset of columns, from those of its base: all of them where they are few."""
    return max(min(columns, max(block, BLOCK)), 1)
