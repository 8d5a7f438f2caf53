"""Local decoders against scikit-learn called by hand, target by target."""

import warnings

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_selection import SelectKBest, f_classif
from sklearn.linear_model import (
    ARDRegression,
    BayesianRidge,
    Lasso,
    LinearRegression,
    LogisticRegression,
    OrthogonalMatchingPursuit,
    Ridge,
)
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsRegressor
from support.memory import held

from leanrecon.context import Context
from leanrecon.errors import BudgetError, InputError, SettingsError
from leanrecon.kinds import settings_of
from leanrecon.regression.local import stack
from leanrecon.regression.local.plan import BLOCK
from leanrecon.regression.local.regressor import LocalRegressor
from leanrecon.regression.regressor import Output, RegressionData, RegressionShapes
from leanrecon.stores import Store, as_matrix

N, P, M, T = 60, 40, 9, 34  # rows, voxels, test rows, targets: two blocks, of which one is not full


@pytest.fixture
def data():
    """Counts of lit pixels (0, 1, 2) of 30 images shown twice, and voxels that see some of them."""
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 2, (30, T)) + rng.integers(0, 2, (30, T))
    stimulus = np.repeat(np.arange(30), 2)
    weights = rng.standard_normal((T, P)) * (rng.random((T, P)) < 0.1)
    betas = counts[stimulus] @ weights + 0.8 * rng.standard_normal((N, P)) + 3
    test = rng.integers(0, 3, (M, T)) @ weights + 0.8 * rng.standard_normal((M, P)) + 3
    return betas.astype(np.float32), (counts / 2).astype(np.float32), test.astype(np.float32), stimulus


def predict(data, tmp_path, context=None, *, name="test", pairing=None, settings=None, **given):
    betas, targets, test, stimulus = data
    settings = settings or settings_of("regressors", {"kind": "local", **given}, "regression.", default="local")
    store = Store.create(tmp_path / "predictions" / f"{name}.zarr", (len(test), targets.shape[1]), np.float32, made_of={"given": repr(given)})  # fmt: skip
    one = RegressionData(
        as_matrix(betas), as_matrix(targets), as_matrix(test), [str(k) for k in stimulus], stimulus
    )  # fmt: skip
    context = context or Context.of("2GB", scratch=tmp_path)
    record = LocalRegressor(settings).predict(one, [Output(store, tmp_path / "network", pairing)], context, {})
    assert store.complete
    assert not (tmp_path / "predictions" / "blocks").exists()
    return store[0 : len(test)], record


def z_scored(data):
    betas, targets, test, stimulus = (np.asarray(a, float) if a.dtype != np.int64 else a for a in data)
    mean, spread = betas.mean(axis=0), betas.std(axis=0, ddof=1)
    return (betas - mean) / spread, targets[stimulus], (test - mean) / spread


def by_hand(data, make, columns=None):
    """Predictions [m, t] of estimators that scikit-learn fits one after the other."""
    X, Y, Z = z_scored(data)
    result = np.empty((M, T))
    for k in range(T):
        own = slice(None) if columns is None else columns(X, Y[:, k])
        result[:, k] = make().fit(X[:, own], Y[:, k]).predict(Z[:, own])
    return result


def strongest(count):
    def columns(X, y):
        r = [abs(np.corrcoef(x, y)[0, 1]) for x in X.T]
        return np.sort(np.argsort(r)[::-1][:count])

    return columns


def f_test(count):
    return lambda X, y: SelectKBest(f_classif, k=count).fit(X, np.unique(y, return_inverse=True)[1]).get_support()


