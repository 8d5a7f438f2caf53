"""Intervals, against SciPy's bootstrap and against what is known of simulated data."""

from typing import Any

import numpy as np
import pytest
from scipy.stats import binom, bootstrap

from leanrecon.evaluation.bootstrap import Resampling, Scores, average, figures, margins

Array = np.ndarray[Any, Any]


def counted(folds: list[Array], resamples: int = 1000, seed: int = 0) -> list[Resampling]:
    return [Resampling(np.arange(len(rows)), resamples, seed, k) for k, rows in enumerate(folds)]


def figure(folds: list[Array], **how: int) -> dict[str, float | None]:
    return figures([Scores({"x": rows}, {}) for rows in folds], counted(folds, **how))["x"]


def test_each_resample_draws_as_many_rows_as_there_are() -> None:
    def drawn(resamples: int = 500, seed: int = 7, fold: int = 0) -> Array:
        return 13 * Resampling(np.arange(13), resamples, seed, fold).means(np.eye(13))

    counts = drawn()
    assert counts.shape == (500, 13)
    np.testing.assert_allclose(counts, np.rint(counts), atol=1e-12)
    np.testing.assert_allclose(counts.sum(axis=1), 13)
    assert counts.min() == 0
    assert counts.mean(axis=0) == pytest.approx(np.ones(13), abs=5 / np.sqrt(500))
    assert (counts < 0.5).mean() == pytest.approx((12 / 13) ** 13, abs=0.03)  # a row is left out as often as it should
    np.testing.assert_array_equal(counts, drawn())
    assert not np.array_equal(counts, drawn(seed=8))
    assert not np.array_equal(counts, drawn(fold=1))


def test_repeats_of_a_stimulus_are_drawn_together() -> None:
    """Twenty rows of five stimuli are as uncertain as five."""
    values = np.random.default_rng(2).normal(0, 1, 5)
    repeated = np.repeat(values, 4)
    few = figures([Scores({"x": values}, {})], [Resampling(np.arange(5), 4000, 0)])["x"]
    many = figures([Scores({"x": repeated}, {})], [Resampling(np.repeat(np.arange(5), 4), 4000, 0)])["x"]
    assert many == pytest.approx(few)


@pytest.mark.parametrize("m", [12, 80])
def test_intervals_are_those_of_scipy(m: int) -> None:
    rows = np.random.default_rng(m).gamma(2, 1, m)
    found = figure([rows], resamples=20_000)
    interval = bootstrap((rows,), np.mean, n_resamples=20_000, method="percentile", confidence_level=0.95)
    expected = interval.confidence_interval
    width = expected.high - expected.low
    assert found["value"] == pytest.approx(rows.mean(), rel=1e-12)
    assert found["low"] == pytest.approx(expected.low, abs=0.03 * width)
    assert found["high"] == pytest.approx(expected.high, abs=0.03 * width)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(5)
    repetitions, m, held = 200, 60, 0
    for k in range(repetitions):
        found = figure([rng.normal(3, 2, m)], resamples=400, seed=k)
        assert found["low"] is not None
        assert found["high"] is not None
        held += found["low"] <= 3 <= found["high"]
    # The percentile bootstrap of 60 normal values covers 94 %; three in ten thousand such runs lie outside.
    low, high = binom.ppf([0.00015, 0.99985], repetitions, 0.94)
    assert low <= held <= high


def test_folds_count_alike_whatever_their_size() -> None:
    small, large = np.array([1.0, 3.0]), np.arange(10.0)
    found = figure([small, large], resamples=20_000)
    assert found["value"] == (2 + 4.5) / 2
    # The spread of a mean over folds: half of the root of the sum of the squared standard errors.
    errors = [rows.std() / np.sqrt(len(rows)) for rows in (small, large)]
    assert found["low"] is not None
    assert found["high"] is not None
    expected = 2 * 1.96 * np.hypot(*errors) / 2
    assert found["high"] - found["low"] == pytest.approx(expected, rel=0.06)


def test_margins_are_of_the_same_rows() -> None:
    rng = np.random.default_rng(0)
    baseline = rng.normal(0, 10, 50)
    ours = baseline + 0.5 + rng.normal(0, 0.1, 50)
    counts = counted([ours], resamples=5000)
    found = margins([Scores({"x": ours, "y": ours}, {})], [Scores({"x": baseline}, {})], counts)
    assert set(found) == {"x"}
    difference = ours - baseline
    assert found["x"]["value"] == pytest.approx(difference.mean())
    assert found["x"]["low"] is not None
    assert found["x"]["high"] is not None
    half = 1.96 * difference.std() / np.sqrt(50)
    assert found["x"]["low"] == pytest.approx(difference.mean() - half, abs=0.15 * half)
    assert found["x"]["high"] == pytest.approx(difference.mean() + half, abs=0.15 * half)


