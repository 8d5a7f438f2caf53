"""Identification, against a double loop over pairs, and against what theory says of guesses."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from leanrecon.evaluation import plan
from leanrecon.evaluation.bootstrap import Scores
from leanrecon.evaluation.identification import distances, identify, squared_differences
from leanrecon.evaluation.plan import identify_nbytes, panel_rows
from leanrecon.evaluation.pool import Part
from leanrecon.stores.matrix import as_matrix

Array = np.ndarray[Any, Any]
KEYS = ["two_way_x", "two_way_x_reverse", "top1_x", "top1_x_reverse"]


def correlation(a: Array, b: Array) -> float:
    """Pearson's r by NumPy; 0 of a constant row."""
    if a.min() == a.max() or b.min() == b.max():
        return 0.0
    return float(np.corrcoef(a.astype(np.float64), b.astype(np.float64))[0, 1])


def brute_force(reconstructions: Array, stimuli: Array, names: Sequence[str]) -> dict[str, Array]:
    m = len(names)
    found = {key: np.zeros(m) for key in KEYS}
    r = np.array([[correlation(a, b) for b in stimuli] for a in reconstructions])
    for i in range(m):
        others = [j for j in range(m) if names[j] != names[i]]
        wins = [r[i, i] > r[i, j] + 1e-9 for j in others]
        back = [r[i, i] > r[j, i] + 1e-9 for j in others]
        found["two_way_x"][i], found["two_way_x_reverse"][i] = np.mean(wins), np.mean(back)
        found["top1_x"][i], found["top1_x_reverse"][i] = all(wins), all(back)
    return found


def identified(reconstructions: Array, stimuli: Array, names: Sequence[str]) -> Scores:
    found = identify([Part(as_matrix(reconstructions), as_matrix(stimuli))], names, "x")
    assert found is not None
    return found


def check(reconstructions: Array, stimuli: Array, names: Sequence[str]) -> Scores:
    found = identified(reconstructions, stimuli, names)
    expected = brute_force(reconstructions, stimuli, names)
    assert list(found.rows) == list(found.chance) == KEYS
    for key in KEYS:
        np.testing.assert_allclose(found.rows[key], expected[key], atol=1e-12, err_msg=key)
    return found


def data(m: int, d: int, noise: float, dtype: Any = np.float32) -> tuple[Array, Array]:
    rng = np.random.default_rng([m, d])
    stimuli = rng.random((m, d))
    reconstructions = stimuli + noise * rng.standard_normal((m, d))
    if np.dtype(dtype) == np.uint8:
        return tuple(np.clip(100 * x + 50, 0, 255).astype(np.uint8) for x in (reconstructions, stimuli))  # type: ignore[return-value]
    return reconstructions.astype(dtype), stimuli.astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
@pytest.mark.parametrize(("m", "d", "noise"), [(2, 5, 1.0), (23, 30, 0.5), (40, 12, 2.0)])
def test_scores_are_those_of_a_double_loop(m: int, d: int, noise: float, dtype: Any) -> None:
    found = check(*data(m, d, noise, dtype), [str(k) for k in range(m)])
    assert found.chance == pytest.approx(dict(zip(KEYS, (0.5, 0.5, 1 / m, 1 / m), strict=True)))


def test_repeats_of_a_stimulus_are_no_distractors() -> None:
    reconstructions, stimuli = data(14, 20, 1.0)
    names = list("aabbbcdefghijk")
    for k, name in enumerate(names):  # rows of one stimulus show the same image
        stimuli[k] = stimuli[names.index(name)]
    found = check(reconstructions, stimuli, names)
    assert found.chance["top1_x"] == pytest.approx(1 / 11)  # of eleven different images
    # a: 12 others and its own; b: 11; the nine others: 13
    assert found.chance["top1_x_reverse"] == pytest.approx((2 / 13 + 3 / 12 + 9 / 14) / 14)


