"""The regressor ``ridge``: predictions of a feature space by ridge regression, one factor for spaces that share it."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import BaseModel

from leanrecon.context import Context
from leanrecon.regression.regressor import (
    Output,
    RegressionData,
    RegressionPlan,
    RegressionShapes,
    check_test_rows,
)
from leanrecon.regression.ridge.plan import ALPHAS, LOO_ROWS, Shapes, plan_fit
from leanrecon.regression.ridge.settings import RidgeSettings
from leanrecon.stores.layout import PANEL, subset_block

if TYPE_CHECKING:
    from leanrecon.regression.ridge.directions import Directions
    from leanrecon.regression.ridge.ridge import StreamingRidge

_FLOAT = 4  # bytes of float32

_PAGE = 4096  # bytes that a tile may take beside its numbers

_SHARED = "ridge"  # the key of the ridge that was fitted last


@dataclass
class _Shared:
    """A ridge, and the settings that another space must have to use its factor."""

    key: str
    ridge: "StreamingRidge"


class RidgeRegressor:
    """Ridge regression from betas to the rows of a feature space."""

    Settings: ClassVar[type[BaseModel]] = RidgeSettings

    def __init__(self, settings: RidgeSettings) -> None:
        self.settings = settings

    @classmethod
    def needs(cls, settings: RidgeSettings, prefix: str = "") -> Iterable[Any]:
        """No published files."""
        return ()

    @classmethod
    def notes(cls, settings: RidgeSettings, space: str) -> Iterable[str]:
        """Sentences that a reader of the report must know about the predictions of a feature space."""
        if settings.restandardize == "transductive":
            yield (
                f"Predictions of {space} were re-standardised with the mean and spread of all test predictions together "
                '(restandardize = "transductive"): a row depends on which others were tested.'
            )

    def made_of(self) -> dict[str, Any]:
        """All settings that decide the predictions; the grid of alphas only where one is chosen from it."""
        unused = set() if self.settings.alpha == "loo" else {"alphas"}
        return self.settings.model_dump(exclude_none=True, exclude=unused)

    def plan(self, shapes: RegressionShapes, free: int) -> RegressionPlan:
        """Plan the fit and the predictions into ``free`` bytes of memory; ``work`` may exceed ``free``."""
        settings = self.settings
        check_test_rows(self.settings.restandardize, shapes.m)
        of_ridge = shapes_of_regression(shapes, restandardized=settings.restandardize != "none")
        planned = plan_fit(
            of_ridge,
            free,
            known=True,
            loo=settings.alpha == "loo",
            per_target=settings.per_target,
            alphas=ALPHAS if settings.alphas is None else len(settings.alphas),
            extra_rows=min(shapes.n, LOO_ROWS) if settings.restandardize == "inductive" else 0,
        )
        where = "in memory" if planned.in_memory else "on disk"
        return RegressionPlan(
            work=planned.work,
            summary=f"Gram matrix of order {of_ridge.order} {where}, {shapes.y_block} targets a block",
            scratch=0 if planned.in_memory else planned.triangle,
        )

    def predict(
        self, data: RegressionData, outputs: Sequence[Output], context: Context, shared: dict[str, Any]
    ) -> dict[str, Any]:
        """Fill the stores of all outputs, and finish them; returns what run.json keeps.

        Spaces with the same settings share a factor in ``shared``, unless alpha was chosen for each of them.
        """
        check_test_rows(self.settings.restandardize, data.test.shape[0])
        ridge = self._fitted(data, context, shared, shuffled=any(out.pairing is not None for out in outputs))
        if ridge.left_out_:
            voxels = data.betas.shape[1]
            context.progress.say(f"{context.label}: {ridge.left_out_} of {voxels} voxels do not vary and are left out")
        for sentence in ridge.unreasonable_:
            context.progress.say(f"{context.label}: {sentence}")
        alpha = np.asarray(ridge.alpha_)
        if self.settings.alpha == "loo":
            chosen = f"{np.median(alpha):.4g}" + (" (median over targets)" if self.settings.per_target else "")
            context.progress.say(f"{context.label}: leave-one-out chose alpha = {chosen}")
        total = sum(out.store.column_groups for out in outputs)
        done = total - sum(len(out.store.missing_column_groups()) for out in outputs)
        with context.task(total=total, unit="blocks", done=done) as advance:
            for out in outputs:
                paired = ridge if out.pairing is None else ridge.shuffled([context.seed, out.pairing])
                paired.predict_into(data.test, out.store, advance=advance)
                out.store.finish()
        return {
            "settings": self.settings.model_dump(exclude_none=True),
            "alpha": float(alpha) if alpha.ndim == 0 else {"median": float(np.median(alpha)), "per_target": True},
            "voxels_left_out": ridge.left_out_,
            **({"unreasonable_betas": ridge.unreasonable_} if ridge.unreasonable_ else {}),
        }

    def plan_directions(self, alpha: float | None, betas: Any, k: int, stimulus: Any, images: int, free: int) -> int:
        """Bytes of work of ``learn_directions`` for ``k`` targets of a number of images, beside the targets."""
        from leanrecon.regression.ridge.directions import plan_directions

        return plan_directions(self.settings, alpha, betas, k, stimulus, images, free)

    def learn_directions(
        self, alpha: float | None, betas: Any, targets: Any, stimulus: Any, context: Context, *, patterns: bool
    ) -> "Directions":
        """The weights of a few targets [images, k], for maps; ``alpha`` None: chosen as the settings say."""
        from leanrecon.regression.ridge.directions import learn_directions

        return learn_directions(self.settings, alpha, betas, targets, stimulus, context, patterns=patterns)

    def _fitted(
        self, data: RegressionData, context: Context, shared: dict[str, Any], *, shuffled: bool
    ) -> "StreamingRidge":
        """A ridge of these data: with the factor of another space, or fitted now."""
        from leanrecon.regression.ridge.ridge import StreamingRidge

        key = json.dumps(self.made_of(), sort_keys=True)
        last: _Shared | None = shared.get(_SHARED)
        if last and last.key == key and self.settings.alpha != "loo" and (last.ridge.shuffles or not shuffled):
            other = last.ridge.with_targets(data.targets)
            other.budget, other.peaks_ = context.budget, context.peaks
            return other
        last = None
        shared.clear()  # one factor at a time
        options = self.settings.model_dump(exclude={"kind"})
        ridge = StreamingRidge(**options, budget=context.budget, seed=context.seed, scratch=context.scratch)
        ridge.warns = False  # what is odd is said beside the label
        ridge.fit(data.betas, data.targets, stimulus=data.stimulus, test=data.test, shuffled=shuffled)
        context.peaks.projected.extend(ridge.peaks_.projected)
        ridge.peaks_ = context.peaks
        shared[_SHARED] = _Shared(key, ridge)
        return ridge


def shapes_of_regression(shapes: RegressionShapes, *, restandardized: bool = False) -> Shapes:
    """The shapes of a ridge between stores of float32, or parts of them."""
    chunk, y_tile = (PANEL * block * _FLOAT + _PAGE for block in (shapes.x_block, shapes.y_block))
    x_tile = PANEL * subset_block(shapes.x_block, shapes.p) * _FLOAT + _PAGE if shapes.subset else chunk
    repeats = shapes.s != shapes.n
    return Shapes(
        shapes.n, shapes.p, shapes.m, shapes.t, shapes.y_block, x_tile, y_tile,
        scratch=chunk + (chunk + x_tile if shapes.subset else 0), y_scratch=2 * y_tile if shapes.subset else 0,
        restandardized=restandardized, shuffled=shapes.pairings > 0, s=shapes.s if repeats else None,
        largest=-(-shapes.n // max(shapes.s, 1)) if repeats else 1,
    )  # fmt: skip
