"""The memory plan of a ridge, phase by phase: arithmetic on shapes."""

from dataclasses import dataclass, replace
from typing import Any

from leanrecon.regression.ridge.limits import (
    ALPHAS,
    CHOICE_NBYTES,
    CHOICE_ROWS,
    FLOAT64_ORDER,
    MOMENTS,
    PROBES,
    PROJECTIONS,
    SEARCH_ALPHAS,
    SEARCH_PROJECTIONS,
    SEARCH_ROWS,
    SUMMING,
    TEST_ROWS,
    WARM,
    WEIGHT_BLOCK,
    WORKSPACE,
)
from leanrecon.regression.ridge.triangle import DEPTH, PAIRS, WIDTH, panel_nbytes, pass_groups, triangle_nbytes
from leanrecon.stores.layout import PANEL


@dataclass(frozen=True)
class Shapes:
    """``n`` train rows, ``p`` voxels, ``m`` test rows, ``t`` targets, streamed ``block`` at a time.

    ``x_tile`` and ``y_tile`` are the bytes of a tile of betas and targets, ``scratch`` and ``y_scratch`` what reading
    one takes besides, ``y_itemsize`` the bytes of a number of the streamed product.
    """

    n: int
    p: int
    m: int
    t: int
    block: int
    x_tile: int = 0
    y_tile: int = 0
    scratch: int = 0
    y_scratch: int = 0
    y_itemsize: int = 4
    restandardized: bool = False
    shuffled: bool = False
    """Whether predictions from shuffled targets are wanted as well."""
    s: int | None = None
    """Rows of the targets where images are shown several times; None: row i of the betas shows image i."""
    largest: int = 1
    """The most rows that show one image."""
    rbf: bool = False
    """Whether the kernel is not linear, so that there are no weights."""

    @property
    def width(self) -> int:
        """Columns of the hat matrix that the targets are streamed through."""
        return self.n if self.s is None else self.s

    @property
    def dual(self) -> bool:
        """Whether the n×n kernel is factored (n ≤ p) rather than the p×p covariance."""
        return self.n <= self.p or self.rbf

    @property
    def order(self) -> int:
        return self.n if self.dual else self.p

    @property
    def itemsize(self) -> int:
        """Bytes of a number of the Gram matrix and its factor."""
        return 8 if self.order <= FLOAT64_ORDER else 4

    @property
    def through_hat(self) -> bool:
        """Whether predictions go through the m×s hat matrix (2mst flop) or through p×t weights (2pt(n + p + m))."""
        return self.dual or self.restandardized or self.m * self.width <= self.p * (self.n + self.p + self.m)

    @property
    def slabs(self) -> int:
        """Bytes of two panels of voxels over all rows (dual), or of rows over all voxels (primal)."""
        return 2 * min(DEPTH, max(self.n, self.p)) * self.order * self.itemsize + self.scratch

    @property
    def streaming(self) -> int:
        """Bytes of two tiles of targets and of one that is converted or written."""
        converted = 2 * PANEL * self.block * 8 if self.restandardized else 0
        return 2 * self.y_tile + self.y_scratch + PANEL * self.block * 4 + converted


