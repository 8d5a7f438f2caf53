"""Alpha by a search with few Cholesky factors: the alpha and predictions of scikit-learn's full grid, on synthetic and real problems."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.io import loadmat
from sklearn.linear_model import Ridge, RidgeCV
from support.memory import held

from leanrecon.memory import PeakMemory
from leanrecon.regression.normalise import Centred, moments
from leanrecon.regression.ridge import ridge
from leanrecon.regression.ridge.arithmetic import ON_CPU
from leanrecon.regression.ridge.descent import descend
from leanrecon.regression.ridge.hat import gram
from leanrecon.regression.ridge.kernel import Panels, cholesky, copied, inverse_rows, part_of, solve_half
from leanrecon.regression.ridge.loo import default_alphas, dual_errors, loo_errors, mean_eigenvalue
from leanrecon.regression.ridge.pairing import Pairing
from leanrecon.regression.ridge.ridge import StreamingRidge
from leanrecon.regression.ridge.search import _LeftOut, search, search_by_eigenvectors
from leanrecon.regression.ridge.spectrum import eigenvectors
from leanrecon.stores.matrix import as_matrix

SHARED = Path(os.environ.get("LEANRECON_SHARED", "/nowhere")) / "data"
SYNTHETIC = {
    "flat spectrum": {"decay": 0.3, "snr": 0.3},
    "slow decay": {"decay": 1.0, "snr": 0.3},
    "steep decay": {"decay": 2.0, "snr": 0.3},
    "strong signal": {"decay": 1.0, "snr": 2.0, "sources": 20},
    "weak signal": {"decay": 1.0, "snr": 0.1},
    "as many voxels as rows": {"decay": 1.0, "snr": 0.5, "voxels": 1.0},
    "many voxels": {"decay": 1.0, "snr": 0.3, "voxels": 6.0},
    "images shown four times": {"decay": 1.0, "snr": 0.5, "times": 4, "n": 140},
}
REAL = ["digits", "figures", "raiders"]


def synthetic(n=220, *, decay, snr, sources=220, voxels=1.8, times=1, t=30):
    """Betas of unequal signal and targets that share sources whose variances fall by a power law."""
    rng = np.random.default_rng(7)
    stimulus = rng.permutation(np.arange(n) // times) if times > 1 else np.arange(n)
    z = rng.standard_normal((n // times, sources)) * np.arange(1, sources + 1) ** (-decay / 2)
    signal = z[stimulus] @ rng.standard_normal((sources, int(voxels * n)))
    X = snr * signal / signal.std() * np.exp(rng.standard_normal(signal.shape[1])) + rng.standard_normal(signal.shape)
    Y = z @ rng.standard_normal((sources, t))
    return X, Y / Y.std() + 0.5 * rng.standard_normal(Y.shape), stimulus if times > 1 else None


def real(name):
    """Betas, images and the image of each row of digit-69, of Miyawaki's figures, and of a subject of the raider study."""
    if not SHARED.exists():
        pytest.skip(f"real data are not at {SHARED} (set LEANRECON_SHARED)")
    if name == "digits":
        file = loadmat(SHARED / "digit69/digit69_28x28.mat")
        return file["fmriTrn"].astype(float), file["stimTrn"] / 255.0, None
    if name == "figures":
        file = loadmat(SHARED / "miyawaki/V1_mean_figure.mat")
        images, stimulus = np.unique(file["I2"].T, axis=0, return_inverse=True)
        return file["R2"].T, images.astype(float), stimulus
    X = np.vstack([loadmat(SHARED / f"raider/image_data_{side}.mat").popitem()[1][:, :, 0] for side in ("lh", "rh")])
    labels = np.ravel(loadmat(SHARED / "raider/label.mat").popitem()[1])
    return X.T, (labels[:, None] == np.unique(labels)).astype(float), None


