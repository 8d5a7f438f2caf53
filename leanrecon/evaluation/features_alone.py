"""The figures of a study without images: predicted features beside true ones, averaged over all folds."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from leanrecon.context import Context
from leanrecon.evaluation.bootstrap import Figures, Resampling, Scores, figures, needs_pooling, numbered
from leanrecon.evaluation.fold import Predictions
from leanrecon.evaluation.latents import compare_latents, correlations
from leanrecon.evaluation.plan import POOLED, plan_features
from leanrecon.evaluation.pool import Part, joined, stacked
from leanrecon.images import Array
from leanrecon.study.evaluate_settings import EvaluateSettings


@dataclass(frozen=True)
class FeatureFold:
    """The one split of a study without images, or one of its folds, by test row."""

    rows: Array
    """The number of every test row in its split, int [m]."""
    names: Sequence[str]
    """The stimulus id of every test row."""
    spaces: Mapping[str, Predictions]
    areas: Mapping[str, Mapping[str, Predictions]] = field(default_factory=dict)
    """By area and feature space."""
    n_trained: int = 0
    """How many test rows show an image that was trained on."""


@dataclass
class FeatureEvaluation:
    """All figures, and what is behind them."""

    metrics: dict[str, Any]
    """What metrics.json holds."""
    latent_r2: dict[str, Array]
    """R² of every feature by feature space, float64 [dims], averaged over the folds."""
    latent_r: dict[str, Array]
    """Pearson's r over test rows of every feature, likewise."""
    folds: list[dict[str, Any]]
    """The figures of each fold alone; empty without folds."""
    rows: list[dict[str, Any]]
    """A dict a test row: its number, stimulus, fold and scores, ``SPACE.two_way_features`` and the like."""

    @property
    def columns(self) -> list[str]:
        """The keys of all rows, in order."""
        return list(dict.fromkeys(key for row in self.rows for key in row))


@dataclass
class _Compared:
    """One space, with all voxels or of an area, in every fold."""

    scores: list[Scores]
    r2: list[Array]
    """Of every fold, or of all together where folds are pooled: float64 [dims]."""
    r: list[Array]

    def figures(self, drawn: Sequence[Resampling], chosen: Sequence[int]) -> Figures:
        """The figures over some folds."""
        found = figures([self.scores[k] for k in chosen], [drawn[k] for k in chosen])
        own = self.r if len(self.r) < len(self.scores) else [self.r[k] for k in chosen]
        values = np.concatenate([r[np.isfinite(r)] for r in own])
        if len(values):
            means = [float(np.mean(r[np.isfinite(r)])) for r in own if np.isfinite(r).any()]
            found["latent_r_mean"] = {"value": float(np.mean(means)), "low": None, "high": None, "chance": 0.0}
        return found


def evaluate_features(
    folds: Sequence[FeatureFold], settings: EvaluateSettings, context: Context, *, n_folds: int | None
) -> FeatureEvaluation:
    """Compare the predicted features of every fold with the true ones.

    ``n_folds`` is None for a study with one split. Nothing is written. Where a fold has a single stimulus, the test
    rows of all folds are identified among each other, as with images. Raises BudgetError before anything is read.
    """
    drawn = [
        Resampling(numbers, settings.resamples, context.seed, k)
        for k, numbers in enumerate(numbered([fold.names for fold in folds]))
    ]
    pooled = needs_pooling(drawn)
    context.require("evaluate", planned(folds, settings, pooled=pooled))
    compared = {one: _compare(folds, one, pooled=pooled) for one in _sets(folds[0])}
    about = {"folds": n_folds, "seed": context.seed, "resamples": settings.resamples}

    def metrics(chosen: Sequence[int]) -> dict[str, Any]:
        names = [name for k in chosen for name in folds[k].names]
        found: dict[str, Any] = {
            "n_test": len(names),
            "n_stimuli": len(set(names)),
            "features": {one.space: of.figures(drawn, chosen) for one, of in compared.items() if not one.area},
            "notes": list(_notes([folds[k] for k in chosen], [drawn[k] for k in chosen])),
        }
        for one, of in compared.items():
            if one.area:
                of_area = found.setdefault("areas", {}).setdefault(one.area, {"features": {}})
                of_area["features"][one.space] = of.figures(drawn, chosen)
        return found

    every = range(len(folds))
    own = {one.space: of for one, of in compared.items() if not one.area}
    return FeatureEvaluation(
        about | metrics(every),
        {name: _mean(of.r2) for name, of in own.items()},
        {name: _mean(of.r) for name, of in own.items()},
        [about | {"folds": None} | metrics([k]) for k in every] if n_folds else [],
        list(_rows(folds, own, numbered_folds=n_folds is not None)),
    )


