"""Leave-one-out errors against refitting without each row, and the alpha they choose against scikit-learn and himalaya."""

import warnings

import numpy as np
import pytest
from sklearn.linear_model import Ridge, RidgeCV

from leanrecon.errors import InputError, LeanreconWarning
from leanrecon.regression.normalise import Centred, moments
from leanrecon.regression.ridge.hat import gram
from leanrecon.regression.ridge.loo import (
    best_alpha,
    default_alphas,
    loo_errors,
    mean_eigenvalue,
    project,
    projected_rows,
)
from leanrecon.regression.ridge.ridge import StreamingRidge
from leanrecon.regression.ridge.spectrum import eigenvectors
from leanrecon.stores.matrix import Reblocked, as_matrix

FORMS = [pytest.param(40, 70, id="dual"), pytest.param(40, 40, id="square"), pytest.param(70, 40, id="primal")]
GRID = np.logspace(-1, 4, 11)


def brute_force(X, Y, alphas):
    """Sums of squared errors [alphas, targets] of each row predicted by a ridge that was fitted without it."""
    errors = np.zeros((len(alphas), Y.shape[1]))
    for i in range(len(X)):
        rest = np.arange(len(X)) != i
        for a, alpha in enumerate(alphas):
            errors[a] += (Ridge(alpha, solver="svd").fit(X[rest], Y[rest]).predict(X[i : i + 1])[0] - Y[i]) ** 2
    return errors


def spectrum_of(X, dtype=np.float64, *, scale=False):
    betas = Centred(as_matrix(X), moments(as_matrix(X)), scale=scale)
    kernel, _ = gram(betas, dtype)
    return betas, eigenvectors(kernel, deflate=X.shape[0] <= X.shape[1])


@pytest.mark.slow
@pytest.mark.parametrize(("n", "p"), FORMS)
def test_errors_equal_those_of_refitting_without_each_row(study, n, p):
    X, Y, _ = study(n, p, t=5)
    betas, spectrum = spectrum_of(X)
    found = loo_errors(betas, spectrum, Y - Y.mean(axis=0), GRID)
    np.testing.assert_allclose(found, brute_force(X, Y, GRID), rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "p"), FORMS)
@pytest.mark.usefixtures("in_float32")
def test_float32_errors_are_those_of_refitting_too(study, n, p):
    X, Y, _ = study(n, p, t=5, dtype=np.float32)
    betas, spectrum = spectrum_of(X, np.float32)
    found = loo_errors(betas, spectrum, Y - Y.mean(axis=0), GRID[4:])
    expected = brute_force(X.astype(np.float64), Y.astype(np.float64), GRID[4:])
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize(("n", "p"), FORMS)
def test_one_alpha_for_all_targets_is_the_one_of_ridgecv(study, off_by, n, p, standardize):
    X, Y, T = study(n, p, far=100)
    fitted = StreamingRidge("loo", alphas=GRID[::-1], standardize=standardize).fit(X, Y)
    scale = X.std(axis=0, ddof=1) if standardize else 1.0
    reference = RidgeCV(GRID, store_cv_results=True).fit(X / scale, Y)
    assert fitted.alpha_ == pytest.approx(reference.alpha_)
    assert GRID[0] < fitted.alpha_ < GRID[-1]
    np.testing.assert_allclose(fitted.loo_errors_, reference.cv_results_.mean(axis=(0, 1)), rtol=1e-9)
    assert off_by(fitted.predict(T), reference.predict(T / scale), Y) < 1e-9
    known = StreamingRidge("loo", alphas=GRID, standardize=standardize).fit(X, Y, test=T)
    assert off_by(known.predict(T), reference.predict(T / scale), Y) < 1e-9


@pytest.mark.parametrize(("n", "p"), FORMS)
@pytest.mark.parametrize("block", [7, 512])
def test_an_alpha_for_every_target_is_the_one_of_ridgecv(study, off_by, constants, n, p, block):
    constants(WEIGHT_BLOCK=block)
    X, Y, T = study(n, p, far=100)
    Y[:, 3] = np.random.default_rng(0).standard_normal(n)  # next to nothing to predict
    reference = RidgeCV(GRID, alpha_per_target=True).fit(X, Y)
    assert len(set(reference.alpha_)) > 3
    fitted = StreamingRidge("loo", alphas=GRID, per_target=True, standardize=False).fit(X, Y, test=T)
    np.testing.assert_allclose(fitted.alpha_, reference.alpha_)
    assert off_by(fitted.predict(T), reference.predict(T), Y) < 1e-9


