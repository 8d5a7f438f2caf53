"""The scores of one fold: every metric of its reconstructions, its baselines and its areas, row by row."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from leanrecon.context import Context
from leanrecon.evaluation.bootstrap import Resampling, Scores, average, needs_pooling, numbered
from leanrecon.evaluation.comparison import Fitting, Others, compare_images
from leanrecon.evaluation.fold import TRUE_FEATURES, Fold
from leanrecon.evaluation.identification import identify
from leanrecon.evaluation.image_sources import (
    Blended,
    ConstantImage,
    EveryFold,
    ImageSource,
    Reconstructions,
    StoredImages,
    mean_image,
    nearest,
    nearest_rows,
    random_images,
)
from leanrecon.evaluation.judges.embeddings import STIMULI, embed, judge_measure, stimuli_beside
from leanrecon.evaluation.judges.judge import Judge
from leanrecon.evaluation.judges.pairs import Seen
from leanrecon.evaluation.latents import compare_latents
from leanrecon.evaluation.metrics import SSIM_RGB
from leanrecon.evaluation.patterns import (
    CONSTANTS,
    MAJORITY,
    Patterns,
    PatternScores,
    constants,
    find_patterns,
    score_patterns,
)
from leanrecon.evaluation.plan import POOLED, compared_shape, plan_evaluate
from leanrecon.evaluation.pool import Part, Spool, joined, stacked
from leanrecon.images import Array, ImageShape
from leanrecon.places import Location, as_location
from leanrecon.stores.matrix import Matrix
from leanrecon.stores.pictures import Pictures
from leanrecon.stores.store import remove
from leanrecon.study.evaluate_settings import EvaluateSettings
from leanrecon.study.protocols import PROTOCOLS

MEAN, RANDOM, NEAREST = "mean_train_image", "random_train_image", "nearest_train_image"
SHUFFLED = "shuffled_betas"
BASELINES = (MEAN, RANDOM, NEAREST, SHUFFLED, *CONSTANTS)
REFINED = {"prior": "prior_only", "shuffled": "shuffled_predictions"}
"""The generator's baselines as they are named among the figures; others keep the generator's name."""


Key = tuple[str, str, str]
"""What is compared: ``images``, ``features``, ``pairing`` or ``area``; of which images or area; by what it is described."""

Measure = Callable[[Sequence[Part], Sequence[str]], "tuple[Scores | None, Array | None]"]


@dataclass(frozen=True)
class Described:
    """Reconstructions and stimuli of one fold, described in one way, to tell the stimuli apart by."""

    reconstructions: Matrix
    stimuli: Matrix
    """[rows of this fold, d]"""
    measure: Measure
    every: Matrix | None = None
    """The stimuli of all folds, described as this fold does; None: as every fold does."""


@dataclass
class FoldScores:
    """All scores of one fold, before they are averaged."""

    fold: Fold
    resampling: Resampling
    images: dict[str, Scores]
    """By set of images: stage1, final, each baseline and upper bound; ``stage1 AREA`` and ``final AREA``."""
    features: dict[str, Scores] = field(default_factory=dict)
    """By feature space."""
    areas: dict[str, dict[str, Scores]] = field(default_factory=dict)
    """By area and feature space."""
    r2: dict[str, Array] = field(default_factory=dict)
    """R² of every latent by feature space, float64 [dims]."""
    described: dict[Key, Described] = field(default_factory=dict)
    """What is still to be compared; empty once it is."""
    patterns: PatternScores | None = None
    """What is scored of black and white patterns alone."""
    similarity: Array | None = None
    """Pearson's r of each test image with the train image nearest to it, in the space that first images are decoded
    from, float64 [m]; None without one."""
    pairs: int = 0
    """Over how many wrong pairs a chance level of a pixel metric was taken."""

    def final(self, area: str = "") -> str:
        """The set of the final images: the first ones, where nothing refines them."""
        key = in_area("final", area)
        return key if key in self.images else in_area("stage1", area)


def in_area(stage: str, area: str) -> str:
    """How a stage's images of an area are called among the sets of images."""
    return f"{stage} {area}" if area else stage