def reference(X, Y, stimulus, alphas):
    """The alpha of least error over rows that are predicted without their image, fitted anew for each under every alpha."""
    if stimulus is None:
        return float(RidgeCV(alphas).fit(X, Y).alpha_)
    errors = np.zeros(len(alphas))
    for image in range(len(Y)):
        rest = stimulus != image
        mean, target_mean = X[rest].mean(axis=0), Y[stimulus[rest]].mean(axis=0)
        u, d, vt = np.linalg.svd(X[rest] - mean, full_matrices=False)
        scores, loadings = (X[~rest] - mean) @ vt.T, u.T @ (Y[stimulus[rest]] - target_mean)
        for a, alpha in enumerate(alphas):
            errors[a] += np.square((scores * (d / (d**2 + alpha))) @ loadings + target_mean - Y[image]).sum()
    return float(alphas[np.argmin(errors)])


@pytest.fixture
def searched(constants):
    """Kernels of more than forty rows are searched, over several panels."""
    constants(SEARCH_ROWS=40, WIDTH=64, DEPTH=32, PAIRS=100, SAMPLED=30)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::leanrecon.errors.LeanreconWarning")
@pytest.mark.usefixtures("searched")
@pytest.mark.parametrize("float64_order", [3072, 0], ids=["float64", "float32"])
@pytest.mark.parametrize("name", [*SYNTHETIC, *REAL])
def test_the_alpha_and_predictions_are_those_of_the_full_grid(off_by, constants, name, float64_order):
    constants(FLOAT64_ORDER=float64_order)
    X, Y, stimulus = real(name) if name in REAL else synthetic(**SYNTHETIC[name])
    X = X[:, X.std(axis=0) > 0]
    fitted = StreamingRidge("loo").fit(X, Y, stimulus=stimulus)
    z = (X - X.mean(axis=0)) / X.std(axis=0, ddof=1)
    best = reference(z, Y, stimulus, fitted.alphas_)
    assert fitted.alpha_ == pytest.approx(best)
    rows = Y if stimulus is None else Y[stimulus]
    varies = rows.std(axis=0) > 0
    expected = Ridge(best).fit(z, rows).predict(z)
    assert off_by(fitted.predict(X)[:, varies], expected[:, varies], rows[:, varies]) < 1e-3
    assert fitted.search_ is not None
    made = np.isfinite(fitted.loo_errors_)
    assert made.sum() == fitted.search_.as_dict()["tried"] < 12
    assert fitted.loo_errors_[made].min() == fitted.loo_errors_[fitted.alphas_ == fitted.alpha_]


@pytest.mark.usefixtures("searched")
def test_an_rbf_kernel_is_searched_too(study, constants):
    X, Y, T = study(150, 60)
    found = StreamingRidge("loo", kernel="rbf", gamma=0.5).fit(X, Y)
    constants(SEARCH_ROWS=150)
    full = StreamingRidge("loo", kernel="rbf", gamma=0.5).fit(X, Y)
    assert found.search_ is not None
    assert full.search_ is None
    assert found.alpha_ == full.alpha_
    np.testing.assert_array_equal(found.predict(T), full.predict(T))


@pytest.mark.usefixtures("searched")
@pytest.mark.parametrize("settings", [{"per_target": True}, {"alphas": np.logspace(0, 4, 65)}])
def test_eigenvectors_stay_where_they_are_cheaper(study, settings):
    X, Y, _ = study(90, 120)
    assert StreamingRidge("loo", **settings).fit(X, Y).search_ is None
    assert StreamingRidge("loo").fit(X[:40], Y[:40]).search_ is None
    assert StreamingRidge("loo").fit(X[:, :50], Y).search_ is None  # fewer voxels than rows


# Errors and slopes


def left_out_of(X, y, index, dtype=np.float64):
    betas = Centred(as_matrix(X), moments(as_matrix(X)), scale=False)
    kernel, _ = gram(betas, dtype)
    pairing = Pairing.of(index, len(X), len(y))
    centred = y - (y if index is None else y[index]).mean(axis=0)
    spectrum = eigenvectors(gram(betas, np.float64)[0], deflate=True)

    def errors(alphas):
        return loo_errors(betas, spectrum, centred.copy(), np.array(alphas), pairing).sum(axis=1)

    return _LeftOut(kernel, pairing.expanded(centred.astype(dtype)), pairing, 0), errors