@pytest.mark.parametrize("voxels", [None, 7])
@pytest.mark.parametrize(
    ("estimator", "make"),
    [
        ("omp", lambda: OrthogonalMatchingPursuit(n_nonzero_coefs=3)),
        ("linear", LinearRegression),
        ("bayesian_ridge", BayesianRidge),
        ("ard", ARDRegression),
        ("sklearn.neighbors.KNeighborsRegressor", KNeighborsRegressor),
    ],
)
def test_every_regression_is_scikit_learns(data, tmp_path, estimator, make, voxels):
    found, _ = predict(data, tmp_path, estimator=estimator, voxels=voxels)
    expected = by_hand(data, make, strongest(voxels) if voxels else None)
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("nonzero", [1, 2, 10, 30])
def test_omp_of_a_block_is_scikit_learns_of_each_target(data, tmp_path, nonzero):
    found, _ = predict(data, tmp_path, estimator="omp", nonzero=nonzero)
    expected = by_hand(data, lambda: OrthogonalMatchingPursuit(n_nonzero_coefs=nonzero))
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("estimator", ["linear", "bayesian_ridge", "logistic"])
def test_fewer_rows_than_voxels_change_no_prediction(data, tmp_path, estimator):
    """The betas are turned into an orthonormal basis of the rows first, which scikit-learn does not do."""
    few = data[0][:24], data[1][:12], data[2], data[3][:24]
    found, _ = predict(few, tmp_path, estimator=estimator, options=["tol=1e-8"] if estimator == "logistic" else [])
    make = {"linear": LinearRegression, "bayesian_ridge": BayesianRidge}.get(estimator)
    expected = by_hand(few, make) if make else expected_levels(few, 1e-8)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def expected_levels(data, tol=1e-4, columns=None, most_probable=False):
    X, Y, Z = z_scored(data)
    result = np.empty((M, T))
    for k in range(T):
        levels, labels = np.unique(Y[:, k], return_inverse=True)
        if len(levels) == 1:
            result[:, k] = levels[0]
            continue
        own = slice(None) if columns is None else columns(X, Y[:, k])
        model = LogisticRegression(C=0.03, max_iter=1000, tol=tol).fit(X[:, own], labels)
        chances = model.predict_proba(Z[:, own])
        result[:, k] = levels[chances.argmax(axis=1)] if most_probable else chances @ levels
    return result


@pytest.mark.parametrize("output", ["expected", "most_probable"])
def test_logistic_regression_predicts_levels(data, tmp_path, output):
    found, _ = predict(data, tmp_path, estimator="logistic", output=output)
    expected = expected_levels(data, most_probable=output == "most_probable")
    np.testing.assert_allclose(found, expected, atol=1e-4)
    if output == "most_probable":
        assert set(np.unique(found)) <= {0, 0.5, 1}


@pytest.mark.parametrize("estimator", ["omp", "logistic"])
def test_voxels_are_picked_by_an_f_test_over_levels(data, tmp_path, estimator):
    found, _ = predict(data, tmp_path, estimator=estimator, voxels=6, select="f")
    if estimator == "logistic":
        expected = expected_levels(data, columns=f_test(6))
    else:
        expected = by_hand(data, lambda: OrthogonalMatchingPursuit(n_nonzero_coefs=3), f_test(6))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_univariate_is_a_line_on_the_best_voxel(data, tmp_path):
    found, _ = predict(data, tmp_path, estimator="univariate")
    np.testing.assert_allclose(found, by_hand(data, LinearRegression, strongest(1)), atol=1e-5)


def test_many_test_rows_are_predicted_as_few_are(data, tmp_path):
    """Beyond 1,024 rows blocks of targets lie in several chunks."""
    betas, targets, test, stimulus = data
    many = np.concatenate([test, np.tile(test[:4], (300, 1))])
    few, _ = predict(data, tmp_path / "few", estimator="univariate")
    found, _ = predict((betas, targets, many, stimulus), tmp_path / "many", estimator="univariate")
    np.testing.assert_array_equal(found[: len(test)], few)
    np.testing.assert_array_equal(found[len(test) :], np.tile(few[:4], (300, 1)))


def test_ridge_is_one_for_all_targets(data, tmp_path):
    found, record = predict(data, tmp_path, estimator="ridge", alpha=20.0)
    np.testing.assert_allclose(found, by_hand(data, lambda: Ridge(20.0)), atol=1e-4)
    assert record["alpha"] == 20


def test_any_estimator_takes_options(data, tmp_path):
    found, _ = predict(data, tmp_path, estimator="sklearn.linear_model.Lasso", options=["alpha=0.05", "selection=random"])  # fmt: skip
    expected = by_hand(data, lambda: Lasso(alpha=0.05, selection="random", random_state=0))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_classifier_is_given_levels(data, tmp_path):
    found, _ = predict(data, tmp_path, estimator="sklearn.naive_bayes.GaussianNB")
    X, Y, Z = z_scored(data)
    for k in range(T):
        levels, labels = np.unique(Y[:, k], return_inverse=True)
        expected = GaussianNB().fit(X, labels).predict_proba(Z) @ levels
        np.testing.assert_allclose(found[:, k], expected, atol=1e-5)


