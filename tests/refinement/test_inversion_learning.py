"""What a search learns from train rows, against NumPy, scikit-learn and brute force."""

import numpy as np
import pytest

from leanrecon.errors import InputError
from leanrecon.refinement.inversion.learn import grid
from leanrecon.refinement.inversion.moments import carried, moments
from leanrecon.refinement.inversion.responses import ALPHAS, ByImage, Spectrum, _spectrum, encode_responses
from leanrecon.stores.matrix import ArrayMatrix

RNG = np.random.default_rng(3)


def matrix(array):
    return ArrayMatrix(np.asarray(array, np.float32))


def test_moments_are_those_of_numpy_whatever_the_panels(monkeypatch):
    x = RNG.standard_normal((37, 5)) * [1, 10, 1e-3, 5, 1] + [0, 100, 1, -50, 3]
    x[:, 4] = 7
    for nbytes in (10**7, 100):
        monkeypatch.setattr("leanrecon.refinement.inversion.moments.PANEL_NBYTES", nbytes)
        mean, deviation = moments(matrix(x))
        assert mean == pytest.approx(x.mean(0), rel=1e-5)
        assert deviation[:4] == pytest.approx(x.std(0)[:4], rel=1e-4)
        assert deviation[4] == 0


def test_carried_is_the_squared_correlation_of_rows_where_it_is_positive():
    features, stimulus = RNG.standard_normal((20, 6)), np.sort(RNG.integers(0, 20, 45))
    predicted = features[stimulus] * [1, 0.2, -1, 1, 1, 0] + RNG.standard_normal((45, 6)) * [0, 0.1, 0.1, 1, 3, 0]
    found = carried(matrix(features), matrix(predicted), stimulus)
    for k in range(5):
        r = np.corrcoef(features[stimulus, k], predicted[:, k])[0, 1]
        assert found[k] == pytest.approx(max(r, 0) ** 2, abs=1e-5)
    assert found[5] == 0  # a prediction that never varies


def test_predictions_that_carry_nothing_are_refused():
    features = RNG.standard_normal((30, 3))
    with pytest.raises(InputError, match="no feature is predicted better than by chance"):
        carried(matrix(features), matrix(-features), np.arange(30))


def test_rows_of_an_image_are_averaged_and_scored():
    betas = RNG.standard_normal((9, 4)).astype(np.float32) * [1, 5, 1, 1] + [0, 3, 0, 0]
    betas[:, 2], betas[:, 3] = 4, np.nan
    stimulus, images = np.array([5, 1, 1, 2, 5, 5, 3, 2, 0]), np.array([1, 2, 5])
    scores, mean, deviation = ByImage.of(matrix(betas), stimulus, images).read(np.arange(4))
    means = np.stack([betas[stimulus == image].mean(0) for image in images])
    assert mean[:2] == pytest.approx(means.mean(0)[:2], rel=1e-5)
    assert deviation[:2] == pytest.approx(means.std(0)[:2], rel=1e-5)
    assert scores[:, :2] == pytest.approx((means - means.mean(0))[:, :2] / means.std(0)[:2], rel=1e-4)
    assert not scores[:, 2:].any()
    assert (mean[2:] == 0).all()
    assert (deviation[2:] == 1).all()


