"""The regressor ``ridge``: predictions of a feature space by ridge regression, one factor for spaces that share it."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import BaseModel

from leanrecon.context import Context
from leanrecon.errors import InputError
from leanrecon.places.files import write_bytes
from leanrecon.regression.kept import KEPT, Kept
from leanrecon.regression.regressor import (
    Output,
    RegressionData,
    RegressionPlan,
    RegressionShapes,
    check_test_rows,
    notes_on_moments,
    tell_betas,
)
from leanrecon.regression.ridge import voxel_weights_file
from leanrecon.regression.ridge.begun import of_one_device
from leanrecon.regression.ridge.plan_regression import plan_regression, plan_without_images
from leanrecon.regression.ridge.records import device_record, form_record, form_sentences, how_chosen
from leanrecon.regression.ridge.settings import RidgeSettings

if TYPE_CHECKING:
    from leanrecon.places import Location
    from leanrecon.regression.ridge.directions import Linear
    from leanrecon.regression.ridge.ridge import StreamingRidge
    from leanrecon.stores.matrix import Matrix
    from leanrecon.stores.store import Store

_SHARED = "ridge"  # the key of the ridge that was fitted last


@dataclass
class _Shared:
    """A ridge, and the settings that another space must have to use its factor."""

    key: str
    ridge: "StreamingRidge"


class RidgeRegressor:
    """Ridge regression from betas to the rows of a feature space."""

    Settings: ClassVar[type[BaseModel]] = RidgeSettings

    shares: ClassVar = True
    """Whether workers may stream its targets (``piece``)."""

    alone: ClassVar = True
    """Whether ``predict`` writes only chunks of its stores and small files, so that a worker can run it."""

    def __init__(self, settings: RidgeSettings) -> None:
        self.settings = settings

    @classmethod
    def notes(cls, settings: RidgeSettings, space: str) -> Iterable[str]:
        """Notes for the reader of the report about the predictions of a feature space."""
        yield from notes_on_moments(settings.restandardize, space)
        if settings.voxel_weights == "reliability":
            yield (
                f'For {space} voxels were weighed by their reliability (voxel_weights = "reliability"). Where no train image '
                "is repeated that is ncsnr: of train trials where leanrecon computed it; published ones may hold test trials too."
            )

    def made_of(self) -> dict[str, Any]:
        """All settings that decide the predictions; the grid of alphas only if one is chosen from it."""
        unused = set() if self.settings.alpha == "loo" else {"alphas"}
        return self._used(unused)

    def _used(self, unused: Set[str] = frozenset()) -> dict[str, Any]:
        """The settings without unused ones: those of an rbf with a linear kernel, of weights without weights."""
        plain = {"kernel", "gamma"} if self.settings.kernel == "linear" else set()
        equal = {"voxel_weights", "voxel_power"} if self.settings.voxel_weights == "none" else set()
        return self.settings.model_dump(exclude_none=True, exclude={*unused, *plain, *equal})

    def keeps(self, predictions: "Location") -> "list[Location]":
        """The small files beside the predictions of a feature space: the weights of voxels."""
        return [] if self.settings.voxel_weights == "none" else [voxel_weights_file.beside(predictions)]

    @property
    def wants_reliability(self) -> bool:
        """Whether the dataset's reliability of voxels is used."""
        return self.settings.voxel_weights == "reliability"

    def plan(self, shapes: RegressionShapes, free: int) -> RegressionPlan:
        """Plan the fit and the predictions into ``free`` bytes of memory; ``work`` may exceed ``free``."""
        check_test_rows(self.settings.restandardize, shapes.m)
        planned = plan_regression(self.settings, shapes, free)
        return planned if self._learns else replace(planned, factor=self._key)

    def predict(
        self, data: RegressionData, outputs: Sequence[Output], context: Context, shared: dict[str, Any]
    ) -> dict[str, Any]:
        """Fill the stores of all outputs, and mark them complete; returns the record for run.json.

        Spaces with the same settings share a factor in ``shared``, unless alpha was chosen for each of them.
        """
        from leanrecon.regression.ridge.on_workers import clear_fit, stream

        check_test_rows(self.settings.restandardize, data.test.shape[0])
        ridge = self._fitted(data, outputs, context, shared)
        tell_betas(context, data, ridge.left_out_, ridge.unreasonable_)
        for sentence in form_sentences(ridge):
            context.progress.say(f"{context.label}: {sentence}")
        if ridge.device_note_:
            context.progress.say(f"{context.label}: {ridge.device_note_}")
        for out in outputs:
            of_one_device(out.store, ridge.device_, context)
        alpha = np.asarray(ridge.alpha_)
        if self.settings.alpha == "loo":
            chosen = f"{np.median(alpha):.4g}" + (" (median over targets)" if self.settings.per_target else "")
            context.progress.say(f"{context.label}: leave-one-out chose alpha = {chosen}")
        for path in self.keeps(outputs[0].store.path):
            (context.small or write_bytes)(path, voxel_weights_file.content(ridge))
        total = sum(out.store.column_groups for out in outputs)
        done = total - sum(len(out.store.missing_column_groups()) for out in outputs)
        with context.task(total=total, unit="blocks", done=done) as advance:
            paired = [ridge if one.pairing is None else ridge.shuffled([context.seed, one.pairing]) for one in outputs]
            if context.executor is None:
                paired[0].predict_together(paired[1:], data.test, [out.store for out in outputs], advance)
            for each, out in zip(paired, outputs, strict=True):
                stream(each, data, out, context, advance)
                out.store.finish()
        clear_fit(outputs[0].store)
        return {
            "settings": self._used(),
            "alpha": float(alpha) if alpha.ndim == 0 else {"median": float(np.median(alpha)), "per_target": True},
            **({"alpha_chosen": how_chosen(ridge)} if self.settings.alpha == "loo" else {}),
            "voxels_left_out": ridge.left_out_,
            **form_record(ridge),
            **device_record(ridge),
            **({"unreasonable_betas": ridge.unreasonable_} if ridge.unreasonable_ else {}),
        }

    @staticmethod
    def piece(
        targets: "Matrix", store: "Store", given: Mapping[str, Any], context: Context
    ) -> "Callable[[Sequence[int]], None]":
        """The task of a worker: stream blocks of targets through the hat matrices that ``predict`` wrote."""
        from leanrecon.regression.ridge.hats import Hats

        hats = Hats.read(store.path.parent / "hats" / given["hats"])
        context.require(context.label, hats.work + hats.nbytes)
        return lambda blocks: hats.stream_into(store, targets, blocks)

    @staticmethod
    def part(
        data: RegressionData, folder: "Location", given: Mapping[str, Any], context: Context
    ) -> "Callable[[Sequence[int]], Any]":
        """The task of a worker in a fit: parts that ``predict`` reads from files in ``folder``."""
        from leanrecon.regression.ridge.on_workers import FOLDER, part_of_fit

        return part_of_fit(data, folder / FOLDER, given, context)

    def linear(self, record: Mapping[str, Any] | None, predictions: "Location") -> "Linear":
        """The linear ridge of one feature space, from its record in run.json and the files beside its predictions.

        ``record`` None: the ridge of a direction of no feature space; its alpha is the settings' number, or is chosen.
        Raises InputError for a kernel that has no weights of voxels.
        """
        from leanrecon.regression.ridge.directions import Linear

        settings = self.settings
        if record is None:
            fixed = settings.alpha != "loo" and settings.kernel == "linear"
            return Linear(settings.standardize, float(settings.alpha) if fixed else None, settings.alphas)
        form = record.get("form", {})
        if form.get("kernel", "linear") != "linear":
            raise InputError(
                f"the {form['kernel']} kernel has no weights of voxels", todo='set regression.kernel = "linear"'
            )
        weights = None
        if form.get("voxel_weights") is not None:
            weights = voxel_weights_file.read(predictions)
        alpha = None if isinstance(record["alpha"], dict) else float(record["alpha"])
        return Linear(settings.standardize, alpha, settings.alphas, weights)

    @property
    def leaves_out(self) -> bool:
        """Whether train rows are predicted in closed form, each without the rows of its image.

        Not where the form is learned from targets: it would know the image that is left out (on digit-69 such errors were
        5 % lower than those of folds).
        """
        return (
            not self.settings.learns_form
            and not self.settings.per_target
            and self.settings.restandardize != "transductive"
        )

    def plan_left_out(self, shapes: RegressionShapes, free: int) -> RegressionPlan:
        """Plan a fit whose factor is kept, and leave-one-out predictions of all train rows."""
        return plan_without_images(self.settings, shapes, free)

    def predict_left_out(
        self, data: RegressionData, store: "Store", context: Context, shared: dict[str, Any]
    ) -> dict[str, Any]:
        """Fill a store [n, t] with predictions of the train rows, each without its image; returns its record."""
        from leanrecon.regression.ridge.on_workers import clear_fit
        from leanrecon.stores.matrix import same_matrix

        last: _Shared | None = shared.get(_SHARED)
        settings, chosen = self.settings, {}
        if last and last.key == self._key and same_matrix(last.ridge.targets_, data.targets):
            form = last.ridge.learned_.form  # what was chosen for the test rows holds here too
            chosen = {"alpha": last.ridge.alpha_, "kernel": form.kernel, "gamma": form.gamma or settings.gamma}
            chosen |= {"voxel_weights": form.source or "none", "voxel_power": form.power or settings.voxel_power}
        last = None
        shared.pop(_SHARED, None)
        decided = type(self)(settings.model_copy(update=chosen))
        ridge = decided._fit(data, store, context, test=None, shuffled=False, kept=shared.get(KEPT))
        of_one_device(store, ridge.device_, context)
        done = store.column_groups - len(store.missing_column_groups())
        with context.task(total=store.column_groups, unit="blocks", done=done) as advance:
            ridge.predict_train_into(store, advance=advance)
        store.finish()
        clear_fit(store)
        found = {"left_out": "image", "alpha": float(ridge.alpha_), "form": ridge.learned_.form.as_dict()}
        return found | device_record(ridge)

    @property
    def _learns(self) -> bool:
        """Whether the fit depends on the targets, so that no other space may use the factor."""
        return self.settings.alpha == "loo" or self.settings.learns_form

    @property
    def _key(self) -> str:
        """The settings that another space must have to use the factor."""
        return json.dumps(self.made_of(), sort_keys=True)

    def _fitted(
        self, data: RegressionData, outputs: Sequence[Output], context: Context, shared: dict[str, Any]
    ) -> "StreamingRidge":
        """A ridge of these data: with the factor of another space, or fitted now."""
        shuffled = any(out.pairing is not None for out in outputs)
        last: _Shared | None = shared.get(_SHARED)
        if last and last.key == self._key and not self._learns and (last.ridge.shuffles or not shuffled):
            other = last.ridge.with_targets(data.targets)
            other.budget, other.peaks_ = context.budget, context.peaks
            return other
        last = None
        shared.pop(_SHARED, None)  # one factor at a time
        ridge = self._fit(data, outputs[0].store, context, test=data.test, shuffled=shuffled, kept=shared.get(KEPT))
        shared[_SHARED] = _Shared(self._key, ridge)
        return ridge

    def _fit(
        self, data: RegressionData, store: "Store", context: Context,
        *, test: "Matrix | None", shuffled: bool, kept: Kept | None,
    ) -> "StreamingRidge":  # fmt: skip
        """Fit a ridge for the predictions in a store, in this process or with parts that workers make."""
        from leanrecon.regression.ridge.on_workers import FitOnWorkers
        from leanrecon.regression.ridge.ridge import StreamingRidge

        how = self.settings.model_dump(exclude={"kind"})
        how |= {"budget": context.budget, "seed": context.seed, "scratch": context.scratch}
        alone = context.executor is None
        ridge = StreamingRidge(**how, device=context.device if alone else "cpu")
        ridge.warns = False  # what is odd is said beside the label
        ridge.kept, ridge.workers = kept, FitOnWorkers.beside(store, context)
        ridge.fit(
            data.betas,
            data.targets,
            stimulus=data.stimulus,
            test=test,
            shuffled=shuffled,
            reliability=data.reliability,
        )
        if not alone and context.device not in ("auto", "cpu"):
            ridge.device_note_ = "workers stream its targets on CPUs, so that it runs on the CPU"
        context.peaks.projected.extend(ridge.peaks_.projected)
        ridge.peaks_ = context.peaks
        return ridge
