"""Predictions from betas and targets paired at random equal those of a fit on permuted targets."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from leanrecon.errors import LeanreconError
from leanrecon.regression.ridge.ridge import StreamingRidge

Array = np.ndarray[Any, Any]


def order_of(seed: int, n: int) -> Array:
    return np.random.default_rng(seed).permutation(n)


def data(n: int, p: int, m: int = 7, t: int = 9) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(n + p)
    x = rng.standard_normal((n, p))
    y = x[:, : min(t, p)] @ rng.standard_normal((min(t, p), t)) + rng.standard_normal((n, t)) + 3
    return x, y, rng.standard_normal((m, p))


@pytest.mark.parametrize(("n", "p", "m"), [(40, 90, 7), (90, 20, 7), (60, 5, 2000)])
@pytest.mark.parametrize("known", [False, True])
def test_shuffled_predictions_are_those_of_a_fit_on_permuted_targets(n: int, p: int, m: int, known: bool) -> None:
    x, y, test = data(n, p, m)
    ridge = StreamingRidge(alpha=3.0, standardize=False).fit(x, y, test=test if known else None, shuffled=True)
    for seed in (0, 1):
        expected = Ridge(alpha=3.0).fit(x, y[order_of(seed, n)]).predict(test)
        np.testing.assert_allclose(ridge.shuffled(seed).predict(test), expected, rtol=0, atol=1e-8)
    np.testing.assert_allclose(ridge.predict(test), Ridge(alpha=3.0).fit(x, y).predict(test), rtol=0, atol=1e-8)


@pytest.mark.parametrize(("n", "p"), [(40, 90), (90, 20)])
def test_every_target_keeps_its_own_alpha(n: int, p: int) -> None:
    x, y, test = data(n, p)
    ridge = StreamingRidge(alpha="loo", alphas=[1e-3, 0.5, 5.0, 50.0, 1e3], per_target=True, standardize=False).fit(
        x, y
    )
    expected = Ridge(alpha=ridge.alpha_).fit(x, y[order_of(4, n)]).predict(test)
    np.testing.assert_allclose(ridge.shuffled(4).predict(test), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("restandardize", ["inductive", "transductive"])
def test_predictions_are_restandardised_after_the_shuffle(restandardize: Any) -> None:
    x, y, test = data(50, 80)
    seen = (
        StreamingRidge(alpha=2.0, restandardize=restandardize, standardize=False)
        .fit(x, y[order_of(1, 50)])
        .predict(test)
    )
    shuffled = (
        StreamingRidge(alpha=2.0, restandardize=restandardize, standardize=False)
        .fit(x, y, shuffled=True)
        .shuffled(1)
        .predict(test)
    )
    np.testing.assert_allclose(shuffled, seen, rtol=0, atol=1e-8)


def test_weights_are_shuffled_as_well(tmp_path: Path) -> None:
    x, y, test = data(30, 50)
    ridge = StreamingRidge(alpha=1.0, standardize=False).fit(x, y).shuffled(2)
    ((_, coef, intercept),) = ridge.weight_blocks()
    np.testing.assert_allclose(test @ coef.T + intercept, ridge.predict(test), atol=1e-8)
    ridge.write_weights(tmp_path / "weights.zarr")
    with pytest.raises(LeanreconError, match="order"):
        StreamingRidge(alpha=1.0, standardize=False).fit(x, y).write_weights(tmp_path / "weights.zarr")


def test_other_targets_are_shuffled_alike() -> None:
    x, y, test = data(40, 60)
    other = y[:, ::-1].copy()
    ridge = StreamingRidge(alpha=1.0, standardize=False).fit(x, y, test=test, shuffled=True)
    expected = Ridge(alpha=1.0).fit(x, other[order_of(0, 40)]).predict(test)
    np.testing.assert_allclose(ridge.with_targets(other).shuffled(0).predict(test), expected, atol=1e-8)
