"""Figures by similarity to the train images, against quarters made by hand."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from leanrecon.evaluation.bootstrap import Resampling, Scores
from leanrecon.evaluation.quartiles import by_similarity

Array = np.ndarray[Any, Any]


def fold(similarity: Array | None, scores: Array, first: int = 0) -> Any:
    stimuli = np.arange(first, first + len(scores))
    images = {"final": Scores({"pixcorr": scores}, {"pixcorr": 0.1})}
    return SimpleNamespace(
        similarity=similarity, images=images, resampling=Resampling(stimuli, 200, seed=0), final=lambda: "final"
    )


def test_each_quarter_holds_the_rows_that_are_as_like() -> None:
    rng = np.random.default_rng(0)
    similarity, scores = rng.random(40), rng.random(40)
    found = by_similarity([fold(similarity, scores)])
    order = np.argsort(similarity)
    assert [quarter["rows"] for quarter in found] == [10] * 4
    for k, quarter in enumerate(found):
        rows = order[10 * k : 10 * k + 10]
        assert quarter["final"]["pixcorr"]["value"] == pytest.approx(scores[rows].mean())
        assert (quarter["low"], quarter["high"]) == (similarity[rows].min(), similarity[rows].max())
        assert quarter["final"]["pixcorr"]["low"] < scores[rows].mean() < quarter["final"]["pixcorr"]["high"]
        assert "chance" not in quarter["final"]["pixcorr"]


def test_what_is_copied_from_train_images_shows() -> None:
    similarity = np.linspace(0, 1, 16)
    found = by_similarity([fold(similarity, similarity**2)])
    values = [quarter["final"]["pixcorr"]["value"] for quarter in found]
    assert values == sorted(values)


def test_folds_share_their_quarters_and_may_lack_one() -> None:
    one, two = fold(np.linspace(0, 0.4, 8), np.zeros(8)), fold(np.linspace(0.5, 1, 8), np.ones(8), first=8)
    found = by_similarity([one, two])
    assert [quarter["final"]["pixcorr"]["value"] for quarter in found] == [0, 0, 1, 1]


@pytest.mark.parametrize("similarity", [None, np.full(12, 0.3), np.linspace(0, 1, 7)])
def test_without_differences_there_are_no_quarters(similarity: Array | None) -> None:
    assert by_similarity([fold(similarity, np.zeros(12 if similarity is None else len(similarity)))]) == []
