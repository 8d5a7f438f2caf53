"""Train rows that show the same images: which targets are used, and which rows have to be left out together."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from leanrecon.regression.ridge.pairing import Pairing
from leanrecon.stores.matrix import Matrix, RowSubset, panels

Array = np.ndarray[Any, Any]


def rows_alone(targets: Matrix, pairing: Pairing, rows: Array) -> tuple[Matrix, Array | None]:
    """The targets that some rows (ascending) show, and the row among these that each of them shows; None: row i the i-th."""
    if pairing.index is None:
        return RowSubset(targets, rows), None
    shown, stimulus = np.unique(pairing.index[rows], return_inverse=True)
    return (targets if len(shown) == targets.shape[0] else RowSubset(targets, shown)), stimulus


def whole_images(pairing: Pairing, at_once: int) -> Iterator[Array]:
    """Rows (ascending), ``at_once`` at a time or a few more, with all rows of each image together."""
    if pairing.index is None or not pairing.repeats:
        for part in panels(pairing.n, at_once):
            yield np.arange(part.start, part.stop)
        return
    order = np.argsort(pairing.index, kind="stable")
    last = np.cumsum(pairing.counts[np.unique(pairing.index)]).astype(np.int64)
    start = 0
    while start < pairing.n:
        stop = int(last[np.searchsorted(last, min(start + at_once, pairing.n))])
        yield np.sort(order[start:stop])
        start = stop
