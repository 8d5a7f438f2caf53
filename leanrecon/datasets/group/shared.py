"""A member's train betas of the shared images: one row an image, averaged over its rows, in bounded memory."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from leanrecon.context import Context
from leanrecon.memory import buffer
from leanrecon.places import Location
from leanrecon.stores.fingerprint import fingerprint
from leanrecon.stores.layout import plan_chunks
from leanrecon.stores.matrix import PANEL, Matrix, as_matrix, panels
from leanrecon.stores.store import Store

Array = np.ndarray[Any, Any]


def shared_betas(
    path: Location, betas: Store, named: Iterable[tuple[int, str]], shared: Sequence[str], context: Context
) -> Store:
    """A store [shared, voxels] at ``path`` of the mean betas of some images; continues where an earlier run stopped.

    ``named`` holds rows of the betas with the ids of their images, ``shared`` the ids that are wanted.
    """
    rows_of: dict[str, list[int]] = {name: [] for name in shared}
    for row, name in named:
        if name in rows_of:
            rows_of[name].append(row)
    store = Store.create(
        path,
        (len(rows_of), betas.columns),
        np.float32,
        made_of={"betas": betas.content, "rows": fingerprint({"rows": [*rows_of.values()]})},
        chunk=context.chunk,
        overwrite=True,
    )
    _fill(store, betas, [*rows_of.values()], context)
    return store


def _fill(store: Store, betas: Store, rows_of: Sequence[Sequence[int]], context: Context) -> None:
    """Write the missing chunks of ``store``: row k is the mean of the rows ``rows_of[k]`` of ``betas``.

    Sums are taken in float64 in the order of rows. More memory means fewer passes over the betas, not another result.
    """
    source = as_matrix(betas)
    image_of = np.full(betas.rows, -1, np.int64)
    for image, rows in enumerate(rows_of):
        image_of[list(rows)] = image
    counts = np.array([len(rows) for rows in rows_of], np.float64)[:, None]
    missing = store.missing()
    with context.task(total=store.column_groups, unit="blocks") as advance:
        for j in range(store.column_groups):
            columns = store.group_columns(j)
            wanted = [i for i, column in missing if column == j]
            at_once = _bands(len(columns), store.chunk_rows, context.budget.free)
            for start in range(0, len(wanted), at_once):
                groups = wanted[start : start + at_once]
                _fill_groups(store, source, j, groups, image_of, counts)
            advance(1)
    store.finish()


def _fill_groups(store: Store, source: Matrix, j: int, groups: list[int], image_of: Array, counts: Array) -> None:
    """Write some chunks of one block of columns, in one pass over the betas."""
    columns = store.group_columns(j)
    place = np.full(store.rows, -1, np.int64)
    rows = np.array([row for i in groups for row in store.group_rows(i)], np.int64)
    place[rows] = np.arange(len(rows))
    sums = buffer((len(rows), len(columns)), np.float64)
    memory = buffer((PANEL, len(columns)), np.float32)
    for panel in panels(source.shape[0]):
        images = image_of[panel.start : panel.stop]
        inside = np.flatnonzero((images >= 0) & (place[images] >= 0))
        if len(inside):
            source.read(panel, columns, memory[: len(panel)])
            for k in inside.tolist():
                sums[place[images[k]]] += memory[k]
    first = 0
    for i in groups:
        group = store.group_rows(i)
        means = sums[first : first + len(group)] / counts[group.start : group.stop]
        store.write_chunk(i, j, means.astype(np.float32))
        first += len(group)


def _bands(width: int, chunk_rows: int, free: int) -> int:
    """Row groups that are summed together: as many as half of the free memory holds, one at least."""
    return max(free // 2 // (8 * width * chunk_rows), 1)


def averaging_nbytes(shape: tuple[int, int], chunk: int, free: int, *, reading: int = 0) -> int:
    """Most bytes of memory that ``shared_betas`` takes for a store of ``shape``; ``reading`` are those of a chunk of betas."""
    rows, width = plan_chunks(shape, np.float32, chunk)
    groups = -(-shape[0] // rows)
    summed = min(_bands(width, rows, free), groups) * rows * width * 8
    return summed + PANEL * width * 4 + max(reading, rows * width * (8 + 4 + 4))
