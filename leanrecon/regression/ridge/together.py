"""Predictions of one fit through hat matrices of known test betas: by workers, or for several pairings in one pass."""

from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np

from leanrecon.memory import MemoryBudget
from leanrecon.regression.ridge.hats import Hats
from leanrecon.regression.ridge.known import Known
from leanrecon.regression.ridge.plan import Shapes, plan_stream
from leanrecon.regression.ridge.plan_form import sets_together
from leanrecon.regression.ridge.restandardise import sets_through_hats
from leanrecon.regression.ridge.streamed import Streamed
from leanrecon.stores.matrix import Matrix, Reblocked, panels
from leanrecon.stores.store import Store

Array = np.ndarray[Any, Any]


class Together(Streamed):
    """A fitted ridge whose targets stream through hat matrices that were formed at fit."""

    def known_hats(self, block: int) -> Hats | None:
        """The hat matrices of test betas known at fit, for workers that stream targets through them; None for others."""
        if (known := self._known) is None:
            return None
        hats = self._converted(known.hats, None if known.folded else self._paired.index)
        work = plan_stream(self._streamed(known, block), sum(map(len, hats)))
        return Hats(known.betas.shape[0], hats, self._pairing.weights, self.restandardize, work)

    def predict_together(
        self, others: Sequence[Self], test: Matrix, stores: Sequence[Store], advance: Callable[[int], None]
    ) -> None:
        """Write predictions of this ridge and of ``others``, its ``shuffled`` ones, into stores [m, t]: the blocks that they lack.

        The stores have equal chunks. As many as fit in memory share a pass over the targets; where no hat matrices were
        formed at fit, and on a GPU, each has a pass of its own.
        """
        ridges, count = [self, *others], 1
        if self._known is not None and others and self.device_ == "cpu":
            shapes, rows = self._streamed(self._known, stores[0].chunk_columns), sum(map(len, self._known.hats))
            count = sets_together(shapes, rows, len(ridges), MemoryBudget.of(self.budget).free)
        for some in panels(len(ridges), count):
            if len(some) == 1:
                ridges[some.start].predict_into(test, stores[some.start], advance=advance)
            else:
                self._predict_sets(ridges[some.start : some.stop], stores[some.start : some.stop], advance)

    def _predict_sets(self, ridges: Sequence[Self], stores: Sequence[Store], advance: Callable[[int], None]) -> None:
        block, missing = stores[0].chunk_columns, [set(store.missing_column_groups()) for store in stores]
        wanted = sorted(set[int]().union(*missing))
        if not wanted or self._known is None:
            return
        rows = len(ridges) * sum(map(len, self._known.hats))
        work = plan_stream(self._streamed(self._known, block), rows)
        self._require(MemoryBudget.of(self.budget), "predicting", work)
        sets = [hats.panels for ridge in ridges if (hats := ridge.known_hats(block)) is not None]
        targets, test_rows, weights = Reblocked(self.targets_, block), range(stores[0].rows), self._pairing.weights
        every = sets_through_hats(test_rows, sets, targets, wanted, self.restandardize, weights=weights)
        for k, columns, values in every:
            j = columns.start // block
            if j in missing[k]:
                stores[k].write_columns(j, values)
                advance(1)

    def _streamed(self, known: Known, block: int) -> Shapes:
        """The shapes of streaming targets, ``block`` at a time, through the hat matrices of known test betas."""
        return self._shapes(self.betas_, Reblocked(self.targets_, block), known.betas.shape[0])
