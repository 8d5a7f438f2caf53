"""Rows of files in buckets that are read out of their order, as for averages: copied to this machine once, as they are."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from leanrecon.context import Context
from leanrecon.datasets.builder.columns import StoreRows
from leanrecon.datasets.files.rows import BLOCK, Block, Derived, Rows
from leanrecon.datasets.ingest import Source, StorePlan, fill_store, plan_store
from leanrecon.places import Location, as_location
from leanrecon.stores.fingerprint import fingerprint
from leanrecon.stores.store import Store
from leanrecon.study.layout import Study

Array = np.ndarray[Any, Any]


class Nearby(Derived):
    """Rows of an array in a bucket, read from a copy on this machine that is made when the first are asked for.

    ``made_of`` is what decides the rows. A copy that was not completed is continued by a later run.
    """

    away = False

    def __init__(self, base: Rows, study: Study, made_of: Mapping[str, Any], context: Context) -> None:
        super().__init__(base, base.shape)
        self.dtype = exact_type(base)
        self.path_of_copy = _folder(study) / f"{fingerprint({'copy': dict(made_of)})[:16]}.zarr"
        self.made_of, self.context = {"copy": dict(made_of)}, context
        self._copy: StoreRows | None = None

    def blocks(self, index: Array) -> Iterator[Block]:
        if self._copy is None:
            self._copy = self._copied()
        yield from self._copy.blocks(index)

    def _copied(self) -> StoreRows:
        context = self.context.named(f"copy of {self.name}")
        _, _, first = next(iter(self.base.blocks(np.arange(1))))
        self.dtype = np.result_type(self.dtype, first.dtype)
        store = Store.create(
            self.path_of_copy, self.shape, self.dtype, made_of=self.made_of, chunk=context.chunk, overwrite=True
        )
        if not store.complete:
            plan = plan_copy(self.base, context.chunk, context.budget.free)
            fill_store(store, Source(self.base, np.arange(len(self)), plan.at_once), context)
            store.finish()
        return StoreRows(store, self.name)


def plan_copy(rows: Rows, chunk: int, free: int) -> StorePlan:
    """The making of a copy, a group of rows after the other."""
    shape, held, scratch = (len(rows), rows.shape[1]), rows.held, rows.scratch
    return plan_store(shape, exact_type(rows), chunk, free=free, together=rows.together, held=held, scratch=scratch)


def read_nbytes(rows: Rows, chunk: int) -> int:
    """Most bytes of memory that reading some rows takes for a moment: of files, or of a copy where these are in a bucket."""
    return max(rows.scratch, rows.away * (4 * max(chunk, 8 * rows.shape[1]) + 2 * BLOCK))


def exact_type(rows: Rows) -> np.dtype[Any]:
    """Float32 where the files hold nothing else, or float64, so that a copy holds what is read as it is."""
    types = [np.dtype(one.dtype).newbyteorder("=") for one in (rows, *rows.sources())]
    return np.dtype(np.float32 if all(one == np.float32 for one in types) else np.float64)


def forget_copies(study: Study) -> None:
    """Delete the copies of a study's inputs."""
    _folder(study).delete_tree()


def _folder(study: Study) -> Location:
    return as_location(study.root.workplace()) / "betas" / "nearby"
