"""Plans of a ridge beyond its fit: for the choice of its form, for later fits, and for several pairings at once."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from leanrecon.regression.regressor import RegressionShapes
from leanrecon.regression.ridge.form import Form, Source
from leanrecon.regression.ridge.limits import (
    COMPONENTS,
    FOLDS,
    MOMENTS,
    ONE_EACH,
    PROJECTIONS,
    SUMMING,
    TEST_ROWS,
    WORKSPACE,
)
from leanrecon.regression.ridge.part_plan import PROJECTING, SHARED_OPERATIONS, GramShapes
from leanrecon.regression.ridge.plan import FitPlan, Shapes, choice_rows, plan_fit, plan_stream
from leanrecon.regression.ridge.triangle import DEPTH
from leanrecon.stores.layout import BLOCK, PANEL, subset_block

VOXELS = 128
"""Voxels that are encoded, or averaged over repeats, at once."""

MOST_SETS = 8
"""Most pairings of betas and images whose predictions share a pass over the targets."""

_FLOAT = 8  # bytes of float64

_FLOAT32 = 4  # bytes

_PAGE = 4096  # bytes that a tile may take beside its numbers

SEARCHED = 4
"""Alphas that a search looks at, about: each takes a factor and an inverse, order³ operations."""


def plan_encoding(
    n: int, p: int, s: int, t: int, *, block: int, x_tile: int = 0, y_tile: int = 0, scratch: int = 0
) -> int:
    """Bytes of work of ``encoding``, from the shapes of betas [n, p] and targets [s, t] that are read ``block`` at a time."""
    k = min(t, PROJECTIONS)
    r = min(k, s)
    reading = 2 * y_tile + (SUMMING if t > k else 0)
    scores = s * k * 8 + max(reading, s * r * 8 + 3 * r * r * 8 + r * r * 8)
    images = blocks_nbytes(n, s) + 2 * s * VOXELS * 8
    fitting = 3 * s * r * 8 + 3 * r * r * 8 + (2 * PANEL + VOXELS) * r * 8 + images
    return WORKSPACE + scratch + max(2 * x_tile + MOMENTS * p * 8, scores, fitting) + 4 * p * 8


def blocks_nbytes(n: int, s: int) -> int:
    """Bytes of the betas of ``n`` rows of ``s`` images while they are averaged over repeats."""
    return (3 * n + s) * VOXELS * 8


def plan_formed(shapes: Shapes, free: int, forms: Sequence[Form], **options: Any) -> FitPlan:
    """Plan a fit that chooses among ``forms`` first: that of the kernel that needs most, and the phases before it."""
    kernels = dict.fromkeys(form.kernel for form in forms)
    plans = [plan_fit(replace(shapes, rbf=kernel == "rbf"), free, **options) for kernel in kernels]
    largest = max(plans, key=lambda plan: plan.work)
    return replace(largest, phases=largest.phases | _learning(shapes, forms))


def _learning(shapes: Shapes, forms: Sequence[Form]) -> dict[str, int]:
    """Work of projecting the targets, choosing among forms, and weighing voxels."""
    sources = {form.source for form in forms if form.source is not None}
    n, p, s = shapes.n, shapes.p, shapes.width
    k = min(shapes.t, PROJECTIONS)
    held = s * k * _FLOAT
    phases = {}
    if len(forms) > 1 or "accuracy" in sources:
        tiles = 2 * shapes.y_tile + shapes.y_scratch
        projecting = SUMMING if shapes.t > k else 0
        phases["projections"] = WORKSPACE + held + tiles + projecting
    if sources:
        phases["voxel weights"] = held + plan_carried(n, p, s, k, sources, shapes.scratch)
    if len(forms) > 1:
        phases["choice"] = held + plan_choice(n, p, k, shapes, sources)
    return phases


def plan_carried(n: int, p: int, s: int, k: int, sources: set[Source], scratch: int) -> int:
    """Bytes of work of telling how well voxels carry the images, with ``k`` targets that are held already."""
    if "accuracy" in sources:
        return plan_encoding(n, p, s, k, block=k, y_tile=PANEL * k * _FLOAT, scratch=scratch)
    return WORKSPACE + scratch + blocks_nbytes(n, s) + 8 * p * 8


def plan_choice(n: int, p: int, k: int, shapes: Shapes, sources: set[Source]) -> int:
    """Bytes of work of the choice among forms, with ``k`` targets that are held already."""
    r, k = min(n, max(choice_rows(p), shapes.largest)), min(k, COMPONENTS)
    betas = r * p * 4
    tile = PANEL * min(BLOCK, p) * 4
    reading = shapes.x_tile + shapes.scratch
    kernels = 7 * r * r * _FLOAT + 4 * r * min(DEPTH, p) * _FLOAT + 4 * r * k * _FLOAT + 2 * tile
    weighing = plan_carried(r, p, r, k, sources, 2 * tile) if sources else 0
    return WORKSPACE + betas + MOMENTS * p * 8 + 4 * p * 8 + max(reading, 4 * tile, kernels, weighing)


def sets_together(shapes: Shapes, rows: int, sets: int, free: int) -> int:
    """Sets of hat matrices, one for each pairing of betas and images, that share a pass over the targets in ``free`` bytes."""
    fitting = (count for count in range(min(sets, MOST_SETS), 1, -1) if plan_stream(shapes, count * rows) <= free)
    return next(fitting, 1)


def plan_sets(shapes: Shapes, rows: int, sets: int, free: int) -> int:
    """Bytes of work of streaming the targets through hat matrices of several pairings; 0 where each has its own pass.

    The hat matrices of the measured pairing are held beside the sets that were made of them. More sets are taken only
    where there is room, so that this is ``free`` at most.
    """
    held = rows * shapes.n * shapes.itemsize
    if sets == 1 or shapes.m > TEST_ROWS or not shapes.through_hat:
        return 0
    count = sets_together(shapes, rows, sets, max(free - held, 0))
    return min(WORKSPACE + held + plan_stream(shapes, count * rows), free) if count > 1 else 0


def kept_nbytes(shapes: Shapes, *, planned: FitPlan, loo: bool) -> int:
    """Bytes on disk of what other targets of the same betas share: the Gram matrix, products with test betas, eigenvectors."""
    vectors = shapes.order**2 * shapes.itemsize if loo and not planned.searched else 0
    return planned.triangle + shapes.m * shapes.n * shapes.itemsize * shapes.dual + vectors


def kernels_nbytes(shapes: Shapes, forms: Sequence[Form], fits: int) -> int:
    """Bytes on disk of what ``fits`` to several targets share of a choice among forms: folds' kernels of unweighed voxels."""
    plain = sum(form.source is None for form in forms) if len(forms) > 1 and fits > 1 else 0
    rows = min(shapes.n, max(choice_rows(shapes.p), shapes.largest))
    folds = shapes.width if shapes.width <= ONE_EACH else FOLDS
    return folds * plain * rows**2 * _FLOAT


