"""Retrieval among 300 and n-way identification, against enumeration, SciPy and draws as the papers make them."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from scipy.stats import hypergeom

from leanrecon.evaluation.among import POOL, n_way, retrieve, share_within
from leanrecon.evaluation.pool import Part
from leanrecon.stores.matrix import as_matrix

Array = np.ndarray[Any, Any]


@pytest.mark.parametrize(("others", "drawn", "rank"), [(6, 3, 1), (6, 3, 2), (7, 7, 1), (5, 1, 1), (8, 4, 5)])
def test_the_share_is_that_of_all_draws(others: int, drawn: int, rank: int) -> None:
    better = np.arange(others + 1)
    by_hand = [
        np.mean([sum(k < b for k in chosen) < rank for chosen in combinations(range(others), drawn)]) for b in better
    ]
    found = share_within(better, np.full(len(better), others), drawn, rank)
    np.testing.assert_allclose(found, by_hand, atol=1e-12)


def test_the_share_of_many_is_scipy_s() -> None:
    better = np.array([0, 1, 5, 40, 500, 981])
    for rank in (1, 5):
        expected = hypergeom.cdf(rank - 1, 981, better, 299)
        np.testing.assert_allclose(share_within(better, np.full(6, 981), 299, rank), expected, atol=1e-10)


def features(m: int, noise: float) -> tuple[Array, Array]:
    rng = np.random.default_rng(m)
    true = rng.standard_normal((m, 20)).astype(np.float32) + 0.5
    return (true + noise * rng.standard_normal(true.shape)).astype(np.float32), true


def drawn_as_mindeye(predicted: Array, true: Array, draws: int) -> Array:
    """Means over draws of 300 rows: image from brain and brain from image, top 1 and 5, by the cosine."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(draws):
        rows = rng.choice(len(true), POOL, replace=False)
        a, b = (x[rows] / np.linalg.norm(x[rows], axis=1, keepdims=True) for x in (predicted, true))
        r = a @ b.T
        ranks = [np.argsort(-m, axis=1) for m in (r, r.T)]
        found.append([[np.mean([k in row[:top] for k, row in enumerate(order)]) for top in (1, 5)] for order in ranks])
    return np.asarray(found)


def test_retrieval_is_what_draws_of_300_estimate() -> None:
    m = 420
    predicted, true = features(m, 2.0)
    scores = retrieve([Part(as_matrix(predicted), as_matrix(true))], [str(k) for k in range(m)], "x")
    assert scores is not None
    draws = drawn_as_mindeye(predicted, true, 120)
    for way, end in enumerate(("", "_reverse")):
        for k, top in enumerate((1, 5)):
            figure = scores.rows[f"top{top}_of_300_x{end}"].mean()
            of_draws = draws[:, way, k]
            assert 0.05 < figure < 0.95
            assert figure == pytest.approx(of_draws.mean(), abs=4 * of_draws.std() / np.sqrt(len(of_draws)))
            assert scores.chance[f"top{top}_of_300_x{end}"] == top / 300


def test_a_perfect_prediction_is_always_found_and_equal_rows_never_are() -> None:
    _, true = features(310, 0)
    names = [str(k) for k in range(310)]
    found = retrieve([Part(as_matrix(2 * true), as_matrix(true))], names, "x")
    same = retrieve([Part(as_matrix(np.ones_like(true)), as_matrix(np.ones_like(true)))], names, "x")
    assert found is not None
    assert same is not None
    assert all((rows == 1).all() for rows in found.rows.values())
    assert all((rows == 0).all() for rows in same.rows.values())  # ties lose


def test_fewer_images_than_are_drawn_have_no_such_retrieval() -> None:
    predicted, true = features(299, 1)
    assert retrieve([Part(as_matrix(predicted), as_matrix(true))], [str(k) for k in range(299)], "x") is None


def test_classes_are_told_apart_as_often_as_in_random_draws() -> None:
    rng = np.random.default_rng(3)
    seen = rng.standard_normal((12, 80)).astype(np.float32)
    drawn = (seen + rng.standard_normal(seen.shape)).astype(np.float32)
    scores = n_way([Part(as_matrix(drawn), as_matrix(seen))], [str(k) for k in range(12)], "x")
    for row, (out, true) in enumerate(zip(drawn, seen, strict=True)):
        own = int(true.argmax())
        others = np.delete(np.arange(80), own)
        won = [(out[rng.choice(others, 49, replace=False)] < out[own]).all() for _ in range(3000)]
        assert scores.rows["way50_x"][row] == pytest.approx(np.mean(won), abs=0.04)
    assert scores.chance == {"way50_x": 1 / 50}


def test_a_classifier_that_says_the_same_of_all_classes_tells_none_apart() -> None:
    rows = np.ones((4, 60), np.float32)
    scores = n_way([Part(as_matrix(rows), as_matrix(rows))], list("abcd"), "x")
    assert scores.rows["way50_x"].tolist() == [0, 0, 0, 0]


def test_few_classes_are_all_told_apart() -> None:
    seen = np.eye(3, dtype=np.float32)
    scores = n_way([Part(as_matrix(seen[[0, 2, 2]]), as_matrix(seen))], list("abc"), "x")
    assert scores.rows["way3_x"].tolist() == [1, 0, 1]