def planned(folds: Sequence[FeatureFold], settings: EvaluateSettings, *, pooled: bool) -> int:
    """Bytes of memory that this takes beside what the process holds already."""
    dims = {name: space.true.shape[1] for name, space in folds[0].spaces.items()}
    rows = [len(fold.names) for fold in folds]
    every = sum(rows) if pooled else max(rows)
    return plan_features(dims, max(rows), sum(rows), every, 1 + len(folds[0].areas), settings.resamples)


@dataclass(frozen=True)
class _Set:
    """What is compared of every fold: a space, with all voxels or of an area."""

    area: str
    """Empty for all voxels."""
    space: str

    def of(self, fold: FeatureFold) -> Predictions:
        return (fold.areas[self.area] if self.area else fold.spaces)[self.space]


def _sets(fold: FeatureFold) -> list[_Set]:
    own = [_Set("", space) for space in fold.spaces]
    return own + [_Set(area, space) for area, spaces in fold.areas.items() for space in spaces]


def _compare(folds: Sequence[FeatureFold], one: _Set, *, pooled: bool) -> _Compared:
    groups = [list(folds)] if pooled else [[fold] for fold in folds]
    found = _Compared([], [], [])
    for group in groups:
        spaces, names = [one.of(fold) for fold in group], [name for fold in group for name in fold.names]
        firsts = np.cumsum([0, *(len(fold.names) for fold in group)]).tolist()
        most = max(max(len(fold.names) for fold in group), POOLED)
        true = stacked([space.true for space in spaces])
        parts = [
            Part(space.predicted, true if len(group) == 1 or space.every is None else space.every, first, most)
            for space, first in zip(spaces, firsts, strict=False)
        ]
        scores, r2 = compare_latents(joined(parts), names)
        found.r2.append(r2)
        found.r.append(correlations(stacked([space.predicted for space in spaces]), true))
        found.scores += [scores.part(slice(a, b)) for a, b in pairwise(firsts)]
    return found


def _rows(
    folds: Sequence[FeatureFold], spaces: Mapping[str, _Compared], *, numbered_folds: bool
) -> Iterator[dict[str, Any]]:
    for number, fold in enumerate(folds):
        for i, stimulus in enumerate(fold.names):
            row: dict[str, Any] = {"row": int(fold.rows[i]), "stimulus": stimulus}
            if numbered_folds:
                row["fold"] = number
            for name, of in spaces.items():
                row |= {f"{name}.{metric}": float(values[i]) for metric, values in of.scores[number].rows.items()}
            yield row


def _notes(folds: Sequence[FeatureFold], drawn: Sequence[Resampling]) -> Iterator[str]:
    """What a reader must know of these figures."""
    n_trained, n_test = sum(fold.n_trained for fold in folds), sum(len(fold.names) for fold in folds)
    if n_trained:
        yield (
            f"{n_trained} of {n_test} test rows show images that were trained on (allow_shared_stimuli): "
            "these scores are not those of images that the decoder has never seen."
        )
    stimuli = len({name for fold in folds for name in fold.names})
    if stimuli == 1:
        yield "A single test image has no interval, no R² and no identification."
    elif needs_pooling(drawn):
        yield (
            "A fold has a single test image. So the test images of all folds are pooled: intervals resample them "
            "together, each is identified among all of them, and R² is taken over all of them."
        )
    elif min(resampling.distinct for resampling in drawn) < 10:
        fewest = min(resampling.distinct for resampling in drawn)
        yield f"Only {fewest} test images{' in a fold' if len(folds) > 1 else ''}: intervals are too narrow."


def _mean(folds: Sequence[Array]) -> Array:
    """The mean over folds of each feature; folds in which it is NaN are left out."""
    known = np.isfinite(folds).sum(axis=0)
    mean: Array = np.nansum(folds, axis=0) / np.where(known, known, np.nan)
    return mean
