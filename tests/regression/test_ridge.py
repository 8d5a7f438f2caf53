"""Ridge predictions against float64 normal equations, scikit-learn and himalaya."""

import warnings

import dask.array
import numpy as np
import pytest
import zarr
from sklearn.linear_model import Ridge

from leanrecon.errors import LeanreconWarning
from leanrecon.regression.ridge.ridge import StreamingRidge
from leanrecon.stores import RowSubset, Store, as_matrix

SHAPES = [
    pytest.param(90, 150, 40, 23, id="n<p"),
    pytest.param(110, 110, 40, 23, id="n=p"),
    pytest.param(150, 90, 40, 23, id="n>p"),
    pytest.param(150, 20, 700, 23, id="through weights"),
    pytest.param(90, 150, 1, 23, id="one test row, dual"),
    pytest.param(150, 90, 1, 23, id="one test row, primal"),
    pytest.param(90, 150, 40, 1, id="one target"),
    pytest.param(3, 5, 2, 2, id="tiny"),
    pytest.param(2, 9, 1, 1, id="two rows"),
    pytest.param(60, 1, 5, 4, id="one voxel"),
]


@pytest.mark.parametrize("known", [False, True], ids=["any test betas", "known test betas"])
@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("far", [0, 1000])
@pytest.mark.parametrize(("n", "p", "m", "t"), SHAPES)
def test_predictions_equal_the_closed_form_and_scikit_learn(
    study, closed_form, off_by, n, p, m, t, far, standardize, known
):
    X, Y, T = study(n, p, m=m, t=t, far=far)
    fitted = StreamingRidge(alpha=7.0, standardize=standardize).fit(X, Y, test=T if known else None)
    found = fitted.predict(T)
    assert found.dtype == np.float64
    assert off_by(found, closed_form(X, Y, T, 7.0, standardize=standardize), Y) < 1e-9
    scale = X.std(axis=0, ddof=1) if standardize else 1.0
    reference = Ridge(alpha=7.0, solver="svd").fit(X / scale, Y).predict(T / scale)
    assert off_by(found, reference.reshape(m, t), Y) < 1e-9


@pytest.mark.parametrize("known", [False, True], ids=["any test betas", "known test betas"])
@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize(("far", "tolerance"), [(0, 3e-5), (100, 5e-5), (1000, 1e-4)])
@pytest.mark.parametrize(("n", "p", "m", "t"), SHAPES)
@pytest.mark.usefixtures("in_float32")
def test_float32_predictions_are_off_by_less_than_a_ten_thousandth_of_the_spread(
    study, closed_form, off_by, n, p, m, t, far, tolerance, standardize, known
):
    X, Y, T = study(n, p, m=m, t=t, far=far, dtype=np.float32)
    fitted = StreamingRidge(alpha=30.0, standardize=standardize).fit(X, Y, test=T if known else None)
    found = fitted.predict(T)
    assert found.dtype == np.float32
    assert off_by(found, closed_form(X, Y, T, 30.0, standardize=standardize), Y) < tolerance


@pytest.mark.parametrize(("n", "p"), [(90, 150), (150, 90)])
@pytest.mark.parametrize("far", [0, 1000])
def test_float32_betas_and_targets_are_solved_in_float64(study, closed_form, off_by, n, p, far):
    X, Y, T = study(n, p, far=far, dtype=np.float32)
    found = StreamingRidge(alpha=1e-3, standardize=False).fit(X, Y).predict(T)  # hopeless in float32
    assert off_by(found, closed_form(X, Y, T, 1e-3), Y) < 1e-4


@pytest.mark.parametrize(("n", "p"), [(90, 150), (150, 90)])
def test_predictions_equal_himalayas(study, off_by, n, p):
    himalaya = pytest.importorskip("himalaya.ridge")
    X, Y, T = study(n, p)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = himalaya.Ridge(alpha=20.0, fit_intercept=True, solver="svd").fit(X, Y).predict(T)
    assert off_by(StreamingRidge(alpha=20.0, standardize=False).fit(X, Y).predict(T), reference, Y) < 1e-9


@pytest.mark.parametrize(("n", "p"), [(90, 150), (150, 90)])
def test_without_penalty_it_is_least_squares(study, off_by, n, p):
    X, Y, T = study(n, p)
    centred, mean = X - X.mean(axis=0), Y.mean(axis=0)
    least_norm, *_ = np.linalg.lstsq(centred, Y - mean, rcond=1e-12)
    found = StreamingRidge(alpha=0.0, standardize=False).fit(X, Y).predict(T)
    assert off_by(found, mean + (T - X.mean(axis=0)) @ least_norm, Y) < 1e-8


