"""The plan of a ridge's memory on a GPU, phase by phase: arithmetic on shapes.

The host's plan (see ``plan``) holds beside it: between steps the Gram matrix lies there.
"""

from typing import Any

from leanrecon.devices import choose, free_vram
from leanrecon.errors import BudgetError
from leanrecon.memory import format_bytes
from leanrecon.regression.ridge.limits import ALPHAS, PROBES, PROJECTIONS, SEARCH_ROWS, TEST_ROWS, WEIGHT_BLOCK
from leanrecon.regression.ridge.plan import Shapes, plan_fit
from leanrecon.regression.ridge.triangle import DEPTH, PAIRS, WIDTH, panel_nbytes, triangle_nbytes
from leanrecon.stores.layout import PANEL
from leanrecon.weights.libraries import LIBRARY_NBYTES, imports_nbytes

ASIDE = 200_000_000
"""Bytes that are set aside for the workspaces of NVIDIA's libraries and for rounding: assumed, not measured."""


def place(wanted: str, shapes: Shapes, **work: Any) -> str:
    """The device of a fit: a GPU only if settings name it, so that ``"auto"`` gives the same bytes on every machine.

    Raises SettingsError if the named device does not exist, and BudgetError if its memory is too small.
    """
    device = "cpu" if wanted == "auto" else choose(wanted)
    if device == "cuda":
        phase, needed = max(plan_vram(shapes, **work).items(), key=lambda item: item[1])
        if needed > (free := free_vram()):
            raise BudgetError(
                f"the ridge needs {format_bytes(needed)} on the GPU ({phase}), where {format_bytes(free)} are free",
                todo='set device = "auto", which keeps the ridge on the CPU, or end what else holds memory of the GPU',
            )
    return device


def aside(device: str, shapes: Shapes, **work: Any) -> int:
    """Bytes of the process beside the ridge's own: PyTorch and, on Apple's GPUs, which share the memory, what lies there."""
    if device == "cpu":
        return 0
    shared = max(plan_vram(shapes, **work).values()) if device == "mps" else 0
    return LIBRARY_NBYTES + imports_nbytes() + shared


def plan_vram(
    shapes: Shapes,
    *,
    loo: bool = False,
    per_target: bool = False,
    alphas: int = ALPHAS,
    extra_rows: int = 0,
    known: bool = False,
) -> dict[str, int]:
    """Bytes on the GPU of each phase of a fit and its predictions, by the options of ``plan.plan_fit``.

    Test betas that are ``known`` make no difference.
    """
    searched = plan_fit(shapes, 0, loo=loo, per_target=per_target, alphas=alphas).searched
    n, p, order, e = shapes.n, shapes.p, shapes.order, shapes.itemsize
    triangle, panel = triangle_nbytes(order, e), panel_nbytes(order, e)
    rows = shapes.m if per_target else min(shapes.m, TEST_ROWS)
    cross = rows * n * e if shapes.dual else 0
    slots = 2 * min(DEPTH, max(n, p)) * order * e + (2 * rows * min(DEPTH, p) * e if shapes.dual else 0)
    inner = max(rows, extra_rows) * (n if shapes.dual else max(p, min(DEPTH, n))) * e
    phases = {"gram": triangle + cross + slots}
    if searched:
        phases |= _searching(shapes, triangle, panel)
    elif loo:
        phases["eigenvectors"] = _eigenvectors(order, e)
        k = min(shapes.t, PROJECTIONS)
        leaving = (4 * n if shapes.dual else 2 * p + max(DEPTH, shapes.largest)) * k * e
        leaving += 0 if shapes.dual else 2 * max(DEPTH, shapes.largest) * p * e + slots
        phases["leave one out"] = order**2 * e + order * alphas * e + leaving
    if per_target:
        k = min(shapes.t, WEIGHT_BLOCK)
        scoring = cross + inner + max(slots, rows * order * e)
        answering = rows * (order + k) * e + (3 * max(order, n)) * k * e + (0 if shapes.dual else slots)
        phases["predictions"] = order**2 * e + max(scoring, answering)
    else:
        phases["factor"] = triangle + 2 * panel
        phases["hat matrix"] = triangle + max(inner + slots, 2 * inner + panel)
        phases["predictions"] = triangle + _streaming(shapes, rows + extra_rows)
    return {name: ASIDE + work for name, work in phases.items()}


def _searching(shapes: Shapes, triangle: int, panel: int) -> dict[str, int]:
    """Work of a search for alpha: a factor, rows of its inverse, and residuals; before that the eigenvectors of some rows."""
    n, e = shapes.n, shapes.itemsize
    rows_of_inverse = min(WIDTH, n)
    taken = 2 * rows_of_inverse * min(PAIRS, n * (shapes.largest + 1) // 2) * e
    leaving = max(min(shapes.t, PROJECTIONS), PROBES) * (n + WIDTH) * e
    searching = triangle + max(2 * panel, rows_of_inverse * (n + WIDTH) * e + taken, leaving)
    while n > SEARCH_ROWS:  # halves of halves, until they are few enough
        n = -(-n // 2)
    return {"search": searching, "eigenvectors": _eigenvectors(max(n, shapes.largest), e)}


def require_to_stream(shapes: Shapes, rows: int) -> None:
    """Raise BudgetError where the GPU has too little memory to stream the targets through a hat matrix of some rows."""
    if (needed := ASIDE + _streaming(shapes, rows)) > (free := free_vram()):
        raise BudgetError(
            f"predicting {rows} rows needs {format_bytes(needed)} on the GPU, where {format_bytes(free)} are free",
            todo='predict fewer rows at once, or fit with device = "cpu"',
        )


def _streaming(shapes: Shapes, rows: int) -> int:
    return (rows * (shapes.width + shapes.block) + 2 * PANEL * shapes.block) * shapes.y_itemsize


def _eigenvectors(order: int, itemsize: int) -> int:
    """The matrix, its eigenvectors, a workspace of twice its size, and the eigenvectors in the other order."""
    return 5 * order**2 * itemsize
