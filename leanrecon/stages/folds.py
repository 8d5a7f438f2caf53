"""The images and features that the stage evaluate compares: every fold with its baselines, upper bounds and areas."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from leanrecon.evaluation.fold import ORACLE as REFINED_ORACLE
from leanrecon.evaluation.fold import TRUE_FEATURES, Area, Fold, Predictions, RandomPairing, ShownImages
from leanrecon.evaluation.test_sets import of_test_set
from leanrecon.stages.stage import Run
from leanrecon.stores.fingerprint import fingerprint
from leanrecon.stores.gather import gathered
from leanrecon.stores.matrix import Matrix, as_matrix
from leanrecon.stores.pictures import Pictures
from leanrecon.stores.store import Store
from leanrecon.study.record import stage_record
from leanrecon.study.variants import ORACLE, Variant, whole_brain

Array = np.ndarray[Any, Any]


def of_areas(whole: Variant, every: Sequence[Variant]) -> dict[str, Variant]:
    """The variants by area of the same fold."""
    return {variant.area: variant for variant in every if variant.area and variant.fold == whole.fold}


def folds_of(run: Run, every: Sequence[Variant], *, refines: bool, judged: bool) -> Iterator[Fold]:
    """All that is compared in every fold, or in the one split; ``refines`` says whether there are final images."""
    whole = whole_brain(every)
    pool = shared_pool(whole)
    for variant in whole:
        yield _fold_of(run, variant, every, pool, refines=refines, judged=judged)


def test_sets_of(whole: Variant, fold: Fold) -> dict[str, Fold]:
    """The one fold of a study with several test sets, divided by test set, in the order of their first rows."""
    sets, learned = whole.test_sets, set(whole.train_names)
    found = {}
    for number, name in enumerate(dict.fromkeys(sets)):
        index = np.flatnonzero(np.asarray(sets) == name)
        n_trained = sum(fold.names[row] in learned for row in index.tolist())
        study = whole.study if number == 0 else whole.study.variant(name)
        folder = None if fold.embeddings is None else study.embeddings
        found[name] = of_test_set(fold, name, index, n_trained=n_trained, embeddings=folder)
    return found


@dataclass
class Pool:
    """The test images of all folds in the order of their test rows."""

    images: Array
    shared: dict[str, Matrix] = field(default_factory=dict)
    """Their features in spaces that are not fitted to a fold: one matrix for all folds."""

    def features(self, space: Any, store: Store) -> Matrix:
        if space.learns:
            return gathered(as_matrix(store), self.images)
        return self.shared.setdefault(space.name, gathered(as_matrix(store), self.images))


def shared_pool(whole: Sequence[Variant]) -> Pool | None:
    """The test images of all folds together; None if there is one split."""
    return Pool(np.concatenate([variant.test_images for variant in whole])) if len(whole) > 1 else None


def _fold_of(
    run: Run, whole: Variant, every: Sequence[Variant], pool: Pool | None, *, refines: bool, judged: bool
) -> Fold:
    study, split = run.study, whole.test_split
    spaces = {name: predictions_of(whole, space, pool) for name, space in run.spaces.items()}
    first = run.first_space
    upper_bounds = {} if first is None else {TRUE_FEATURES: _pictures(whole.made_from(ORACLE), "stage1")}
    if refines and ORACLE in run.settings.refine.baselines:
        upper_bounds[REFINED_ORACLE] = _pictures(whole.made_from(ORACLE), "final")
    baselines = [name for name in run.settings.refine.baselines if name != ORACLE]
    return Fold(
        rows=whole.test_rows,
        names=whole.test_names,
        test=ShownImages(Store.open(study.stimuli(split)), whole.test_images),
        train=ShownImages(Store.open(study.stimuli("train")), whole.images_of_train_rows),
        stage1=_pictures(whole, "stage1"),
        final=_pictures(whole, "final") if refines else None,
        spaces=spaces,
        space=None if first is None else first.name,
        train_features=None if first is None else whole.train_features(first.name, first.learns),
        refined={name: _pictures(whole.made_from(name), "final") for name in baselines},
        pairings=[_pairing(variant, first) for variant in whole.shuffled(run.settings.evaluate.permutations)],
        upper_bounds=upper_bounds,
        areas={name: _area(run, variant, pool, refines=refines) for name, variant in of_areas(whole, every).items()},
        weights=_weights(whole),
        subjects=whole.test_subjects,
        n_trained=whole.trained_on,
        label=whole.label,
        embeddings=whole.study.embeddings if judged else None,
    )


def contents(run: Run, every: Sequence[Variant], *, refines: bool) -> dict[str, Any]:
    """The contents of all that is compared; raises StoreError unless it is complete."""
    return {variant.name or "study": dict(_contents(run, variant, refines=refines)) for variant in every}


def _contents(run: Run, variant: Variant, *, refines: bool) -> Iterator[tuple[str, Any]]:
    first, split = run.first_space, variant.test_split
    yield "stimuli", [Store.open(run.study.stimuli(name)).content for name in ("train", split)]
    rows = {"names": variant.test_names, "images": variant.test_images.tolist()}
    yield "rows", fingerprint(rows | ({"test sets": variant.test_sets} if variant.test_sets else {}))
    pairings = [] if variant.area else variant.shuffled(run.settings.evaluate.permutations)
    for name, space in run.spaces.items():
        yield f"predictions {name}", Store.open(variant.study.predictions(name)).content
        yield f"features {name}", Store.open(variant.features(space.learns).features(name, split)).content
    if first is not None:
        yield "shuffled", [Store.open(one.study.predictions(first.name)).content for one in pairings]
    yield "stage1", [_pictures(one, "stage1").content for one in (variant, *pairings)]
    baselines = [] if variant.area else run.settings.refine.baselines
    if refines:
        finals = [variant, *(variant.made_from(name) for name in baselines)]
        yield "final", [_pictures(one, "final").content for one in finals]
    if first is not None and not variant.area:
        yield "true features", _pictures(variant.made_from(ORACLE), "stage1").content


def _weights(variant: Variant) -> dict[str, float]:
    """The mean weight of each group of features, if a feature space has fitted weights for its decoded images."""
    weights: dict[str, float] = stage_record(variant.study, "stage1").get("weights", {})
    return weights


def predictions_of(variant: Variant, space: Any, pool: Pool | None) -> Predictions:
    """Predicted and true features of the test rows of a variant."""
    predicted = as_matrix(Store.open(variant.study.predictions(space.name)))
    features = Store.open(variant.features(space.learns).features(space.name, variant.test_split))
    every = None if pool is None else pool.features(space, features)
    return Predictions(predicted, gathered(as_matrix(features), variant.test_images), every)


def _pairing(variant: Variant, first: Any) -> RandomPairing:
    predicted = None if first is None else as_matrix(Store.open(variant.study.predictions(first.name)))
    return RandomPairing(_pictures(variant, "stage1"), predicted)


def _area(run: Run, variant: Variant, pool: Pool | None, *, refines: bool) -> Area:
    spaces = {name: predictions_of(variant, space, pool) for name, space in run.spaces.items()}
    final = _pictures(variant, "final") if refines else None
    return Area(len(variant.voxels or ()), _pictures(variant, "stage1"), final, spaces)


def _pictures(variant: Variant, stage: str) -> Pictures:
    return Pictures.open(variant.study.reconstructions(stage))