def test_a_perfect_reconstruction_wins_only_against_images_that_differ() -> None:
    rng = np.random.default_rng(0)
    stimuli = rng.random((6, 50)).astype(np.float32)
    stimuli[1] = stimuli[0]  # the same image under two names: neither can be told from the other
    found = check(stimuli.copy(), stimuli, [str(k) for k in range(6)])
    np.testing.assert_allclose(found.rows["two_way_x"], [0.8, 0.8, 1, 1, 1, 1])
    np.testing.assert_allclose(found.rows["top1_x"], [0, 0, 1, 1, 1, 1])


def test_ties_lose_even_where_rounding_parts_them() -> None:
    rng = np.random.default_rng(4)
    stimuli = np.repeat(rng.random((1, 20_000)).astype(np.float32), 5, axis=0)
    scaled = stimuli * np.array([[1], [0.3], [7], [1e-3], [1e3]], np.float32)  # the same direction, other roundings
    found = identified(stimuli, scaled, list("abcde"))
    for key in KEYS:
        np.testing.assert_array_equal(found.rows[key], 0)


def test_constant_rows_match_nothing() -> None:
    reconstructions, stimuli = data(9, 16, 0.8)
    reconstructions[2] = 0.3
    stimuli[5] = 0
    reconstructions[7] = stimuli[7] = 1
    found = check(reconstructions, stimuli, [str(k) for k in range(9)])
    assert found.rows["top1_x"][2] == found.rows["top1_x_reverse"][5] == found.rows["top1_x"][7] == 0
    assert all(np.isfinite(rows).all() for rows in found.rows.values())


@pytest.mark.parametrize("m", [1, 4])
def test_one_stimulus_alone_has_nothing_to_be_told_from(m: int) -> None:
    reconstructions, stimuli = data(max(m, 2), 8, 0.1)
    assert identify([Part(as_matrix(reconstructions[:m]), as_matrix(stimuli[:m]))], ["same"] * m, "x") is None


