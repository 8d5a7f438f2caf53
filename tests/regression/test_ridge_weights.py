"""The weights of a ridge against scikit-learn's, and the store they are written to."""

from pathlib import Path

import numpy as np
import pytest
import zarr
from sklearn.linear_model import Ridge

from leanrecon.errors import BudgetError, InputError, LeanreconWarning, SettingsError, StoreError
from leanrecon.regression.ridge.ridge import StreamingRidge
from leanrecon.stores import RowSubset, as_matrix

FORMS = [pytest.param(60, 90, id="dual"), pytest.param(90, 60, id="primal")]


def all_weights(fitted):
    blocks = list(fitted.weight_blocks())
    return np.vstack([w for _, w, _ in blocks]), np.concatenate([b for *_, b in blocks])


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("far", [3, 1000])
@pytest.mark.parametrize(("n", "p"), FORMS)
def test_weights_and_intercepts_are_scikit_learns(study, n, p, far, standardize):
    X, Y, _ = study(n, p, far=far, t=700)  # 512 targets a block
    fitted = StreamingRidge(5.0, standardize=standardize).fit(X, Y)
    assert [columns for columns, _, _ in fitted.weight_blocks()] == [range(512), range(512, 700)]
    coef, intercept = all_weights(fitted)
    scale = X.std(axis=0, ddof=1) if standardize else 1.0
    reference = Ridge(5.0, solver="svd").fit(X / scale, Y)
    np.testing.assert_allclose(coef, reference.coef_ / scale, atol=1e-10)
    np.testing.assert_allclose(intercept, reference.intercept_, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("n", "p"), FORMS)
@pytest.mark.usefixtures("in_float32")
def test_float32_weights_predict_as_the_ridge_does(study, closed_form, off_by, n, p):
    X, Y, T = study(n, p, far=100, dtype=np.float32)
    coef, intercept = all_weights(StreamingRidge(30.0, standardize=False).fit(X, Y))
    assert coef.dtype == np.float32
    found = T.astype(np.float64) @ coef.T.astype(np.float64) + intercept
    assert off_by(found, closed_form(X, Y, T, 30.0), Y) < 3e-4


@pytest.mark.parametrize(("n", "p"), FORMS)
def test_voxels_that_are_left_out_have_no_weight(study, n, p):
    X, Y, _ = study(n, p)
    X[:, 7], X[:, 9] = 3.0, np.nan
    with pytest.warns(LeanreconWarning, match=r"left out of .*: 1 constant \(voxel 7\)"):
        ridge = StreamingRidge(5.0, standardize=True).fit(X, Y)
    coef, intercept = all_weights(ridge)
    assert (coef[:, [7, 9]] == 0).all()
    assert np.isfinite(coef).all()
    assert np.isfinite(intercept).all()


@pytest.mark.parametrize(("n", "p"), FORMS)
def test_written_weights_are_read_as_any_zarr_array(study, tmp_path, n, p):
    X, Y, T = study(n, p, t=700)
    fitted = StreamingRidge(5.0, standardize=False).fit(X, Y)
    fitted.write_weights(tmp_path / "w.zarr")
    written = zarr.open_array(str(tmp_path / "w.zarr"), mode="r")[:]
    assert written.shape == (700, p + 1)
    np.testing.assert_allclose(T @ written[:, :p].T + written[:, p], fitted.predict(T), atol=2e-5)


@pytest.mark.parametrize(("n", "p"), FORMS)
def test_writing_goes_on_where_it_was_killed_and_ends_with_the_same_bytes(study, stored, tmp_path, monkeypatch, n, p):
    X, Y, _ = study(n, p, t=1300, dtype=np.float32)
    fitted = StreamingRidge(5.0, standardize=False).fit(stored(X, "x.zarr"), stored(Y, "y.zarr"))
    first = fitted.write_weights(tmp_path / "w.zarr")
    files = {file: file.read_bytes() for file in (Path(first.path) / "c").rglob("*") if file.is_file()}
    assert first.row_groups == 6
    first.discard([(1, 0), (5, 0)])
    kept = {file: file.stat().st_mtime_ns for file in files if file.exists()}
    formed = []
    real = StreamingRidge.weight_blocks
    monkeypatch.setattr(
        StreamingRidge, "weight_blocks", lambda self, wanted: formed.extend(wanted) or real(self, wanted)
    )
    again = fitted.write_weights(tmp_path / "w.zarr")
    assert formed == [range(512), range(1024, 1300)]  # only the blocks that lack something
    assert again.complete
    assert {file: file.read_bytes() for file in files} == files
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    formed.clear()
    fitted.write_weights(tmp_path / "w.zarr")
    assert formed == []


