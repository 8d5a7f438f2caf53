"""The stage regression: predicted features of the test rows, for every feature space and every variant."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from leanrecon import kinds
from leanrecon.context import Context
from leanrecon.errors import SettingsError
from leanrecon.features.first_images import decoding_space
from leanrecon.regression.kept import KEPT, VARIANT, Kept
from leanrecon.regression.out_of_fold import out_of_fold, plan_out_of_fold
from leanrecon.regression.regressor import Output, RegressionData, RegressionShapes
from leanrecon.stages.calibrate import needs_train_rows, too_few
from leanrecon.stages.costs_of_stages import begun, prediction_cost
from leanrecon.stages.joined import join_nbytes, join_predictions
from leanrecon.stages.stage import Piece, PlannedStage, Planning, Run, variant_named
from leanrecon.stages.whole_variants import (
    Fit,
    Made,
    Operations,
    operations_of,
    share_whole,
    take_made,
    whole_variant,
    worth_it,
)
from leanrecon.stores.fingerprint import fingerprint
from leanrecon.stores.layout import plan_chunks, store_nbytes
from leanrecon.stores.shared import StorePart, receipts_of
from leanrecon.stores.store import Store
from leanrecon.study.costs import Cost
from leanrecon.study.network_copies import brought
from leanrecon.study.record import is_complete, tells
from leanrecon.study.settings import Settings
from leanrecon.study.variants import Variant, variants
from leanrecon.weights.libraries import count_held

FOLDS = 5
"""Folds of train rows for the out-of-fold predictions that calibrate a feature space."""


class RegressionStage:
    """Predicts each space by its regressor, with measured and with random pairings of betas and images."""

    name = "regression"

    def check(self, run: Run) -> None:
        """Nothing to check: settings were checked when they were read."""

    # Planning

    def plan(self, planning: Planning) -> Iterator[PlannedStage]:
        first, kept = _first_name(planning.settings, planning.spaces), 0
        factor, before = "", begun(planning)
        for name, space in planning.spaces.items():
            settings = planning.settings.regression[name]
            pairings = planning.settings.evaluate.permutations if name == first else 0
            shapes = _shapes(planning, space, pairings)
            calibrates = needs_train_rows(planning.settings, space, first, shapes.s)
            shapes = replace(shapes, fits=len(planning.spaces) + calibrates)
            regressor = kinds.kind_of("regressors", settings)(settings)
            plan = regressor.plan(shapes, planning.budget.free)
            kept += plan.kept
            work, scratch = plan.work, plan.scratch + kept
            times = planning.variants + pairings * planning.folds
            disk = times * (store_nbytes((shapes.m, shapes.t), np.float32, planning.chunk) + plan.disk)
            if calibrates:
                free, repeats = planning.budget.free, planning.data.max_repeats
                if _leaves_out(planning.settings, regressor):
                    calibration = regressor.plan_left_out(shapes, free)
                else:
                    calibration = plan_out_of_fold(
                        regressor, shapes, FOLDS, free, chunk=planning.chunk, largest=repeats
                    )
                work, scratch = max(work, calibration.work), max(scratch, calibration.scratch + kept)
                disk += planning.variants * store_nbytes((shapes.n, shapes.t), np.float32, planning.chunk)
            if planning.data.folds:
                rows = sum(planning.split)
                work = max(work, join_nbytes(rows, shapes.t, planning.chunk))
                disk += planning.joins * store_nbytes((rows, shapes.t), np.float32, planning.chunk)
            summary = plan.summary + (f", {times} fits" if times > 1 else "")
            fitted, factor = bool(plan.factor) and plan.factor == factor, plan.factor
            shares = _shares(regressor)
            alone, shared = prediction_cost(plan, shapes, planning, name=name, fitted=fitted, shares=shares)
            memory, alone, before = planning.budget.reserved + work, alone + before, Cost()
            yield PlannedStage(
                f"regression {name}", summary, memory, disk, scratch,
                cost=alone, shared=shared, shared_scratch=plan.parts if shares else 0,
            )  # fmt: skip
            planning.hold(plan.held)
            count_held(plan.library)

    # Running

    def run(self, run: Run) -> None:
        first = _first_name(run.settings, run.spaces)
        every = variants(run.study, run.settings)
        kept = Kept(run.study.root.workplace())
        self._share_whole(run, every, first)
        for before, variant in zip([None, *every], every, strict=False):
            kept.forget(*(VARIANT if before is not None and before.fold == variant.fold else ()))
            if first is not None and (sentence := too_few(run.settings, len(variant.train_images))):
                run.progress.say(variant.label + sentence)
            shared: dict[str, Any] = {}
            fits = self._fits(run, variant, first)
            for number, fit in enumerate(fits, 1):
                calibrates = needs_train_rows(run.settings, fit.space, first, len(variant.train_images))
                kept.to_come = len(fits) - number + calibrates
                shared[KEPT] = kept
                self._predict(run, fit, shared)
                if calibrates:
                    kept.to_come -= 1
                    shared[KEPT] = kept
                    self._predict_train_rows(run, variant, fit.space, shared)
        for name in run.spaces:
            join_predictions(run, every, name)

    @staticmethod
    def _fits(run: Run, variant: Variant, first: str | None) -> list[Fit]:
        """The fits of a variant; ``first`` names the space that first images are decoded from."""
        fits = []
        for name, space in run.spaces.items():
            settings = run.settings.regression[name]
            # Areas are compared with each other; random pairings are fitted for all voxels only.
            pairings = run.settings.evaluate.permutations if name == first and not variant.area else 0
            fits.append(Fit(variant, space, kinds.kind_of("regressors", settings)(settings), pairings))
        return fits

    def _predict(self, run: Run, fit: Fit, shared: dict[str, Any], made: Made | None = None) -> None:
        """Predict one feature space of one variant, or take the results that a worker ``made``."""
        variant, name, regressor = fit.variant, fit.space.name, fit.regressor
        networks = [one.study.network(name) for one in fit.every]
        with run.recorded(fit.stage, variant.study, fit.products, fit.label, networks) as (record, context):
            data, outputs = self._begun(run, fit, context)
            done = all(output.store.complete for output in outputs) and all(path.is_file() for path in fit.kept)
            if not done or not tells(variant.study, fit.stage, fit.products):
                record["settings"] = run.settings.regression[name].model_dump(exclude_none=True)
                if made is not None:
                    record |= take_made(fit, outputs, made)
                    return
                named = {"variant": variant.name, "space": name}
                context = run.shared(context, self.name, named, shares=_shares(regressor))
                record |= regressor.predict(data, outputs, context, shared)

    def _begun(self, run: Run, fit: Fit, context: Context) -> tuple[RegressionData, list[Output]]:
        """The data of a fit, and the stores of all pairings, begun or continued."""
        data = regression_data(fit.variant, fit.space, fit.regressor)
        made_of = self._made_of(run, fit.variant, fit.space, fit.regressor)
        return data, [self._output(one, data, fit.space.name, made_of, context) for one in fit.every]

    def _share_whole(self, run: Run, every: Sequence[Variant], first: str | None) -> None:
        """Let workers fit whole variants, if that takes no longer than blocks of targets."""
        if run.workers is None or len(every) < 2 or run.settings.general.device not in ("auto", "cpu"):
            return
        executor, wanted, costs = run.workers.piece(self.name, {}), dict[int, list[Fit]](), dict[int, Operations]()
        for number, variant in enumerate(every):
            fits = self._fits(run, variant, first)
            calibrates = [needs_train_rows(run.settings, fit.space, first, len(variant.train_images)) for fit in fits]
            if any(calibrates) or all(is_complete(path) for fit in fits for path in fit.products):
                continue
            if (found := operations_of(fits, run, executor.free)) is not None:
                wanted[number], costs[number] = fits, found
        if not worth_it(list(costs.values()), executor.workers):
            return
        run.progress.say(f"regression: {len(wanted)} of {len(every)} variants are tasks of their own")
        context = run.context()
        begun = {number: [self._begun(run, fit, context)[1] for fit in fits] for number, fits in wanted.items()}
        with run.progress.task("regression of whole variants", total=len(wanted), unit="variants") as advance:
            share_whole(executor, wanted, begun, costs, lambda fit, made: self._predict(run, fit, {}, made), advance)

    def piece(self, run: Run, named: Mapping[str, Any], context: Context) -> Piece:
        """Makes parts of a fit, or predicts blocks of targets with the driver's fit, on a worker.

        Or it fits whole variants, by their numbers.
        """
        if "whole" in named:
            return self._whole_piece(run, named["whole"], context)
        variant, space = variant_named(run, named["variant"]), run.spaces[named["space"]]
        settings = run.settings.regression[space.name]
        labelled = context.named(f"{variant.label}regression {space.name}")
        kind = kinds.kind_of("regressors", settings)
        if "fit" in named:
            data = regression_data(variant, space, kind(settings))
            made: Piece = kind.part(data, variant.study.predictions(space.name).parent, named, labelled)
            return made
        paired = replace(variant, pairing=named["pairing"])
        store = StorePart.begun(paired.study.predictions(space.name), named["of"])
        targets = variant.train_features(space.name, space.learns)
        predict = kind(settings).piece(targets, store, named, labelled)

        def work(blocks: Sequence[int]) -> Any:
            predict(blocks)
            return receipts_of(store, [(i, j) for j in blocks for i in range(store.row_groups)])

        return work

    def _whole_piece(self, run: Run, of: Mapping[str, Any], context: Context) -> Piece:
        every, first = variants(run.study, run.settings), _first_name(run.settings, run.spaces)

        def data_of(fit: Fit) -> RegressionData:
            return regression_data(fit.variant, fit.space, fit.regressor)

        def work(numbers: Sequence[int]) -> Any:
            return [whole_variant(self._fits(run, every[k], first), context, data_of, of[str(k)]) for k in numbers]

        return work

    @staticmethod
    def _output(variant: Variant, data: RegressionData, name: str, made_of: dict[str, Any], context: Context) -> Output:
        store = Store.create(
            variant.study.predictions(name),
            (data.test.shape[0], data.targets.shape[1]),
            np.float32,
            made_of=made_of if variant.pairing is None else made_of | {"shuffled": variant.pairing},
            chunk=context.chunk,
            overwrite=context.overwrite,
        )
        network = variant.study.network(name)
        return Output(store, network.workplace() if store.complete else brought(network), variant.pairing)

    def _predict_train_rows(self, run: Run, variant: Variant, space: Any, shared: dict[str, Any]) -> None:
        """Predict train rows by fits without their images, for calibrations and generators that learn from them.

        In closed form if the regressor can, otherwise out of fold.
        """
        name, settings = space.name, run.settings.regression[space.name]
        path = variant.study.predictions(name, "train")
        label = f"{variant.label}regression {name}, train rows without their images"
        with run.recorded(f"calibration {name}", variant.study, [path], label) as (record, context):
            regressor = kinds.kind_of("regressors", settings)(settings)
            closed = _leaves_out(run.settings, regressor)
            data = regression_data(variant, space, regressor)
            store = Store.create(
                path,
                (data.betas.shape[0], data.targets.shape[1]),
                np.float32,
                made_of=self._made_of(run, variant, space, regressor)
                | ({"left out": "image"} if closed else {"out of fold": FOLDS}),
                chunk=context.chunk,
                overwrite=context.overwrite,
            )
            if closed and not store.complete:
                named = {"variant": variant.name, "space": name}
                context = run.shared(context, self.name, named, shares=_shares(regressor))
                record |= regressor.predict_left_out(data, store, context, shared)
            elif not store.complete:
                record |= out_of_fold(regressor, data, store, FOLDS, context)

    def _made_of(self, run: Run, variant: Variant, space: Any, regressor: Any) -> dict[str, Any]:
        """All that decides the predictions of one variant, except the pairing of betas and images."""
        betas = {split: Store.open(run.study.betas(split)).content for split in ("train", variant.test_split)}
        features = Store.open(variant.features(space.learns).features(space.name, "train"))
        index = variant.target_of_row
        made_of = {
            "betas": betas["train"],
            "test betas": betas[variant.test_split],
            "features": features.content,
            "regression": regressor.made_of(),
            "seed": run.settings.general.seed,
            "rows": "split" if variant.fold is None else fingerprint({"train": variant.train, "test": variant.test}),
        }
        if variant.group != "stimulus":
            made_of["groups"] = fingerprint({"groups": list(variant.groups)})
        if index is not None:
            made_of["images of rows"] = fingerprint({"index": index.tolist()})
        if getattr(regressor, "wants_reliability", False) and (known := variant.reliability()) is not None:
            made_of["reliability"] = fingerprint({"reliability": known.tolist()})
        if variant.voxels is not None:
            made_of["voxels"] = fingerprint({"voxels": list(variant.voxels)})
        return made_of


def _shares(regressor: Any) -> bool:
    """Whether workers may stream the targets of a regressor."""
    return bool(getattr(regressor, "shares", False))


def _leaves_out(settings: Settings, regressor: Any) -> bool:
    """Whether a regressor predicts train rows without their images in closed form; with runs left out it can't."""
    return settings.dataset.group == "stimulus" and getattr(regressor, "leaves_out", False)


