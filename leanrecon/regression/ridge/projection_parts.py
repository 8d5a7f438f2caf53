"""Random sums of targets, made for some of their rows apart."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from leanrecon.regression.ridge.limits import PROJECTIONS, SUMMING, WORKSPACE
from leanrecon.regression.ridge.loo import projected_rows
from leanrecon.regression.ridge.part_plan import PROJECTING, PROJECTION_ROWS
from leanrecon.stores.matrix import Matrix, panels

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class ProjectionParts:
    """Projections of targets [n, t] of more than 512 columns, some rows at a time (see ``loo.project``)."""

    targets: Matrix
    seed: int
    dtype: np.dtype[Any]
    means: Array
    """The targets' ``first_means``."""

    @property
    def rows(self) -> list[range]:
        """The rows of each part."""
        return panels(self.targets.shape[0], PROJECTION_ROWS)

    @property
    def costs(self) -> list[float]:
        """Operations of each part."""
        return [PROJECTING * len(rows) * self.targets.shape[1] for rows in self.rows]

    def work(self, numbers: Sequence[int]) -> int:
        """Bytes of work of making some parts: the sums, tiles of targets, and a run of them with its signs."""
        k, e = PROJECTIONS, self.dtype.itemsize
        made = sum(len(self.rows[i]) for i in numbers) * k * e
        reading = 2 * self.targets.tile_nbytes + self.targets.scratch_nbytes
        return WORKSPACE + made + reading + SUMMING

    def make(self, numbers: Sequence[int]) -> list[Array]:
        """Some neighbouring parts, by their numbers, in one pass over their rows."""
        wanted = [self.rows[i] for i in numbers]
        rows = range(wanted[0].start, wanted[-1].stop)
        made = projected_rows(self.targets, rows, self.seed, self.dtype, self.means)
        return [made[some.start - rows.start : some.stop - rows.start] for some in wanted]
