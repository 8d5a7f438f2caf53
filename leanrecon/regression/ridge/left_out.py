"""Predictions of train rows in closed form, each by the fit without the rows of its image.

They are as far from their targets as predictions of test rows are, so a decoder may be calibrated on them. The form, the
alpha, and the weights and moments of voxels are those of all train rows.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from leanrecon.errors import InputError
from leanrecon.memory import MemoryBudget, buffer
from leanrecon.regression.ridge.hat import by_image
from leanrecon.regression.ridge.kernel import Panels
from leanrecon.regression.ridge.maps import WeightMaps
from leanrecon.regression.ridge.pairing import Pairing
from leanrecon.regression.ridge.plan import left_out_rows, plan_left_out
from leanrecon.stores.matrix import Matrix, Reblocked, panels
from leanrecon.stores.store import Store

Array = np.ndarray[Any, Any]


class LeftOut(WeightMaps):
    """A fitted ridge that predicts its train rows as if it had not seen their images."""

    _held_out: Array

    @property
    def _fold(self) -> Pairing | None:
        raise NotImplementedError

    def predict_train_into(self, store: Store, *, advance: Callable[[int], None] = lambda n: None) -> None:
        """Write predictions of all train rows, each without its image, into a store [n, t]: the blocks that it lacks.

        ``advance`` is called for every finished block. Raises SettingsError if the factor was not kept.
        """
        self._check_fitted()
        factor, targets = self._kept_factor, Reblocked(self.targets_, store.chunk_columns)
        n, extra = self.betas_.shape[0], len(self._held_out)
        if store.shape != (n, targets.shape[1]):
            raise InputError(f"a store of {store.shape} can't take predictions of {n} train rows")
        wanted = store.missing_column_groups()
        if not wanted:
            return
        budget = MemoryBudget.of(self.budget)
        shapes = self._shapes(self.betas_, targets, n)
        count, work = plan_left_out(shapes, budget.free, on_disk=factor.on_disk, extra_rows=extra)
        self._require(budget, "leave-one-out predictions", work)
        reference = self._reference(factor, self._fold)
        at_once = left_out_rows(shapes.largest)
        out = buffer((min(count * at_once, n) + extra, targets.block), self._stream_dtype)
        for group in panels(n, count * at_once):
            parts = [range(group.start + part.start, group.start + part.stop) for part in panels(len(group), at_once)]
            hats = [by_image(self.left_out(np.arange(part.start, part.stop)), self._fold) for part in parts]
            index = None if self._fold is not None else self._paired.index
            for rows, columns, values in self._through_hats(group, hats + reference, index, targets, wanted, out):
                store.write_columns(columns.start // store.chunk_columns, values, first_row=rows.start)
                if rows.stop == n:
                    advance(1)
            del hats  # before the next ones are formed

    def left_out(self, rows: Array) -> Array:
        """The hat matrix of some train rows (ascending), each predicted from all rows of other images."""
        whole = self._pairing.companions(rows)
        hat = self._left_out(whole, self._kept_factor)
        return hat if len(whole) == len(rows) else hat[np.isin(whole, rows)]

    def _left_out(self, rows: Array, factor: Panels) -> Array:
        raise NotImplementedError

    def _reference(self, factor: Panels, fold: Any) -> list[Array]:
        raise NotImplementedError

    def _through_hats(
        self,
        rows: range,
        hats: list[Array],
        index: Array | None,
        targets: Matrix,
        wanted: Sequence[int],
        out: Array | None = None,
    ) -> Iterator[tuple[range, range, Array]]:
        raise NotImplementedError
