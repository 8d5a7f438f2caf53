"""Betas that no measurement gives are named; those of real studies pass without a word."""

import warnings

import numpy as np
import pytest

from leanrecon.errors import InputError, LeanreconWarning
from leanrecon.regression.normalise import moments
from leanrecon.regression.ridge.ridge import StreamingRidge
from leanrecon.regression.unreasonable import of_test, of_train
from leanrecon.stores.matrix import as_matrix

N, P = 60, 40


@pytest.fixture
def betas():
    rng = np.random.default_rng(3)
    scale = rng.uniform(0.2, 5, P)
    return [(rng.standard_normal((n, P)) * scale + rng.normal(size=P)).astype(np.float32) for n in (N, 12)]


def said(train, test):
    found = moments(as_matrix(train))
    return of_train(as_matrix(train), found) + of_test(as_matrix(test), found)


def test_betas_of_one_kind_pass_without_a_word(betas):
    assert said(*betas) == []


@pytest.mark.parametrize("repeats", [3, 35, 100])
def test_means_over_repeats_are_of_the_scale_of_single_trials(repeats):
    rng = np.random.default_rng(0)
    train = rng.standard_normal((200, P))
    test = rng.standard_normal((10, repeats, P)).mean(axis=1)
    assert said(train, test) == []
    assert said(test.repeat(3, axis=0) + 0.01 * rng.standard_normal((30, P)), train[:20] / np.sqrt(repeats)) == []


@pytest.mark.parametrize("tail", [3, 5])
def test_heavy_tails_pass_without_a_word(tail):
    rng = np.random.default_rng(1)
    assert said(rng.standard_t(tail, (400, P)), rng.standard_t(tail, (50, P))) == []


@pytest.mark.parametrize("factor", [300, 1 / 300, 100, 1 / 100])
def test_test_betas_of_another_scale_are_named(betas, factor):
    train, test = betas
    (sentence,) = said(train, test * factor)
    assert "of different scale" in sentence


def test_a_lone_test_row_is_judged_too(betas):
    train, test = betas
    assert said(train, test[:1]) == []
    assert "of different scale" in said(train, test[:1] * 300)[0]


def test_a_voxel_that_varies_within_rounding_is_named(betas):
    train, test = betas
    train[:, 7] = np.float32(1000) * (1 + 6e-8 * np.random.default_rng(0).standard_normal(N)).astype(np.float32)
    test[:, 7] = 900
    rounded, far = said(train, test)
    assert "voxel 7 first" in rounded
    assert "voxel 7" in far


def test_a_voxel_whose_test_betas_are_far_off_is_named(betas):
    train, test = betas
    test[4, 11] = train[:, 11].mean() + 1000 * train[:, 11].std()
    (sentence,) = said(train, test)
    assert "1 of 40 voxels" in sentence
    assert "voxel 11" in sentence


def test_a_test_row_that_is_far_off_is_named(betas):
    train, test = betas
    test[5] *= 50
    sentence, *_ = said(train, test)
    assert "1 of 12 test rows" in sentence
    assert "row 5" in sentence


def test_a_train_row_that_decides_voxels_alone_is_named(betas):
    train, _test = betas
    train[13, [2, 9]] = 1e6
    (sentence,) = of_train(as_matrix(train), moments(as_matrix(train)))
    assert "2 of 40 voxels" in sentence
    assert "voxel 2 in row 13" in sentence


def test_what_lies_in_left_out_voxels_counts_nothing(betas):
    train, test = betas
    train[:, 3], train[:, 4] = np.nan, 1.0
    test[:, 3], test[:, 4] = 1e9, 1e9
    assert said(train, test) == []


def test_betas_whose_squares_overflow_are_refused(betas):
    train, _ = betas
    train[6, 21] = 3e19
    with pytest.raises(InputError, match="column 21 goes from .* to 3e\\+19"):
        moments(as_matrix(train))


def test_fit_warns_of_what_it_leaves_out_and_of_odd_betas(betas):
    train, test = betas
    train[:, 3], train[:, 4] = np.nan, 1.0
    targets = train[:, :2].copy()
    with pytest.warns(
        LeanreconWarning, match=r"left out of 40: 1 constant \(voxel 4\) and 1 NaN in every row \(voxel 3\)"
    ):
        StreamingRidge(1.0).fit(train, targets)
    train[:, 3], train[:, 4] = test[0, 3] + np.arange(N), np.arange(N)
    with pytest.warns(LeanreconWarning, match="of different scale"):
        ridge = StreamingRidge(1.0).fit(train, targets, test=300 * test)
    assert len(ridge.unreasonable_) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        StreamingRidge(1.0).fit(train, targets, test=test)