def compared_as(folds: Sequence[Fold], preset: str) -> ImageShape:
    """The shape in which the pixels of some folds are compared."""
    return compared_shape(preset, folds[0].image_shape, (folds[0].final or folds[0].stage1).shape)


def score_folds(
    folds: Sequence[Fold], settings: EvaluateSettings, judges: Sequence[Judge], context: Context
) -> list[FoldScores]:
    """All scores of every fold. Raises BudgetError before any image of a fold is read.

    Stimuli are told apart within each fold, or in all folds together where one of them has a single stimulus.
    """
    drawn = [
        Resampling(numbers, settings.resamples, context.seed, k)
        for k, numbers in enumerate(numbered([fold.names for fold in folds]))
    ]
    pooled = needs_pooling(drawn)
    as_seen = compared_as(folds, settings.preset) == folds[0].image_shape
    patterns = find_patterns(folds) if as_seen else None
    scored: list[FoldScores] = []
    every = EveryFold([(fold.test.store, fold.test.index) for fold in folds])
    names = [name for fold in folds for name in fold.names]
    first = 0
    with Spool(context.scratch) as spool:
        for fold, resampling in zip(folds, drawn, strict=True):
            others = Others(every, names, first) if pooled else None
            first += len(fold.names)
            scored.append(_score_images(fold, resampling, settings, judges, context, spool, others, patterns))
            if not pooled:
                compare_described(scored[-1:])
                spool.clear()
        if pooled:
            compare_described(scored)
    return scored


def _score_images(
    fold: Fold,
    resampling: Resampling,
    settings: EvaluateSettings,
    judges: Sequence[Judge],
    context: Context,
    spool: Spool,
    others: Others | None,
    patterns: Patterns | None,
) -> FoldScores:
    """The pixel metrics of a fold, and what else is to be compared of it."""
    shapes = replace(fold.shapes(), pooled_rows=0 if others is None else len(others.names))
    context.require("evaluate", plan_evaluate(shapes, settings, judges))
    context = context.named(f"{fold.label}evaluate")
    sources = dict(_sources(fold, context.seed, settings.blend))
    if patterns is not None:
        sources |= constants(patterns, fold)
    stimuli = StoredImages(fold.test.store, fold.test.index)
    protocol = PROTOCOLS[settings.preset]
    fit = Fitting(compared_as([fold], settings.preset), protocol.resample, protocol.through, protocol.ssim == SSIM_RGB)
    every = None if others is None else Seen(others.images, len(others.names), others.first)
    described = dict(_judged(fold, {STIMULI: stimuli, **sources}, judges, context, every))
    of_patterns = patterns is not None
    found, small = compare_images(sources, stimuli, fold.names, fit, context, spool, others, patterns=of_patterns)
    result = FoldScores(fold, resampling, {name: of_source.scores for name, of_source in found.items()})
    result.pairs = max(of_source.pairs for of_source in found.values())
    for name, of_source in found.items():
        described["images", name, "pixels"] = Described(of_source.small, small, _identified("pixels"))
    result.described = described | dict(_features(fold))
    if patterns is not None:
        majority = sources[MAJORITY].read(0)
        result.patterns = score_patterns(patterns, fold, found[result.final()].small, small, majority, context)
    if fold.space is not None and fold.train_features is not None:
        result.similarity = nearest(fold.spaces[fold.space].true, fold.train_features, 1)[1][:, 0]
    return result


def _identified(suffix: str) -> Measure:
    return lambda parts, names: (identify(parts, names, suffix), None)


def _features(fold: Fold) -> Iterator[tuple[Key, Described]]:
    """Predicted and true features of every space, area and random pairing."""
    every = [("features", "", fold.spaces), *(("area", name, area.spaces) for name, area in fold.areas.items())]
    for of, area, spaces in every:
        for name, space in spaces.items():
            yield (of, area, name), Described(space.predicted, space.true, compare_latents, space.every)
    for j, pairing in enumerate(fold.pairings):
        if fold.space is not None and pairing.predicted is not None:
            true = fold.spaces[fold.space]
            described = Described(pairing.predicted, true.true, compare_latents, true.every)
            yield ("pairing", f"{SHUFFLED} {j}", fold.space), described