def projections_nbytes(shapes: Shapes) -> int:
    """Bytes on disk of projections of the targets, for other fits of the same targets: in float64 and float32."""
    return shapes.width * min(shapes.t, PROJECTIONS) * (8 + 4)


def operations_of_fit(order: int, shapes: Shapes, *, searched: bool, loo: bool) -> float:
    """Operations of a fit and its hat matrix: half of the Gram matrix, its factor or eigenvectors, projections, two solves.

    An eigendecomposition with vectors takes about 9 order³ (Golub & Van Loan 2013, section 8.3), a Cholesky factor ⅓.
    """
    times = 1 / 3 if not loo else SEARCHED if searched else 9
    factor = times * float(order) ** 3
    other = shapes.p if order == shapes.n else shapes.n
    projected = _projecting(shapes) if loo else 0
    return float(order) ** 2 * other + factor + 2.0 * shapes.m * order * (order + other) + projected


def taken_by_workers(shapes: Shapes, *, loo: bool) -> tuple[float, int]:
    """What workers take of a fit, where there are any: operations, and bytes on disk of the parts that they leave.

    These are the Gram matrix with products with test betas, and projections, each where its operations are worth the files.
    """
    crossing = shapes.m if shapes.dual and shapes.m <= TEST_ROWS else 0
    gram = GramShapes(shapes.n, shapes.p, crossing, shapes.dual, shapes.itemsize, 0)
    numbers = sum(rows * columns for rows, columns in map(gram.shape_of, gram.parts))
    parts = [(gram.operations, numbers), (_projecting(shapes) if loo else 0.0, shapes.width * PROJECTIONS)]
    taken = [part for part in parts if part[0] >= SHARED_OPERATIONS]
    return sum(part[0] for part in taken), sum(part[1] for part in taken) * shapes.itemsize


def _projecting(shapes: Shapes) -> float:
    """Operations of random projections of the targets; none where there are no more targets than projections."""
    return float(PROJECTING) * shapes.width * shapes.t if shapes.t > PROJECTIONS else 0.0


def shapes_of_regression(shapes: RegressionShapes, *, restandardized: bool = False) -> Shapes:
    """The shapes of a ridge between stores of float32, or parts of them."""
    chunk, y_tile = (PANEL * block * _FLOAT32 + _PAGE for block in (shapes.x_block, shapes.y_block))
    x_tile = PANEL * subset_block(shapes.x_block, shapes.p) * _FLOAT32 + _PAGE if shapes.subset else chunk
    repeats = shapes.s != shapes.n
    return Shapes(
        shapes.n, shapes.p, shapes.m, shapes.t, shapes.y_block, x_tile, y_tile,
        scratch=chunk + (chunk + x_tile if shapes.subset else 0), y_scratch=2 * y_tile if shapes.subset else 0,
        restandardized=restandardized, shuffled=shapes.pairings > 0, s=shapes.s if repeats else None,
        largest=-(-shapes.n // max(shapes.s, 1)) if repeats else 1,
    )  # fmt: skip
