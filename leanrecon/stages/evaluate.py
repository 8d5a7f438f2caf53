"""The stage evaluate: scores of all reconstructions and baselines, and the report.

Only this stage reads test stimuli. It draws nothing: earlier stages drew all images that it compares.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from leanrecon import kinds
from leanrecon.context import Context
from leanrecon.evaluation.evaluate import Evaluation, evaluate
from leanrecon.evaluation.fold import Fold
from leanrecon.evaluation.judges.embeddings import piece as embedding_piece
from leanrecon.evaluation.judges.judge import Judge
from leanrecon.evaluation.plan import EvaluateShapes, compared_shape, plan_evaluate, shifts, spool_nbytes
from leanrecon.evaluation.test_sets import joined
from leanrecon.features.first_images import picture_shape
from leanrecon.places.files import read_record
from leanrecon.progress import counted
from leanrecon.stages.costs_of_stages import Compared, comparison_cost
from leanrecon.stages.figures import SCORES_NBYTES, are_current, notes_of, require_current, write_figures
from leanrecon.stages.folds import contents, folds_of, test_sets_of
from leanrecon.stages.refine import make_generator
from leanrecon.stages.report import MOST_SHOWN, write_page
from leanrecon.stages.stage import Piece, PlannedStage, Planning, Run
from leanrecon.stores.fingerprint import fingerprint
from leanrecon.stores.layout import plan_chunks, store_nbytes
from leanrecon.stores.store import Store
from leanrecon.study import protocols
from leanrecon.study.record import is_complete
from leanrecon.study.settings import Settings
from leanrecon.study.variants import Variant, variants, whole_brain

FORMAT = 4
"""Version of the scores: raised when one of them is computed differently."""

REPORT_NBYTES = 25_000
"""Bytes of a test image in the report, if it is shown there."""

_FLOAT = 4  # bytes


class EvaluateStage:
    """Scores every fold with its baselines and areas, and writes metrics.json, scores.csv and the report."""

    name = "evaluate"

    def check(self, run: Run) -> None:
        for judge in make_judges(run.settings):
            judge.check()

    # Planning

    def plan(self, planning: Planning) -> Iterator[PlannedStage]:
        settings, (n, m) = planning.settings, planning.split
        judges = make_judges(settings)
        shapes = self._shapes(planning, n, m)
        work = plan_evaluate(shapes, settings.evaluate, judges)
        sources = 8 + settings.evaluate.permutations + 2 * len(settings.areas)
        embeddings = sum(store_nbytes((m, j.dims), np.float32, 32 * j.dims * _FLOAT) for j in judges)
        shown = min(planning.folds * m, MOST_SHOWN)
        disk = planning.folds * (m * SCORES_NBYTES + sources * embeddings) + shown * REPORT_NBYTES
        permutations, resamples = settings.evaluate.permutations, settings.evaluate.resamples
        summary = f"{counted(permutations, 'permutations')}, {counted(resamples, 'resamples')}"
        summary += "".join(f", {judge.model}" for judge in judges)
        memory = planning.budget.reserved + work
        alone, shared = comparison_cost(planning, self._compared(planning, shapes, judges))
        spool = spool_nbytes(shapes, settings.evaluate)
        yield PlannedStage(self.name, summary, memory, disk, spool, cost=alone, shared=shared)

    @staticmethod
    def _compared(planning: Planning, shapes: EvaluateShapes, judges: Sequence[Judge]) -> Compared:
        """The comparisons of a fold: the study's own images come first."""
        settings, pairings = planning.settings, planning.settings.evaluate.permutations
        own, areas = list(shapes.pictures), len(settings.areas)
        first, refined = own[0], make_generator(settings).refines
        name = None if planning.first_space is None else planning.first_space.name
        oracles = [] if name is None else [first]
        final = [own[-1]] * len(settings.refine.baselines) if refined else []
        compared = compared_shape(settings.evaluate.preset, shapes.images, shapes.final)
        return Compared(
            drawn=[*own, *own * areas, *[first] * pairings, *final, *oracles],
            own=len(own),
            features=[(dims, 1 + areas + (pairings if of == name else 0)) for of, dims in shapes.dims.items()],
            nearest=0 if name is None else shapes.dims[name],
            shifts=shifts(shapes.test_rows, compared[0] * compared[1]),
            judges=judges,
            page=min(planning.folds * shapes.test_rows, MOST_SHOWN) * REPORT_NBYTES,
            scores=SCORES_NBYTES,
        )

    @staticmethod
    def _shapes(planning: Planning, n: int, m: int) -> EvaluateShapes:
        settings, shape, chunk = planning.settings, planning.image_shape, planning.chunk
        images = min(n, planning.images[0]) if planning.data.folds else planning.images[0]
        pictures, block = [], 1
        if settings.decode is None:
            first = planning.first_space
            block = plan_chunks((images, first.dims(shape)), np.float32, chunk)[1]
            pictures.append(picture_shape(first, settings.stage1.size, shape))
        else:
            decoder = kinds.kind_of("decoders", settings.decode)(settings.decode)
            pictures.append(decoder.image_shape(shape))
        generator = make_generator(settings)
        if generator.refines:
            pictures.append(generator.shape or pictures[-1])
        return EvaluateShapes(
            images=shape,
            test_rows=m,
            train_images=images,
            dims={name: space.dims(shape) for name, space in planning.spaces.items()},
            chunk=plan_chunks((n, *shape), np.uint8, chunk)[0] * int(np.prod(shape)),
            block=block,
            pictures=pictures,
            final=pictures[-1],
            refined=len(settings.refine.baselines),
            areas=len(settings.areas),
            pooled_rows=n + m if planning.data.folds else 0,
        )

    # Running

    def run(self, run: Run) -> None:
        every = variants(run.study, run.settings)
        judges = make_judges(run.settings)
        made_of = figures_made_of(run, every, {judge.name: fingerprint(judge.made_of()) for judge in judges})
        study = run.study
        if self._are_current(run, every, made_of):
            if not study.report.exists():
                write_page(run, every)
            return
        study.report.unlink(missing_ok=True)  # a report of other figures
        with run.recorded(self.name, study, [study.metrics]) as (record, context):
            refines = make_generator(run.settings).refines
            folds = folds_of(run, every, refines=refines, judged=bool(judges))
            shared = run.shared(context, self.name, {}, shares=bool(judges))
            result = self._evaluation(run, every[0], list(folds), judges, shared)
            result.metrics["n_voxels"] = Store.open(study.betas("train")).columns
            result.metrics["departures"] = protocols.departures(run.settings.evaluate.preset, run.settings.judges)
            latents = {study.latent_r2(name): r2 for name, r2 in result.latent_r2.items()}
            notes = self._notes(run, every, result.metrics["n_test"])
            write_figures(run, every, result, result.rows(), latents, made_of, notes)
            record["settings"] = run.settings.evaluate.model_dump()
        write_page(run, every)

    def piece(self, run: Run, named: Mapping[str, Any], context: Context) -> Piece:
        """Embeds images of one source by one judge, on a worker."""
        judge = next(one for one in make_judges(run.settings) if one.name == named["judge"])
        return embedding_piece(judge, named, context)

    @staticmethod
    def _evaluation(
        run: Run, whole: Variant, folds: Sequence[Fold], judges: Sequence[Judge], context: Context
    ) -> Evaluation:
        """Scores of all folds, or of each test set by itself."""
        settings = run.settings.evaluate
        if not whole.test_sets:
            return evaluate(folds, settings, context, judges=judges, n_folds=run.settings.dataset.folds)
        sets = test_sets_of(whole, folds[0])
        return joined({name: evaluate([fold], settings, context, judges=judges) for name, fold in sets.items()})

    @staticmethod
    def _are_current(run: Run, every: Sequence[Variant], made_of: str) -> bool:
        """Whether all scores and embeddings exist and belong to the present stores."""
        studies = [variant.study for variant in whole_brain(every)]
        studies += [run.study.variant(name) for name in list(dict.fromkeys(every[0].test_sets))[1:]]
        folders = [study.embeddings / name for study in studies for name in run.settings.judges]
        embeddings = [store for folder in folders for store in folder.glob("*.zarr")]
        latents = [run.study.latent_r2(name) for name in run.spaces]
        return are_current(run, every, made_of, latents) and all(is_complete(store) for store in embeddings)

    @staticmethod
    def _notes(run: Run, every: Sequence[Variant], n_test: int) -> list[str]:
        """Notes for the reader about the kinds that were used and how images were compared."""
        preset, blend = run.settings.evaluate.preset, run.settings.evaluate.blend
        notes = [*notes_of(run, every), *protocols.notes(preset, run.settings.judges, n_test)]
        return [*notes, f"Final images are judged with {blend:.0%} of first images mixed in."] if blend else notes

    def report(self, run: Run) -> None:
        """Write report.html again from the scores and images of a study.

        Raises StoreError if its stores are not complete, or if its scores belong to an earlier state of them.
        """
        every = variants(run.study, run.settings)
        judged = (read_record(run.study.metrics) or {}).get("judges") or {}
        # A report reads no weights: metrics.json says what the judges were.
        contents = {name: (judged.get(name) or {}).get("content", "") for name in run.settings.judges}
        require_current(run, figures_made_of(run, every, contents))
        write_page(run, every)


def make_judges(settings: Settings) -> list[Any]:
    """The judges that settings name; no weights are loaded."""
    return [
        kinds.made("judges", judge, name=name, device=settings.general.device)
        for name, judge in settings.judges.items()
    ]


def figures_made_of(run: Run, every: Sequence[Variant], judges: dict[str, str]) -> str:
    """A fingerprint of all that decides the scores; raises StoreError unless all that is compared is complete."""
    refines = make_generator(run.settings).refines
    return fingerprint(
        {
            "format": FORMAT,
            "seed": run.settings.general.seed,
            "evaluate": run.settings.evaluate.model_dump(),
            "judges": judges,
            "measures": {judge.name: judge.measure for judge in make_judges(run.settings)},
            "contents": contents(run, every, refines=refines),
        }
    )
