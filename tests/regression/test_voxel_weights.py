"""Voxels weighed by how well they carry the images, and the form that is chosen by held-out train images."""

import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import Ridge

from leanrecon.errors import InputError, SettingsError
from leanrecon.regression.normalise import Centred, moments
from leanrecon.regression.ridge import choice as choice_module
from leanrecon.regression.ridge.form import Form, forms
from leanrecon.regression.ridge.pairing import Pairing
from leanrecon.regression.ridge.ridge import StreamingRidge
from leanrecon.regression.voxel_weights import FLOOR, intraclass_correlation, weights_of
from leanrecon.stores import as_matrix

pytestmark = pytest.mark.filterwarnings("ignore::leanrecon.errors.LeanreconWarning")  # of alphas at the grid's end

ACCURACY = {"voxel_weights": "accuracy", "voxel_power": 0.5}


@pytest.fixture
def few_carry():
    """Betas [n, 300] of which 30 voxels follow 8 sources of the targets [n, 20], the same test rows, and their targets."""

    def draw(n=80, m=60, *, seed=0):
        rng = np.random.default_rng(seed)
        sources = rng.standard_normal((n + m, 8))
        targets = sources @ rng.standard_normal((8, 20))
        betas = 3 * rng.standard_normal((n + m, 300))
        signal = sources @ rng.standard_normal((8, 30))
        betas[:, :30] = 3 * signal + rng.standard_normal((n + m, 30))
        return betas[:n], targets[:n], betas[n:], targets[n:]

    return draw


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_accuracy_is_the_r2_of_brute_force_leave_one_out(few_carry, off_by, power):
    X, Y, T, _ = few_carry()
    z = (X - X.mean(axis=0)) / X.std(axis=0, ddof=1)
    fitted = StreamingRidge(20.0, voxel_weights="accuracy", voxel_power=power).fit(X, Y)
    grid = np.linalg.eigvalsh(np.cov(Y.T, bias=True) * len(Y)).mean() * np.logspace(-3, 4, 22)
    predicted = np.empty((22, *z.shape))
    for i in range(len(Y)):
        rest = np.arange(len(Y)) != i
        mean, left = Y[rest].mean(axis=0), z[rest].mean(axis=0)
        u, s, v = np.linalg.svd(Y[rest] - mean, full_matrices=False)
        for a, alpha in enumerate(grid):
            predicted[a, i] = left + (Y[i] - mean) @ v.T * (s / (s**2 + alpha)) @ (u.T @ (z[rest] - left))
    best = min(predicted, key=lambda found: np.square(z - found).sum())
    share = 1 - np.square(z - best).sum(axis=0) / (len(X) - 1)
    np.testing.assert_allclose(fitted.learned_.share, share, rtol=1e-6, atol=1e-9)
    weights = np.maximum(share, 1e-4) ** power
    weights /= np.sqrt((weights**2).mean())
    np.testing.assert_allclose(fitted.voxel_weights_, weights, rtol=1e-6)
    expected = Ridge(20.0).fit(z * weights, Y).predict((T - X.mean(axis=0)) / X.std(axis=0, ddof=1) * weights)
    assert off_by(fitted.predict(T), expected, Y) < 1e-6


def test_weighed_voxels_decode_better_where_few_carry_anything(few_carry):
    X, Y, T, expected = few_carry()
    plain, weighed = (StreamingRidge(**how).fit(X, Y).predict(T) for how in ({}, ACCURACY))
    assert np.square(weighed - expected).mean() < 0.7 * np.square(plain - expected).mean()


def test_weights_of_voxels_that_carry_nothing_are_those_of_the_floor():
    weights = weights_of(np.array([0.25, -1.0, 1e-9, np.nan]), 0.5)
    np.testing.assert_allclose(weights[1:] / weights[0], [np.sqrt(FLOOR / 0.25), np.sqrt(FLOOR / 0.25), 0])
    assert (weights[:3] ** 2).mean() == pytest.approx(1)


