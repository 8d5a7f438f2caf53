"""What a ridge refuses, and how it names it."""

import dask.array
import numpy as np
import pytest
from sklearn.exceptions import NotFittedError

from leanrecon.errors import InputError, LeanreconError, SettingsError, StoreError
from leanrecon.regression.ridge.ridge import StreamingRidge
from leanrecon.stores import RowSubset, Store, as_matrix

FORMS = [
    pytest.param(60, 90, 10, id="dual"),
    pytest.param(90, 60, 10, id="primal"),
    pytest.param(150, 20, 700, id="weights"),
]


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"alpha": -1.0}, r"alpha = -1\.0\. Expected a number, 0 or more, or \"loo\""),
        ({"alpha": float("nan")}, "alpha = nan"),
        ({"alpha": float("inf")}, "alpha = inf"),
        ({"alpha": "low"}, "alpha = 'low'"),
        ({"alpha": None}, "alpha = None"),
        ({"alpha": "loo", "alphas": []}, r"alphas = \[\]"),
        ({"alpha": "loo", "alphas": [1.0, 0.0]}, r"alphas = \[1\.0, 0\.0\]. Expected a list of numbers above 0"),
        ({"alpha": "loo", "alphas": [1.0, float("nan")]}, "alphas = "),
        ({"alpha": 1.0, "per_target": True}, 'per_target chooses an alpha .* alpha = "loo"'),
        ({"restandardize": "zscore"}, "restandardize = 'zscore'. Expected one of none, inductive, transductive"),
        ({"budget": "4 elephants"}, "'4 elephants' is not a size"),
    ],
)
def test_settings_out_of_range_are_refused(study, settings, found):
    X, Y, _ = study(20, 30)
    with pytest.raises(SettingsError, match=found):
        StreamingRidge(**settings).fit(X, Y)


def test_an_unknown_parameter_is_refused_with_the_known_ones():
    with pytest.raises(SettingsError, match="no parameter 'lambda'. Expected one of alpha, standardize, "):
        StreamingRidge(1.0, standardize=False).set_params(**{"lambda": 3})


@pytest.mark.parametrize("lazy", [as_matrix, dask.array.from_array])
def test_rows_that_differ_in_number_are_refused(study, lazy):
    X, Y, _ = study(60, 90)
    with pytest.raises(InputError, match="60 rows of betas and 59 rows of targets. Expected the same number of each"):
        StreamingRidge(1.0, standardize=False).fit(lazy(X), lazy(Y[:-1]))
    with pytest.raises(InputError, match="60 rows of betas and 59 rows of targets"):
        StreamingRidge(1.0, standardize=False).fit(X, Y).with_targets(Y[:-1])


@pytest.mark.parametrize("known", [False, True])
def test_test_betas_of_another_number_of_voxels_are_refused(study, known):
    X, Y, T = study(60, 90)
    with pytest.raises(InputError, match="test betas of 89 voxels. Expected 90, as in training"):
        if known:
            StreamingRidge(1.0, standardize=False).fit(as_matrix(X), as_matrix(Y), test=as_matrix(T[:, 1:]))
        StreamingRidge(1.0, standardize=False).fit(as_matrix(X), as_matrix(Y)).predict(as_matrix(T[:, 1:]))


def test_other_test_betas_than_those_of_the_fit_are_refused(study):
    X, Y, T = study(60, 90)
    fitted = StreamingRidge(1.0, standardize=False).fit(X, Y, test=T)
    with pytest.raises(InputError, match="fitted for other test betas alone. Leave out `test` in fit to predict any"):
        fitted.predict(T[::-1])
    folds = [RowSubset(as_matrix(T), rows) for rows in (np.arange(5), np.arange(6))]
    with pytest.raises(InputError, match="fitted for other test betas"):
        StreamingRidge(1.0, standardize=False).fit(X, Y, test=folds[0]).predict(folds[1])


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("wrap", [np.asarray, as_matrix])
@pytest.mark.parametrize(("n", "p", "m"), FORMS)
def test_nan_in_test_betas_is_refused_by_row(study, n, p, m, wrap, known, value):
    X, Y, T = study(n, p, m=m)
    T[m - 3, 5] = value
    with pytest.raises(InputError, match=f"test betas hold NaN or infinite values in row {m - 3}"):
        StreamingRidge(1.0, standardize=False).fit(X, Y, test=wrap(T) if known else None).predict(wrap(T))


@pytest.mark.filterwarnings("ignore::leanrecon.errors.LeanreconWarning")
@pytest.mark.parametrize(("n", "p", "m"), FORMS[:2])
def test_nan_in_test_betas_is_refused_by_row_with_an_alpha_for_every_target(study, n, p, m):
    X, Y, T = study(n, p, m=m)
    T[7, 5] = np.nan
    with pytest.raises(InputError, match="test betas hold NaN or infinite values in row 7"):
        StreamingRidge("loo", per_target=True, standardize=False).fit(X, Y).predict(T)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
