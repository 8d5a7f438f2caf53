"""R² of predicted features, against scikit-learn."""

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import r2_score

from leanrecon.evaluation import plan
from leanrecon.evaluation.latents import compare_latents
from leanrecon.evaluation.pool import Part
from leanrecon.stores.matrix import as_matrix

Array = np.ndarray[Any, Any]


def data(m: int, dims: int, seed: int = 0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    true = rng.standard_normal((m, dims)) * rng.gamma(1, 3, dims) + rng.normal(0, 50, dims)
    predicted = true + rng.standard_normal((m, dims)) * rng.gamma(1, 3, dims)
    return predicted.astype(np.float32), true.astype(np.float32)


def names(m: int) -> list[str]:
    return [str(k) for k in range(m)]


@pytest.mark.parametrize("columns", [1, 7, 1024])
@pytest.mark.parametrize(("m", "dims"), [(2, 3), (30, 1), (25, 40)])
def test_r2_is_that_of_scikit_learn(m: int, dims: int, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "LATENTS", columns)
    predicted, true = data(m, dims)
    scores, r2 = compare_latents([Part(as_matrix(predicted), as_matrix(true))], names(m))
    y, p = true.astype(np.float64), predicted.astype(np.float64)
    np.testing.assert_allclose(r2, r2_score(y, p, multioutput="raw_values"), rtol=1e-9)
    mean, total = (scores.rows[f"latent_r2_{which}"] for which in ("mean", "total"))
    assert mean.shape == total.shape == (m,)
    assert mean.mean() == pytest.approx(r2_score(y, p, multioutput="uniform_average"), rel=1e-9)
    assert total.mean() == pytest.approx(r2_score(y, p, multioutput="variance_weighted"), rel=1e-9)


def test_many_latents_are_looked_at_block_by_block() -> None:
    predicted, true = data(12, 2 * plan.LATENTS + 5, seed=3)
    scores, r2 = compare_latents([Part(as_matrix(predicted), as_matrix(true))], names(12))
    y, p = true.astype(np.float64), predicted.astype(np.float64)
    np.testing.assert_allclose(r2, r2_score(y, p, multioutput="raw_values"), rtol=1e-9)
    assert scores.rows["latent_r2_mean"].mean() == pytest.approx(r2_score(y, p), rel=1e-9)


def test_latents_that_are_the_same_in_all_test_rows_are_left_out() -> None:
    predicted, true = data(20, 9)
    true[:, [0, 4, 8]] = 2.5
    scores, r2 = compare_latents([Part(as_matrix(predicted), as_matrix(true))], names(20))
    varying = [1, 2, 3, 5, 6, 7]
    y, p = true[:, varying].astype(np.float64), predicted[:, varying].astype(np.float64)
    assert np.isnan(r2[[0, 4, 8]]).all()
    np.testing.assert_allclose(r2[varying], r2_score(y, p, multioutput="raw_values"), rtol=1e-9)
    assert scores.rows["latent_r2_mean"].mean() == pytest.approx(r2_score(y, p), rel=1e-9)
    total = r2_score(y, p, multioutput="variance_weighted")
    assert scores.rows["latent_r2_total"].mean() == pytest.approx(total, rel=1e-9)


def test_the_score_of_a_row_is_its_own_error_beside_the_spread_of_all() -> None:
    predicted, true = data(10, 4)
    predicted[3] = true[3]
    scores, _ = compare_latents([Part(as_matrix(predicted), as_matrix(true))], names(10))
    for figure in ("latent_r2_mean", "latent_r2_total"):
        assert scores.rows[figure][3] == 1
        assert (np.delete(scores.rows[figure], 3) < 1).all()


def test_predicting_the_mean_of_the_test_rows_is_worth_nothing() -> None:
    _, true = data(16, 6)
    mean = np.repeat(true.mean(axis=0, dtype=np.float64, keepdims=True), 16, axis=0)
    scores, r2 = compare_latents([Part(as_matrix(mean), as_matrix(true))], names(16))
    np.testing.assert_allclose(r2, 0, atol=1e-9)
    assert scores.rows["latent_r2_mean"].mean() == pytest.approx(scores.chance["latent_r2_mean"], abs=1e-9)


@pytest.mark.parametrize("m", [1, 5])
def test_without_any_spread_there_is_no_r2(m: int) -> None:
    predicted, true = data(max(m, 2), 3)
    true[:] = true[0]
    scores, r2 = compare_latents([Part(as_matrix(predicted[:m]), as_matrix(true[:m]))], names(m))
    assert np.isnan(r2).all()
    assert not {"latent_r2_mean", "latent_r2_total"} & set(scores.rows)


def test_predictions_identify_their_stimuli() -> None:
    _, true = data(15, 30)
    scores, _ = compare_latents([Part(as_matrix(true.copy()), as_matrix(true))], names(15))
    assert scores.rows["two_way_features"].mean() == scores.rows["top1_features"].mean() == 1
    assert scores.chance["top1_features"] == pytest.approx(1 / 15)