def test_weights_for_measured_betas_predict_the_same(few_carry, off_by):
    X, Y, T, _ = few_carry()
    X[:, 5] = 4.0
    fitted = StreamingRidge(20.0, **ACCURACY)
    fitted.warns = False
    fitted.fit(X, Y)
    ((_, coef, intercept),) = fitted.weight_blocks()
    assert off_by(T @ coef.T + intercept, fitted.predict(T), Y) < 1e-8
    assert not coef[:, 5].any()


def test_reliability_is_the_intraclass_correlation():
    rng = np.random.default_rng(0)
    betas = (rng.standard_normal((40, 1, 6)) * np.arange(6) + rng.standard_normal((40, 3, 6))).reshape(120, 6)
    found = moments(as_matrix(betas))
    pairing = Pairing.of(np.repeat(np.arange(40), 3), 120, 40)
    icc = intraclass_correlation(Centred(as_matrix(betas), found, scale=True), pairing, found.usable)
    for v in range(6):  # of F of a one-way analysis of variance: (F − 1) / (F + r − 1)
        f = stats.f_oneway(*betas[:, v].reshape(40, 3)).statistic
        assert icc[v] == pytest.approx((f - 1) / (f + 2))


def test_reliability_by_repeats_or_as_given(few_carry):
    X, Y, _, _ = few_carry()
    given = np.linspace(0, 0.9, 300)
    how = {"voxel_weights": "reliability", "voxel_power": 1.0}
    fitted = StreamingRidge(20.0, **how).fit(X, Y, reliability=given)
    np.testing.assert_allclose(fitted.voxel_weights_, weights_of(given, 1.0))
    repeated = StreamingRidge(20.0, **how).fit(X, Y[:40], stimulus=np.arange(80) // 2, reliability=given)
    assert not np.allclose(repeated.voxel_weights_, fitted.voxel_weights_)
    with pytest.raises(InputError, match="repeats no train image and gives no ncsnr"):
        StreamingRidge(20.0, **how).fit(X, Y)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (np.ones(3), r"reliability of shape \(3,\).*a number for each of 300 voxels"),
        (np.ones((300, 1)), r"reliability of shape \(300, 1\)"),
        ("high", "reliability of shape .* and type <U4"),
        (np.full(300, np.nan), "the reliability of the voxels is NaN in all"),
        (np.where(np.arange(300), 0.5, np.inf), "the reliability of the voxels is infinite in some"),
    ],
)
def test_reliability_that_says_nothing_is_refused(few_carry, given, said):
    X, Y, _, _ = few_carry()
    with pytest.raises(InputError, match=said):
        StreamingRidge(20.0, voxel_weights="reliability").fit(X, Y, reliability=given)


# The choice of a form


def test_the_forms_that_parameters_leave():
    assert forms("linear", "loo", "none", "loo") == [Form()]
    assert forms("rbf", 0.5, "accuracy", 1) == [Form("rbf", 0.5, "accuracy", 1.0)]
    every = forms("auto", "loo", "auto", "loo")
    assert every[0] == Form()  # the plainest wins where all are equal
    assert len(every) == len(set(every)) == (1 + 4) * (1 + 2)


@pytest.mark.slow
def test_the_form_that_made_the_targets_is_found(few_carry):
    X, Y, *_ = few_carry(n=150)
    fitted = StreamingRidge(kernel="auto", voxel_weights="auto").fit(X, Y)
    assert (fitted.kernel_, fitted.learned_.form.source) == ("linear", "accuracy")
    rng = np.random.default_rng(1)
    sources = rng.standard_normal((150, 2))
    betas = sources @ rng.standard_normal((2, 40)) + 0.2 * rng.standard_normal((150, 40))
    bent = StreamingRidge(kernel="auto", voxel_weights="auto").fit(betas, np.hstack([sources**2, np.abs(sources)]))
    assert bent.kernel_ == "rbf"


def test_voxels_of_noise_are_not_weighed_by_chance():
    """Weights that had seen an image would favour it, and noise would seem to tell of it."""
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((60, 2000)), rng.standard_normal((60, 5))
    fitted = StreamingRidge(kernel="rbf", gamma=1.0, voxel_weights="auto", alphas=[0.1, 1.0, 10.0, 100.0])
    fitted.fit(X, Y)
    assert max(fitted.learned_.choice.r2) < 0.05