@pytest.mark.parametrize("nbytes", [1, 16 * 30 * 4, 17 * 30 * 4, 10**9])
def test_panels_change_no_score(nbytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "PANEL_NBYTES", nbytes)
    reconstructions, stimuli = data(50, 30, 0.7)
    assert panel_rows(50, 30) == min(max(nbytes // 120, 16), 50)
    check(reconstructions, stimuli, [str(k // 2) for k in range(50)])


@pytest.mark.parametrize("nbytes", [1, 10**9])
@pytest.mark.parametrize(("m", "d", "noise"), [(2, 5, 1.0), (33, 30, 0.5)])
def test_distances_are_the_correlation_distances_of_scipy(
    m: int, d: int, noise: float, nbytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "PANEL_NBYTES", nbytes)
    reconstructions, stimuli = data(m, d, noise)
    names = [str(k // 2) for k in range(m - 1)] + ["last"]  # most stimuli are shown twice
    scores = distances([Part(as_matrix(reconstructions), as_matrix(stimuli))], names, "x")
    expected = cdist(reconstructions.astype(np.float64), stimuli.astype(np.float64), "correlation")
    np.testing.assert_allclose(scores.rows["distance_x"], np.diag(expected), atol=1e-6)
    mismatched = [expected[i, j] for i in range(m) for j in range(m) if names[i] != names[j]]
    assert scores.chance["distance_x"] == pytest.approx(np.mean(mismatched), abs=1e-6)


@pytest.mark.parametrize("nbytes", [1, 10**9])
@pytest.mark.parametrize(("m", "d", "noise"), [(2, 5, 1.0), (33, 30, 0.5)])
def test_squared_differences_are_those_of_scipy(
    m: int, d: int, noise: float, nbytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "PANEL_NBYTES", nbytes)
    reconstructions, stimuli = data(m, d, noise)
    names = [str(k // 2) for k in range(m - 1)] + ["last"]
    parts = [
        Part(as_matrix(reconstructions[:1]), as_matrix(stimuli)),
        Part(as_matrix(reconstructions[1:]), as_matrix(stimuli), first=1),
    ]
    scores = squared_differences(parts, names, "x")
    expected = cdist(reconstructions.astype(np.float64), stimuli.astype(np.float64), "sqeuclidean") / d
    np.testing.assert_allclose(scores.rows["mse_x"], np.diag(expected), rtol=1e-5)
    mismatched = [expected[i, j] for i in range(m) for j in range(m) if names[i] != names[j]]
    assert scores.chance["mse_x"] == pytest.approx(np.mean(mismatched), rel=1e-5)
    assert squared_differences(parts, ["same"] * m, "x").chance == {}


def test_a_constant_row_is_at_distance_one_and_a_single_stimulus_has_no_chance_level() -> None:
    reconstructions, stimuli = data(4, 16, 0.8)
    reconstructions[2] = 0.3
    scores = distances([Part(as_matrix(reconstructions), as_matrix(stimuli))], ["same"] * 4, "x")
    assert scores.rows["distance_x"][2] == 1
    assert scores.chance == {}


def test_guesses_are_right_as_often_as_chance_says() -> None:
    m, rounds = 40, 40
    rng = np.random.default_rng(1)
    scores: dict[str, list[float]] = {key: [] for key in KEYS}
    for _ in range(rounds):
        a, b = rng.standard_normal((2, m, 25)).astype(np.float32)
        found = identified(a, b, [str(k) for k in range(m)])
        for key in KEYS:
            scores[key].append(float(found.rows[key].mean()))
    for key in KEYS:
        spread = np.std(scores[key], ddof=1) / np.sqrt(rounds)
        assert abs(np.mean(scores[key]) - found.chance[key]) < 4 * spread, key
        assert spread < 0.02


def test_guesses_among_repeats_are_right_as_often_as_chance_says() -> None:
    """Eight stimuli, one of them seen thirteen times."""
    names = ["0"] * 13 + [str(k) for k in range(1, 8)]
    rng = np.random.default_rng(2)
    scores: dict[str, list[float]] = {key: [] for key in KEYS}
    for _ in range(400):
        images = rng.standard_normal((8, 25)).astype(np.float32)
        stimuli = images[[int(name) for name in names]]
        found = identified(rng.standard_normal(stimuli.shape).astype(np.float32), stimuli, names)
        for key in KEYS:
            scores[key].append(float(found.rows[key].mean()))
    for key in KEYS:
        spread = np.std(scores[key], ddof=1) / np.sqrt(400)
        assert abs(np.mean(scores[key]) - found.chance[key]) < 4 * spread, key


def test_one_image_for_all_rows_wins_half_of_the_pairs_and_is_found_by_none() -> None:
    m = 21
    _, stimuli = data(m, 40, 0)
    same = np.repeat(stimuli.mean(axis=0, keepdims=True), m, axis=0)
    found = identified(same, stimuli, [str(k) for k in range(m)])
    assert found.rows["two_way_x"].mean() == pytest.approx(0.5, abs=1e-12)  # ranks of its correlations: 0 to m - 1
    np.testing.assert_allclose(np.sort(found.rows["two_way_x"]), np.arange(m) / (m - 1))
    assert found.rows["top1_x"].sum() == 1
    assert not found.rows["two_way_x_reverse"].any()  # all reconstructions tie
    assert not found.rows["top1_x_reverse"].any()


@pytest.mark.parametrize(("m", "d"), [(300, 20_000), (2000, 50)])
def test_planned_memory_holds_two_panels_and_their_correlations(m: int, d: int) -> None:
    rows = panel_rows(m, d)
    assert identify_nbytes(m, d) >= 2 * rows * d * 4 + rows * rows * 4


@pytest.mark.parametrize(
    ("m", "d"), [(10_000, 100), (100_000, 100), (10_000, 12_288), (10_000, 347_680), (982, 91_168)]
)
def test_memory_does_not_grow_with_the_square_of_the_rows(m: int, d: int) -> None:
    """Many test rows of few features, as of principal components, fit into a laptop."""
    assert identify_nbytes(m, d) < 300e6 + 200 * m
