"""The stage evaluate: figures of all reconstructions beside baselines, and the report.

It alone looks at test stimuli, and it only reads: all images that it compares were drawn by earlier stages.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from leanrecon import kinds
from leanrecon.errors import StoreError
from leanrecon.evaluation.evaluate import Evaluation, evaluate
from leanrecon.evaluation.plan import EvaluateShapes, plan_evaluate, spool_nbytes
from leanrecon.features.first_images import decoding_space, picture_shape
from leanrecon.places.files import read_record, write_json, write_whole
from leanrecon.stages.folds import contents, folds_of
from leanrecon.stages.refine import make_generator
from leanrecon.stages.report import MOST_SHOWN, write_page
from leanrecon.stages.scores import write_scores
from leanrecon.stages.stage import PlannedStage, Planning, Run
from leanrecon.stores.fingerprint import fingerprint
from leanrecon.stores.layout import plan_chunks, store_nbytes
from leanrecon.stores.store import Store
from leanrecon.study import protocols
from leanrecon.study.record import is_complete, versions
from leanrecon.study.settings import Settings
from leanrecon.study.variants import Variant, variants, whole_brain

FORMAT = 4
"""Version of the figures: raised when one of them is computed in another way."""

REPORT_NBYTES = 25_000
"""Bytes that a test image takes in the report, if it is shown there."""

SCORES_NBYTES = 800
"""Bytes that a test row takes in the table of scores."""

_FLOAT = 4  # bytes


class EvaluateStage:
    """Measures every fold with its baselines and areas, and writes metrics.json, scores.csv and the report."""

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
        summary = f"{settings.evaluate.permutations} permutations, {settings.evaluate.resamples} resamples"
        summary += "".join(f", {judge.model}" for judge in judges)
        memory = planning.budget.reserved + work
        yield PlannedStage(self.name, summary, memory, disk, spool_nbytes(shapes, settings.evaluate))

    @staticmethod
    def _shapes(planning: Planning, n: int, m: int) -> EvaluateShapes:
        settings, shape, chunk = planning.settings, planning.image_shape, planning.chunk
        images = min(n, planning.images[0]) if planning.data.folds else planning.images[0]
        pictures, block = [], 1
        if settings.decode is None:
            first = decoding_space(list(planning.spaces.values()), settings.stage1.space)
            block = plan_chunks((images, first.dims(shape)), np.float32, chunk)[1]
            pictures.append(picture_shape(first, settings.stage1.size, shape))
        else:
            decoder = kinds.kind_of("decoders", settings.decode)(settings.decode)
            pictures.append(decoder.image_shape(shape))
        generator = make_generator(settings)
        if generator.refines:
            pictures.append(generator.shape)
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
        if self._is_current(run, every, made_of):
            if not study.report.exists():
                write_page(run, every)
            return
        study.report.unlink(missing_ok=True)  # a report of other figures
        with run.recorded(self.name, study, [study.metrics]) as (record, context):
            refines = make_generator(run.settings).refines
            whole = whole_brain(every)
            folds = folds_of(run, every, refines=refines, judged=bool(judges))
            result = evaluate(folds, run.settings.evaluate, context, judges=judges, n_folds=run.settings.dataset.folds)
            result.metrics["n_voxels"] = Store.open(study.betas("train")).columns
            self._write(run, whole, result, made_of)
            record["settings"] = run.settings.evaluate.model_dump()
        write_page(run, every)

    @staticmethod
    def _is_current(run: Run, every: Sequence[Variant], made_of: str) -> bool:
        """Whether all figures are there and are those of the present stores."""
        study = run.study
        files = [study.scores, *(study.latent_r2(name) for name in run.spaces)]
        files += [variant.study.metrics for variant in whole_brain(every)]
        folders = [variant.study.embeddings / name for variant in whole_brain(every) for name in run.settings.judges]
        embeddings = [store for folder in folders for store in folder.glob("*.zarr")]
        present = all(path.exists() for path in files) and all(is_complete(store) for store in embeddings)
        return present and not run.overwrite and (read_record(study.metrics) or {}).get("made_of") == made_of

    @staticmethod
    def _write(run: Run, whole: Sequence[Variant], result: Evaluation, made_of: str) -> None:
        """Write all figures, metrics.json of the study last: its presence says that all is done."""
        study, notes = run.study, [*settings_notes(run.settings), *learned_notes(whole, run.settings)]
        notes += protocols.notes(run.settings.evaluate.preset, run.settings.judges, result.metrics["n_test"])
        if run.settings.evaluate.blend:
            notes.append(f"Final images are judged with {run.settings.evaluate.blend:.0%} of first images mixed in.")
        about = {"versions": versions(), "simulated": run.settings.dataset.located(run.base_dir).simulated}
        for variant, figures in zip(whole, result.folds, strict=False):
            write_json(variant.study.metrics, figures | about | {"notes": figures["notes"] + notes}, indent=1)
        for name, r2 in result.latent_r2.items():
            write_whole(study.latent_r2(name), lambda file, r2=r2: np.save(file, r2.astype(np.float32)))  # type: ignore[misc]
        write_scores(study, result.columns, result.rows())
        metrics = result.metrics | about | {"made_of": made_of, "notes": result.metrics["notes"] + notes}
        write_json(study.metrics, metrics, indent=1)

    def report(self, run: Run) -> None:
        """Write report.html again from what a study holds.

        Raises StoreError while its stores are not complete, or where its figures are of an earlier state of them.
        """
        every = variants(run.study, run.settings)
        metrics = read_record(run.study.metrics) or {}
        judged = metrics.get("judges") or {}
        # A report reads no weights: metrics.json says what the judges were.
        contents = {name: (judged.get(name) or {}).get("content", "") for name in run.settings.judges}
        if metrics.get("made_of") != figures_made_of(run, every, contents):
            state = "only figures of earlier stores" if metrics.get("made_of") else "no figures yet"
            raise StoreError(
                f"{run.study.root} has {state}",
                todo="finish it with `leanrecon run` and the same settings, which writes the report as well",
            )
        write_page(run, every)


def make_judges(settings: Settings) -> list[Any]:
    """The judges that settings name; cheap, no weights are loaded."""
    return [
        kinds.kind_of("judges", judge)(judge, name=name, device=settings.general.device)
        for name, judge in settings.judges.items()
    ]


def figures_made_of(run: Run, every: Sequence[Variant], judges: dict[str, str]) -> str:
    """A fingerprint of all that decides the figures; raises StoreError unless all that is compared is complete."""
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


def settings_notes(settings: Settings) -> list[str]:
    """What a reader of the report must know about the kinds that were used."""
    notes = [*kinds.optional(kinds.kind_of("datasets", settings.dataset), "notes", settings.dataset)]
    for name, judge in settings.judges.items():
        notes += kinds.optional(kinds.kind_of("judges", judge), "notes", judge)
        notes += _guided_notes(settings, name, judge)
    for space in settings.features.values():
        notes += kinds.optional(kinds.kind_of("features", space), "notes", space)
    for name, regression in settings.regression.items():
        notes += kinds.optional(kinds.kind_of("regressors", regression), "notes", regression, name)
    if settings.decode is not None:
        notes += kinds.optional(kinds.kind_of("decoders", settings.decode), "notes", settings.decode)
    return notes + kinds.optional(kinds.kind_of("generators", settings.refine), "notes", settings.refine)


def learned_notes(whole: Sequence[Variant], settings: Settings) -> Iterator[str]:
    """What regressors and the calibration of first images noted in their records; of folds each sentence once."""
    of_spaces = {f"regression {name}": f"Regression of {name}: {{}}." for name in settings.regression}
    for stage, form in {**of_spaces, "stage1": "{}"}.items():
        told: dict[str, int] = {}
        for variant in whole:
            stages = (read_record(variant.study.record) or {}).get("stages", {})
            for sentence in stages.get(stage, {}).get("notes", []):
                told[sentence] = told.get(sentence, 0) + 1
        for sentence, count in told.items():
            yield form.format(sentence) + ("" if count == len(whole) else f" (In {count} of {len(whole)} folds.)")


def _guided_notes(settings: Settings, name: str, judge: Any) -> Iterator[str]:
    """A note where the generator was guided by features of the same network family as a judge."""
    family = getattr(kinds.kind_of("judges", judge), "family", None)
    roles = kinds.kind_of("generators", settings.refine).roles(settings.refine).values()
    spaces = [
        space
        for space in roles
        if family and getattr(kinds.kind_of("features", settings.features[space]), "family", None) == family
    ]
    if spaces:
        yield (
            f"The generator was guided by predictions of {' and '.join(spaces)}, features of the same family as the "
            f"judge {name}: its figures judge final images by the features that they were drawn for."
        )
