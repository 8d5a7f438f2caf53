"""Figures of each subject of a group: those of its test rows alone."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from leanrecon.evaluation.bootstrap import figures
from leanrecon.evaluation.scores import FoldScores


def others_than(subject: str) -> Callable[[str], bool]:
    """Whether a row is of another subject than this one."""
    return lambda name: name != subject


def of_subjects(scored: FoldScores, wanted: Callable[[str], bool]) -> FoldScores:
    """The scores of a fold's test rows of some subjects; all of them where a study has one subject, or all are wanted."""
    kept = np.array([wanted(name) for name in scored.fold.subjects], bool)
    if kept.all():
        return scored
    rows = np.flatnonzero(kept).tolist()
    fold = replace(
        scored.fold,
        rows=scored.fold.rows[kept],
        names=[scored.fold.names[row] for row in rows],
        subjects=[scored.fold.subjects[row] for row in rows],
    )
    return replace(
        scored,
        fold=fold,
        resampling=replace(scored.resampling, stimuli=scored.resampling.stimuli[kept]),
        images={name: scores.part(kept) for name, scores in scored.images.items()},
        features={name: scores.part(kept) for name, scores in scored.features.items()},
        areas={area: {name: s.part(kept) for name, s in of.items()} for area, of in scored.areas.items()},
        similarity=None if scored.similarity is None else scored.similarity[kept],
        patterns=None if scored.patterns is None else replace(scored.patterns, rows=scored.patterns.rows.part(kept)),
    )


def by_subject(folds: Sequence[FoldScores]) -> dict[str, Any]:
    """``{"subjects": {NAME: figures}}`` in the order of test rows, the mean over subjects last; empty for one subject.

    Stimuli are told apart among the test images of all subjects, as in the figures of all together.
    """
    names = list(dict.fromkeys(name for fold in folds for name in fold.fold.subjects))
    if len(names) < 2:
        return {}
    found = {}
    for name in names:
        own = [of_subjects(fold, name.__eq__) for fold in folds if name in fold.fold.subjects]
        resamplings = [fold.resampling for fold in own]
        found[name] = {
            "n_test": sum(len(fold.fold.names) for fold in own),
            "stage1": figures([fold.images["stage1"] for fold in own], resamplings),
            "final": figures([fold.images[fold.final()] for fold in own], resamplings),
            "features": {
                space: figures([fold.features[space] for fold in own], resamplings) for space in own[0].features
            },
        }
    return {"subjects": found}
