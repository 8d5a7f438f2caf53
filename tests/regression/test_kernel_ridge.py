"""The rbf kernel and voxel weights: equal to scikit-learn's KernelRidge, in memory or from disk, with all that ridge has."""

import numpy as np
import pytest
from scipy.spatial.distance import pdist
from sklearn.kernel_ridge import KernelRidge
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import KernelCenterer

from leanrecon.regression.ridge.ridge import StreamingRidge

FORMS = [pytest.param(90, 150, id="more voxels"), pytest.param(150, 60, id="more rows")]


def z_scored(X, T, weights=1.0):
    mean, scale = X.mean(axis=0), X.std(axis=0, ddof=1)
    return (X - mean) / scale * weights, (T - mean) / scale * weights


def reference(X, Y, T, gamma, alpha, weights=1.0):
    """Kernel ridge with an intercept, by scikit-learn: a centred kernel and centred targets."""
    x, t = z_scored(X, T, weights)
    gamma /= np.median(pdist(x, "sqeuclidean"))
    model = make_pipeline(KernelCenterer(), KernelRidge(alpha=alpha, kernel="precomputed"))
    return model.fit(rbf_kernel(x, gamma=gamma), Y - Y.mean(axis=0)).predict(rbf_kernel(t, x, gamma=gamma)) + Y.mean(
        axis=0
    )


@pytest.mark.parametrize("known", [False, True], ids=["any test betas", "known test betas"])
@pytest.mark.parametrize(("n", "p"), FORMS)
def test_predictions_are_those_of_scikit_learn(study, off_by, n, p, known):
    X, Y, T = study(n, p, far=1000)
    fitted = StreamingRidge(0.3, kernel="rbf", gamma=0.7).fit(X, Y, test=T if known else None)
    assert off_by(fitted.predict(T), reference(X, Y, T, 0.7, 0.3), Y) < 1e-9


@pytest.mark.parametrize(("n", "p"), FORMS)
@pytest.mark.usefixtures("in_float32")
def test_float32_predictions(study, off_by, n, p):
    X, Y, T = study(n, p, far=10, dtype=np.float32)
    fitted = StreamingRidge(0.3, kernel="rbf", gamma=0.7).fit(X, Y)
    assert off_by(fitted.predict(T), reference(*(a.astype(float) for a in (X, Y, T)), 0.7, 0.3), Y) < 1e-4


@pytest.mark.parametrize(("n", "p"), FORMS)
def test_leave_one_out_alpha_and_errors_are_those_of_fits_without_each_row(study, n, p):
    X, Y, T = study(n, p)
    alphas = [0.01, 0.1, 1.0, 10.0]
    fitted = StreamingRidge("loo", alphas=alphas, kernel="rbf", gamma=0.5).fit(X, Y)
    x = z_scored(X, T)[0]
    gamma = 0.5 / np.median(pdist(x, "sqeuclidean"))
    errors = []
    for alpha in alphas:
        left_out = []
        for i in range(n):
            rest = np.arange(n) != i
            model = make_pipeline(KernelCenterer(), KernelRidge(alpha=alpha, kernel="precomputed"))
            mean = Y[rest].mean(axis=0)
            model.fit(rbf_kernel(x[rest], gamma=gamma), Y[rest] - mean)
            left_out.append(model.predict(rbf_kernel(x[i : i + 1], x[rest], gamma=gamma))[0] + mean)
        errors.append(np.square(Y - left_out).mean())
    np.testing.assert_allclose(fitted.loo_errors_, errors, rtol=1e-9)
    assert fitted.alpha_ == alphas[int(np.argmin(errors))]