def regression_data(variant: Variant, space: Any, regressor: Any) -> RegressionData:
    """The betas and features of a variant's train rows, and the betas of its test rows."""
    return RegressionData(
        betas=variant.train_betas(),
        targets=variant.train_features(space.name, space.learns),
        test=variant.test_betas(),
        groups=variant.groups,
        stimulus=variant.target_of_row,
        reliability=variant.reliability() if getattr(regressor, "wants_reliability", False) else None,
    )


def _first_name(settings: Settings, spaces: dict[str, Any]) -> str | None:
    """The space that first images are decoded from; None if a network makes them, or no space has a decoder."""
    if settings.decode is not None:
        return None
    try:
        found: str = decoding_space(spaces, settings.stage1.space).name
    except SettingsError:
        return None
    return found


def _shapes(planning: Planning, space: Any, pairings: int) -> RegressionShapes:
    (n, m), chunk, voxels = planning.split, planning.chunk, planning.data.voxels
    dims = space.dims(planning.image_shape)
    train = planning.images[0]
    images = train if not planning.data.folds else min(n, train)
    return RegressionShapes(
        n=n,
        p=voxels,
        m=m,
        s=images,
        t=dims,
        x_block=plan_chunks((n, voxels), np.float32, chunk)[1],
        y_block=plan_chunks((images, dims), np.float32, chunk)[1],
        subset=bool(planning.data.folds),
        pairings=pairings,
        device=planning.settings.general.device,
    )
