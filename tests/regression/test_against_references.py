"""The streaming ridge against float64 closed forms, scikit-learn and brute force."""

from pathlib import Path

import numpy as np
import pytest
import zarr
from sklearn.linear_model import Ridge, RidgeCV

from leanrecon.errors import BudgetError, InputError, LeanreconWarning
from leanrecon.regression import kernel, plan, ridge
from leanrecon.regression.ridge import StreamingRidge
from leanrecon.stores import RowSubset, Store, as_matrix

SHAPES = [
    pytest.param(60, 90, 20, 30, id="n<p"),
    pytest.param(70, 70, 15, 8, id="n=p"),
    pytest.param(90, 40, 20, 30, id="n>p"),
    pytest.param(80, 12, 500, 9, id="through weights"),
    pytest.param(50, 80, 1, 5, id="one test row"),
    pytest.param(50, 80, 7, 1, id="one target"),
]


def data(n, p, m, t, offset=100.0, dtype=np.float64):
    rng = np.random.default_rng(n * p)
    w = rng.normal(size=(p, t))
    x, test = (rng.normal(size=(k, p)) * rng.uniform(0.2, 3, p) for k in (n, m))
    y = x @ w + 3 * rng.normal(size=(n, t)) + offset
    return (x + offset).astype(dtype), y.astype(dtype), (test + offset).astype(dtype)


def closed_form(x, y, test, alpha, *, scale=False):
    x, y, test = (a.astype(np.float64) for a in (x, y, test))
    mean, std = x.mean(axis=0), x.std(axis=0, ddof=1)
    kept = std > 0
    divisor = std[kept] if scale else 1.0
    xc, tc = (x - mean)[:, kept] / divisor, (test - mean)[:, kept] / divisor
    dual = np.linalg.solve(xc @ xc.T + alpha * np.eye(len(x)), y - y.mean(axis=0))
    return tc @ xc.T @ dual + y.mean(axis=0)


@pytest.fixture
def small_float32(monkeypatch):
    """The float32 path in several panels, at sizes of tests."""
    monkeypatch.setattr(plan, "FLOAT64_ORDER", 8)
    monkeypatch.setattr(ridge, "FLOAT64_ORDER", 8)
    monkeypatch.setattr(kernel, "WIDTH", 32)
    monkeypatch.setattr("leanrecon.regression.hat.WIDTH", 32)
    monkeypatch.setattr("leanrecon.regression.hat.DEPTH", 16)


@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize(("n", "p", "m", "t"), SHAPES)
def test_predictions_equal_the_closed_form_and_scikit_learn(n, p, m, t, scale):
    x, y, test = data(n, p, m, t)
    x[:, 3] = 7.0
    fitted = StreamingRidge(alpha=5.0, standardize=scale).fit(x, y)
    found = fitted.predict(test)
    assert fitted.left_out_ == 1
    np.testing.assert_allclose(found, closed_form(x, y, test, 5.0, scale=scale), atol=1e-9 * y.std())
    if not scale:
        expected = Ridge(alpha=5.0).fit(x, y).predict(test).reshape(m, t)
        np.testing.assert_allclose(found, expected, atol=1e-9 * y.std())


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize(("n", "p", "m", "t"), SHAPES)
def test_float32_predictions_are_within_a_ten_thousandth_of_the_spread(n, p, m, t, known, small_float32):
    x, y, test = data(n, p, m, t, dtype=np.float32)
    found = StreamingRidge(alpha=5.0).fit(x, y, test=test if known else None).predict(test)
    spread = y.std(axis=0, dtype=np.float64)
    assert (np.abs(found - closed_form(x, y, test, 5.0)) / spread).max() < 1e-4


def test_voxels_that_are_nan_in_every_row_are_left_out():
    x, y, test = data(40, 60, 5, 3)
    hollow, hollow_test = np.insert(x, 10, np.nan, axis=1), np.insert(test, 10, np.nan, axis=1)
    fitted = StreamingRidge(alpha=2.0).fit(hollow, y)
    assert fitted.left_out_ == 1
    np.testing.assert_allclose(fitted.predict(hollow_test), closed_form(x, y, test, 2.0), atol=1e-9 * y.std())


def test_weights_equal_those_of_scikit_learn(tmp_path: Path):
    for n, p in ((60, 90), (90, 40)):
        x, y, _ = data(n, p, 3, 20)
        expected = Ridge(alpha=4.0).fit(x, y)
        fitted = StreamingRidge(alpha=4.0).fit(x, y)
        (columns, w, b), *rest = fitted.weight_blocks()
        assert columns == range(20)
        assert not rest
        np.testing.assert_allclose(w, expected.coef_, atol=1e-10)
        np.testing.assert_allclose(b, expected.intercept_, rtol=1e-9)


