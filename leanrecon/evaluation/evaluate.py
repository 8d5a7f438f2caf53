"""The figures of a study: reconstructions and predictions beside baselines, averaged over all folds."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from leanrecon.context import Context
from leanrecon.evaluation.bootstrap import Figures, figures, margins, needs_pooling
from leanrecon.evaluation.fold import ORACLE, TRUE_FEATURES, Fold
from leanrecon.evaluation.judges.judge import Judge, check_judges, judge_record
from leanrecon.evaluation.patterns import pattern_figures
from leanrecon.evaluation.quartiles import by_similarity
from leanrecon.evaluation.scores import BASELINES, REFINED, FoldScores, compared_as, in_area, score_folds
from leanrecon.evaluation.subjects import by_subject, of_subjects, others_than
from leanrecon.images import Array
from leanrecon.study.evaluate_settings import EvaluateSettings
from leanrecon.study.rows import AVERAGE


@dataclass
class Evaluation:
    """All figures, and the scores of single images behind them."""

    metrics: dict[str, Any]
    """What metrics.json holds."""
    scored: list[FoldScores]
    latent_r2: dict[str, Array]
    """R² of every latent by feature space, float64 [dims], averaged over the folds."""
    folds: list[dict[str, Any]]
    """The figures of each fold alone; empty without folds."""

    def rows(self) -> Iterator[dict[str, Any]]:
        """A dict a test row, in the order of their images: its number, its stimulus, its fold and its scores, ``stage1.pixcorr`` and the like."""
        every = (row for k, fold in enumerate(self.scored) for row in _rows(fold, k if self.folds else None))
        yield from sorted(every, key=lambda row: row["row"]) if self.scored[0].fold.test_set else every

    @property
    def columns(self) -> list[str]:
        """The keys of all rows, in order."""
        first = (next(_rows(fold, k if self.folds else None)) for k, fold in enumerate(self.scored))
        return list(dict.fromkeys(key for row in first for key in row))


def evaluate(
    folds: Iterable[Fold],
    settings: EvaluateSettings,
    context: Context,
    *,
    judges: Sequence[Judge] = (),
    n_folds: int | None = None,
) -> Evaluation:
    """Measure the reconstructions of every fold, and average the figures over the folds.

    ``n_folds`` is None for a study with one split. The only files written are embeddings, under ``Fold.embeddings``.
    Raises SettingsError for a judge that can't be used, and BudgetError before any image of a fold is read.
    """
    check_judges(judges)
    folds = list(folds)
    scored = score_folds(folds, settings, judges, context)
    together = [of_subjects(fold, others_than(AVERAGE)) for fold in scored]
    about: dict[str, Any] = {
        "preset": settings.preset,
        "blend": settings.blend,
        "shape": list(compared_as(folds, settings.preset)),
        "folds": n_folds,
        "seed": context.seed,
        "resamples": settings.resamples,
        "permutations": settings.permutations,
    }
    if judges:
        about["judges"] = {judge.name: judge_record(judge) for judge in judges}
    r2 = {name: _mean_r2([fold.r2[name] for fold in scored]) for name in scored[0].r2}
    of_each = [about | {"folds": None} | _metrics([fold]) for fold in together] if n_folds else []
    return Evaluation(about | _metrics(together) | by_subject(scored), scored, r2, of_each)


def _metrics(folds: Sequence[FoldScores]) -> dict[str, Any]:
    """All figures over some folds."""
    resamplings = [fold.resampling for fold in folds]
    images = {name: figures([fold.images[name] for fold in folds], resamplings) for name in folds[0].images}
    refined = [REFINED.get(name, name) for name in folds[0].fold.refined]
    baselines = [name for name in (*BASELINES, *refined) if name in images]
    final = folds[0].final()
    metrics = {
        "n_test": sum(len(fold.fold.names) for fold in folds),
        "n_stimuli": len({name for fold in folds for name in fold.fold.names}),
        "chance_pairs": sum(fold.pairs for fold in folds),
        "stage1": images["stage1"],
        "final": images[final],
        "baselines": {name: images[name] for name in baselines},
        "upper_bounds": {name: images[name] for name in (TRUE_FEATURES, ORACLE) if name in images},
        "features": {name: figures([fold.features[name] for fold in folds], resamplings) for name in folds[0].features},
        "margins": {
            name: margins([fold.images[final] for fold in folds], [fold.images[name] for fold in folds], resamplings)
            for name in baselines
        },
        "notes": _notes(images["stage1"], folds),
    }
    patterns = [fold.patterns for fold in folds if fold.patterns is not None]
    if patterns:
        metrics["patterns"] = pattern_figures(patterns, resamplings, [fold.fold.weights for fold in folds])
    if quartiles := by_similarity(folds):
        metrics["by_similarity"] = quartiles
    if folds[0].areas:
        metrics["areas"] = {area: _area(area, folds, images) for area in folds[0].areas}
    return metrics


def _area(area: str, folds: Sequence[FoldScores], images: dict[str, Figures]) -> dict[str, Any]:
    """The figures of one area."""
    resamplings = [fold.resampling for fold in folds]
    return {
        "voxels": folds[0].fold.areas[area].voxels,
        "stage1": images[in_area("stage1", area)],
        "final": images[folds[0].final(area)],
        "features": {
            name: figures([fold.areas[area][name] for fold in folds], resamplings) for name in folds[0].areas[area]
        },
    }


def _rows(scored: FoldScores, number: int | None) -> Iterator[dict[str, Any]]:
    for i, name in enumerate(scored.fold.names):
        row: dict[str, Any] = {"row": int(scored.fold.rows[i]), "stimulus": name}
        if scored.fold.test_set:
            row["test_set"] = scored.fold.test_set
        if scored.fold.subjects:
            row["subject"] = scored.fold.subjects[i]
        if number is not None:
            row["fold"] = number
        for stage, key in (("stage1", "stage1"), ("final", scored.final())):
            row |= {f"{stage}.{metric}": float(values[i]) for metric, values in scored.images[key].rows.items()}
        yield row


def _notes(stage1: Figures, folds: Sequence[FoldScores]) -> list[str]:
    """What a reader must know of these figures."""
    notes = []
    missing = [name for name in ("ssim", "ssim_1d", "ssim_7x7") if name not in stage1]
    if missing:
        notes.append(f"{', '.join(missing)} left out: the images are smaller than its window.")
    n_trained = sum(fold.fold.n_trained for fold in folds)
    if n_trained:
        n_test = sum(len(fold.fold.names) for fold in folds)
        notes.append(
            f"{n_trained} of {n_test} test rows show images that were trained on (allow_shared_stimuli): "
            "these scores are not those of images that the decoder has never seen."
        )
    stimuli = len({name for fold in folds for name in fold.fold.names})
    fewest = min(fold.resampling.distinct for fold in folds)
    if stimuli == 1:
        notes.append("A single test image has no interval, no R² and no identification.")
    elif needs_pooling([fold.resampling for fold in folds]):
        notes.append(
            "A fold has a single test image. So the test images of all folds are pooled: intervals resample them "
            "together, each is identified among all of them, and R² is taken over all of them. Most of the images "
            "that a reconstruction is told apart from were trained on in its fold."
        )
        if stimuli < 10:
            notes.append(f"Only {stimuli} test images: intervals are too narrow.")
    elif fewest < 10:
        notes.append(f"Only {fewest} test images{' in a fold' if len(folds) > 1 else ''}: intervals are too narrow.")
    return notes


def _mean_r2(folds: Sequence[Array]) -> Array:
    """R² averaged over folds; components that a fold's train images lack are NaN and left out."""
    widest = max(map(len, folds))
    padded = [np.pad(r2, (0, widest - len(r2)), constant_values=np.nan) for r2 in folds]
    known = np.isfinite(padded).sum(axis=0)
    mean: Array = np.nansum(padded, axis=0) / np.where(known, known, np.nan)
    return mean