@pytest.mark.parametrize("row", [0, 57])
@pytest.mark.parametrize(("n", "p", "m"), FORMS)
def test_nan_in_targets_is_refused_by_column(study, n, p, m, row, value):
    X, Y, T = study(n, p, m=m, t=40)
    Y[row, 33] = value
    fitted = StreamingRidge(1.0, standardize=False).fit(as_matrix(X), as_matrix(Y))
    with pytest.raises(InputError, match="target column 33 holds NaN or infinite values. Expected finite targets"):
        fitted.predict(T)


def test_nan_in_targets_held_as_an_array_is_refused_at_once(study):
    X, Y, _ = study(60, 90)
    Y[3, 5] = np.nan
    with pytest.raises(ValueError, match="Input y contains NaN"):  # scikit-learn's own words
        StreamingRidge(1.0, standardize=False).fit(X, Y)


def test_nan_in_betas_is_refused_by_column(study):
    X, Y, _ = study(60, 90)
    X[3, 5] = np.nan
    with pytest.raises(InputError, match="column 5 in 1 rows, row 3 first"):
        StreamingRidge(1.0, standardize=False).fit(X, Y)


def test_betas_that_vary_nowhere_are_refused():
    with pytest.raises(InputError, match="none of the 4 voxels varies over the 10 train rows"):
        StreamingRidge(1.0, standardize=False).fit(np.ones((10, 4)), np.arange(10.0))
    with pytest.raises(InputError, match="none of the 4 voxels varies over the 1 train rows"):
        StreamingRidge(1.0, standardize=False).fit(as_matrix(np.arange(4.0)[None]), as_matrix(np.ones((1, 1))))


def test_without_penalty_betas_that_repeat_themselves_are_refused_with_an_alpha_that_will_do(study):
    X, Y, T = study(90, 60)
    X[:, 7] = 2 * X[:, 9] - X[:, 20]
    with pytest.raises(InputError, match="alpha = 0 is too small for these betas: .* singular") as refused:
        StreamingRidge(0.0, standardize=False).fit(X, Y)
    alpha = float(refused.value.todo.removeprefix("raise alpha to ").removesuffix(" or more"))
    assert np.isfinite(StreamingRidge(alpha, standardize=False).fit(X, Y).predict(T)).all()


def test_a_store_of_another_shape_takes_no_predictions(study, tmp_path):
    X, Y, T = study(60, 90)
    store = Store.create(tmp_path / "out.zarr", (40, 24), np.float32, made_of={})
    with pytest.raises(InputError, match=r"a store of \(40, 24\) can't take predictions of 40 rows"):
        StreamingRidge(1.0, standardize=False).fit(X, Y).predict_into(T, store)


def test_what_is_no_matrix_is_refused(study, tmp_path):
    X, Y, _ = study(60, 90)
    with pytest.raises(InputError, match=r"\(60,\) is not a matrix"):
        StreamingRidge(1.0, standardize=False).fit(dask.array.from_array(X[:, 0]), as_matrix(Y))
    with pytest.raises(StoreError, match="there is no store at"):
        StreamingRidge(1.0, standardize=False).fit(tmp_path / "nothing.zarr", as_matrix(Y))


def test_damage_to_train_betas_or_targets_is_found(study, stored):
    X, Y, T = study(300, 90, t=70, dtype=np.float32)
    x, y = stored(X, "x.zarr"), stored(Y, "y.zarr")
    for path, reads in (
        (x, lambda: StreamingRidge(1.0, standardize=False).fit(x, y)),
        (y, lambda: StreamingRidge(1.0, standardize=False).fit(x, y).predict(T)),
    ):
        chunk = next(file for file in sorted((path / "c").rglob("*")) if file.is_file())
        data = bytearray(chunk.read_bytes())
        data[100] ^= 1
        chunk.write_bytes(data)
        with pytest.raises(StoreError, match="does not match its checksum. Run `leanrecon verify"):
            reads()
        data[100] ^= 1
        chunk.write_bytes(data)


def test_a_ridge_that_is_not_fitted_says_so(study):
    for use in (
        StreamingRidge(1.0, standardize=False).predict,
        lambda X: next(StreamingRidge(1.0, standardize=False).weight_blocks()),
    ):
        with pytest.raises(NotFittedError, match="call fit first"):
            use(study(20, 30)[0])


def test_every_refusal_is_one_that_the_command_line_prints():
    assert issubclass(InputError, LeanreconError)
    assert issubclass(SettingsError, LeanreconError)