@pytest.mark.parametrize(("n", "p"), FORMS)
def test_an_alpha_for_every_target_gives_himalayas_predictions(study, off_by, n, p):
    himalaya = pytest.importorskip("himalaya.ridge")
    X, Y, T = study(n, p)
    found = StreamingRidge("loo", alphas=GRID, per_target=True, standardize=False).fit(X, Y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for alpha in np.unique(found.alpha_):
            chosen = found.alpha_ == alpha
            reference = himalaya.Ridge(alpha=alpha, fit_intercept=True).fit(X, Y[:, chosen]).predict(T)
            assert off_by(found.predict(T)[:, chosen], reference, Y[:, chosen]) < 1e-9


@pytest.mark.parametrize("float64_order", [3072, 0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
def test_random_projections_stand_for_a_thousand_targets(study, constants, dtype, float64_order):
    constants(FLOAT64_ORDER=float64_order)
    X, Y, _ = study(60, 90, t=1300, far=30)
    Y = (Y * 4 + 130).round().astype(dtype) if dtype == np.uint8 else Y.astype(dtype)
    found = StreamingRidge("loo", alphas=GRID, standardize=False).fit(as_matrix(X), as_matrix(Y))
    reference = RidgeCV(GRID, store_cv_results=True).fit(X, Y.astype(np.float64))
    assert found.alpha_ == pytest.approx(reference.alpha_)
    curve = reference.cv_results_.mean(axis=(0, 1))
    np.testing.assert_allclose(found.loo_errors_, curve, rtol=0.1)  # √(2/512) is 6 % for targets of rank one
    relative = found.loo_errors_ / found.loo_errors_.min(), curve / curve.min()
    np.testing.assert_allclose(*relative, rtol=0.05)


def test_projections_keep_lengths_on_average_and_a_large_mean_costs_nothing():
    rng = np.random.default_rng(0)
    targets = rng.standard_normal((50, 2000))
    found = project(as_matrix(targets), 0, np.float64)
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-12)
    centred = targets - targets.mean(axis=0)
    lengths = np.square(found).sum(axis=1) / np.square(centred).sum(axis=1)
    assert abs(lengths.mean() - 1) < 0.03  # √(2/512) for one row, less over 50 of them
    assert lengths.std() < 2 * np.sqrt(2 / 512)
    far = project(as_matrix((targets + 1e4).astype(np.float32)), 0, np.float32)
    assert np.abs(far - found).max() < 0.02  # float32 holds targets ten thousand away to 5e-4


def test_projections_do_not_depend_on_the_blocks_that_targets_are_read_in():
    targets = as_matrix(np.random.default_rng(0).standard_normal((300, 1500)))
    whole = project(targets, 3, np.float64)
    for block in (1500, 64, 100):
        np.testing.assert_array_equal(project(Reblocked(targets, block), 3, np.float64), whole)
    assert not np.allclose(project(targets, 4, np.float64), whole)


@pytest.mark.parametrize("t", [15, 40])
def test_each_target_is_in_one_sum_and_any_two_of_different_runs_meet_as_often(constants, t):
    """The covariance of errors is kept on average, and varies by 2/k of its squares, as with vectors of random signs."""
    constants(PROJECTIONS=8)
    k, seeds, rng = 8, 4000, np.random.default_rng(2)
    targets = as_matrix(np.eye(t))
    errors = rng.standard_normal((3, t))
    exact, met, totals = errors @ errors.T, np.zeros((t, t)), np.zeros((seeds, 3, 3))
    for seed in range(seeds):
        sums = projected_rows(targets, range(t), seed, np.float64)
        assert (np.abs(sums).sum(axis=1) == 1).all()
        met += np.abs(sums @ sums.T)
        totals[seed] = errors @ sums @ sums.T @ errors.T
    run = np.arange(t) // k
    other = run[:, None] != run
    np.testing.assert_array_equal(met[~other], np.eye(t)[~other] * seeds)
    np.testing.assert_allclose(met[other] / seeds, 1 / k, atol=0.025)  # 4.8 standard errors
    np.testing.assert_allclose(totals.mean(axis=0), exact, atol=5 * totals.std(axis=0).max() / np.sqrt(seeds))
    gram = errors[0][:, None] * errors[0]
    expected = 2 * np.square(gram[other]).sum() / k
    assert totals[:, 0, 0].var() == pytest.approx(expected, rel=0.15)


def test_the_seed_decides_the_projections(study):
    X, Y, _ = study(40, 60, t=600)
    errors = [
        StreamingRidge("loo", alphas=GRID, seed=seed, standardize=False).fit(X, Y).loo_errors_ for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(errors[0], errors[1])
    assert not np.array_equal(errors[0], errors[2])


def test_the_default_grid_spans_the_gram_matrix():
    # 10⁻³ to 10⁴ of the mean eigenvalue: seven decades, three a decade, both ends
    np.testing.assert_allclose(default_alphas(50.0)[[0, 3, 9, 21]], [0.05, 0.5, 50.0, 500_000.0])
    assert len(default_alphas(50.0)) == 22


@pytest.mark.parametrize(("n", "p"), FORMS)
@pytest.mark.parametrize("standardize", [False, True])
def test_without_a_grid_the_default_one_is_searched(study, n, p, standardize):
    X, Y, _ = study(n, p)
    fitted = StreamingRidge("loo", standardize=standardize).fit(X, Y)
    variance = n - 1 if standardize else X.var(axis=0).mean() * n
    np.testing.assert_allclose(fitted.alphas_, default_alphas(variance * p / min(n, p)))  # the trace over the order
    scale = X.std(axis=0, ddof=1) if standardize else 1.0
    assert fitted.alpha_ == pytest.approx(RidgeCV(fitted.alphas_).fit(X / scale, Y).alpha_)


def test_the_mean_eigenvalue_of_panels(tmp_path, constants):
    constants(WIDTH=16)
    X = np.random.default_rng(0).standard_normal((50, 80))
    betas = Centred(as_matrix(X), moments(as_matrix(X)), scale=False)
    centred = X - X.mean(axis=0)
    for directory in (None, tmp_path):
        kernel, _ = gram(betas, np.float64, directory=directory)
        assert mean_eigenvalue(kernel) == pytest.approx(np.linalg.eigvalsh(centred @ centred.T).mean())


@pytest.mark.parametrize(
    ("errors", "chosen", "end"),
    [
        ([1.0, 2.0, 3.0], 10.0, "smallest of its alphas, 10:"),
        ([3.0, 2.0, 1.0], 1000.0, r"largest of its alphas, 1e\+03:"),
    ],
)
def test_an_end_of_the_grid_is_chosen_with_a_warning_that_names_it(errors, chosen, end):
    with pytest.warns(LeanreconWarning, match=end):
        assert best_alpha(np.array(errors), np.array([10.0, 100.0, 1000.0])) == chosen


def test_an_alpha_within_the_grid_is_chosen_in_silence():
    assert best_alpha(np.array([2.0, 1.0, 3.0]), np.array([10.0, 100.0, 1000.0])) == 100.0
    assert best_alpha(np.array([2.0]), np.array([10.0])) == 10.0  # no choice


def test_a_ridge_on_noise_warns(study):
    X, Y, _ = study(60, 30)
    noise = np.random.default_rng(1).standard_normal(Y.shape)
    with pytest.warns(LeanreconWarning, match="next to nothing"):
        StreamingRidge("loo", alphas=[1.0, 10.0, 100.0], standardize=False).fit(X, noise)
    with pytest.warns(LeanreconWarning, match=r"of its alphas, .* of the targets"):
        StreamingRidge("loo", alphas=[1.0, 10.0, 100.0], per_target=True, standardize=False).fit(X, noise)


@pytest.mark.filterwarnings("error")
def test_infinite_targets_of_either_sign_are_named_and_nothing_else_is_said():
    targets = np.random.default_rng(0).standard_normal((300, 700))
    targets[270, 130:] = np.where(np.arange(570) % 2, np.inf, -np.inf)
    with pytest.raises(InputError, match="target column 130 holds NaN or infinite values"):
        project(as_matrix(targets), 0, np.float32)


@pytest.mark.parametrize("t", [20, 700])
@pytest.mark.parametrize("per_target", [False, True])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_in_targets_is_found_before_alpha_is_chosen(study, t, per_target, value):
    X, Y, _ = study(40, 60, t=t)
    Y[17, 13] = value
    with pytest.raises(InputError, match="target column 13 holds NaN or infinite values"):
        StreamingRidge("loo", per_target=per_target, standardize=False).fit(as_matrix(X), as_matrix(Y))


def test_alphas_for_every_target_serve_no_others(study):
    X, Y, _ = study(40, 60)
    fitted = StreamingRidge("loo", alphas=GRID, per_target=True, standardize=False).fit(X, Y)
    with pytest.raises(ValueError, match="can't serve other targets"):
        fitted.with_targets(Y)
