"""Predictions given back their spread: against leave-one-out refits, and against the published formula."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from leanrecon.errors import SettingsError
from leanrecon.regression.ridge.limits import LOO_ROWS
from leanrecon.regression.ridge.restandardise import leave_one_out, loo_rows, restandardise, spread
from leanrecon.regression.ridge.ridge import StreamingRidge

FORMS = [pytest.param(40, 70, id="dual"), pytest.param(40, 40, id="square"), pytest.param(70, 40, id="primal")]


def published(predictions, train):
    """Brain-Diffuser's scripts: z-scored by the test predictions' own moments, then given the train targets'."""
    z = (predictions - np.mean(predictions, axis=0)) / np.std(predictions, axis=0)
    return z * np.std(train, axis=0) + np.mean(train, axis=0)


def inductive(X, Y, T, alpha):
    """The same with the moments of train rows, each predicted by a ridge that was fitted without it."""
    unseen = np.empty_like(Y)
    for i in range(len(X)):
        rest = np.arange(len(X)) != i
        unseen[i] = Ridge(alpha, solver="svd").fit(X[rest], Y[rest]).predict(X[i : i + 1])[0]
    plain = Ridge(alpha, solver="svd").fit(X, Y).predict(T)
    return (plain - unseen.mean(axis=0)) / unseen.std(axis=0) * Y.std(axis=0) + Y.mean(axis=0)


@pytest.mark.slow
@pytest.mark.parametrize("known", [False, True], ids=["any test betas", "known test betas"])
@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("far", [3, 1000])
@pytest.mark.parametrize(("n", "p"), FORMS)
def test_inductive_moments_are_those_of_leave_one_out_refits(study, off_by, n, p, far, standardize, known):
    X, Y, T = study(n, p, far=far)
    scale = X.std(axis=0, ddof=1) if standardize else 1.0  # the scale stays that of all rows
    expected = inductive(X / scale, Y, T / scale, 20.0)
    fitted = StreamingRidge(20.0, standardize=standardize, restandardize="inductive").fit(
        X, Y, test=T if known else None
    )
    assert off_by(fitted.predict(T), expected, Y) < 1e-8


@pytest.mark.parametrize(("n", "p"), FORMS)
def test_inductive_predicts_one_image_as_it_does_among_others(study, off_by, n, p):
    X, Y, T = study(n, p)
    fitted = StreamingRidge(20.0, restandardize="inductive", standardize=False).fit(X, Y)
    together = fitted.predict(T)
    for i in (0, 17):
        assert off_by(fitted.predict(T[i : i + 1]), together[i : i + 1], Y) < 1e-10


@pytest.mark.parametrize(("n", "p"), FORMS)
@pytest.mark.usefixtures("in_float32")
def test_inductive_in_float32(study, off_by, n, p):
    X, Y, T = study(n, p, far=30, dtype=np.float32)
    expected = inductive(*(a.astype(np.float64) for a in (X, Y, T)), 50.0)
    found = StreamingRidge(50.0, restandardize="inductive", standardize=False).fit(X, Y).predict(T)
    assert off_by(found, expected, Y) < 1e-4


def test_inductive_predictions_of_unseen_rows_have_the_spread_of_the_targets(study):
    X, Y, T = study(300, 200, m=2000)
    plain = StreamingRidge(300.0, standardize=False).fit(X, Y).predict(T).std(axis=0) / Y.std(axis=0)
    found = StreamingRidge(300.0, restandardize="inductive", standardize=False).fit(X, Y).predict(T).std(
        axis=0
    ) / Y.std(axis=0)
    assert plain.max() < 0.85
    assert abs(np.median(found) - 1) < 0.05


@pytest.mark.parametrize("known", [False, True], ids=["any test betas", "known test betas"])
@pytest.mark.parametrize("far", [3, 1000])
@pytest.mark.parametrize(("n", "p"), [*FORMS, pytest.param(90, 5, id="many rows")])
def test_transductive_is_the_published_formula(study, closed_form, off_by, n, p, far, known):
    X, Y, T = study(n, p, far=far)
    fitted = StreamingRidge(20.0, restandardize="transductive", standardize=False).fit(X, Y, test=T if known else None)
    assert off_by(fitted.predict(T), published(closed_form(X, Y, T, 20.0), Y), Y) < 1e-8