def test_a_huge_penalty_predicts_the_train_mean(study):
    X, Y, T = study(90, 150)
    np.testing.assert_allclose(
        StreamingRidge(alpha=1e15, standardize=False).fit(X, Y).predict(T), np.tile(Y.mean(axis=0), (40, 1))
    )


@pytest.mark.parametrize(("n", "p"), [(90, 150), (150, 90)])
def test_one_target_is_predicted_in_the_form_it_was_given(study, closed_form, n, p):
    X, Y, T = study(n, p, t=1)
    column, flat = (
        StreamingRidge(1.0, standardize=False).fit(X, Y).predict(T),
        StreamingRidge(1.0, standardize=False).fit(X, Y[:, 0]).predict(T),
    )
    assert column.shape == (40, 1)
    assert flat.shape == (40,)
    np.testing.assert_array_equal(column[:, 0], flat)
    np.testing.assert_allclose(column, closed_form(X, Y, T, 1.0), rtol=1e-9)
    np.testing.assert_array_equal(StreamingRidge(1.0, standardize=False).fit(as_matrix(X), Y[:, 0]).predict(T), flat)


@pytest.mark.parametrize("alpha", [0.0, 5.0])
@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize(("n", "p"), [(90, 150), (150, 90)])
def test_voxels_that_do_not_vary_are_left_out_and_counted(study, off_by, n, p, alpha, standardize):
    X, Y, T = study(n, p)
    X[:, 3], X[:, 11], X[:, 12], X[:, 80] = 0.0, 0.1, np.nan, np.nan
    T[:, 12] = np.nan  # the mask is that of training: what T holds there does not count
    kept = np.setdiff1d(np.arange(p), [3, 11, 12, 80])
    with pytest.warns(
        LeanreconWarning, match=r"2 constant \(voxel 3 first\) and 2 NaN in every row \(voxel 12 first\)"
    ):
        fitted = StreamingRidge(alpha, standardize=standardize).fit(X, Y)
    reference = StreamingRidge(alpha, standardize=standardize).fit(X[:, kept], Y)
    assert (fitted.left_out_, reference.left_out_) == (4, 0)
    assert off_by(fitted.predict(T), reference.predict(T[:, kept]), Y) < 1e-9


@pytest.mark.parametrize(("n", "p"), [(90, 150), (150, 90)])
def test_a_constant_target_is_predicted_as_that_constant(study, n, p):
    X, Y, T = study(n, p, far=1000)
    Y[:, 4], Y[:, 9] = 0.1, 0.0
    found = StreamingRidge(1.0, standardize=False).fit(X, Y).predict(T)
    np.testing.assert_allclose(found[:, 4], 0.1, rtol=1e-12)
    np.testing.assert_allclose(found[:, 9], 0, atol=1e-9)  # beside targets a thousand away


@pytest.mark.parametrize(("n", "p"), [(90, 150), (150, 40)], ids=["through hat matrices", "through weights"])
@pytest.mark.parametrize("kind", ["none", "inductive", "transductive"])
def test_many_test_rows_are_predicted_in_turns(study, closed_form, off_by, constants, n, p, kind):
    constants(TEST_ROWS=256)
    X, Y, T = study(n, p, m=1000)
    fitted = StreamingRidge(alpha=3.0, restandardize=kind, standardize=False).fit(
        X, Y, test=T
    )  # too many to be known at fit
    found = fitted.predict(T)
    if kind == "none":
        assert off_by(found, closed_form(X, Y, T, 3.0), Y) < 1e-9
    if kind != "transductive":
        alone = np.vstack([fitted.predict(T[a : a + 100]) for a in range(0, 1000, 100)])
        assert off_by(found, alone, Y) < 1e-9


