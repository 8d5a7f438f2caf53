"""Train rows predicted in closed form are those of fits without the rows of their image."""

import numpy as np
import pytest
from scipy.spatial.distance import pdist
from sklearn.linear_model import Ridge
from sklearn.metrics.pairwise import rbf_kernel

from leanrecon.errors import BudgetError, InputError, SettingsError
from leanrecon.memory import MemoryBudget
from leanrecon.regression.ridge.ridge import StreamingRidge
from leanrecon.stores import Store, as_matrix

FORMS = [
    pytest.param(90, 150, {}, id="dual"),
    pytest.param(150, 60, {}, id="primal"),
    pytest.param(90, 150, {"kernel": "rbf", "gamma": 0.6}, id="rbf"),
    pytest.param(150, 60, {"kernel": "rbf", "gamma": 0.6}, id="rbf, more rows"),
    pytest.param(
        90, 150, {"kernel": "rbf", "gamma": 0.6, "voxel_weights": "accuracy", "voxel_power": 0.5}, id="weighed"
    ),
]


@pytest.fixture
def filled(tmp_path):
    """Fills a store with the leave-one-out predictions of a fit, and returns it."""

    def fill(fitted, name="train.zarr", chunk="20kB"):
        shape = (fitted.betas_.shape[0], fitted.targets_.shape[1])
        store = Store.create(tmp_path / name, shape, np.float32, made_of={}, chunk=chunk)
        fitted.predict_train_into(store)
        store.finish()
        return store

    return fill


def without_each_image(fitted, X, Y, stimulus, alpha):
    """Every row predicted by a fit to all rows of other images: with the moments, weights and width of all rows."""
    factor = 1 / X.std(axis=0, ddof=1)
    x = (X - X.mean(axis=0)) * factor * (1 if fitted.voxel_weights_ is None else fitted.voxel_weights_)
    width = 0.6 / np.median(pdist(x, "sqeuclidean"))
    kernel = x @ x.T if fitted.kernel_ == "linear" else rbf_kernel(x, gamma=width)
    values, vectors = np.linalg.eigh(kernel)
    features = vectors * np.sqrt(np.maximum(values, 0))  # ridge on these is ridge on the kernel
    out = np.empty_like(Y)
    for image in np.unique(stimulus):
        held = stimulus == image
        out[held] = Ridge(alpha, solver="svd").fit(features[~held], Y[~held]).predict(features[held])
    return out


@pytest.mark.parametrize("repeated", [False, True], ids=["once", "repeated"])
@pytest.mark.parametrize(("n", "p", "how"), FORMS)
def test_they_are_those_of_fits_without_the_image(study, filled, off_by, n, p, how, repeated):
    X, Y, _ = study(n, p)
    stimulus = np.random.default_rng(1).permutation(n) // 3 if repeated else np.arange(n)
    y = Y[: n // 3] if repeated else Y
    fitted = StreamingRidge(0.5, **how).fit(X, y, stimulus=stimulus)
    expected = without_each_image(fitted, X, y[stimulus], stimulus, 0.5)
    assert off_by(filled(fitted)[0:n], expected, y) < 1e-5


@pytest.mark.usefixtures("nothing_held")
@pytest.mark.parametrize(("n", "p", "how"), FORMS)
def test_the_budget_decides_no_byte(study, stored, filled, constants, monkeypatch, n, p, how):
    constants(TEST_ROWS=256, WIDTH=64, DEPTH=32)
    X, Y, _ = study(5 * n, p, t=700, dtype=np.float32)
    x, y = stored(X, "x.zarr", chunk="60kB"), stored(Y, "y.zarr", chunk="60kB")
    contents, needed, require = set(), [], MemoryBudget.require
    monkeypatch.setattr(
        MemoryBudget, "require", lambda budget, stage, work: needed.append(work) or require(budget, stage, work)
    )
    for k, budget in enumerate(["4GB", "1MB", "1MB", "1MB"]):
        while True:
            try:
                contents.add(filled(StreamingRidge(3.0, **how, budget=budget).fit(x, y), f"{k}-{budget}.zarr").content)
                break
            except BudgetError:
                budget = needed[-1]
    assert len(contents) == 1


def test_a_killed_run_continues(study, filled, tmp_path, monkeypatch):
    X, Y, _ = study(90, 150, t=3000)
    fitted = StreamingRidge(0.5, kernel="rbf", gamma=0.6).fit(X, Y)
    whole = filled(fitted)
    assert whole.column_groups > 2
    write, written = Store.write_columns, []

    def killed(self, j, block, **options):
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(j)
        write(self, j, block, **options)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Store, "write_columns", killed)
        filled(fitted, "again.zarr")
    assert filled(fitted, "again.zarr").content == whole.content


def test_what_it_can_not_do_is_refused(study, tmp_path):
    X, Y, T = study(90, 150)
    store = Store.create(tmp_path / "out.zarr", (90, 22), np.float32, made_of={})
    with pytest.raises(InputError, match="can't take predictions of 90 train rows"):
        StreamingRidge(0.5).fit(X, Y).predict_train_into(store)
    with pytest.raises(SettingsError, match="the factor was not kept"):
        StreamingRidge(0.5).fit(X, Y, test=as_matrix(T)).predict_train_into(store)
