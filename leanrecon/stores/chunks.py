"""The chunks of a row store: where each lies, which are there, and what was written of the store they belong to."""

import itertools
import math
from typing import Any

import numpy as np

from leanrecon.places import Location
from leanrecon.places.disk import PAGE
from leanrecon.stores.metadata import Metadata

CRC = 4
"""Bytes of the checksum behind a chunk."""


class Chunks:
    """The grid of a store's chunks: row groups by column groups, each in a file of its own."""

    def __init__(self, path: Location, described: Metadata) -> None:
        self.path = path
        self.shape = described.shape
        self.dtype = described.dtype
        self.chunks = described.chunks
        self.fill_value = described.fill_value
        self._metadata = described
        self.rows = self.shape[0]
        self.columns = math.prod(self.shape[1:])
        self.chunk_rows = self.chunks[0]
        self.chunk_columns = math.prod(self.chunks[1:])
        self.chunk_nbytes = self.chunk_rows * self.chunk_columns * self.dtype.itemsize
        self.row_groups = math.ceil(self.rows / self.chunk_rows)
        self.column_groups = math.ceil(self.columns / self.chunk_columns)

    # The record

    @property
    def _record(self) -> dict[str, Any]:
        return self._metadata.record

    @property
    def made_of(self) -> dict[str, Any]:
        return dict(self._record.get("made_of", {}))

    @property
    def notes(self) -> dict[str, Any]:
        """What the run that created the store noted down for those that continue it."""
        return dict(self._record.get("notes", {}))

    @property
    def complete(self) -> bool:
        return bool(self._record.get("complete"))

    @property
    def content(self) -> str:
        """SHA-256 over the checksums of all chunks, fixed when the store was completed: what later stages are made of."""
        return str(self._record["content"])

    # Chunks

    def name_of(self, i: int, j: int = 0) -> str:
        """The key of the chunk in row group ``i`` and column group ``j`` within the store, such as ``c/0/1``."""
        return "/".join(["c", str(i), str(j), *["0"] * (len(self.shape) - 2)])

    def chunk_path(self, i: int, j: int = 0) -> Location:
        """The file of the chunk in row group ``i`` and column group ``j``."""
        return self.path / self.name_of(i, j)

    def has(self, i: int, j: int = 0) -> bool:
        """Whether the chunk's file is there at its full size (it appears whole, or not at all)."""
        return self.chunk_path(i, j).size() == self.chunk_nbytes + CRC

    def missing(self) -> list[tuple[int, int]]:
        """The chunks that are still to be written, row group by row group."""
        self.path.place.refresh(self.path.key)
        return [ij for ij in itertools.product(range(self.row_groups), range(self.column_groups)) if not self.has(*ij)]

    def missing_row_groups(self) -> list[int]:
        """The groups of rows that lack a chunk, in order."""
        return sorted({i for i, _ in self.missing()})

    def missing_column_groups(self) -> list[int]:
        """The blocks of columns that lack a chunk, in order."""
        return sorted({j for _, j in self.missing()})

    def group_rows(self, i: int) -> range:
        return range(i * self.chunk_rows, min((i + 1) * self.chunk_rows, self.rows))

    def group_columns(self, j: int) -> range:
        return range(j * self.chunk_columns, min((j + 1) * self.chunk_columns, self.columns))

    def buffer_nbytes(self) -> int:
        """Bytes that ``read_chunk`` needs: the chunk, its checksum, and the rest of the last page."""
        return -(-(self.chunk_nbytes + CRC) // PAGE) * PAGE

    def checksum(self, i: int, j: int = 0) -> bytes:
        """The checksum that was written behind a chunk."""
        memory = np.empty(CRC, np.uint8)
        place, key = self.path.place, self.chunk_path(i, j).key
        return memory[: place.read_into(key, memory, self.chunk_nbytes)].tobytes()