@pytest.mark.parametrize("where", ["arrays", "stores", "folds"])
def test_weights_of_other_data_are_refused_by_what_differs(study, stored, tmp_path, where):
    X, Y, _ = study(60, 90)
    other_X, other_Y = X[::-1].copy(), Y.copy()  # the same moments, other rows
    other_Y[3, 3] += 1

    def fit(x, y, alpha=5.0, standardize=False):
        if where == "stores":
            x, y = (stored(a, f"{np.abs(a[0]).sum()}-{a.sum()}.zarr") for a in (x, y))
        if where == "folds":
            x, y = (RowSubset(as_matrix(a), np.arange(0, 60, 3)) for a in (x, y))
        return StreamingRidge(alpha, standardize=standardize).fit(x, y)

    path = tmp_path / "w.zarr"
    written = fit(X, Y).write_weights(path)
    for other, differs in (
        (fit(X, Y, alpha=6.0), r"alpha was 5\.0, is 6\.0"),
        (fit(X, Y, standardize=True), "standardize was false, is true"),
        (fit(other_X, Y), "betas was"),
        (fit(X, other_Y), "targets was"),
    ):
        with pytest.raises(StoreError, match=differs):
            other.write_weights(path)
    assert fit(X.copy(), Y.copy()).write_weights(path).content == written.content
    replaced = fit(X, other_Y).write_weights(path, overwrite=True)
    assert replaced.content != written.content


def test_the_same_values_elsewhere_are_the_same_data(study, tmp_path):
    import dask.array

    X, Y, _ = study(60, 90)
    StreamingRidge(5.0, standardize=False).fit(X, Y).write_weights(tmp_path / "w.zarr")
    lazy = StreamingRidge(5.0, standardize=False).fit(
        dask.array.from_array(X, chunks=7), dask.array.from_array(Y, chunks=20)
    )
    lazy.write_weights(tmp_path / "w.zarr")


def test_other_rows_of_the_same_store_are_other_data(study, stored, tmp_path):
    X, Y, _ = study(60, 90)
    x, y = as_matrix(stored(X, "x.zarr")), as_matrix(stored(Y, "y.zarr"))
    for k, start in enumerate((0, 1)):
        rows = np.arange(start, 60, 2)
        fitted = StreamingRidge(5.0, standardize=False).fit(RowSubset(x, rows), RowSubset(y, rows))
        if k == 0:
            fitted.write_weights(tmp_path / "w.zarr")
            continue
        with pytest.raises(StoreError, match="betas was"):
            fitted.write_weights(tmp_path / "w.zarr")


@pytest.mark.filterwarnings("ignore::leanrecon.errors.LeanreconWarning")
def test_without_the_factor_there_are_no_weights(study):
    X, Y, T = study(60, 90)
    for fitted in (
        StreamingRidge(1.0, standardize=False).fit(X, Y, test=T),
        StreamingRidge("loo", per_target=True, standardize=False).fit(X, Y),
    ):
        with pytest.raises(SettingsError, match="the factor was not kept"):
            next(fitted.weight_blocks())


def test_weights_that_do_not_fit_are_refused(study, nothing_held):
    X, Y, _ = study(60, 90, t=700)
    fitted = StreamingRidge(5.0, standardize=False).fit(X, Y)
    fitted.budget = "12MB"
    with pytest.raises(BudgetError, match="the weights needs? at least"):
        next(fitted.weight_blocks())


@pytest.mark.parametrize(("n", "p"), FORMS)
def test_weights_of_nan_targets_are_refused_by_column(study, n, p):
    X, Y, _ = study(n, p, t=700)
    Y[5, 600] = np.nan
    fitted = StreamingRidge(1.0, standardize=False).fit(as_matrix(X), as_matrix(Y))
    with pytest.raises(InputError, match="target column 600"):
        list(fitted.weight_blocks())