def choice_rows(p: int) -> int:
    """Most train rows that the form of a decoder is chosen on: fewer where there are many voxels."""
    return min(CHOICE_ROWS, max(CHOICE_NBYTES // (4 * p), 200))


@dataclass(frozen=True)
class FitPlan:
    """Whether the Gram matrix (``triangle`` bytes) stays in memory, and how many of them are formed in one pass over the betas.

    ``phases`` are the bytes of work of each phase, predictions of up to 1,024 rows included.
    """

    in_memory: bool
    pass_nbytes: int
    triangle: int
    phases: dict[str, int]
    searched: bool = False
    """Whether alpha is searched with few Cholesky factors, beside the Gram matrix."""

    @property
    def scratch(self) -> int:
        """Bytes on disk of the Gram matrix, and of a factor beside it while alpha is searched; then that of the best alpha."""
        return self.triangle * (self.searched + (0 if self.in_memory else 1 + self.searched))

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
    alphas: int = ALPHAS,
    extra_rows: int = 0,
) -> FitPlan:
    """Keep the Gram matrix in memory if it fits there through to the predictions, else on disk, in as few passes as fit.

    Where even the least does not fit, the plan's ``work`` says what would. ``known`` test betas are predicted
    without the factor; ``extra_rows`` go through the hat matrix beside the test rows.
    """
    order, itemsize = shapes.order, shapes.itemsize
    triangle = triangle_nbytes(order, itemsize)
    known = known and shapes.m <= TEST_ROWS and shapes.through_hat and not per_target
    searched = loo and not per_target and shapes.dual and shapes.n > SEARCH_ROWS and alphas <= SEARCH_ALPHAS
    options: dict[str, Any] = {"known": known, "loo": alphas * loo, "per_target": per_target, "extra_rows": extra_rows}
    options["searched"] = searched
    in_memory = FitPlan(True, triangle, triangle, _fit_phases(shapes, triangle, True, **options), searched)
    if in_memory.work <= free:
        return in_memory
    beside = _fit_phases(shapes, 0, False, **options)["gram"]
    groups = pass_groups(order, itemsize, max(free - beside, 0))
    pass_nbytes = max(sum(panel_nbytes(order, itemsize, j) for j in group) for group in groups)
    on_disk = FitPlan(False, pass_nbytes, triangle, _fit_phases(shapes, pass_nbytes, False, **options), searched)
    return on_disk if on_disk.work < in_memory.work else in_memory


def plan_predict(
    shapes: Shapes, free: int, *, on_disk: bool, extra_rows: int = 0, together: bool = False
) -> tuple[int, int]:
    """Panels of test rows that share a pass over the targets, and the bytes of work that takes after a fit.

    ``together`` asks for all of them in one pass.
    """
    n_panels = max(-(-shapes.m // TEST_ROWS), 1)
    panel = panel_nbytes(shapes.order, shapes.itemsize) if on_disk else 0
    for count in range(n_panels, 0, -1):
        rows = min(count * TEST_ROWS, shapes.m) + extra_rows
        phases = _hat_phases(shapes, rows, panel, extra=extra_rows)
        if count < n_panels and shapes.through_hat:  # the last block of a group while the next hats are formed
            phases["hat matrix"] += rows * shapes.block * shapes.y_itemsize
        work = WARM + max(phases.values())
        if work <= free or together or count == 1:
            return count, work
    raise AssertionError("there is at least one panel")


def left_out_rows(largest: int) -> int:
    """Train rows whose leave-one-out hat matrix is formed at once: with the other rows of their images about 1,024."""
    return max(TEST_ROWS // largest // PANEL, 1) * PANEL


def plan_left_out(shapes: Shapes, free: int, *, on_disk: bool, extra_rows: int = 0) -> tuple[int, int]:
    """Panels of train rows that share a pass over the targets while each is predicted without its image, and bytes of work."""
    n, e, at_once = shapes.n, shapes.itemsize, left_out_rows(shapes.largest)
    panel = panel_nbytes(shapes.order, e) if on_disk else 0
    whole = min(at_once * shapes.largest, n)
    through_hat = replace(shapes, s=None, restandardized=True)  # whatever would be cheaper for test rows
    forming = _hat_phases(through_hat, whole, panel)["hat matrix"]
    picked = (min(at_once, n) if shapes.largest > 1 else 0) * (n + shapes.width) * e
    n_panels = -(-n // at_once)
    for count in range(n_panels, 0, -1):
        rows = min(count * at_once, n) + extra_rows
        kept = rows * shapes.width * e
        last = rows * shapes.block * shapes.y_itemsize  # predictions of the last group, while the next hats are formed
        work = WARM + max(kept + forming + picked + last, kept + _streaming(shapes, rows))
        if work <= free or count == 1:
            return count, work
    raise AssertionError("there is at least one panel")


def plan_stream(shapes: Shapes, rows: int) -> int:
    """Bytes of work of streaming the targets through a hat matrix of some rows that is held already."""
    return WARM + _streaming(shapes, rows)


def plan_weights(shapes: Shapes, *, on_disk: bool) -> int:
    """Bytes of work of forming the weights of 512 targets and writing them."""
    columns = min(shapes.t, WEIGHT_BLOCK)
    panel = panel_nbytes(shapes.order, shapes.itemsize) if on_disk else 0
    return WARM + _forming(shapes, columns, panel) + columns * shapes.p * (shapes.itemsize + 4) + shapes.y_tile


def plan_per_target(shapes: Shapes) -> int:
    """Bytes of work of predictions with an alpha for every target, beside the eigenvectors."""
    return WARM + max(_per_target_phases(shapes, shapes.m).values())


def _fit_phases(
    shapes: Shapes, pass_nbytes: int, in_memory: bool, *, known: bool, loo: int, per_target: bool, extra_rows: int,
    searched: bool = False,
) -> dict[str, int]:  # fmt: skip
    n, p, e = shapes.n, shapes.p, shapes.itemsize
    panel = panel_nbytes(shapes.order, e)
    square = shapes.order**2 * e
    held = pass_nbytes if in_memory else 0
    cross = shapes.m * n * e if known and shapes.dual else 0
    phases = {
        "moments": 2 * shapes.x_tile + MOMENTS * p * 8 + shapes.scratch,
        "gram": pass_nbytes + shapes.slabs + cross + (2 * shapes.m * DEPTH * e if cross else 0),
    }
    if searched:
        for name, work in _searching(shapes, 0 if in_memory else panel).items():
            phases[name] = held + cross + work
    elif loo:
        # The square, its eigenvectors over it, and a divide-and-conquer workspace of twice its size.
        phases["eigenvectors"] = held + cross + 3 * square + (0 if in_memory else panel)
        phases["leave one out"] = held + cross + square + _leaving_out(shapes, loo, per_target)
    rows = min(shapes.m, TEST_ROWS)
    if per_target:
        phases |= {name: square + work for name, work in _per_target_phases(shapes, rows).items()}
    else:
        phases["factor"] = cross + (held if in_memory else 3 * panel)
        formed = bool(cross) and not extra_rows
        hats = _hat_phases(
            shapes, rows + extra_rows, 0 if in_memory else panel, extra=extra_rows, formed=formed,
            folded=not (known and shapes.shuffled),
        )  # fmt: skip
        for name, work in hats.items():
            phases[name] = work + (0 if known and name == "predictions" else held)
    return {name: WORKSPACE + work for name, work in phases.items()}


def _leaving_out(shapes: Shapes, alphas: int, per_target: bool) -> int:
    """Leave-one-out errors of a number of alphas: reading or projecting the targets, their loadings, and residuals."""
    n, s, p, e = shapes.n, shapes.width, shapes.p, shapes.itemsize
    k = min(shapes.t, WEIGHT_BLOCK if per_target else PROJECTIONS)
    reading = 2 * shapes.y_tile + shapes.y_scratch + (SUMMING if shapes.t > k and not per_target else 0)
    leaving = 3 * n * k * e if shapes.dual else 2 * p * k * e + 2 * DEPTH * (p + k) * e + shapes.slabs
    chosen = 8 * alphas * shapes.t if per_target else 0
    if shapes.s is None:
        return chosen + n * alphas * e + n * k * e + max(reading, leaving)
    slab = max(DEPTH, shapes.largest)
    if shapes.dual:
        pairs = n * (shapes.largest + 1) // 2
        grouped = n * k * e + leaving + pairs * (alphas * e + 40) + 3 * PANEL * PAIRS * e
    else:
        pairs = slab * (shapes.largest + 1) // 2
        grouped = leaving + group_rows_held(p, shapes.largest) * p * e + slab * (p + 2 * k) * e + pairs * alphas * e
    return chosen + s * k * e + max(reading, grouped + slab * (shapes.largest * 16 + 2 * k * e))


def _searching(shapes: Shapes, panel: int) -> dict[str, int]:
    """Work of a search for alpha beside the Gram matrix, whose panels are read one by one where ``panel`` is not 0.

    Halves of the rows tell where it begins: the smallest by eigenvectors. Then a factor and rows of its inverse, and
    residuals: as they are, moved, and squared.
    """
    n, s, e = shapes.n, shapes.width, shapes.itemsize
    k, most = min(shapes.t, PROJECTIONS), max(min(SEARCH_ROWS, n), shapes.largest)
    rows, pairs = n * k * e, n * (shapes.largest + 1) // 2
    triangle, half = (0, 0) if panel else (triangle_nbytes(order, e) for order in (n, -(-n // 2)))
    reading = 2 * shapes.y_tile + shapes.y_scratch + (SUMMING if shapes.t > k else 0)
    taken = (0 if shapes.s is None else 2 * WIDTH * min(PAIRS, pairs) * e) + 5 * pairs * 8
    beginning = rows + 2 * half + 2 * panel + max(3 * most**2 * e, 4 * WIDTH**2 * e) + most * e * 5 * SEARCH_PROJECTIONS
    inverting = 2 * panel + min(WIDTH, n) * n * e + taken
    moving = rows + min(k, SEARCH_PROJECTIONS) * n * e + PROBES * n * (2 * e + 3)
    leaving = 2 * panel + moving + taken + 3 * DEPTH * (k * e + 8 * shapes.largest)
    searching = triangle + 2 * rows + max(3 * panel, inverting, leaving)
    expanding = 0 if shapes.s is None else rows
    return {"projections of targets": s * k * e + max(reading, expanding), "search": max(beginning, searching)}


def group_rows_held(p: int, largest: int) -> int:
    """Rows of betas [p] that are held at once while groups of rows are left out of the primal form.

    As many as voxels: no more than the eigenvectors, whose decomposition held twice that besides.
    """
    return max(p, 4 * DEPTH, largest)


def _hat_phases(
    shapes: Shapes, rows: int, panel: int, *, extra: int = 0, formed: bool = False, folded: bool = True
) -> dict[str, int]:
    """Work of predictions beside the factor; ``panel`` bytes of it are read at once if it is on disk.

    ``extra`` of the ``rows`` are train rows. Of a kernel that is ``formed`` already, no betas are read again. Where
    images are repeated, hat matrices are ``folded`` to a column for each image as soon as they are formed.
    """
    n, p, e = shapes.n, shapes.p, shapes.itemsize
    at_once = min(rows, TEST_ROWS)
    if not shapes.through_hat:
        columns = min(shapes.t, WEIGHT_BLOCK)
        forming = _forming(shapes, columns, panel)
        held = (shapes.block * p + at_once * shapes.block + at_once * p) * e
        return {"weights": held + max(forming, shapes.scratch + shapes.y_tile)}
    if formed:
        reading = 0
    elif shapes.dual:
        reading = shapes.slabs + 2 * at_once * min(DEPTH, p) * e
    else:
        # Test betas are read by another thread than slabs are: the heap of each keeps a chunk.
        reading = shapes.slabs + at_once * p * e + shapes.scratch
    hats = rows * n * e
    forming = max(reading, 2 * panel)
    if shapes.s is None:
        return {"hat matrix": hats + forming, "predictions": hats + _streaming(shapes, rows)}
    kept = rows * (shapes.s if folded else n) * e
    unfolded = (min(rows - extra, TEST_ROWS) if shapes.dual else 0) * n
    while_folding = max(unfolded, extra * n, 4 * at_once * DEPTH if not shapes.dual else 0) * e if folded else 0
    return {"hat matrix": kept + while_folding + forming, "predictions": kept + _streaming(shapes, rows)}


def _forming(shapes: Shapes, columns: int, panel: int) -> int:
    """Weights of some targets: in the dual form the targets twice or once beside the weights, else the targets beside them."""
    s = shapes.width
    largest = max(s + shapes.n, shapes.n + shapes.p) if shapes.dual else s + shapes.p
    gathered = 0 if shapes.s is None and not shapes.shuffled else min(DEPTH, shapes.n) * columns * shapes.itemsize
    return (
        gathered + columns * largest * shapes.itemsize + max(shapes.slabs, 2 * panel, shapes.y_tile + shapes.y_scratch)
    )


def _streaming(shapes: Shapes, rows: int) -> int:
    copied = shapes.shuffled or shapes.itemsize > shapes.y_itemsize
    converted = rows * shapes.width * shapes.y_itemsize if copied else 0
    return converted + rows * shapes.block * shapes.y_itemsize + shapes.streaming


def _per_target_phases(shapes: Shapes, rows: int) -> dict[str, int]:
    """Work of scoring the test rows and of predictions with them, beside the eigenvectors."""
    n, p, e = shapes.n, shapes.p, shapes.itemsize
    columns = min(shapes.t, WEIGHT_BLOCK)
    scores = rows * shapes.order * e
    reading = shapes.slabs + 2 * rows * min(DEPTH, p) * e if shapes.dual else shapes.scratch
    learning = (2 * n if shapes.dual else n + 2 * p) * columns * e + (0 if shapes.dual else shapes.slabs)
    if shapes.s is not None:  # the targets of each image beside those of each row
        learning = max(learning, (shapes.s + n) * columns * e)
    answering = rows * (shapes.block + columns) * e + shapes.y_tile + shapes.y_scratch
    return {"scores": 2 * scores + reading, "predictions": scores + learning + answering}
