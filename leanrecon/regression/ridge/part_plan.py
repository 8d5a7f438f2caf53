"""The parts of a fit that workers make, and the memory of each: arithmetic only."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from leanrecon.regression.ridge.limits import WORKSPACE
from leanrecon.regression.ridge.triangle import DEPTH, ROWS, WIDTH, panel_parts
from leanrecon.stores.layout import PANEL

SHARED_OPERATIONS = 1e11
"""Operations from which parts are given to workers: one to four seconds of a core. Below, files and messages cost more."""

TASKS_EACH = 4
"""Approximate number of tasks for each worker, so that none waits long for the last one."""

PROJECTING = 128
"""Operations of a matrix product in the time that one number of a target takes to be added to a random sum, about."""

PROJECTION_TASKS = 2
"""The same for random sums of targets, which are soon made."""

PROJECTION_ROWS = 4 * PANEL
"""Rows of targets that are projected apart."""

CROSS = -1
"""The number that stands for a panel in parts of products with test betas."""


@dataclass(frozen=True)
class Part:
    """Some rows of a panel of the Gram matrix, from the panel's first; or train rows of products with test betas."""

    panel: int
    rows: range

    @property
    def crosses(self) -> bool:
        """Whether it is one of products with test betas."""
        return self.panel == CROSS


@dataclass(frozen=True)
class GramShapes:
    """``n`` train rows, ``p`` voxels, and ``m`` test rows of products beside the Gram matrix (0: none)."""

    n: int
    p: int
    m: int
    dual: bool
    itemsize: int
    scratch: int
    """Bytes that reading betas takes besides."""

    @property
    def order(self) -> int:
        return self.n if self.dual else self.p

    @property
    def depth(self) -> int:
        """The numbers that each product sums over."""
        return self.p if self.dual else self.n

    @property
    def operations(self) -> float:
        """Of the lower triangle, and of products with test betas."""
        return float(self.order) ** 2 * self.depth + 2.0 * self.m * self.n * self.p

    @cached_property
    def parts(self) -> list[Part]:
        """All parts, in the order of their numbers."""
        count = -(-self.order // WIDTH)
        crossing = range(0, self.n if self.m else 0, ROWS)
        return [Part(j, rows) for j in range(count) for rows in panel_parts(self.order, j)] + [
            Part(CROSS, range(start, min(start + ROWS, self.n))) for start in crossing
        ]

    def columns_of(self, part: Part) -> range:
        """The columns of a part's panel in the whole matrix."""
        return range(part.panel * WIDTH, min((part.panel + 1) * WIDTH, self.order))

    def shape_of(self, part: Part) -> tuple[int, int]:
        """The shape of a part: of products with test betas [m, train rows]."""
        return (self.m, len(part.rows)) if part.crosses else (len(part.rows), len(self.columns_of(part)))

    def spans_of(self, part: Part) -> list[range]:
        """The rows of betas (columns, where there are more rows than voxels) that a part is made of."""
        if part.crosses:
            return [part.rows]
        columns = self.columns_of(part)
        return [columns, range(columns.start + part.rows.start, columns.start + part.rows.stop)]

    def cost_of(self, part: Part) -> float:
        """Operations of a part."""
        rows, columns = self.shape_of(part)
        diagonal = columns * columns if part.rows.start == 0 and not part.crosses else 0
        return (2.0 * rows * columns - diagonal) * self.depth

    def work(self, parts: Sequence[Part]) -> int:
        """Bytes of work of forming some parts in one pass."""
        made = sum(rows * columns for rows, columns in map(self.shape_of, parts))
        spans = joined(span for part in parts for span in self.spans_of(part))
        height = sum(map(len, spans)) + (self.m if any(part.crosses for part in parts) else 0)
        slabs = 2 * height * min(DEPTH, self.depth)
        return WORKSPACE + self.scratch + (made + slabs) * self.itemsize


def joined(spans: Iterable[range]) -> list[range]:
    """Spans that cover the same numbers and lie apart, ascending."""
    found: list[range] = []
    for span in sorted(spans, key=lambda one: one.start):
        if found and span.start <= found[-1].stop:
            found[-1] = range(found[-1].start, max(found[-1].stop, span.stop))
        else:
            found.append(span)
    return found


def tasks_of(costs: Sequence[float], numbers: Sequence[int], workers: int, each: int = TASKS_EACH) -> list[list[int]]:
    """Tasks of neighbouring parts, the costliest first, about so many for ``each`` worker.

    ``costs`` are those of all parts, ``numbers`` the parts that are wanted.
    """
    most = sum(costs[k] for k in numbers) / (each * max(workers, 1))
    tasks: list[list[int]] = []
    for k in numbers:
        if tasks and tasks[-1][-1] == k - 1 and sum(costs[i] for i in tasks[-1]) + costs[k] <= most:
            tasks[-1].append(k)
        else:
            tasks.append([k])
    return sorted(tasks, key=lambda task: -sum(costs[k] for k in task))
