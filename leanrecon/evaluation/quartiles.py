"""Figures by how like a test image is to the train images: what a decoder copies from them shows where they differ."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from leanrecon.evaluation.bootstrap import figures
from leanrecon.evaluation.scores import FoldScores

QUARTERS = 4

LEAST = 8
"""Test rows below which there are no quarters to speak of."""


def by_similarity(folds: Sequence[FoldScores]) -> list[dict[str, Any]]:
    """The figures of final images in each quarter of the test rows, the least like a train image first.

    A row's similarity is Pearson's r of its image with the nearest train image, in the space that first images are
    decoded from: of true features, so that no prediction decides it. Ties stay in the order of rows. Each quarter has
    ``rows``, the ``low`` and ``high`` similarity in it, and ``final``. Identification is among all test rows. Empty
    where rows have no similarity, or are fewer than ``LEAST``.
    """
    known = [fold.similarity for fold in folds if fold.similarity is not None]
    if len(known) < len(folds):
        return []
    similarity = np.concatenate(known)
    if len(similarity) < LEAST or np.ptp(similarity) == 0:
        return []
    quarter = np.empty(len(similarity), np.int64)
    order = np.argsort(similarity, kind="stable")
    quarter[order] = np.arange(len(order)) * QUARTERS // len(order)
    firsts = np.cumsum([0, *(len(rows) for rows in known)])
    cut = [quarter[a:b] for a, b in pairwise(firsts)]
    return [_quarter(folds, [rows == k for rows in cut], similarity[quarter == k]) for k in range(QUARTERS)]


def _quarter(folds: Sequence[FoldScores], chosen: Sequence[Any], similarity: Any) -> dict[str, Any]:
    """The figures of the chosen rows of every fold; chance levels, which are those of all rows, are left out."""
    scores, drawn = [], []
    for fold, rows in zip(folds, chosen, strict=True):
        if rows.any():
            scores.append(fold.images[fold.final()].part(rows))
            drawn.append(replace(fold.resampling, stimuli=fold.resampling.stimuli[rows]))
    return {
        "rows": len(similarity),
        "low": float(similarity.min()),
        "high": float(similarity.max()),
        "final": {name: _without_chance(figure) for name, figure in figures(scores, drawn).items()},
    }


def _without_chance(figure: dict[str, float | None]) -> dict[str, float | None]:
    return {key: value for key, value in figure.items() if key != "chance"}
