"""Memory, disk and operations of the regressor ``ridge`` in a study: arithmetic on its settings and shapes."""

from dataclasses import replace
from typing import Any

from leanrecon.progress import counted
from leanrecon.regression.regressor import RegressionPlan, RegressionShapes
from leanrecon.regression.ridge.limits import ALPHAS, FOLDS, LOO_ROWS
from leanrecon.regression.ridge.plan import FitPlan, Shapes, plan_left_out
from leanrecon.regression.ridge.plan_form import (
    kept_nbytes,
    kernels_nbytes,
    operations_of_fit,
    plan_formed,
    plan_sets,
    projections_nbytes,
    shapes_of_regression,
    taken_by_workers,
)
from leanrecon.regression.ridge.settings import RidgeSettings
from leanrecon.regression.ridge.vram import aside, place


def plan_regression(settings: RidgeSettings, shapes: RegressionShapes, free: int) -> RegressionPlan:
    """Plan the fit and the predictions into ``free`` bytes of memory; ``work`` may exceed ``free``."""
    of_ridge, forms = _shapes(settings, shapes), settings.forms
    device, beside = _beside(settings, shapes.device, of_ridge)
    planned = _plan_fit(settings, of_ridge, free - beside, known=True)
    where = "in memory" if planned.in_memory else "on disk"
    order = of_ridge.order if settings.kernel == "linear" else of_ridge.n
    rows = shapes.m + _extra_rows(settings, shapes.n)
    sets = 0 if settings.per_target else plan_sets(of_ridge, rows, 1 + shapes.pairings, free - beside)
    same = shapes.fits > 1 and settings.voxel_weights in ("none", "reliability")
    grams = -(-planned.triangle // planned.pass_nbytes)
    loo, dual, on = settings.alpha == "loo", order == shapes.n, "" if device == "cpu" else f", on {device}"
    shared = kernels_nbytes(of_ridge, forms, shapes.fits)
    shared_operations, parts = taken_by_workers(of_ridge, loo=loo)
    return RegressionPlan(
        work=max(planned.work, sets) + beside,
        summary=f"Gram matrix of order {order} {where}, {counted(shapes.y_block, 'targets')} a block{on}",
        held=beside,
        scratch=planned.scratch + shared + (kept_nbytes(of_ridge, planned=planned, loo=loo) if same else 0),
        kept=projections_nbytes(of_ridge) if loo else 0,
        operations=operations_of_fit(order, of_ridge, searched=planned.searched, loo=loo) * len(forms),
        shared_operations=shared_operations,
        parts=parts,
        # Moments, Gram matrix; cross products, errors of rows; and in each fold where a form is chosen.
        passes=1 + grams + (0 if dual else 1 + 2 * loo) + (5 * FOLDS if len(forms) > 1 else 0),
        target_passes=1 if loo else 0,
    )


def plan_without_images(settings: RidgeSettings, shapes: RegressionShapes, free: int) -> RegressionPlan:
    """Plan a fit whose factor is kept, and predictions of all train rows, each without the rows of its image."""
    of_ridge = _shapes(settings, shapes)
    beside = _beside(settings, shapes.device, of_ridge)[1]
    free -= beside
    fit = _plan_fit(settings, of_ridge, free, known=False)
    held = fit.triangle if fit.in_memory else 0
    works = [
        plan_left_out(
            replace(of_ridge, rbf=form.kernel == "rbf"),
            max(free - held, 0),
            on_disk=not fit.in_memory,
            extra_rows=_extra_rows(settings, shapes.n),
        )[1]
        for form in settings.forms
    ]
    return RegressionPlan(
        work=beside + max(fit.work, held + max(works)),
        summary="train rows without their images",
        scratch=fit.scratch,
    )


def _shapes(settings: RidgeSettings, shapes: RegressionShapes) -> Shapes:
    return shapes_of_regression(shapes, restandardized=settings.restandardize != "none")


def _beside(settings: RidgeSettings, wanted: str, of_ridge: Shapes) -> tuple[str, int]:
    """The device of a fit, and the bytes of the process that it takes beside what a fit on the CPU takes."""
    if wanted == "cpu":
        return wanted, 0
    widest = replace(of_ridge, rbf=any(form.kernel == "rbf" for form in settings.forms))
    options = _options(settings, of_ridge.n)
    device = place(wanted, widest, **options)
    return device, aside(device, widest, **options)


def _plan_fit(settings: RidgeSettings, of_ridge: Shapes, free: int, *, known: bool) -> FitPlan:
    return plan_formed(of_ridge, free, settings.forms, known=known, **_options(settings, of_ridge.n))


def _options(settings: RidgeSettings, n: int) -> dict[str, Any]:
    """What plans ask about a fit to ``n`` train rows."""
    return {
        "loo": settings.alpha == "loo",
        "per_target": settings.per_target,
        "alphas": ALPHAS if settings.alphas is None else len(settings.alphas),
        "extra_rows": _extra_rows(settings, n),
    }


def _extra_rows(settings: RidgeSettings, n: int) -> int:
    """Train rows whose leave-one-out predictions give the moments of test predictions."""
    return min(n, LOO_ROWS) if settings.restandardize == "inductive" else 0