def test_margins_over_itself_are_nought() -> None:
    rows = np.random.default_rng(0).random(9)
    scores = [Scores({"x": rows}, {})]
    assert margins(scores, scores, counted([rows]))["x"] == {"value": 0, "low": 0, "high": 0}


@pytest.mark.parametrize("folds", [[1], [1, 1]])
def test_a_single_stimulus_has_no_interval(folds: list[int]) -> None:
    scores = [Scores({"x": np.arange(3.0) + k}, {}) for k in range(len(folds))]
    found = figures(scores, [Resampling(np.zeros(3, int), 100, 0, k) for k in range(len(folds))])["x"]
    assert found["low"] is found["high"] is None
    assert found["value"] == pytest.approx(1 + (len(folds) - 1) / 2)


def test_folds_of_one_stimulus_each_have_the_interval_of_all_their_rows() -> None:
    """Leave one out: SciPy's interval of the rows, as if they were one fold."""
    rows = np.random.default_rng(3).gamma(2, 1, 30)
    drawn = [Resampling(np.array([k]), 20_000, 0, k) for k in range(30)]
    found = figures([Scores({"x": rows[k : k + 1]}, {}) for k in range(30)], drawn)["x"]
    expected = bootstrap((rows,), np.mean, n_resamples=20_000, method="percentile").confidence_interval
    width = expected.high - expected.low
    assert found["value"] == pytest.approx(rows.mean(), rel=1e-12)
    assert found["low"] == pytest.approx(expected.low, abs=0.03 * width)
    assert found["high"] == pytest.approx(expected.high, abs=0.03 * width)


def test_one_fold_of_a_single_stimulus_takes_the_interval_from_none() -> None:
    """Its row weighs as much as a fold; resamples are drawn by hand from the rows of all folds."""
    rng = np.random.default_rng(4)
    tables = [rng.normal(k, 1, size) for k, size in enumerate((8, 1, 5))]
    stimuli = np.split(np.arange(14), [8, 9])
    drawn = [Resampling(numbers, 20_000, 0, k) for k, numbers in enumerate(stimuli)]
    found = figures([Scores({"x": table}, {}) for table in tables], drawn)["x"]
    assert found["value"] == pytest.approx(np.mean([table.mean() for table in tables]), rel=1e-12)
    rows, weights = np.concatenate(tables), np.concatenate([np.full(len(t), 1 / len(t)) for t in tables])
    picked = rng.integers(0, 14, (20_000, 14))
    by_hand = np.average(rows[picked], weights=weights[picked], axis=1)
    low, high = np.percentile(by_hand, (2.5, 97.5))
    assert found["low"] == pytest.approx(low, abs=0.04 * (high - low))
    assert found["high"] == pytest.approx(high, abs=0.04 * (high - low))


def test_a_stimulus_in_two_folds_is_drawn_once() -> None:
    values = np.random.default_rng(2).normal(0, 1, 6)
    once = [Resampling(np.array([k]), 3000, 0, k) for k in range(6)]
    twice = [Resampling(np.array([k % 6]), 3000, 0, k) for k in range(12)]
    few = figures([Scores({"x": values[k : k + 1]}, {}) for k in range(6)], once)["x"]
    many = figures([Scores({"x": values[k % 6 : k % 6 + 1]}, {}) for k in range(12)], twice)["x"]
    assert many == pytest.approx(few)


def test_figures_that_a_fold_lacks_are_left_out_and_chance_is_averaged() -> None:
    one = Scores({"x": np.arange(4.0), "y": np.arange(4.0)}, {"x": 0.5, "y": 0.1})
    other = Scores({"x": np.arange(4.0)}, {"x": 0.25})
    found = figures([one, other], counted([one.rows["x"], other.rows["x"]]))
    assert set(found) == {"x"}
    assert found["x"]["chance"] == 0.375
    assert figures([Scores({"x": np.arange(3.0)}, {})], counted([np.arange(3.0)]))["x"]["chance"] is None


def test_permutations_are_averaged_row_by_row() -> None:
    rng = np.random.default_rng(0)
    rows = rng.random((3, 6))
    found = average([Scores({"x": row}, {"x": k}) for k, row in enumerate(rows)])
    np.testing.assert_allclose(found.rows["x"], rows.mean(axis=0))
    assert found.chance == {"x": 1.0}
