"""The scores of one fold: every metric of its reconstructions, its baselines and its areas, row by row."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from leanrecon.context import Context
from leanrecon.evaluation.bootstrap import Resampling, Scores, average, numbered
from leanrecon.evaluation.comparison import compare_images
from leanrecon.evaluation.fold import TRUE_FEATURES, Fold, Predictions
from leanrecon.evaluation.image_sources import (
    ConstantImage,
    ImageSource,
    Reconstructions,
    StoredImages,
    mean_image,
    nearest_rows,
    random_images,
)
from leanrecon.evaluation.judges.embeddings import STIMULI, embed, judge_scores
from leanrecon.evaluation.judges.judge import Judge
from leanrecon.evaluation.latents import compare_latents
from leanrecon.evaluation.plan import PRESETS, plan_evaluate
from leanrecon.images import Array
from leanrecon.places import Location, as_location
from leanrecon.stores.store import remove
from leanrecon.study.settings import EvaluateSettings

MEAN, RANDOM, NEAREST = "mean_train_image", "random_train_image", "nearest_train_image"
SHUFFLED = "shuffled_betas"
BASELINES = (MEAN, RANDOM, NEAREST, SHUFFLED)
REFINED = {"prior": "prior_only", "shuffled": "shuffled_predictions"}
"""The generator's baselines as they are named among the figures; others keep the generator's name."""


@dataclass
class FoldScores:
    """All scores of one fold, before they are averaged."""

    fold: Fold
    resampling: Resampling
    images: dict[str, Scores]
    """By set of images: stage1, final, each baseline and upper bound; ``stage1 AREA`` and ``final AREA``."""
    features: dict[str, Scores]
    """By feature space."""
    areas: dict[str, dict[str, Scores]] = field(default_factory=dict)
    """By area and feature space."""
    r2: dict[str, Array] = field(default_factory=dict)
    """R² of every latent by feature space, float64 [dims]."""

    def final(self, area: str = "") -> str:
        """The set of the final images: the first ones, where nothing refines them."""
        key = in_area("final", area)
        return key if key in self.images else in_area("stage1", area)


def in_area(stage: str, area: str) -> str:
    """How a stage's images of an area are called among the sets of images."""
    return f"{stage} {area}" if area else stage


def score_fold(
    fold: Fold, number: int, settings: EvaluateSettings, judges: Sequence[Judge], context: Context
) -> FoldScores:
    """All scores of the ``number``-th fold. Raises BudgetError before any image is read."""
    context.require("evaluate", plan_evaluate(fold.shapes(), settings, judges))
    context = context.named(f"{fold.label}evaluate")
    resampling = Resampling(numbered(fold.names), settings.resamples, context.seed, number)
    sources = dict(_sources(fold, context.seed))
    stimuli = StoredImages(fold.test.store, fold.test.index)
    judged = _judged(fold, {STIMULI: stimuli, **sources}, judges, context)
    images = compare_images(sources, stimuli, fold.names, PRESETS[settings.preset] or fold.image_shape, context)
    for name, scores in judged:
        images[name].add(scores)
    result = FoldScores(fold, resampling, images, {})
    for name, space in fold.spaces.items():
        result.features[name], result.r2[name] = compare_latents(space.predicted, space.true, fold.names)
    _add_features(images["stage1"], result.features, fold.space)
    for area, of_area in fold.areas.items():
        result.areas[area] = _feature_scores(of_area.spaces, fold.names)
        _add_features(images[in_area("stage1", area)], result.areas[area], fold.space)
    for name in [name for name in images[MEAN].rows if name.endswith("_reverse")]:
        del images[MEAN].rows[name]  # one image for all rows ties with itself
    _average_pairings(fold, images)
    return result


def _sources(fold: Fold, seed: int) -> Iterator[tuple[str, ImageSource]]:
    """Every set of images that is compared with the test stimuli, by its name among the figures."""
    size = fold.stage1.shape
    yield "stage1", Reconstructions(fold.stage1)
    if fold.final is not None:
        yield "final", Reconstructions(fold.final)
    for name, area in fold.areas.items():
        yield in_area("stage1", name), Reconstructions(area.stage1)
        if area.final is not None:
            yield in_area("final", name), Reconstructions(area.final)
    train = fold.train
    yield MEAN, ConstantImage(mean_image(train.store, train.index))
    yield RANDOM, StoredImages(train.store, random_images(train.index, len(fold.names), seed))
    if fold.space is not None and fold.train_features is not None:
        nearest = nearest_rows(fold.spaces[fold.space].predicted, fold.train_features)
        yield NEAREST, StoredImages(train.store, np.unique(train.index)[nearest])
    for j, pairing in enumerate(fold.pairings):
        yield f"{SHUFFLED} {j}", Reconstructions(pairing.stage1, size)
    for name, pictures in fold.refined.items():
        yield REFINED.get(name, name), Reconstructions(pictures)
    for name, pictures in fold.upper_bounds.items():
        yield name, Reconstructions(pictures, size if name == TRUE_FEATURES else None)


def _judged(
    fold: Fold, sources: Mapping[str, ImageSource], judges: Sequence[Judge], context: Context
) -> list[tuple[str, Scores]]:
    """The scores of every set of images by every judge."""
    if fold.embeddings is None:
        return []
    every = as_location(fold.embeddings)
    for folder in every.iterdir():
        if folder.name not in {judge.name for judge in judges}:
            _remove_stores(folder)
    scores: list[tuple[str, Scores]] = []
    for judge in judges:
        folder = every / judge.name
        embeddings = embed(judge, sources, len(fold.names), fold.image_shape, folder, context)
        scores += judge_scores(judge, embeddings, fold.names).items()
    return scores


def _remove_stores(folder: Location) -> None:
    """Remove the embeddings by a judge that is no longer asked, and its folder if it holds nothing else."""
    for store in folder.glob("*.zarr"):
        remove(store)
    if not folder.is_dir():
        folder.delete_tree()


def _feature_scores(spaces: Mapping[str, Predictions], names: Sequence[str]) -> dict[str, Scores]:
    return {name: compare_latents(space.predicted, space.true, names)[0] for name, space in spaces.items()}


def _add_features(stage1: Scores, features: Mapping[str, Scores], space: str | None) -> None:
    """First images also have the scores of the features that they were decoded from."""
    if space is not None and space in features:
        stage1.add(features[space])


def _average_pairings(fold: Fold, images: dict[str, Scores]) -> None:
    """Put one set of scores, the mean over all random pairings, in the place of theirs."""
    for j, pairing in enumerate(fold.pairings):
        if fold.space is not None and pairing.predicted is not None:
            true = fold.spaces[fold.space].true
            images[f"{SHUFFLED} {j}"].add(compare_latents(pairing.predicted, true, fold.names)[0])
    pairings = [images.pop(f"{SHUFFLED} {j}") for j in range(len(fold.pairings))]
    if pairings:
        images[SHUFFLED] = average(pairings)
