"""Figures of black and white patterns, against brute force."""

from itertools import combinations

import numpy as np
import pytest

from leanrecon.context import Context
from leanrecon.evaluation import patterns as module
from leanrecon.evaluation.bootstrap import Resampling, Scores
from leanrecon.evaluation.fold import Fold, ShownImages
from leanrecon.evaluation.metrics import compare, pair_metrics, prepare
from leanrecon.evaluation.patterns import (
    BEST,
    CANDIDATES,
    DARK,
    MAJORITY,
    PatternScores,
    constants,
    find_patterns,
    identified,
    pattern_figures,
    rings,
    score_patterns,
)
from leanrecon.evaluation.plan import pattern_nbytes
from leanrecon.stores import Store, as_matrix


@pytest.fixture
def stored(tmp_path):
    def write(images, name):
        store = Store.create(tmp_path / name, images.shape, np.uint8, made_of={"name": name})
        store.write_rows(0, images)
        store.finish()
        return store

    return write


def draw(n, side=10, seed=0, lit=0.3):
    return np.where(np.random.default_rng(seed).random((n, side, side, 1)) < lit, np.uint8(255), np.uint8(0))


def fold_of(stored, train, test, train_index, test_index):
    return Fold(
        rows=np.arange(len(test_index)),
        names=[str(k) for k in test_index],
        test=ShownImages(stored(test, "test"), np.asarray(test_index)),
        train=ShownImages(stored(train, "train"), np.asarray(train_index)),
        stage1=None,
    )


def test_accuracy_is_the_share_of_pixels_that_agree():
    one, other = draw(2, seed=1)
    grey = np.where(one > 0, np.uint8(128), np.uint8(127))
    names = pair_metrics(10, 10, patterns=True)
    found = compare(prepare(grey, names), prepare(other, names), names)
    assert found["accuracy"] == pytest.approx(((one > 0) == (other > 0)).mean())
    assert "accuracy" not in pair_metrics(10, 10)


def test_constants_are_told_from_the_right_rows(stored):
    train, test = draw(5, seed=2), draw(4, seed=3)
    fold = fold_of(stored, train, test, [0, 0, 0, 1, 4], [0, 1, 1, 3])
    known = find_patterns([fold])
    assert known is not None
    found = constants(known, fold)
    np.testing.assert_array_equal(found[DARK].read(0), np.zeros((10, 10, 1)))
    majority = train[[0, 0, 0, 1, 4]].mean(axis=0) > 127.5  # by row
    np.testing.assert_array_equal(found[MAJORITY].read(0) > 0, majority)
    best = test[[0, 1, 3]].mean(axis=0) > 127.5  # each test image once
    np.testing.assert_array_equal(found[BEST].read(0) > 0, best)


@pytest.mark.parametrize(
    "images",
    [draw(4) // 2, np.repeat(draw(4), 3, axis=3), draw(4, side=40)],
    ids=["grey", "colour", "large"],
)
def test_other_images_are_no_patterns(stored, images):
    fold = fold_of(stored, images, images, range(4), range(4))
    assert find_patterns([fold]) is None


def test_identification_counts_sets_of_candidates():
    """Of 12 candidates `beaten` win; among 5 images, a row is identified with the share of sets of 4 without a winner."""
    for beaten in range(12):
        sets = list(combinations(range(11), 4))
        expected = np.mean([min(chosen) >= beaten for chosen in sets]) if beaten < 11 else 0
        assert identified(np.array([beaten]), 5, 12)[0] == pytest.approx(expected, abs=1e-9)
    assert identified(np.array([0, 1]), 12, 12).tolist() == pytest.approx([1, 0])
    assert identified(np.array([1]), 2, 100_000)[0] == pytest.approx(1 - 1 / 99_999)


def test_candidates_are_beaten_by_brute_force(stored, monkeypatch):
    monkeypatch.setattr(module, "CANDIDATES", (2, 10, 500))
    stimuli = draw(6, seed=4)
    drawn = np.clip(stimuli.astype(int) + np.random.default_rng(5).integers(-600, 600, stimuli.shape), 0, 255)
    drawn = drawn.astype(np.uint8)
    drawn[0] = 0
    fold = fold_of(stored, draw(3), stimuli, range(3), range(6))
    known = find_patterns([fold])
    flat, seen = drawn.reshape(6, -1), stimuli.reshape(6, -1)
    majority = constants(known, fold)[MAJORITY].read(0)
    found = score_patterns(known, fold, as_matrix(flat), as_matrix(seen), majority, Context.of(seed=3))

    beaten = np.zeros(6)
    candidates = np.random.default_rng([3, 31, 0]).random((499, 100), np.float32) < known.lit.astype(np.float32)
    for row in range(1, 6):
        own = np.corrcoef(flat[row], seen[row])[0, 1] - 1e-6
        beaten[row] = sum(np.corrcoef(flat[row], candidate)[0, 1] >= own for candidate in candidates)
    beaten[0] = 499  # an image without contrast is like none
    assert 0 < beaten[1:].max() < 499
    for among in (2, 10, 500):
        expected = identified(beaten.astype(int), among, 500)
        np.testing.assert_allclose(found.rows.rows[f"among_{among}"], expected, atol=1e-9)
        assert found.rows.chance[f"among_{among}"] == 1 / among
    np.testing.assert_allclose(found.right, ((flat >= 128) == (seen >= 128)).mean(axis=0).reshape(10, 10))


def test_candidates_are_as_lit_as_the_test_images():
    lit = np.linspace(0, 1, 100)
    drawn = np.random.default_rng([0, 31, 0]).random((2048, 100), np.float32) < lit.astype(np.float32)
    np.testing.assert_allclose(drawn.mean(axis=0), lit, atol=0.05)


def test_rings_hold_every_pixel_once():
    of = rings(10, 7)
    assert np.sum(list(of.values()), axis=0).tolist() == [1] * 70
    grid = of["ring_0"].reshape(10, 7)
    assert grid[4:6, 3].all()
    assert grid.sum() == 2


def test_figures_weigh_folds_and_resample_images():
    rng = np.random.default_rng(0)
    folds = []
    for n in (4, 2):
        rows = {f"among_{k}": rng.random(n) for k in CANDIDATES} | {"ring_0": rng.random(n)}
        chance = {f"among_{k}": 1 / k for k in CANDIDATES}
        folds.append(PatternScores(Scores(rows, chance), rng.random((3, 3)), rng.random((3, 3)), n))
    drawn = [Resampling(np.arange(n), 200, 0, k) for k, n in enumerate((4, 2))]
    found = pattern_figures(folds, drawn, [{"1 × 1": 0.2}, {"1 × 1": 0.4}])
    assert found["weights"] == {"1 × 1": pytest.approx(0.3)}
    first = found["identification"][0]
    assert first["candidates"] == 2
    assert first["value"] == pytest.approx(np.mean([fold.rows.rows["among_2"].mean() for fold in folds]))
    assert first["low"] <= first["value"] <= first["high"]
    pooled = (4 * folds[0].right + 2 * folds[1].right) / 6
    np.testing.assert_allclose(found["accuracy_by_pixel"]["final"], pooled, atol=1e-6)


def test_memory_of_patterns_is_planned():
    assert pattern_nbytes(100, (10, 10, 3)) == 0
    assert pattern_nbytes(100, (64, 64, 1)) == 0
    assert 2048 * 100 * 4 < pattern_nbytes(100, (10, 10, 1)) < 10**8