@pytest.mark.parametrize("columns", [8, 40], ids=["fewer features than images", "more"])
def test_residuals_are_those_of_leaving_each_image_out(columns):
    x, y = RNG.standard_normal((25, columns)), RNG.standard_normal((25, 3))
    y -= y.mean(0)
    mean, deviation = moments(matrix(x))
    z = (x.astype(np.float32) - mean) / deviation
    alpha = 3.7
    expected = _left_out(alpha, z, y)
    found = _spectrum(matrix(x), mean, deviation).residuals(y, alpha)
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("columns", [6, 40], ids=["fewer features than images", "more"])
def test_the_encoding_model_is_a_ridge_with_white_noise(columns):
    linear_model = pytest.importorskip("sklearn.linear_model")
    features = RNG.standard_normal((30, columns)) * 3 + 1
    stimulus = np.repeat(np.arange(30), 2)
    weights = RNG.standard_normal((columns, 12))
    weights[:, 8:] = 0  # four voxels that do not follow the images
    betas = (features @ weights)[stimulus] + RNG.standard_normal((60, 12)) * 2 + 5
    images = np.arange(2, 30)
    found = encode_responses(matrix(features), matrix(betas), stimulus, images, voxels=5)
    voxels = found["voxels"]
    assert len(voxels) == 5
    assert voxels.max() < 8
    assert (np.diff(voxels) > 0).all()
    seen = betas.reshape(30, 2, 12).mean(1)[images][:, voxels]
    assert found["beta_mean"] == pytest.approx(seen.mean(0), rel=1e-5)
    scores = (seen - seen.mean(0)) / seen.std(0)
    x = features[images]
    z = (x - x.mean(0)) / x.std(0)
    new = RNG.standard_normal((4, columns)) * 3 + 1
    # The penalty of least leave-one-out error over all voxels, by brute force.
    every = betas.reshape(30, 2, 12).mean(1)[images]
    every = (every - every.mean(0)) / every.std(0)
    values = np.linalg.eigvalsh(z @ z.T)
    alphas = ALPHAS * values[values > 1e-10 * values[-1]].mean()
    errors = [_left_out(alpha, z, every) for alpha in alphas]
    best = int(np.argmin([(error**2).sum() for error in errors]))
    residuals = errors[best][:, voxels]
    ridge = linear_model.Ridge(alpha=alphas[best])
    expected = ridge.fit(z, scores).predict((new - x.mean(0)) / x.std(0)) @ found["whiten"]
    assert found["offset"] + new.astype(np.float32) @ found["map"] == pytest.approx(expected, abs=2e-3)
    covariance = residuals.T @ residuals / 28
    covariance = 0.5 * covariance + 0.5 * np.diag(np.diag(covariance))
    assert found["whiten"].T @ covariance @ found["whiten"] == pytest.approx(np.eye(5), abs=1e-3)


def _left_out(alpha, z, y):
    """Each image predicted from the others, by the normal equations of a ridge with an intercept."""
    found = np.empty_like(y)
    for i in range(len(z)):
        a, b = np.delete(z, i, 0), np.delete(y, i, 0)
        centre, mean = a.mean(0), b.mean(0)
        weights = np.linalg.solve(
            (a - centre).T @ (a - centre) + alpha * np.eye(z.shape[1]), (a - centre).T @ (b - mean)
        )
        found[i] = y[i] - mean - (z[i] - centre) @ weights
    return found


def test_no_explained_voxel_is_refused():
    with pytest.raises(InputError, match="explain no voxel"):
        encode_responses(
            matrix(RNG.standard_normal((20, 4))), matrix(np.ones((20, 5))), np.arange(20), np.arange(20), voxels=3
        )


def test_the_spectrum_is_the_same_from_either_gram_matrix():
    x = RNG.standard_normal((12, 12))
    mean, deviation = moments(matrix(x))
    wide = _spectrum(matrix(np.hstack([x, x])), np.tile(mean, 2), np.tile(deviation, 2))
    narrow = _spectrum(matrix(x[:, :11]), mean[:11], deviation[:11])
    assert isinstance(wide, Spectrum)
    assert len(wide.values) == len(narrow.values) == 11
    z = (x - x.mean(0)) / x.std(0)
    assert wide.values == pytest.approx(2 * np.linalg.eigvalsh(z @ z.T)[1:], rel=1e-4)
    assert narrow.values == pytest.approx(np.linalg.eigvalsh(z[:, :11].T @ z[:, :11]), rel=1e-4)


@pytest.mark.parametrize(
    ("most", "last"), [(1, [0, 1]), (4, [0, 1, 2, 3]), (40, [20, 30, 40]), (100, [40, 60, 90]), (60, [30, 40, 60])]
)
def test_steps_that_are_compared_end_at_the_most(most, last):
    assert grid(most)[-len(last) :] == last
    assert grid(most)[0] == 0
