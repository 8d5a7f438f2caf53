"""The stage refine: final images, by a generator from first images and predicted features."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leanrecon import kinds
from leanrecon.context import Context
from leanrecon.features.unconditional import read_unconditional
from leanrecon.places import Location
from leanrecon.refinement.baselines import without_brain
from leanrecon.stages.costs_of_stages import final_images_cost
from leanrecon.stages.joined import join_pictures
from leanrecon.stages.learned_generator import find_generator, learn_generator, learns, plan_learning
from leanrecon.stages.stage import Piece, PlannedStage, Planning, Run, variant_named
from leanrecon.stores.matrix import Matrix, as_matrix
from leanrecon.stores.pictures import Pictures
from leanrecon.stores.shared import PicturesPart, share_pictures
from leanrecon.stores.store import Store
from leanrecon.study.layout import GENERATOR
from leanrecon.study.settings import Settings
from leanrecon.study.variants import ORACLE, Variant, variants


class RefineStage:
    """Draws the final images of every variant, and those of the generator's baselines."""

    name = "refine"

    def check(self, run: Run) -> None:
        generator = make_generator(run.settings, run.spaces)
        generator.check()
        check_rows(generator, run.settings, run.spaces)

    # Planning

    def plan(self, planning: Planning) -> Iterator[PlannedStage]:
        settings, (_, m) = planning.settings, planning.split
        generator = make_generator(settings, planning.spaces)
        generator.check()
        check_rows(generator, settings, planning.spaces)
        plan = generator.plan(m, planning.budget.free)
        work = max(plan.work, plan_learning(planning, generator) if learns(settings) else 0)
        shape = generator.shape or planning.first_shape
        drawn = int(np.prod(shape)) if generator.refines else 0  # first images are linked, not copied
        images = planning.variants + planning.folds * len(settings.refine.baselines)
        memory, disk = planning.budget.reserved + work, m * drawn * images + plan.scratch
        alone, shared = final_images_cost(planning, generator, shape)
        yield PlannedStage(self.name, plan.summary, memory, disk, cost=alone, shared=shared)

    # Running

    def run(self, run: Run) -> None:
        settings = run.settings.refine
        predicted = variants(run.study, run.settings)
        for variant in predicted:
            baselines = [] if variant.area else settings.baselines
            every = [variant, *(variant.made_from(name) for name in baselines)]
            folders = [one.study.reconstructions("final") for one in every]
            networks = [variant.study.network(GENERATOR)] if learns(run.settings) else []
            with run.recorded(self.name, variant.study, folders, networks=networks) as (record, context):
                generator = self._generator(run)
                learned = learn_generator(run, variant, generator, context) if networks else None
                told: list[dict[str, Any]] = []
                for one, folder in zip(every, folders, strict=True):
                    label = f"{variant.label}refine" + (f", {one.baseline}" if one.baseline else "")
                    told += self._draw(run, one, generator, folder, context.named(label), learned)
                record["settings"] = settings.model_dump(exclude_none=True)
                record |= joined_records(generator, told) if told else generator.record()
        join_pictures(run, predicted, "final", self.name)

    @staticmethod
    def _generator(run: Run) -> Any:
        kind = kinds.kind_of("generators", run.settings.refine)
        embeddings = read_unconditional(run.study, kind.unconditional_roles(run.settings.refine))
        return make_generator(run.settings, run.spaces, scratch=run.study.weights.workplace(), unconditional=embeddings)

    def _draw(
        self, run: Run, variant: Variant, generator: Any, folder: Location, context: Context, learned: str | None
    ) -> list[dict[str, Any]]:
        """Draw missing final images from first images and features of the same rows.

        Returns the records of the workers' generators, if any drew.
        """
        inputs = self._inputs(run, variant, generator)
        made_of = inputs.made_of | ({} if learned is None else {"learned": learned})
        if variant.baseline and variant.baseline != ORACLE:
            made_of |= {"baseline": variant.baseline, "seed": context.seed}
        shape = generator.shape or inputs.first.shape
        out = Pictures.create(folder, inputs.first.rows, shape, made_of=made_of, overwrite=context.overwrite)
        if out.complete:
            return []
        named = {"variant": variant.made_from("").name, "baseline": variant.baseline}
        context = run.shared(context, self.name, named, shares=generator.refines)
        if context.executor is None:
            generator.draw(*inputs.shown(context), out, context)
            return []
        with context.task(total=out.rows, unit="images", done=out.rows - len(out.missing())) as advance:
            told = share_pictures(out, context.executor, {}, advance)
        out.finish()
        return told

    def piece(self, run: Run, named: Mapping[str, Any], context: Context) -> Piece:
        """Draws final images of one variant or baseline, on a worker."""
        whole = variant_named(run, named["variant"])
        variant, generator = whole.made_from(named["baseline"]), self._generator(run)
        if learns(run.settings):
            find_generator(run, whole, generator, context)
        first, rows = self._inputs(run, variant, generator).shown(context)

        def work(images: Sequence[int]) -> Any:
            part = PicturesPart(variant.study.reconstructions("final"), named["of"], images)
            generator.draw(first, rows, part, context)
            return part.receipts(), generator.record()

        return work

    def _inputs(self, run: Run, variant: Variant, generator: Any) -> "_Inputs":
        oracle = variant.baseline == ORACLE
        source = variant if oracle else variant.made_from("")
        first = Pictures.open(source.study.reconstructions("stage1"))
        rows: dict[str, Matrix] = {}
        made_of: dict[str, Any] = {"stage1": first.content, "refine": generator.made_of()}
        for role, space in generator.roles(run.settings.refine).items():
            store = self._features(run, source, space, true=oracle)
            made_of[role] = store.content
            rows[role] = self._rows(run, source, space, store, true=oracle)
        if getattr(generator, "measured", None) and generator.measured(run.settings.refine):
            rows["betas"] = source.test_betas()
            made_of["betas"] = Store.open(run.study.betas(source.test_split)).content
        return _Inputs(first, rows, made_of, "" if oracle else variant.baseline)

    @staticmethod
    def _features(run: Run, variant: Variant, space: str, *, true: bool) -> Store:
        if not true:
            return Store.open(variant.study.predictions(space))
        return Store.open(variant.features(run.spaces[space].learns).features(space, variant.test_split))

    @staticmethod
    def _rows(run: Run, variant: Variant, space: str, store: Store, *, true: bool) -> Matrix:
        """Predictions, or true features, one row for each test row."""
        return variant.test_features(space, run.spaces[space].learns) if true else as_matrix(store)


