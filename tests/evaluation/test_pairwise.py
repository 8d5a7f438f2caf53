"""Pairwise classification on real data, by chance, and without leaks between folds."""

import os
from pathlib import Path

import numpy as np
import pytest

from leanrecon.errors import InputError
from leanrecon.evaluation.pairwise import draw_pairs, fold_accuracy, folds_of_runs, pairwise

RAIDER = Path(os.environ.get("LEANRECON_SHARED", "../shared")).resolve() / "data/raider"


def test_whole_runs_are_held_out() -> None:
    runs = np.array([3, 3, 7, 7, 9, 9, 3, 12, 13, 14, 15])
    folds = folds_of_runs(runs)
    assert sorted(np.concatenate(folds).tolist()) == list(range(11))
    for fold in folds:
        others = np.setdiff1d(np.arange(11), fold)
        assert not set(runs[fold]) & set(runs[others])
    assert len(folds) == 5
    with pytest.raises(InputError, match="all rows are of one run"):
        folds_of_runs(np.zeros(4))


def test_pairs_are_different_and_drawn_from_the_seed() -> None:
    pairs = draw_pairs(10, 20, 0)
    assert len({tuple(pair) for pair in pairs.tolist()}) == 20
    assert (pairs[:, 0] < pairs[:, 1]).all()
    np.testing.assert_array_equal(pairs, draw_pairs(10, 20, 0))
    assert len(draw_pairs(4, 100, 1)) == 6


def test_a_fold_learns_nothing_of_its_test_rows() -> None:
    """Test rows and their order change, or are made huge: what is said of the others stays."""
    rng = np.random.default_rng(0)
    train, labels = rng.normal(size=(12, 40)), np.repeat([0, 1], 6)
    test = rng.normal(size=(8, 40))
    alone = [fold_accuracy(train, labels, row[None], np.array([1])) for row in test]
    together = fold_accuracy(train, labels, test, np.ones(8, int))
    assert together == sum(alone)
    extreme = np.concatenate([test, 1e6 * rng.normal(size=(20, 40))])
    truth = np.r_[np.ones(8, int), np.full(20, -1)]
    assert fold_accuracy(train, labels, extreme, truth) == together


def test_signal_is_found_and_noise_is_not() -> None:
    rng = np.random.default_rng(1)
    labels, runs = np.tile(np.arange(6), 8), np.repeat(np.arange(8), 6)
    patterns = rng.normal(size=(6, 50))
    found = pairwise(patterns[labels] + 2 * rng.normal(size=(48, 50)), labels, runs, pairs=15)
    assert found.accuracy > 0.9
    assert found.above_chance
    noise = pairwise(rng.normal(size=(48, 50)), labels, runs, pairs=15)
    assert not noise.above_chance
    assert 0.35 < noise.accuracy < 0.65
    assert (found.classes, found.pairs, found.rows) == (6, 15, 48)


def test_a_level_of_each_run_is_no_signal() -> None:
    """Classes in blocks of their own runs can't be told from runs: held out whole, they give nothing above chance."""
    rng = np.random.default_rng(2)
    runs = np.repeat(np.arange(8), 6)
    labels = np.tile(np.arange(6), 8)
    level = rng.normal(size=(8, 50))[runs] * 5
    assert not pairwise(level + rng.normal(size=(48, 50)), labels, runs, pairs=15).above_chance


def test_bad_input_is_refused() -> None:
    betas = np.zeros((6, 3))
    with pytest.raises(InputError, match="1 class can't be told apart"):
        pairwise(betas, np.zeros(6), np.arange(6))
    with pytest.raises(InputError, match="no pair of classes has rows in two runs"):
        pairwise(betas, np.arange(6) // 3, np.zeros(6))


@pytest.mark.slow
@pytest.mark.skipif(not RAIDER.exists(), reason=f"the data are not at {RAIDER} (set LEANRECON_SHARED)")
def test_categories_of_a_real_brain_are_told_apart_and_shuffled_ones_are_not() -> None:
    from scipy.io import loadmat

    sides = [loadmat(RAIDER / f"image_data_{side}.mat")[f"image_data_{side}"] for side in ("lh", "rh")]
    labels = loadmat(RAIDER / "label.mat")["label"].ravel()
    runs = np.arange(56) // 7
    betas = np.concatenate(sides)
    for subject in range(3):
        found = pairwise(betas[:, :, subject].T, labels, runs, pairs=21)
        assert found.accuracy > 0.75
        assert found.above_chance
        mixed = np.concatenate(
            [np.random.default_rng([run, subject]).permutation(labels[runs == run]) for run in range(8)]
        )
        chance = pairwise(betas[:, :, subject].T, mixed, runs, pairs=21)
        assert not chance.above_chance