def test_transductive_looks_at_all_test_rows_however_many(study, closed_form, off_by, constants):
    constants(TEST_ROWS=64)
    X, Y, T = study(60, 90, m=300)
    found = StreamingRidge(20.0, restandardize="transductive", standardize=False).fit(X, Y).predict(T)
    assert off_by(found, published(closed_form(X, Y, T, 20.0), Y), Y) < 1e-8


@pytest.mark.parametrize(("n", "p"), FORMS)
def test_transductive_with_an_alpha_for_every_target(study, off_by, n, p):
    X, Y, T = study(n, p)
    grid = np.logspace(0, 3, 4)
    plain = StreamingRidge("loo", alphas=grid, per_target=True, standardize=False).fit(X, Y)
    found = StreamingRidge("loo", alphas=grid, per_target=True, restandardize="transductive", standardize=False).fit(
        X, Y
    )
    assert off_by(found.predict(T), published(plain.predict(T), Y), Y) < 1e-10


@pytest.mark.parametrize("kind", ["inductive", "transductive"])
@pytest.mark.parametrize("value", [0.0, 0.1, 12345.678])
def test_a_constant_target_is_predicted_as_that_constant(study, kind, value):
    X, Y, T = study(40, 70)
    Y[:, 5] = value
    found = StreamingRidge(20.0, restandardize=kind, standardize=False).fit(X, Y).predict(T)
    np.testing.assert_allclose(found[:, 5], value, rtol=1e-12, atol=1e-12)
    assert np.isfinite(found).all()


def test_one_image_alone_has_no_transductive_scale_and_gets_the_train_mean(study):
    X, Y, T = study(40, 70)
    found = StreamingRidge(20.0, restandardize="transductive", standardize=False).fit(X, Y).predict(T[:1])
    np.testing.assert_allclose(found[0], Y.mean(axis=0))


def test_inductive_with_an_alpha_for_every_target_is_refused(study):
    X, Y, _ = study(40, 70)
    with pytest.raises(SettingsError, match="no leave-one-out predictions"):
        StreamingRidge("loo", per_target=True, restandardize="inductive", standardize=False).fit(X, Y)


# The pieces


@pytest.mark.parametrize("n", [1, 2, 999, 1000, 1001, 8859])
def test_at_most_a_thousand_rows_give_the_moments_evenly_spread(n):
    rows = loo_rows(n)
    assert len(rows) == min(n, LOO_ROWS)
    assert rows[0] == 0
    assert rows[-1] == n - 1
    assert np.diff(rows).max(initial=1) - np.diff(rows).min(initial=n) <= 1


def test_leave_one_out_takes_a_row_out_of_its_own_prediction():
    hat = np.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])
    leave_one_out(hat, np.array([0, 2]))
    np.testing.assert_allclose(hat, [[0, 0.6, 0.4], [1 / 3, 2 / 3, 0]])


def test_moments_move_from_the_reference_to_the_targets():
    predictions = np.array([[1.0, 4.0], [3.0, 4.0]])
    restandardise(predictions, np.array([[0.0, 7.0], [4.0, 7.0]]), np.array([10.0, 20.0]), np.array([1.0, 5.0]))
    np.testing.assert_allclose(predictions, [[9.5, 20.0], [10.5, 20.0]])  # (1 − 2)/2 + 10; no spread: the mean


@pytest.mark.parametrize("rows", [1, 255, 256, 1000])
def test_spread_is_the_standard_deviation(rows):
    a = np.random.default_rng(0).standard_normal((rows, 9)).astype(np.float32) + 100
    np.testing.assert_allclose(
        spread(a, a.mean(axis=0, dtype=np.float64)), a.astype(np.float64).std(axis=0), rtol=1e-10
    )