def compare_described(scored: Sequence[FoldScores]) -> None:
    """Tell the stimuli of some folds apart by all that describes them, and complete the scores of these folds."""
    names = [name for fold in scored for name in fold.fold.names]
    firsts = np.cumsum([0, *(len(fold.fold.names) for fold in scored)]).tolist()
    most = max(max(len(fold.fold.names) for fold in scored), POOLED)
    for key in scored[0].described:
        of_folds = [fold.described[key] for fold in scored]
        every = stacked([described.stimuli for described in of_folds])
        parts = [
            Part(one.reconstructions, every if len(scored) == 1 or one.every is None else one.every, first, most)
            for one, first in zip(of_folds, firsts, strict=False)
        ]
        scores, r2 = of_folds[0].measure(joined(parts), names)
        for fold, first, end in zip(scored, firsts, firsts[1:], strict=False):
            _put(fold, key, None if scores is None else scores.part(slice(first, end)), r2)
    for fold in scored:
        fold.described.clear()
        _complete(fold)


def _put(fold: FoldScores, key: Key, scores: Scores | None, r2: Array | None) -> None:
    of, source, by = key
    if of == "features":
        fold.features[by] = scores or Scores()
        fold.r2[by] = np.empty(0) if r2 is None else r2
    elif of == "area":
        fold.areas.setdefault(source, {})[by] = scores or Scores()
    elif scores is not None:
        fold.images[source].add(scores)


def _complete(scored: FoldScores) -> None:
    """Give first images the scores of their features, and average random pairings."""
    fold, images = scored.fold, scored.images
    _add_features(images["stage1"], scored.features, fold.space)
    for area in fold.areas:
        of_area = scored.areas.setdefault(area, {})
        _add_features(images[in_area("stage1", area)], of_area, fold.space)
    for constant in (MEAN, *CONSTANTS):  # one image for all rows ties with itself
        rows = images[constant].rows if constant in images else {}
        for name in [name for name in rows if name.endswith("_reverse")]:
            del rows[name]
    pairings = [images.pop(f"{SHUFFLED} {j}") for j in range(len(fold.pairings))]
    if pairings:
        images[SHUFFLED] = average(pairings)


def _sources(fold: Fold, seed: int, blend: float) -> Iterator[tuple[str, ImageSource]]:
    """Every set of images that is compared with the test stimuli, by its name among the figures."""
    size = fold.stage1.shape
    yield "stage1", Reconstructions(fold.stage1)
    if fold.final is not None:
        yield "final", _blended(fold.final, fold.stage1, blend)
    for name, area in fold.areas.items():
        yield in_area("stage1", name), Reconstructions(area.stage1)
        if area.final is not None:
            yield in_area("final", name), _blended(area.final, area.stage1, blend)
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


def _blended(final: Pictures, stage1: Pictures, share: float) -> ImageSource:
    return Blended(Reconstructions(final), Reconstructions(stage1), share) if share else Reconstructions(final)


def _judged(
    fold: Fold, sources: Mapping[str, ImageSource], judges: Sequence[Judge], context: Context, every: Seen | None
) -> Iterator[tuple[Key, Described]]:
    """Every set of images and the stimuli, as every judge describes them."""
    if fold.embeddings is None:
        return
    kept = as_location(fold.embeddings)
    for folder in kept.iterdir():
        if folder.name not in {judge.name for judge in judges}:
            _remove_stores(folder)
    for judge in judges:
        folder = kept / judge.name
        embeddings = embed(judge, sources, len(fold.names), fold.image_shape, folder, context, every)
        for name in sources:
            if name != STIMULI:
                stimuli = stimuli_beside(name, embeddings).matrix()
                described = Described(embeddings[name].matrix(), stimuli, partial(judge_measure, judge))
                yield ("images", name, judge.name), described


def _remove_stores(folder: Location) -> None:
    """Remove the embeddings by a judge that is no longer asked, and its folder if it holds nothing else."""
    for store in folder.glob("*.zarr"):
        remove(store)
    if not folder.is_dir():
        folder.delete_tree()


def _add_features(stage1: Scores, features: Mapping[str, Scores], space: str | None) -> None:
    """First images also have the scores of the features that they were decoded from."""
    if space is not None and space in features:
        stage1.add(features[space])