def test_several_together_take_shares_that_held_out_images_give(data, tmp_path):
    found, record = predict(data, tmp_path, estimator="auto", alpha=20.0)
    shares, errors = record["shares"], record["errors_held_out"]
    assert sum(shares.values()) == pytest.approx(1)
    assert min(shares.values()) >= 0
    assert errors["together"] <= min(errors[name] for name in shares) + 1e-3
    members = {
        "univariate": by_hand(data, LinearRegression, strongest(1)),
        "omp_3": by_hand(data, lambda: OrthogonalMatchingPursuit(n_nonzero_coefs=3)),
        "omp_10": by_hand(data, lambda: OrthogonalMatchingPursuit(n_nonzero_coefs=10)),
        "ridge": by_hand(data, lambda: Ridge(20.0)),
    }
    expected = sum(shares[name] * members[name] for name in shares)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_better_estimator_gets_the_larger_share(tmp_path):
    """Targets that one voxel each copies, among many that say nothing."""
    rng = np.random.default_rng(1)
    targets = rng.integers(0, 2, (50, 6)).astype(np.float32)
    betas = np.hstack([targets + 0.05 * rng.standard_normal((50, 6)), rng.standard_normal((50, 200))]).astype("f4")
    data = betas, targets, betas[:M], np.arange(50)
    _, record = predict(data, tmp_path, estimator="auto", alpha=100.0)
    shares = record["shares"]
    assert shares["univariate"] > shares["omp_10"]
    assert shares["ridge"] < 0.1


@pytest.mark.parametrize("estimator", ["omp", "auto", "logistic"])
def test_no_test_row_changes_what_is_predicted_of_another(data, tmp_path, estimator):
    clean, _ = predict(data, tmp_path, estimator=estimator)
    poisoned = data[2].copy()
    poisoned[1:] = 1e6 * np.sign(poisoned[1:])
    found, _ = predict((*data[:2], poisoned, data[3]), tmp_path / "other", estimator=estimator)
    np.testing.assert_allclose(found[0], clean[0], rtol=1e-5, atol=1e-6)
    assert not np.allclose(found[1:], clean[1:])


@pytest.mark.parametrize("estimator", ["omp", "auto", "sklearn.linear_model.Lasso"])
def test_bytes_depend_on_neither_workers_nor_budget(data, tmp_path, estimator):
    first, _ = predict(data, tmp_path / "a", Context.of("4GB", scratch=tmp_path), estimator=estimator, workers=1)
    little = held() + 100_000_000
    second, _ = predict(data, tmp_path / "b", Context.of(little, scratch=tmp_path), estimator=estimator, workers=4)
    assert first.tobytes() == second.tobytes()


def test_a_killed_run_keeps_its_blocks(data, tmp_path, monkeypatch):
    whole, _ = predict(data, tmp_path / "whole", estimator="omp")
    done = []

    own = stack.predict_block

    def predict_block(settings, betas, block, seed):
        if done:
            raise KeyboardInterrupt
        done.append(block.first)
        return own(settings, betas, block, seed)

    with monkeypatch.context() as patch:
        patch.setattr(stack, "predict_block", predict_block)
        with pytest.raises(KeyboardInterrupt):
            predict(data, tmp_path / "killed", estimator="omp", workers=1)
    assert done == [0]
    again = []

    def continued(settings, betas, block, seed):
        again.append(block.first)
        return own(settings, betas, block, seed)

    monkeypatch.setattr(stack, "predict_block", continued)
    found, _ = predict(data, tmp_path / "killed", estimator="omp", workers=1)
    assert again == [BLOCK]
    assert found.tobytes() == whole.tobytes()


def test_shuffled_betas_are_paired_as_the_ridge_pairs_them(data, tmp_path):
    betas, targets, test, stimulus = data
    order = np.random.default_rng([0, 2]).permutation(N)
    paired = betas, targets, test, stimulus[order]
    found, _ = predict(data, tmp_path, estimator="univariate", pairing=2)
    np.testing.assert_allclose(found, by_hand(paired, LinearRegression, strongest(1)), atol=1e-5)


def test_constant_targets_are_predicted_as_they_are(data, tmp_path):
    targets = data[1].copy()
    targets[:, 5], targets[:, 7] = 0, 1
    for k, estimator in enumerate(("omp", "univariate", "auto", "logistic", "ard", "linear")):
        one = data[0], targets, data[2], data[3]
        found, record = predict(one, tmp_path / str(k), estimator=estimator, voxels=5 if estimator == "ard" else None)
        np.testing.assert_allclose(found[:, 5], 0, atol=1e-6)
        np.testing.assert_allclose(found[:, 7], 1, atol=1e-6)
        assert record["constant_targets"] == 2
    with pytest.raises(InputError, match="all 34 targets are constant over the 60 train rows"):
        predict((data[0], np.ones_like(targets), *data[2:]), tmp_path, estimator="omp")


