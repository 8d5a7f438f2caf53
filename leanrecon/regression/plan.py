"""What a ridge will hold in memory, phase by phase, before any of it is done: arithmetic on shapes."""

from dataclasses import dataclass

from leanrecon.regression.kernel import DEPTH, panel_nbytes, triangle_nbytes
from leanrecon.regression.loo import PROJECTIONS
from leanrecon.stores.matrix import PANEL

FLOAT64_ORDER = 3072
"""Gram matrices up to this order are formed and factored in float64, which costs them a second or two."""

TEST_ROWS = 1024
"""Test rows whose hat matrix is formed at once; more are taken in turns."""

WEIGHT_BLOCK = 512
"""Targets whose weights are formed at once."""

WORKSPACE = 28_000_000
"""Bytes that the BLAS threads and the interpreter take for themselves."""


@dataclass(frozen=True)
class Shapes:
    """``n`` train rows, ``p`` voxels, ``m`` test rows, ``t`` targets, streamed ``block`` at a time.

    ``x_tile`` and ``y_tile`` are the bytes of a tile of betas and targets, ``scratch`` what reading one takes
    besides, ``y_itemsize`` the bytes of a number of the streamed product.
    """

    n: int
    p: int
    m: int
    t: int
    block: int
    x_tile: int = 0
    y_tile: int = 0
    scratch: int = 0
    y_itemsize: int = 4
    restandardized: bool = False

    @property
    def dual(self) -> bool:
        """Whether the n×n kernel is factored (n ≤ p) rather than the p×p covariance."""
        return self.n <= self.p

    @property
    def order(self) -> int:
        return min(self.n, self.p)

    @property
    def itemsize(self) -> int:
        """Bytes of a number of the Gram matrix and its factor."""
        return 8 if self.order <= FLOAT64_ORDER else 4

    @property
    def through_hat(self) -> bool:
        """Whether predictions go through the m×n hat matrix (2mnt flop) or through p×t weights (2pt(n + p + m))."""
        return self.dual or self.restandardized or self.m * self.n <= self.p * (self.n + self.p + self.m)

    @property
    def slabs(self) -> int:
        """Bytes of two panels of voxels over all rows (dual), or of rows over all voxels (primal)."""
        return 2 * min(DEPTH, max(self.n, self.p)) * self.order * self.itemsize + self.scratch


@dataclass(frozen=True)
class FitPlan:
    """Whether the Gram matrix (``triangle`` bytes) stays in memory, and how many of them are formed in one pass over the betas.

    ``phases`` are the bytes of work of each phase, predictions of up to 1,024 rows included.
    """

    in_memory: bool
    pass_nbytes: int
    triangle: int
    phases: dict[str, int]

    @property
    def work(self) -> int:
        return max(self.phases.values())


def plan_fit(
    shapes: Shapes,
    free: int,
    *,
    known: bool = False,
    loo: bool = False,
    per_target: bool = False,
    extra_rows: int = 0,
) -> FitPlan:
    """Keep the Gram matrix in memory if it fits there through to the predictions, else on disk, in as few passes as fit.

    Where even the least does not fit, the plan's ``work`` says what would. ``known`` test betas are predicted
    without the factor; ``extra_rows`` go through the hat matrix beside the test rows.
    """
    triangle = triangle_nbytes(shapes.order, shapes.itemsize)
    panel = panel_nbytes(shapes.order, shapes.itemsize)
    known = known and shapes.m <= TEST_ROWS and shapes.through_hat and not per_target
    options = {"known": known, "loo": loo, "per_target": per_target, "extra_rows": extra_rows}
    in_memory = FitPlan(True, triangle, triangle, _fit_phases(shapes, triangle, True, **options))
    if in_memory.work <= free:
        return in_memory
    beside = _fit_phases(shapes, 0, False, **options)["gram"]
    pass_nbytes = min(max(free - beside, panel), triangle)
    on_disk = FitPlan(False, pass_nbytes, triangle, _fit_phases(shapes, pass_nbytes, False, **options))
    return on_disk if on_disk.work < in_memory.work else in_memory


