"""Coordinates of the targets beside scikit-learn's PCA, and the ridge's leave-one-out predictions beside refits."""

import numpy as np
import pytest
from sklearn.decomposition import PCA

from leanrecon.errors import InputError
from leanrecon.regression.mlp import coding
from leanrecon.regression.mlp.coding import code, mixing, target_moments
from leanrecon.regression.ridge.ridge import StreamingRidge
from leanrecon.stores import RowSubset, as_matrix

FORMS = [pytest.param(60, 90, id="dual"), pytest.param(600, 40, id="primal")]


def targets_of(n, t, *, far=5.0, dtype=np.float32):
    rng = np.random.default_rng(n)
    return (rng.standard_normal((n, t)) * np.linspace(3, 0.3, t) + far * rng.standard_normal(t)).astype(dtype)


def coded(Y, components=1024, explained=1.0, **how):
    return code(as_matrix(Y), target_moments(as_matrix(Y)), components=components, explained=explained, **how)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "t"), FORMS)
def test_coordinates_are_those_of_scikit_learn(n, t, dtype):
    Y = targets_of(n, t, dtype=dtype)
    found = coded(Y, 12)
    pca = PCA(12, whiten=True, svd_solver="full").fit(Y.astype(np.float64))
    theirs = pca.transform(Y.astype(np.float64)) * np.sqrt(n / (n - 1))  # theirs have ddof = 1
    signs = np.sign((found.coordinates * theirs).sum(axis=0))
    np.testing.assert_allclose(found.coordinates * signs, theirs, atol=2e-4)
    np.testing.assert_allclose(found.spread, np.sqrt(pca.explained_variance_ * (n - 1) / n), rtol=1e-5)
    np.testing.assert_allclose(found.explained, pca.explained_variance_ratio_, rtol=1e-5)


@pytest.mark.parametrize(("n", "t"), FORMS)
def test_a_mixture_of_train_targets_stands_for_predicted_coordinates(n, t):
    Y = targets_of(n, t, far=50.0)
    found = coded(Y, 12)
    predicted = np.random.default_rng(1).standard_normal((7, 12))
    mean, U, s, V = (
        Y.mean(axis=0, dtype=np.float64),
        *np.linalg.svd(Y - Y.mean(axis=0, dtype=np.float64), full_matrices=False),
    )
    signs = np.sign((found.coordinates * U[:, :12]).sum(axis=0))
    expected = mean + (predicted * signs * s[:12] / np.sqrt(n)) @ V[:12]
    np.testing.assert_allclose(
        mixing(predicted, found.coordinates, mean=True) @ Y.astype(np.float64), expected, atol=2e-3
    )
    np.testing.assert_allclose(
        mixing(predicted, found.coordinates, mean=False) @ Y.astype(np.float64), expected - mean, atol=2e-3
    )


@pytest.mark.parametrize(("n", "t"), FORMS)
def test_all_coordinates_give_the_targets_back(n, t):
    Y = targets_of(n, t)
    found = coded(Y)
    assert found.coordinates.shape[1] == min(n - 1, t)
    np.testing.assert_allclose(mixing(found.coordinates, found.coordinates, mean=True) @ Y, Y, atol=1e-4)


@pytest.mark.parametrize(("components", "explained", "kept"), [(5, 1.0, 5), (1024, 0.5, None), (2, 0.9, 2)])
def test_as_many_components_are_kept_as_were_asked_for(components, explained, kept):
    Y = targets_of(60, 90)
    shares = PCA(svd_solver="full").fit(Y).explained_variance_ratio_.cumsum()
    wanted = int(np.argmax(shares >= explained)) + 1 if kept is None else kept
    found = coded(Y, components, explained)
    assert len(found.spread) == wanted
    if kept is None:
        assert found.explained.sum() >= explained > found.explained[:-1].sum()


def test_directions_in_which_targets_do_not_vary_are_no_components():
    rng = np.random.default_rng(0)
    Y = rng.standard_normal((50, 3)) @ rng.standard_normal((3, 80))
    Y[:, 7] = 2.5
    assert len(coded(Y).spread) == 3


def test_the_result_is_the_same_with_the_gram_matrix_on_disk(tmp_path, constants, monkeypatch):
    constants(WIDTH=16, DEPTH=8)
    monkeypatch.setattr(coding, "FLOAT64_ORDER", 0)  # in float32, as large ones
    Y = targets_of(60, 90)
    held, on_disk = coded(Y, 9), coded(Y, 9, folder=tmp_path, pass_nbytes=5000)
    for name in ("coordinates", "spread", "explained"):
        np.testing.assert_array_equal(getattr(held, name), getattr(on_disk, name))


def test_targets_that_can_not_be_coded_are_refused():
    Y = targets_of(30, 6)
    Y[3, 4] = np.nan
    with pytest.raises(InputError, match="targets hold NaN: 1 of 6 columns in some of their 30 rows; column 4"):
        target_moments(as_matrix(Y))
    Y[:, 4] = np.nan
    with pytest.raises(InputError, match="target column 4 holds NaN"):
        target_moments(as_matrix(Y))
    with pytest.raises(InputError, match="none of the 6 targets varies over the 30 train rows"):
        target_moments(as_matrix(np.ones((30, 6))))


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize(("n", "p"), [(40, 60), (60, 25)])
def test_leave_one_out_predictions_are_those_of_refits(study, closed_form, n, p, standardize):
    X, Y, _ = study(n, p)
    fitted = StreamingRidge(30.0, standardize=standardize).fit(X, Y)
    rows = np.array([0, 3, 17, n - 1])
    found = fitted.left_out(rows) @ Y
    scale = X.std(axis=0, ddof=1) if standardize else 1.0  # over all rows, as the fit's
    for row, values in zip(rows, found, strict=True):
        others = np.delete(np.arange(n), row)
        expected = closed_form(X[others] / scale, Y[others], X[[row]] / scale, 30.0)
        np.testing.assert_allclose(values, expected[0], rtol=1e-7, atol=1e-9)


def test_hat_matrices_of_a_ridge_give_its_predictions(study):
    X, Y, T = study(60, 90)
    fitted = StreamingRidge(30.0, standardize=True).fit(X, Y)
    np.testing.assert_allclose(fitted.hat_of(T, range(5, 20)) @ Y, fitted.predict(T)[5:20])
    some = RowSubset(as_matrix(T), [3, 9, 11])
    np.testing.assert_allclose(fitted.hat_of(some, range(3)) @ Y, fitted.predict(T)[[3, 9, 11]])