def test_rows_of_a_fold_are_those_of_a_refit():
    x, y, _ = data(60, 80, 5, 6)
    train, test = np.arange(0, 60, 2), np.arange(1, 60, 2)
    folded = StreamingRidge(alpha=3.0).fit(RowSubset(as_matrix(x), train), RowSubset(as_matrix(y), train))
    found = folded.predict(RowSubset(as_matrix(x), test))
    np.testing.assert_allclose(found, closed_form(x[train], y[train], x[test], 3.0), atol=1e-9 * y.std())


# Where data lie, and how much memory there is


def make_store(path: Path, array, chunk="64KB") -> Store:
    store = Store.create(path, array.shape, np.float32, made_of={"test": path.name}, chunk=chunk)
    for i in store.missing_row_groups():
        group = store.group_rows(i)
        store.write_rows(i, array[group.start : group.stop])
    store.finish()
    return store


def test_every_source_gives_the_same_predictions(tmp_path: Path):
    import dask.array

    x, y, test = data(300, 1500, 20, 1300, dtype=np.float32)
    expected = StreamingRidge(alpha=50.0).fit(as_matrix(x), as_matrix(y)).predict(as_matrix(test))
    for name, array in (("x", x), ("y", y), ("t", test)):
        make_store(tmp_path / name, array)
        foreign = zarr.create_array(str(tmp_path / f"{name}z"), shape=array.shape, dtype="f4", chunks=(64, 700))
        foreign[:] = array
    from_stores = StreamingRidge(alpha=50.0).fit(tmp_path / "x", tmp_path / "y").predict(tmp_path / "t")
    opened = [zarr.open_array(str(tmp_path / f"{name}z"), mode="r") for name in "xyt"]
    from_zarr = StreamingRidge(alpha=50.0).fit(*opened[:2]).predict(opened[2])
    lazy = [dask.array.from_array(a, chunks=(100, 600)) for a in (x, y, test)]
    from_dask = StreamingRidge(alpha=50.0).fit(*lazy[:2]).predict(lazy[2])
    for found in (from_stores, from_zarr, from_dask):
        np.testing.assert_allclose(found, expected, atol=1e-5 * y.std())


@pytest.mark.parametrize(("n", "p"), [(400, 700), (700, 400)], ids=["dual", "primal"])
def test_in_memory_and_on_disk_give_the_same_bytes(n, p, tmp_path: Path, small_float32, monkeypatch):
    x, y, test = data(n, p, 30, 2000, dtype=np.float32)
    paths = [make_store(tmp_path / name, array).path for name, array in (("x", x), ("y", y), ("t", test))]
    contents, places = set(), set()
    real = ridge.plan_fit
    for in_memory in (True, False):
        monkeypatch.setattr(ridge, "plan_fit", lambda *a, fits=in_memory, **k: _placed(real(*a, **k), fits))
        fitted = StreamingRidge(alpha=20.0, scratch=tmp_path).fit(paths[0], paths[1])
        places.add(fitted._factor.on_disk)
        out = Store.create(tmp_path / f"p{in_memory}", (30, 2000), "f4", made_of={}, chunk="64KB")
        fitted.predict_into(paths[2], out)
        out.finish()
        contents.add(out.content)
        j = 1
        for i in range(out.row_groups):  # a block that is missing is written alone, and alike
            out.chunk_path(i, j).unlink()
        kept = {path: path.stat().st_mtime_ns for path in (out.path / "c").rglob("*") if path.is_file()}
        fitted.predict_into(paths[2], out)
        assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
        assert out._content_now() == out.content
    assert places == {True, False}
    assert len(contents) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pFalse", "pTrue", "t", "x", "y"]  # no scratch is left


def _placed(planned, in_memory):
    from dataclasses import replace

    return replace(planned, in_memory=in_memory, pass_nbytes=planned.triangle if in_memory else 60_000)


def test_a_refusal_names_a_budget_that_then_works():
    x, y, test = data(300, 2000, 5, 50, dtype=np.float32)
    with pytest.raises(BudgetError, match="needs at least") as refused:
        StreamingRidge(alpha=1.0, budget="20MB").fit(as_matrix(x), as_matrix(y))
    enough = str(refused.value).split('"')[1]
    assert StreamingRidge(alpha=1.0, budget=enough).fit(as_matrix(x), as_matrix(y)).predict(as_matrix(test)).shape == (
        5,
        50,
    )


# Choosing alpha


@pytest.mark.filterwarnings("ignore::leanrecon.errors.LeanreconWarning")
@pytest.mark.parametrize(("n", "p"), [(40, 60), (60, 25)], ids=["dual", "primal"])
def test_leave_one_out_equals_refitting_without_each_row(n, p):
    x, y, _ = data(n, p, 2, 3)
    grid = [0.01, 1.0, 30.0, 900.0]
    fitted = StreamingRidge(alpha="loo", alphas=grid).fit(x, y)
    errors = []
    for alpha in grid:
        left_out = [closed_form(np.delete(x, i, 0), np.delete(y, i, 0), x[i : i + 1], alpha) - y[i] for i in range(n)]
        errors.append(np.mean(np.square(left_out)))
    np.testing.assert_allclose(fitted.loo_errors_, errors, rtol=1e-8)
    assert fitted.alpha_ == grid[int(np.argmin(errors))]