def plan_predict(shapes: Shapes, free: int, *, on_disk: bool, extra_rows: int = 0, together: bool = False) -> tuple[int, int]:
    """Panels of test rows that share a pass over the targets, and the bytes of work that takes.

    ``together`` asks for all of them in one pass.
    """
    n_panels = max(-(-shapes.m // TEST_ROWS), 1)
    panel = panel_nbytes(shapes.order, shapes.itemsize) if on_disk else 0
    for count in range(n_panels, 0, -1):
        rows = min(count * TEST_ROWS, shapes.m) + extra_rows
        work = max(_hat_phases(shapes, rows, panel).values())
        if work <= free or together or count == 1:
            return count, work
    raise AssertionError("there is at least one panel")


def _fit_phases(
    shapes: Shapes, pass_nbytes: int, in_memory: bool, *, known: bool, loo: bool, per_target: bool, extra_rows: int
) -> dict[str, int]:
    n, p, e = shapes.n, shapes.p, shapes.itemsize
    panel = panel_nbytes(shapes.order, e)
    square = shapes.order**2 * e
    held = pass_nbytes if in_memory else 0
    cross = shapes.m * n * e if known and shapes.dual else 0
    phases = {
        "moments": WORKSPACE + 2 * shapes.x_tile + 8 * p * 8 + shapes.scratch,
        "gram": WORKSPACE + pass_nbytes + shapes.slabs + cross + (2 * shapes.m * DEPTH * e if cross else 0),
    }
    if loo:
        k = min(shapes.t, PROJECTIONS)
        # The square, its eigenvectors over it, and a divide-and-conquer workspace of twice its size.
        phases["eigenvectors"] = WORKSPACE + held + cross + 3 * square + (0 if in_memory else panel)
        phases["leave one out"] = WORKSPACE + held + cross + square + 4 * n * k * e + 2 * shapes.y_tile + shapes.slabs
    if per_target:
        rows = min(shapes.m, TEST_ROWS)
        columns = min(shapes.t, WEIGHT_BLOCK)
        phases["predictions"] = WORKSPACE + square + 6 * n * columns * e + rows * shapes.order * e + shapes.slabs
        return phases
    phases["factor"] = WORKSPACE + cross + (held if in_memory else 3 * panel)
    rows = min(shapes.m, TEST_ROWS) + extra_rows
    for name, work in _hat_phases(shapes, rows, 0 if in_memory else panel, formed=bool(cross) and not extra_rows).items():
        phases[name] = work + (0 if known and name == "predictions" else held)
    return phases


def _hat_phases(shapes: Shapes, rows: int, panel: int, *, formed: bool = False) -> dict[str, int]:
    """Work of predictions beside the factor; ``panel`` bytes of it are read at once if it is on disk.

    Of a kernel that is ``formed`` already, no betas are read again.
    """
    n, p, e = shapes.n, shapes.p, shapes.itemsize
    at_once = min(rows, TEST_ROWS)
    if not shapes.through_hat:
        columns = min(shapes.t, WEIGHT_BLOCK)
        forming = columns * (n + p) * e + max(shapes.slabs, 2 * panel)
        applying = at_once * (p * e + shapes.block * shapes.y_itemsize) + shapes.scratch
        return {"weights": WORKSPACE + shapes.block * p * e + max(forming, applying)}
    if formed:
        reading = 0
    elif shapes.dual:
        reading = shapes.slabs + 2 * at_once * min(DEPTH, p) * e
    else:
        reading = shapes.slabs + at_once * p * e
    streaming = rows * shapes.block * shapes.y_itemsize + 2 * shapes.y_tile + PANEL * shapes.block * 4
    hats = rows * n * e
    return {
        "hat matrix": WORKSPACE + hats + max(reading, 2 * panel),
        "predictions": WORKSPACE + hats + (rows * n * 4 if e > shapes.y_itemsize else 0) + streaming,
    }