@dataclass(frozen=True)
class _Inputs:
    """The inputs of the final images of one variant."""

    first: Pictures
    rows: dict[str, Matrix]
    made_of: dict[str, Any]
    baseline: str
    """The baseline for which the inputs are changed, if any."""

    def shown(self, context: Context) -> tuple[Any, Any]:
        """First images and rows as the generator gets them."""
        if not self.baseline:
            return self.first, self.rows
        return without_brain(self.baseline, self.first, self.rows, seed=context.seed)


def joined_records(generator: Any, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The record in run.json of images that several workers drew."""
    join: Any = getattr(generator, "joined", None)
    return {"on_workers": list(records)} if join is None else join(records)


def check_rows(generator: Any, settings: Settings, spaces: dict[str, Any]) -> None:
    """Raise InputError if a feature space gives rows of another length than the generator takes.

    Only spaces are checked whose rows have one length for all images, so that no image is needed.
    """
    check: Any = getattr(generator, "check_length", None)
    if check is None:
        return
    for role, name in generator.roles(settings.refine).items():
        lengths = {spaces[name].dims(shape) for shape in ((64, 64, 3), (96, 128, 3))}
        if len(lengths) == 1:
            check(role, lengths.pop())


def make_generator(settings: Settings, spaces: Any = None, *, scratch: Path = Path(), unconditional: Any = None) -> Any:
    """The generator that settings name, with the feature spaces that it uses; no weights are loaded."""
    general = settings.general
    how: dict[str, Any] = {"seed": general.seed, "device": general.device, "scratch": scratch}
    made = kinds.made("generators", settings.refine, **how, unconditional=unconditional)
    if spaces is not None and (use := getattr(made, "use", None)) is not None:
        use(spaces)
    return made
