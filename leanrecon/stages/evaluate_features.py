"""The stage evaluate of studies without images: scores of predicted features, and their report.

Only this stage reads the true features of test rows.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from leanrecon.evaluation.features_alone import FeatureFold, evaluate_features
from leanrecon.evaluation.fold import Predictions
from leanrecon.evaluation.plan import plan_features
from leanrecon.progress import counted
from leanrecon.stages.figures import SCORES_NBYTES, are_current, notes_of, require_current, write_figures
from leanrecon.stages.folds import of_areas, predictions_of, shared_pool
from leanrecon.stages.report import write_feature_page
from leanrecon.stages.stage import PlannedStage, Planning, Run
from leanrecon.stages.without_images import MISSING
from leanrecon.stores.fingerprint import fingerprint
from leanrecon.stores.store import Store
from leanrecon.study.variants import Variant, variants, whole_brain

FORMAT = 1
"""Version of the scores: raised when one of them is computed differently."""


class EvaluateFeaturesStage:
    """Scores the predictions of every fold and area, and writes metrics.json, scores.csv and the report."""

    name = "evaluate"

    def check(self, run: Run) -> None:
        """Nothing to check: settings were checked when they were read."""

    def plan(self, planning: Planning) -> Iterator[PlannedStage]:
        settings, (n, m) = planning.settings, planning.split
        dims = {name: space.dims(planning.image_shape) for name, space in planning.spaces.items()}
        total = n + m if planning.data.folds else m
        every = total if planning.data.folds and m < 2 else m
        work = plan_features(dims, m, total, every, 1 + len(settings.areas), settings.evaluate.resamples)
        summary = f"features alone (no images), {counted(settings.evaluate.resamples, 'resamples')}"
        disk = total * SCORES_NBYTES + 2 * 4 * sum(dims.values())
        yield PlannedStage(self.name, summary, planning.budget.reserved + work, disk)

    def run(self, run: Run) -> None:
        study, every = run.study, variants(run.study, run.settings)
        run.progress.say(MISSING)
        made_of = self._made_of(run, every)
        latents = [place(name) for name in run.spaces for place in (study.latent_r2, study.latent_r)]
        if are_current(run, every, made_of, latents):
            if not study.report.exists():
                write_feature_page(run, every)
            return
        study.report.unlink(missing_ok=True)  # a report of other figures
        with run.recorded(self.name, study, [study.metrics]) as (record, context):
            folds = list(feature_folds(run, every))
            n_folds = run.settings.dataset.folds
            result = evaluate_features(folds, run.settings.evaluate, context, n_folds=n_folds)
            result.metrics["n_voxels"] = Store.open(study.betas("train")).columns
            for area, variant in of_areas(whole_brain(every)[0], every).items():
                result.metrics["areas"][area]["voxels"] = len(variant.voxels or ())
            vectors = {study.latent_r2(name): values for name, values in result.latent_r2.items()}
            vectors |= {study.latent_r(name): values for name, values in result.latent_r.items()}
            notes = [MISSING, *notes_of(run, every)]
            write_figures(run, every, result, result.rows, vectors, made_of, notes)
            record["settings"] = run.settings.evaluate.model_dump()
        write_feature_page(run, every)

    def report(self, run: Run) -> None:
        """Write report.html again; raises StoreError if the study's scores belong to an earlier state."""
        every = variants(run.study, run.settings)
        require_current(run, self._made_of(run, every))
        write_feature_page(run, every)

    @staticmethod
    def _made_of(run: Run, every: Sequence[Variant]) -> str:
        """A fingerprint of all that decides the scores; raises StoreError unless all that is compared is complete."""
        contents = {variant.name or "study": dict(_contents(run, variant)) for variant in every}
        evaluate = {"resamples": run.settings.evaluate.resamples}
        seed = run.settings.general.seed
        return fingerprint({"features alone": FORMAT, "seed": seed, "evaluate": evaluate, "contents": contents})


def feature_folds(run: Run, every: Sequence[Variant]) -> Iterator[FeatureFold]:
    """All that is compared in every fold, or in the one split."""
    whole = whole_brain(every)
    pool = shared_pool(whole)

    def of(variant: Variant) -> Mapping[str, Predictions]:
        return {name: predictions_of(variant, space, pool) for name, space in run.spaces.items()}

    for variant in whole:
        areas = {area: of(other) for area, other in of_areas(variant, every).items()}
        yield FeatureFold(variant.test_rows, variant.test_names, of(variant), areas, variant.trained_on)


def _contents(run: Run, variant: Variant) -> Iterator[tuple[str, Any]]:
    yield "rows", fingerprint({"names": variant.test_names, "images": variant.test_images.tolist()})
    for name, space in run.spaces.items():
        yield f"predictions {name}", Store.open(variant.study.predictions(name)).content
        features = variant.features(space.learns).features(name, variant.test_split)
        yield f"features {name}", Store.open(features).content