@pytest.mark.parametrize(("n", "p"), [(200, 300), (300, 200)])
def test_rows_of_a_fold_predict_as_a_refit_on_them_does(study, stored, off_by, n, p):
    X, Y, _ = study(n, p)
    train = np.sort(np.random.default_rng(0).choice(n, n // 2, replace=False))
    test = np.setdiff1d(np.arange(n), train)
    x, y = (as_matrix(stored(a, name, chunk="10kB")) for a, name in ((X, "x.zarr"), (Y, "y.zarr")))
    expected = StreamingRidge(2.0, standardize=False).fit(X[train], Y[train]).predict(X[test])
    for known in (None, RowSubset(x, test)):
        fold = StreamingRidge(2.0, standardize=False).fit(RowSubset(x, train), RowSubset(y, train), test=known)
        assert off_by(fold.predict(RowSubset(x, test)), expected, Y) < 1e-10


@pytest.mark.parametrize(("n", "p"), [(300, 1100), (1100, 300)])
def test_every_source_gives_the_same_predictions(study, stored, off_by, tmp_path, n, p):
    arrays = study(n, p, t=1100, dtype=np.float32)
    foreign, dasks = [], []
    for name, array in zip("xyt", arrays, strict=True):
        compressed = zarr.create_array(
            str(tmp_path / f"{name}.foreign"), shape=array.shape, dtype="f4", chunks=(500, 400)
        )
        compressed[:] = array
        assert compressed.compressors
        foreign.append(zarr.open_array(str(tmp_path / f"{name}.foreign"), mode="r"))
        dasks.append(dask.array.from_array(array, chunks=(150, 600)))
    paths = [stored(array, f"{name}.zarr", chunk="1MB") for name, array in zip("xyt", arrays, strict=True)]
    small = [
        Store.open(stored(array, f"{name}.small", chunk="60kB")) for name, array in zip("xyt", arrays, strict=True)
    ]
    opened = [zarr.open_array(str(path), mode="r") for path in paths]
    predictions = [
        StreamingRidge(9.0, standardize=False).fit(x, y).predict(t)
        for x, y, t in (arrays, foreign, dasks, paths, [str(p) for p in paths], small, opened, map(as_matrix, arrays))
    ]
    for found in predictions:
        assert found.dtype == np.float32
        assert off_by(found, predictions[0], arrays[1]) < 1e-5
    assert predictions[3].tobytes() == predictions[4].tobytes() == predictions[6].tobytes()  # the same chunks


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.float16])
@pytest.mark.parametrize("float64_order", [3072, 0])
def test_betas_and_targets_of_other_types(study, closed_form, off_by, constants, dtype, float64_order):
    constants(FLOAT64_ORDER=float64_order)
    X, Y, T = ((a * 10 + 100).round().astype(dtype) for a in study(90, 150))
    expected = closed_form(X, Y, T, 1000.0)
    for x, y, t in ((X, Y, T), map(as_matrix, (X, Y, T)), map(dask.array.from_array, (X, Y, T))):
        assert off_by(StreamingRidge(1000.0, standardize=False).fit(x, y, test=t).predict(t), expected, Y) < 3e-5


def test_test_betas_known_at_fit_may_be_a_list_or_integers(study):
    X, Y, T = ((a * 10).round().astype(int) for a in study(30, 50, m=4))
    for test in (T, T.tolist()):
        found = StreamingRidge(1.0, standardize=False).fit(X, Y, test=test).predict(test)
        np.testing.assert_allclose(found, StreamingRidge(1.0, standardize=False).fit(X, Y).predict(T), rtol=1e-9)


def test_other_targets_share_the_factor(study, closed_form, off_by):
    X, Y, T = study(90, 150)
    others = Y[:, ::-1] * 2 + 5
    for known in (None, T):
        fitted = StreamingRidge(3.0, standardize=False).fit(X, Y, test=known)
        assert off_by(fitted.with_targets(others).predict(T), closed_form(X, others, T, 3.0), others) < 1e-9
        assert off_by(fitted.predict(T), closed_form(X, Y, T, 3.0), Y) < 1e-9


def test_blocks_cover_the_predictions_and_only_the_wanted_ones_are_made(study):
    X, Y, T = study(90, 150, t=100)
    fitted = StreamingRidge(3.0, standardize=False).fit(X, Y)
    whole = fitted.predict(T)
    found = np.full_like(whole, np.nan)
    for rows, columns, values in fitted.predict_blocks(T, block=16, wanted=[6, 1]):
        found[rows.start : rows.stop, columns.start : columns.stop] = values
    np.testing.assert_allclose(found[:, 16:32], whole[:, 16:32], rtol=1e-12)
    np.testing.assert_allclose(found[:, 96:], whole[:, 96:], rtol=1e-12)
    assert np.isnan(np.delete(found, [*range(16, 32), *range(96, 100)], axis=1)).all()
    assert list(fitted.predict_blocks(T, wanted=[])) == []