@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize(("dtype", "off"), [(np.float64, 1e-12), (np.float32, 1e-4)])
@pytest.mark.usefixtures("searched")
def test_errors_and_slopes_are_those_that_eigenvectors_tell(study, dtype, off, repeated):
    X, Y, _ = study(150, 200)
    index = np.random.default_rng(0).permutation(np.arange(150) // 3) if repeated else None
    y = Y[:50] if repeated else Y
    if repeated:
        X = 0.5 * X + X[:50][index]
    left_out, errors = left_out_of(X, y, index, dtype)
    told = 0
    for alpha in (1.0, 100.0, 3000.0, 30_000.0, 1e6):
        exact = errors([alpha, alpha * 0.99, alpha * 1.01])
        left_out.least = None  # else an estimate might do
        found = left_out.error(alpha)
        assert found == pytest.approx(exact[0], rel=off)
        slope, expected = left_out.slope(), (exact[2] - exact[1]) / 0.02
        assert slope == 0 or slope == pytest.approx(expected, abs=0.15 * abs(expected) + 0.01 * found)
        assert slope * expected >= 0
        told += slope != 0
    assert told >= 3


@pytest.mark.parametrize("uneven", [False, True])
def test_an_estimate_is_as_sure_as_it_says(study, constants, uneven):
    """Over many samples its errors have no bias and its own standard error, also where half of the rows are much noisier."""
    constants(SAMPLED=40)
    X, Y, _ = study(160, 200)
    if uneven:
        X = X + np.random.default_rng(1).standard_normal(X.shape) * np.where(np.arange(160) < 80, 0, 4)[:, None]
    left_out, errors = left_out_of(X, Y, None)
    left_out.error(1000.0)
    before = left_out.kept
    assert left_out._kept_of(np.arange(0, 160, 7), left_out.factor) == pytest.approx(before[::7], rel=1e-12)
    for alpha in (500.0, 2000.0):
        left_out.least = None
        exact = errors([alpha])[0]
        assert left_out.error(alpha) == pytest.approx(exact, rel=1e-12)
        z = []
        for left_out.seed in range(200):
            found, off = left_out._estimate(left_out.factor, before)
            z.append((found - exact) / off)
        assert abs(np.mean(z)) < 0.35
        assert 0.8 < np.std(z) < 1.4


@pytest.mark.parametrize("worse", [False, True])
def test_the_inverse_is_formed_unless_an_alpha_is_surely_worse(study, constants, monkeypatch, worse):
    constants(SAMPLED=40)
    X, Y, _ = study(160, 200)
    left_out, errors = left_out_of(X, Y, None)
    grid = np.logspace(0, 6, 13)
    best = int(np.argmin(errors(grid)))
    left_out.error(grid[best] if worse else grid[best - 3])
    left_out.slope()
    formed = []
    monkeypatch.setattr(left_out, "_kept", lambda factor, kept=left_out._kept: formed.append(1) or kept(factor))
    alpha = grid[best - 3] if worse else grid[best]
    assert left_out.error(alpha) == pytest.approx(errors([alpha])[0], rel=0.05 if worse else 1e-12)
    assert len(formed) == (0 if worse else 1)


@pytest.mark.usefixtures("in_float32")
def test_a_singular_alpha_has_no_error(study):
    X, Y, _ = study(150, 160)
    left_out, _ = left_out_of(np.repeat(X[:75], 2, axis=0), Y, None, np.float32)
    assert left_out.error(1e-9) == np.inf
    assert np.isfinite(left_out.error(10.0))


@pytest.mark.usefixtures("searched")
@pytest.mark.parametrize("on_disk", [False, True])
def test_the_factor_of_the_best_alpha_is_put_aside_while_others_are_tried(study, tmp_path, monkeypatch, on_disk):
    X, Y, _ = study(150, 200)
    betas = Centred(as_matrix(X), moments(as_matrix(X)), scale=False)
    kernel, _ = gram(betas, np.float64, directory=tmp_path if on_disk else None)
    grid, tried, error = np.logspace(0, 6, 13), [], _LeftOut.error
    monkeypatch.setattr(_LeftOut, "error", lambda self, alpha: tried.append(alpha) or error(self, alpha))

    def searched(scratch):
        return search(kernel, Y - Y.mean(axis=0), grid, Pairing.of(None, 150, 150), seed=0, scratch=scratch)

    found, factor = searched(tmp_path)
    best = float(grid[np.argmin(found.errors)])
    assert tried[-1] != best  # else the last factor would do
    expected = copied(kernel)
    cholesky(expected, best, deflate=True)
    np.testing.assert_array_equal(_lower(factor), _lower(expected))
    assert factor.on_disk == on_disk
    assert list(tmp_path.iterdir()) == []
    again, nothing = searched(None)
    np.testing.assert_array_equal(again.errors, found.errors)
    assert nothing is None


@pytest.mark.usefixtures("searched")
def test_predictions_have_the_same_bytes_where_the_best_factor_is_made_again(study, tmp_path, monkeypatch):
    X, Y, T = study(150, 200)
    made = []
    monkeypatch.setattr(ridge, "cholesky", lambda *a, **k: made.append(1) or cholesky(*a, **k))
    fits = {}
    for scratch in (tmp_path, None):
        made.clear()
        fits[scratch] = StreamingRidge("loo", scratch=scratch).fit(X, Y)
        assert len(made) == (0 if scratch else 1)
    np.testing.assert_array_equal(fits[tmp_path].predict(T), fits[None].predict(T))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("directory", [False, True])
def test_rows_of_the_inverse_and_parts_of_a_kernel(tmp_path, constants, directory):
    constants(WIDTH=16)
    rng = np.random.default_rng(0)
    X = rng.standard_normal((70, 90))
    betas = Centred(as_matrix(X), moments(as_matrix(X)), scale=False)
    kernel, _ = gram(betas, np.float64, directory=tmp_path if directory else None)
    rows = np.flatnonzero(rng.random(70) < 0.6)
    part = X[rows] - X[rows].mean(axis=0)
    np.testing.assert_allclose(_lower(part_of(kernel, rows)), np.tril(part @ part.T), atol=1e-10)
    factor = np.tril(rng.standard_normal((70, 70))) + 9 * np.eye(70)
    panels = Panels(70, np.float64, directory=tmp_path if directory else None)
    for j, columns in enumerate(panels.columns):
        panels.save(j, np.ascontiguousarray(factor[columns.start :, columns.start : columns.stop]))
    inverse = np.vstack([part.copy() for _, part in inverse_rows(panels)])
    np.testing.assert_allclose(inverse, np.linalg.inv(factor), atol=1e-12)
    some = rng.standard_normal((5, 70))
    solved = some.copy()
    solve_half(panels, solved)
    np.testing.assert_allclose(solved, np.linalg.solve(factor, some.T).T, atol=1e-12)


def _lower(panels):
    whole = np.zeros((panels.order, panels.order))
    (memory,) = panels.memories(1)
    for j, columns in enumerate(panels.columns):
        whole[columns.start :, columns.start : columns.stop] = panels.load(j, memory)
    return np.tril(whole)


# The way down


@pytest.mark.parametrize(
    ("curve", "slopes", "first", "asked"),
    [
        ([5, 3, 1, 2, 4], [-1, -1, 1, 1, 1], 2, [2, 1]),  # uphill to the right: the least is at 2 or before
        ([5, 3, 1, 2, 4], [-1, -1, -1, 1, 1], 1, [1, 2, 3]),
        ([5, 3, 1, 2, 4], [-1, -1, 1, 1, 1], 0, [0, 1, 2]),  # the slope at 2 says that it is passed
        ([5, 3, 1, 2, 4], [0, 0, 0, 0, 0], 2, [2, 3, 1]),  # nothing known: both sides
        ([5, 3, 1, 2, 4], [0, 0, 0, 0, 0], 4, [4, 3, 2, 1]),
        ([1, 1, 1, 0.5, 2], [0, 0, 0, -1, 1], 0, [0, 1, 2, 3, 4]),  # a plateau
        ([np.inf, np.inf, 2, 3], [0, 0, 1, 1], 0, [0, 1, 2]),  # singular below
        ([5, 1, 3, 4, 3.9], [-1, -1, 1, 1, -1], 4, [4, 2, 1]),  # at an end: a look at the middle
        ([5, 4, 4, 3, 2], [-1, -1, -1, -1, -1], 4, [4, 2]),
        ([1, 2], [1, 1], 0, [0, 1]),
        ([2, 1], [-1, -1], 1, [1]),
        ([1], [0], 0, [0]),
    ],
)
def test_the_way_down_asks_for_few_errors(curve, slopes, first, asked):
    order = []

    def error(i):
        order.append(i)
        return curve[i]

    errors = descend(error, lambda: slopes[order[-1]], len(curve), first)
    assert order == asked
    np.testing.assert_array_equal(errors, [curve[i] if i in asked else np.inf for i in range(len(curve))])


@given(
    least=st.floats(-2, 22),
    first=st.integers(0, 20),
    steep=st.floats(0.1, 3),
    blind=st.lists(st.booleans(), min_size=21, max_size=21),
)
def test_the_least_of_one_valley_is_found_from_anywhere(least, first, steep, blind):
    """Slopes that can't be told cost a look at the neighbours, and never the best alpha."""
    grid = np.arange(21)
    curve = np.abs(grid - least) ** 1.5 * np.where(grid < least, steep, 1)
    slopes = np.where(blind, 0.0, np.sign(grid - least))
    order = []
    errors = descend(lambda i: order.append(i) or curve[i], lambda: slopes[order[-1]], 21, first)
    assert curve[np.argmin(errors)] == curve.min()
    assert len(order) <= abs(int(np.argmin(curve)) - first) + 4


# Memory


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.parametrize("in_memory", [True, False])
def test_a_search_stays_within_its_plan(study, tmp_path, constants, in_memory):
    constants(FLOAT64_ORDER=0)
    X, Y, T = study(2600, 2700, t=600, dtype=np.float32)
    budget = held() + (10**9 if in_memory else 155_000_000)
    alphas = default_alphas(2700.0)[6:14]
    fitted = StreamingRidge("loo", alphas=list(alphas), budget=budget, scratch=tmp_path)
    with PeakMemory() as memory:
        fitted.fit(X, Y, test=T)
    assert memory.peak <= fitted.projected_
    assert fitted.search_ is not None


@pytest.mark.parametrize("snr", [0.02, 0.3, 3.0])
def test_eigenvectors_of_many_rows_tell_only_the_errors_beside_the_least(snr):
    X, Y, _ = synthetic(600, decay=1.0, snr=snr)
    Y = Y @ np.random.default_rng(1).standard_normal((Y.shape[1], 200))
    betas = as_matrix(X)
    kernel, _ = gram(Centred(betas, moments(betas), scale=True), np.float64)
    alphas, spectrum = default_alphas(mean_eigenvalue(kernel)), eigenvectors(kernel, deflate=True)
    centred = Y - Y.mean(axis=0)
    expected = dual_errors(spectrum, centred, alphas, ON_CPU).sum(axis=1)
    found = search_by_eigenvectors(spectrum, centred, alphas, seed=0)
    tried = np.isfinite(found)
    np.testing.assert_array_equal(found[tried], expected[tried])
    assert np.argmin(found) == np.argmin(expected)
    assert 2 <= tried.sum() < 9
    few = search_by_eigenvectors(spectrum, centred[:, :50], alphas, seed=0)
    np.testing.assert_array_equal(few, dual_errors(spectrum, centred[:, :50], alphas, ON_CPU).sum(axis=1))
