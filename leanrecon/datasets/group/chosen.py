"""Some rows of a study's betas, as if they were all there are."""

from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from leanrecon.datasets.group.members import Member
from leanrecon.memory import buffer, scratch
from leanrecon.stores.fingerprint import fingerprint
from leanrecon.stores.layout import MAX_ROWS
from leanrecon.stores.store import Store
from leanrecon.study.rows import SPLITS, Rows, SplitRows

Array = np.ndarray[Any, Any]


class ChosenRows:
    """Some rows of a store of betas, in ascending order; read by slices, as a store is."""

    def __init__(self, store: Store, index: Array) -> None:
        self.store = store
        self.index = index
        self.rows, self.columns = len(index), store.columns
        self.content = fingerprint({"betas": store.content, "rows": index.tolist()})

    def buffer_nbytes(self) -> int:
        """Bytes that reading a chunk takes."""
        return self.store.buffer_nbytes()

    def __getitem__(self, rows: slice) -> Array:
        wanted = self.index[rows]
        result = np.empty((len(wanted), self.columns), self.store.dtype)
        memory = scratch((self.buffer_nbytes(),), np.uint8)
        groups = wanted // self.store.chunk_rows
        for i in np.unique(groups).tolist():
            places = np.flatnonzero(groups == i)
            inside = wanted[places] - self.store.group_rows(i).start
            for j in range(self.store.column_groups):
                columns = self.store.group_columns(j)
                chunk = self.store.read_chunk(i, j, memory)
                result[places, columns.start : columns.stop] = chunk[inside, : len(columns)]
        return result


class MeanRows:
    """The mean of a store's rows of each image, in the order of images; held in memory once they are asked for."""

    def __init__(self, store: Store, image_of_row: Array, images: int) -> None:
        self.store = store
        self.rows, self.columns = images, store.columns
        self.content = fingerprint({"betas": store.content, "means over": image_of_row.tolist()})
        self._image_of_row = image_of_row

    def buffer_nbytes(self) -> int:
        """Bytes that reading a chunk takes."""
        return self.store.buffer_nbytes()

    def nbytes(self) -> int:
        """Bytes of all means, with those of the sums that they are made from."""
        return self.rows * self.columns * (8 + 4) + MAX_ROWS * self.columns * 4

    @cached_property
    def values(self) -> Array:
        """The means, float32 [images, columns]; sums are taken in float64 in the order of rows."""
        sums = buffer((self.rows, self.columns), np.float64)
        for start in range(0, self.store.rows, MAX_ROWS):
            of = self._image_of_row[start : start + MAX_ROWS]
            np.add.at(sums, of, self.store[start : start + len(of)])
        sums /= np.bincount(self._image_of_row, minlength=self.rows)[:, None]
        return sums.astype(np.float32)

    def __getitem__(self, rows: slice) -> Array:
        return self.values[rows]


def with_rows(member: Member, chosen: dict[str, Array]) -> Member:
    """A member with some of its rows alone; images keep their numbers."""
    splits = {split: _part(member.rows[split], chosen[split]) for split in SPLITS}
    betas = {split: ChosenRows(member.betas[split], chosen[split]) for split in SPLITS}
    return replace(member, rows=Rows(splits, member.rows.ids), betas=betas)


def _part(rows: SplitRows, index: Array) -> SplitRows:
    def of(values: list[Any] | None) -> Any:
        return None if values is None else [values[row] for row in index]

    return SplitRows(
        rows.stimulus[index], of(rows.trials), of(rows.repeats), of(rows.subject), of(rows.session), of(rows.run),
        of(rows.test_set),
    )  # fmt: skip