def test_betas_in_float32_have_the_choice_of_float64(few_carry):
    X, Y, *_ = few_carry()
    X = X.astype(np.float32)  # the same numbers for both
    how = {"kernel": "auto", "voxel_weights": "auto"}
    exact, found = (StreamingRidge(**how).fit(X.astype(dtype), Y) for dtype in (np.float64, np.float32))
    np.testing.assert_allclose(found.learned_.choice.r2, exact.learned_.choice.r2, atol=1e-5)
    assert found.learned_.form == exact.learned_.form
    assert found.learned_.choice.certain == exact.learned_.choice.certain


def test_the_error_of_a_form_is_that_of_fits_without_the_fold(few_carry):
    X, Y, *_ = few_carry()
    alphas = [1.0, 10.0, 100.0, 1000.0]
    fitted = StreamingRidge(alphas=alphas, **{**ACCURACY, "voxel_weights": "auto"}).fit(X, Y)
    errors, total = np.zeros((2, 4)), 0.0
    fold = np.empty(80, int)
    fold[np.random.default_rng([0, choice_module._STREAM]).permutation(80)] = np.arange(80) % 5
    for k in range(5):
        train, test = fold != k, fold == k
        total += np.square(Y[test] - Y[train].mean(axis=0)).sum()
        for i, how in enumerate([{}, ACCURACY]):
            for a, alpha in enumerate(alphas):
                predicted = StreamingRidge(alpha, **how).fit(X[train], Y[train]).predict(X[test])
                errors[i, a] += np.square(Y[test] - predicted).sum()
    np.testing.assert_allclose(fitted.learned_.choice.r2, 1 - errors.min(axis=1) / total, rtol=1e-6)


@pytest.mark.slow
def test_test_rows_change_nothing_that_is_learned(few_carry):
    X, Y, T, _ = few_carry()
    plain, poisoned = (StreamingRidge(kernel="auto", voxel_weights="auto") for _ in range(2))
    plain.fit(X, Y, test=as_matrix(T))
    poisoned.warns = False
    poisoned.fit(X, Y, test=as_matrix(1e6 * T[::-1]))
    assert plain.learned_.form == poisoned.learned_.form
    assert plain.learned_.choice.r2 == poisoned.learned_.choice.r2
    assert plain.voxel_weights_.tobytes() == poisoned.voxel_weights_.tobytes()
    assert plain.alpha_ == poisoned.alpha_


def test_with_too_few_images_the_plainest_form_is_taken(few_carry):
    X, Y, *_ = few_carry()
    fitted = StreamingRidge(kernel="auto", voxel_weights="auto", alphas=[1.0, 1e3, 1e6])
    fitted.fit(X[:12], Y[:4], stimulus=np.arange(12) // 3)
    assert fitted.learned_.form == Form()
    assert "too few train images" in fitted.learned_.choice.told(figures=False)


@pytest.mark.slow
def test_few_images_are_left_out_one_by_one(few_carry):
    X, Y, *_ = few_carry()
    fitted = StreamingRidge(kernel="auto", voxel_weights="auto").fit(X, Y[:10], stimulus=np.arange(80) % 10)
    assert fitted.learned_.choice.folds == 10


def test_bad_parameters_are_refused(few_carry):
    X, Y, *_ = few_carry()
    for how in ({"kernel": "cubic"}, {"voxel_weights": "size"}, {"gamma": 0}, {"voxel_power": -1.0}, {"gamma": "auto"}):
        with pytest.raises(SettingsError, match=next(iter(how))):
            StreamingRidge(**how).fit(X, Y)
    with pytest.raises(SettingsError, match="alphas have different scales"):
        StreamingRidge(5.0, kernel="auto").fit(X, Y)
    with pytest.raises(InputError, match="half of the train rows are equal"):
        StreamingRidge(5.0, kernel="rbf", gamma=1.0).fit(np.vstack([X[:2], X[:1].repeat(20, axis=0)]), Y[:22])
    with pytest.raises(SettingsError, match="rbf kernel has no weights"):
        next(StreamingRidge(5.0, kernel="rbf", gamma=1.0).fit(X, Y).weight_blocks())
