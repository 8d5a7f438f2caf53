"""The simulated areas hold what they were built to hold: a check of the simulation, which says nothing of real brains."""

import check_simulation as check
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score


@pytest.fixture(scope="module")
def drawn():
    return check.draw(300, 100)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 7])
def test_early_voxels_tell_layout_and_ventral_ones_content(drawn, seed):
    scores, voxels = check.compare(seed, drawn, voxels=600)
    assert voxels == 108  # 18 % of 600: as many of V1 to V3 as there are ventral ones
    for what in ("brightness", "places of things", "horizon"):
        assert scores[what]["V1-V3"] > scores[what]["ventral"] + 0.02, what
    assert scores["words"]["ventral"] > scores["words"]["V1-V3"] + 0.1
    assert scores["words"]["V1-V3"] > 0.6  # what is seen early tells some content, too
    assert check.as_built(scores)
    swapped = {what: dict(zip(of, reversed(of.values()), strict=True)) for what, of in scores.items()}
    assert not check.as_built(swapped)


def test_responses_to_other_scenes_tell_nothing(drawn, monkeypatch):
    watch = check.watch

    def mismatched(*how):
        betas, area = watch(*how)
        return betas | {"test": np.random.default_rng(0).permutation(betas["test"])}, area

    monkeypatch.setattr(check, "watch", mismatched)
    scores, _ = check.compare(0, drawn, voxels=600)
    for what, of in scores.items():
        for score in of.values():
            assert score == pytest.approx(0.5 if what == "words" else 0, abs=0.3), what


def test_scores_are_those_of_others():
    rng = np.random.default_rng(4)
    true, predicted = rng.standard_normal((2, 50, 6))
    predicted = np.round(predicted + true, 1)  # with ties
    r = [np.corrcoef(a, b)[0, 1] for a, b in zip(predicted.T, true.T, strict=True)]
    np.testing.assert_allclose(check.correlation(predicted, true), r)
    areas = [roc_auc_score(has, values) for has, values in zip((true > 0.3).T, predicted.T, strict=True)]
    np.testing.assert_allclose(check.roc_area(predicted, true > 0.3), areas)


def test_layout_is_told_by_plain_means(drawn):
    images, told = drawn["train"]
    assert told["colours"].shape == (300, 192)
    np.testing.assert_allclose(told["colours"][7, :3], images[7, :8, :8].mean((0, 1)) / 255)
    np.testing.assert_allclose(told["colours"][7, -3:], images[7, 56:, 56:].mean((0, 1)) / 255)
    np.testing.assert_allclose(told["brightness"][7, 1], images[7, :8, 8:16].mean((0, 1)) @ (0.299, 0.587, 0.114) / 255)
    assert told["places of things"].min() == 0
    assert told["places of things"].max() == 1
    assert told["words"].sum(1).min() >= 3  # time, ground and a thing