@pytest.mark.parametrize("per_target", [False, True])
@pytest.mark.parametrize(("n", "p"), [(60, 90), (90, 40)], ids=["dual", "primal"])
@pytest.mark.filterwarnings("ignore::leanrecon.errors.LeanreconWarning")
def test_alpha_is_the_one_that_ridgecv_chooses(n, p, per_target):
    x, y, test = data(n, p, 10, 25)
    grid = np.logspace(-2, 4, 13)
    expected = RidgeCV(alphas=grid, alpha_per_target=per_target).fit(x, y)
    fitted = StreamingRidge(alpha="loo", alphas=grid, per_target=per_target).fit(x, y)
    np.testing.assert_allclose(fitted.alpha_, expected.alpha_)
    np.testing.assert_allclose(fitted.predict(test), expected.predict(test), atol=1e-8 * y.std())


def test_random_projections_choose_as_all_targets_would():
    x, y, _ = data(80, 120, 2, 1500)
    grid = np.logspace(0, 4, 9)
    chosen = StreamingRidge(alpha="loo", alphas=grid).fit(x, y).alpha_
    assert chosen == pytest.approx(RidgeCV(alphas=grid).fit(x, y).alpha_)


def test_an_alpha_at_the_end_of_the_grid_warns():
    rng = np.random.default_rng(0)
    with pytest.warns(LeanreconWarning, match="end of its grid"):
        StreamingRidge(alpha="loo", alphas=[1.0, 2.0]).fit(rng.normal(size=(30, 50)), rng.normal(size=(30, 4)))


# Re-standardisation


def test_transductive_is_the_published_formula():
    x, y, test = data(60, 90, 25, 7)
    plain = closed_form(x, y, test, 5.0)
    expected = (plain - plain.mean(axis=0)) / plain.std(axis=0) * y.std(axis=0) + y.mean(axis=0)
    found = StreamingRidge(alpha=5.0, restandardize="transductive").fit(x, y).predict(test)
    np.testing.assert_allclose(found, expected, atol=1e-8 * y.std())


@pytest.mark.parametrize(("n", "p"), [(40, 60), (60, 25)], ids=["dual", "primal"])
def test_inductive_takes_the_moments_of_leave_one_out_predictions(n, p):
    x, y, test = data(n, p, 6, 4)
    left_out = np.vstack([closed_form(np.delete(x, i, 0), np.delete(y, i, 0), x[i : i + 1], 5.0) for i in range(n)])
    plain = closed_form(x, y, test, 5.0)
    expected = (plain - left_out.mean(axis=0)) / left_out.std(axis=0) * y.std(axis=0) + y.mean(axis=0)
    fitted = StreamingRidge(alpha=5.0, restandardize="inductive").fit(x, y)
    np.testing.assert_allclose(fitted.predict(test), expected, atol=1e-7 * y.std())
    np.testing.assert_allclose(fitted.predict(test[:1]), expected[:1], atol=1e-7 * y.std())  # one image will do


# Bad input


def test_bad_input_is_named():
    x, y, test = data(40, 60, 5, 3)
    with pytest.raises(InputError, match="40 rows of betas and 30 rows of targets"):
        StreamingRidge().fit(as_matrix(x), as_matrix(y[:30]))
    fitted = StreamingRidge().fit(as_matrix(x), as_matrix(y))
    with pytest.raises(InputError, match="59 voxels"):
        fitted.predict(as_matrix(test[:, 1:]))
    broken = test.copy()
    broken[2, 5] = np.nan
    with pytest.raises(InputError, match="row 2"):
        fitted.predict(as_matrix(broken))
    broken = x.copy()
    broken[7, 9] = np.nan
    with pytest.raises(InputError, match="column 9"):
        StreamingRidge().fit(as_matrix(broken), as_matrix(y))
    broken[7, 9] = np.inf
    with pytest.raises(InputError, match="row 7, column 9"):
        StreamingRidge().fit(as_matrix(broken), as_matrix(y))
    wrong = y.copy()
    wrong[3, 1] = np.nan
    with pytest.raises(InputError, match="column 1"):
        StreamingRidge().fit(as_matrix(x), as_matrix(wrong)).predict(as_matrix(test))
    with pytest.raises(InputError, match="alpha = 0"):
        StreamingRidge(alpha=0.0).fit(np.repeat(x, 2, axis=0), np.repeat(y, 2, axis=0))
    with pytest.raises(InputError, match="other test betas"):
        StreamingRidge().fit(as_matrix(x), as_matrix(y), test=test).predict(as_matrix(test[:2]))