def test_voxels_that_do_not_vary_are_left_out(data, tmp_path):
    betas, test = data[0].copy(), data[2].copy()
    betas[:, 3], betas[:, 9], test[:, 9] = 2, np.nan, np.nan
    kept = np.setdiff1d(np.arange(P), [3, 9])
    found, record = predict((betas, data[1], test, data[3]), tmp_path / "a", estimator="omp")
    expected, _ = predict((betas[:, kept], data[1], test[:, kept], data[3]), tmp_path / "b", estimator="omp")
    assert record["voxels_left_out"] == 2
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"estimator": "opm"}, "regression.estimator = 'opm'"),
        ({"estimator": "os.system"}, "a class of scikit-learn as sklearn.MODULE.CLASS is expected"),
        ({"estimator": "sklearn.linear_model.Lasoo"}, "scikit-learn has no sklearn.linear_model.Lasoo"),
        ({"estimator": "sklearn.nothing.Lasso"}, "scikit-learn has no sklearn.nothing.Lasso"),
        ({"estimator": "sklearn.metrics.r2_score"}, "has no methods fit and predict"),
        ({"estimator": "linear", "options": ["alpah=3"]}, "linear has no parameter alpah"),
        ({"estimator": "linear", "options": ["alpha"]}, "is not written as NAME=VALUE"),
        ({"estimator": "omp", "options": ["tol=1"]}, "options are for scikit-learn's estimators"),
        ({"estimator": "ridge", "voxels": 5}, "all targets share one ridge"),
        ({"estimator": "auto", "voxels": 5}, "all targets share one ridge"),
        ({"estimator": "omp", "voxels": 41}, "regression.voxels = 41, and there are 40 voxels"),
        ({"estimator": "omp", "nonzero": 41}, "regression.nonzero = 41, and there are 40 voxels"),
        ({"estimator": "sklearn.svm.LinearSVC"}, "gives no probabilities"),
        ({"voxels": 0}, "regression.voxels = 0"),
    ],
)
def test_settings_that_can_not_work_are_refused(data, tmp_path, given, found):
    with pytest.raises(SettingsError, match=found):
        predict(data, tmp_path, **given)


def test_an_estimator_that_fails_is_named_with_its_target(data, tmp_path):
    with pytest.raises(InputError, match=r"sklearn.linear_model.Lasso can't be fitted to target \d+: .*alpha"):
        predict(data, tmp_path, estimator="sklearn.linear_model.Lasso", options=["alpha=-1"])
    grey = np.random.default_rng(0).random((N, T)).astype(np.float32)
    for k, given in enumerate(({"estimator": "logistic"}, {"estimator": "omp", "voxels": 5, "select": "f"})):
        with pytest.raises(InputError, match="target 0 has 60 different values over 60 train rows"):
            predict((data[0], grey, data[2], np.arange(N)), tmp_path / str(k), **given, workers=1)


def test_values_that_are_no_numbers_are_named(data, tmp_path):
    test, targets = data[2].copy(), data[1].copy()
    test[4, 2], targets[3, 33] = np.nan, np.inf
    with pytest.raises(InputError, match=r"(?i)test betas hold NaN or infinite values in row 4"):
        predict((*data[:2], test, data[3]), tmp_path, estimator="omp")
    with pytest.raises(InputError, match="target column 33 holds NaN"):
        predict((data[0], targets, *data[2:]), tmp_path, estimator="omp")


def test_too_small_a_budget_is_refused(data, tmp_path):
    for estimator in ("omp", "auto"):
        with pytest.raises(BudgetError, match="needs at least"):
            predict(data, tmp_path, Context.of("20MB", scratch=tmp_path), estimator=estimator)


def test_decoders_that_do_not_converge_are_counted(data, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        _, record = predict(data, tmp_path, estimator="logistic", options=["max_iter=1"])
    assert record["not_converged"] > 0


def test_the_plan_says_what_does_not_fit():
    shapes = RegressionShapes(n=440, p=967, m=120, s=440, t=361, x_block=967, y_block=361)
    plain, large = (LocalRegressor(settings_of("regressors", {"kind": "local", "estimator": name}, "", default="local")).plan(shapes, 10**9) for name in ("omp", "sklearn.svm.LinearSVR"))  # fmt: skip
    assert plain.work < large.work
    assert "361 decoders by omp" in plain.summary
    with pytest.raises(SettingsError, match="regression.voxels = 968"):
        settings = settings_of("regressors", {"kind": "local", "estimator": "omp", "voxels": 968}, "", default="local")
        LocalRegressor(settings).plan(shapes, 10**9)
