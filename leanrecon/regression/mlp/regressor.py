"""The regressor ``mlp``: predictions of a feature space by networks that are trained or continued in their folders."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from leanrecon.context import Context
from leanrecon.regression.mlp.plan import NetworkShapes, plan_network
from leanrecon.regression.mlp.settings import MLPSettings
from leanrecon.regression.regressor import (
    Output,
    RegressionData,
    RegressionPlan,
    RegressionShapes,
    check_test_rows,
    notes_on_moments,
    tell_betas,
)
from leanrecon.regression.ridge.plan_form import shapes_of_regression
from leanrecon.regression.unreasonable import of_test
from leanrecon.weights.libraries import is_imported

if TYPE_CHECKING:
    from leanrecon.regression.mlp.mlp import StreamingMLP

TORCH_HELD = 180_000_000
"""Bytes that PyTorch and accelerate keep in the process once a network was trained."""


class MLPRegressor:
    """A residual network, alone or added to a ridge; each pairing of betas and images trains one of its own."""

    Settings = MLPSettings

    def __init__(self, settings: MLPSettings) -> None:
        self.settings = settings

    @classmethod
    def notes(cls, settings: MLPSettings, space: str) -> Iterable[str]:
        yield from notes_on_moments(settings.restandardize, space)

    def made_of(self) -> dict[str, Any]:
        return self.settings.model_dump(exclude_none=True, exclude={"checkpoint_minutes"})

    def plan(self, shapes: RegressionShapes, free: int) -> RegressionPlan:
        check_test_rows(self.settings.restandardize, shapes.m)
        ridge = shapes_of_regression(shapes)
        network = NetworkShapes(
            shapes.n, shapes.p, shapes.m, shapes.t, self.settings, s=shapes.s, largest=ridge.largest,
            block=shapes.y_block, x_tile=ridge.x_tile, y_tile=ridge.y_tile, scratch=ridge.scratch,
            y_scratch=ridge.y_scratch,
        )  # fmt: skip
        imported = is_imported("torch")
        plan = plan_network(network, free, torch_held=imported)
        return RegressionPlan(
            plan.work,
            f"{network.weights:,} weights, {network.steps} steps of {self.settings.batch_size} rows at most",
            disk=network.kept_nbytes,
            scratch=plan.scratch,
            held=0 if imported else TORCH_HELD,
            library="torch",
        )

    def predict(
        self, data: RegressionData, outputs: Sequence[Output], context: Context, shared: dict[str, Any]
    ) -> dict[str, Any]:
        """Fill the stores of all outputs; each network is trained, continued or loaded in its output's folder."""
        from leanrecon.regression.mlp.mlp import StreamingMLP

        check_test_rows(self.settings.restandardize, data.test.shape[0])
        shared.clear()  # a ridge's factor would lie beside the network
        first, *others = outputs
        mlp = StreamingMLP(
            **self.settings.model_dump(exclude={"kind"}),
            budget=context.budget,
            seed=context.seed,
            scratch=context.scratch,
            device=context.device,
            folder=first.folder,
            overwrite=context.overwrite,
            progress=context.progress,
            label=context.label,
        )
        mlp.warns = False  # what is odd is said beside the label
        mlp.fit(data.betas, data.targets, stimulus=data.stimulus, groups=data.groups, test_rows=data.test.shape[0])
        mlp.unreasonable_ = [*mlp.unreasonable_, *of_test(data.test, mlp.moments_)]
        tell_betas(context, data, mlp.left_out_, mlp.unreasonable_)
        _fill(mlp, data, first, context)
        for output in others:
            if output.store.complete:
                continue
            assert output.pairing is not None
            label = f"{context.label}, shuffled betas {output.pairing + 1}"
            paired = mlp.shuffled([context.seed, output.pairing], folder=output.folder, label=label)
            _fill(paired, data, output, context)
        return self._record(mlp)

    def _record(self, mlp: "StreamingMLP") -> dict[str, Any]:
        history = mlp.history_
        record = {
            "settings": self.settings.model_dump(exclude_none=True),
            "epochs_trained": len(history.train) - 1,
            "best_epoch": history.best,
            "voxels_left_out": mlp.left_out_,
            **({"unreasonable_betas": list(mlp.unreasonable_)} if mlp.unreasonable_ else {}),
            "curve": history.as_dict(),
        }
        if mlp.alpha_ is not None:
            record["alpha"] = mlp.alpha_
        return record


def _fill(mlp: "StreamingMLP", data: RegressionData, output: Output, context: Context) -> None:
    """Write the predictions that a store lacks, and note the projected peaks."""
    store = output.store
    total, done = store.column_groups, store.column_groups - len(store.missing_column_groups())
    with context.progress.task(f"{mlp.label}, predictions", total=total, unit="blocks", done=done) as advance:
        mlp.predict_into(data.test, store, advance=advance)
    store.finish()
    context.peaks.projected.extend(mlp.peaks_.projected)
