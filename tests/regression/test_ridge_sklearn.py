"""The ridge is an estimator as scikit-learn understands it, and works among its tools."""

import inspect
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
from sklearn.base import clone, is_regressor
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, KFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from sklearn.utils.validation import check_is_fitted

from leanrecon.errors import BudgetError, InputError, LeanreconWarning
from leanrecon.regression.ridge.ridge import StreamingRidge
from leanrecon.regression.ridge.settings import RidgeSettings


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*does not inherit from.*BaseEstimator.*:UserWarning")
@pytest.mark.filterwarnings("ignore::leanrecon.errors.LeanreconWarning")
@parametrize_with_checks(
    [
        StreamingRidge(),
        StreamingRidge(1.0, standardize=False),
        StreamingRidge("loo", standardize=False),
        StreamingRidge(per_target=True),
        StreamingRidge(1.0, restandardize="inductive"),
        StreamingRidge(1.0, restandardize="transductive"),
    ],
    expected_failed_checks=lambda ridge: (
        {"check_methods_subset_invariance": "its predictions depend on the other test rows, by definition"}
        if ridge.restandardize == "transductive"
        else {}
    ),
)
def test_scikit_learn_check(estimator, check):
    check(estimator)


def test_grid_search_finds_what_it_finds_for_scikit_learns_ridge(study):
    X, Y, _ = study(60, 90)
    grid = {"alpha": [0.1, 10.0, 100.0, 1000.0]}
    found, reference = (
        GridSearchCV(ridge, grid, cv=KFold(3)).fit(X, Y)
        for ridge in (StreamingRidge(1.0, standardize=False), Ridge(solver="svd"))
    )
    assert found.best_params_ == reference.best_params_
    np.testing.assert_allclose(found.cv_results_["mean_test_score"], reference.cv_results_["mean_test_score"])


def test_it_works_in_a_pipeline_and_in_cross_validation(study):
    X, Y, _ = study(60, 90)
    found, reference = (
        cross_val_predict(make_pipeline(StandardScaler(), ridge), X, Y, cv=KFold(4))
        for ridge in (StreamingRidge(5.0, standardize=False), Ridge(5.0, solver="svd"))
    )
    np.testing.assert_allclose(found, reference, rtol=1e-8)


def test_a_clone_has_the_settings_and_not_the_fit(study):
    X, Y, _ = study(60, 90)
    ridge = StreamingRidge(3.0, standardize=True, restandardize="inductive", budget="2GB", seed=4).fit(X, Y)
    copy = clone(ridge)
    assert copy.get_params() == ridge.get_params()
    assert not hasattr(copy, "alpha_")
    assert is_regressor(ridge)


def test_a_pickled_ridge_predicts_the_same(study):
    X, Y, T = study(60, 90)
    for ridge in (
        StreamingRidge(3.0, standardize=False).fit(X, Y),
        StreamingRidge(3.0, standardize=False).fit(X, Y, test=T),
    ):
        if ridge._known is None:
            loaded = pickle.loads(pickle.dumps(ridge))
            np.testing.assert_array_equal(loaded.predict(T), ridge.predict(T))


def test_the_score_is_r2(study):
    X, Y, T = study(60, 90)
    Y_test = Ridge(5.0).fit(X, Y).predict(T) + 0.1
    reference = Ridge(3.0, solver="svd").fit(X, Y)
    assert StreamingRidge(3.0, standardize=False).fit(X, Y).score(T, Y_test) == pytest.approx(
        reference.score(T, Y_test)
    )


NO_SKLEARN = """
import sys
import warnings
import numpy as np
from leanrecon.errors import BudgetError, InputError, LeanreconWarning
from leanrecon.regression.ridge.ridge import StreamingRidge
x, y, t = (np.load(path) for path in sys.argv[1:])
from leanrecon.stores import as_matrix
StreamingRidge(3.0, restandardize="inductive", standardize=False).fit(as_matrix(x), as_matrix(y)).predict(as_matrix(t))
print(*sorted({"sklearn", "torch", "dask", "h5py"} & set(sys.modules)))
"""


def test_a_ridge_on_stores_loads_neither_scikit_learn_nor_torch(study, tmp_path):
    paths = []
    for name, array in zip("xyt", study(60, 90), strict=True):
        np.save(tmp_path / f"{name}.npy", array)
        paths.append(str(tmp_path / f"{name}.npy"))
    done = subprocess.run([sys.executable, "-c", NO_SKLEARN, *paths], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == ""


def test_the_defaults_are_those_of_the_settings():
    fields = RidgeSettings.model_fields
    defaults = {name: parameter.default for name, parameter in inspect.signature(StreamingRidge).parameters.items()}
    assert {name: defaults[name] for name in fields if name != "kind"} == {
        name: field.default for name, field in fields.items() if name != "kind"
    }
    assert set(defaults) - set(fields) == {"budget", "seed", "scratch", "device"}  # of the study, not of the regression
    assert StreamingRidge().get_params() == defaults


def test_every_setting_has_its_sentence():
    assert all(field.description and field.description.endswith(".") for field in RidgeSettings.model_fields.values())


def test_it_is_shown_with_the_parameters_that_differ_from_the_defaults():
    assert repr(StreamingRidge()) == "StreamingRidge()"
    shown = StreamingRidge(3.0, standardize=False, alphas=np.array([1.0, 2.0]), budget="2GB")
    assert repr(shown) == "StreamingRidge(alpha=3.0, standardize=False, alphas=array([1., 2.]), budget='2GB')"
    assert repr(make_pipeline(StandardScaler(), StreamingRidge(3.0))).endswith("StreamingRidge(alpha=3.0))])")


def test_the_public_class_is_scikit_learns_own_kind_of_estimator() -> None:
    from sklearn.base import BaseEstimator
    from sklearn.utils.estimator_checks import check_estimator

    from leanrecon.regression.ridge import StreamingRidge as Public

    ridge = Public(alpha=10.0)
    assert isinstance(ridge, BaseEstimator)
    assert repr(ridge) == "StreamingRidge(alpha=10.0)"
    assert "StreamingRidge" in ridge._repr_html_()
    assert clone(ridge).get_params() == ridge.get_params()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LeanreconWarning)
        warnings.filterwarnings("error", message=".*does not inherit from")
        check_estimator(ridge)
    X, y = np.random.default_rng(0).standard_normal((2, 30, 5))
    np.testing.assert_array_equal(ridge.fit(X, y).predict(X), StreamingRidge(alpha=10.0).fit(X, y).predict(X))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(ridge)).predict(X), ridge.predict(X))


def test_planning_and_studies_load_no_scikit_learn() -> None:
    code = "import sys; import leanrecon.regression.ridge.ridge; assert 'sklearn' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_score_counts_rows_by_their_weights(study):
    X, Y, T = study(60, 90)
    Y_test, weights = Ridge(5.0).fit(X, Y).predict(T) + 0.1, np.linspace(0, 3, len(T))
    ridge, reference = StreamingRidge(3.0, standardize=False).fit(X, Y), Ridge(3.0, solver="svd").fit(X, Y)
    assert ridge.score(T, Y_test, weights) == pytest.approx(reference.score(T, Y_test, weights))
    assert ridge.score(T, Y_test, sample_weight=weights) != pytest.approx(ridge.score(T, Y_test))


def test_a_fit_that_fails_leaves_nothing_to_predict_with(study):
    X, Y, T = study(60, 90)
    ridge = StreamingRidge(3.0)
    with pytest.raises(InputError, match="none of the 90 voxels varies"):
        ridge.fit(np.ones_like(X), Y)
    with pytest.raises(NotFittedError):
        check_is_fitted(ridge)
    check_is_fitted(ridge.fit(X, Y))
    ridge.budget = "1MB"
    with pytest.raises(BudgetError):
        ridge.fit(X[:40], Y[:40])
    with pytest.raises(NotFittedError):
        ridge.predict(T)


def test_figures_of_an_earlier_fit_are_forgotten(study):
    X, Y, _ = study(60, 90)
    ridge = StreamingRidge(alphas=[10.0, 100.0, 1000.0]).fit(X, Y)
    assert len(ridge.loo_errors_) == len(ridge.alphas_) == 3
    ridge.set_params(alpha=5.0).fit(X, Y)
    assert not hasattr(ridge, "loo_errors_")
    assert not hasattr(ridge, "alphas_")
    assert ridge.alpha_ == 5.0


@pytest.mark.parametrize("lazy", ["betas", "targets", "both"])
@pytest.mark.parametrize("flat", [False, True], ids=["[n, t]", "[n]"])
def test_arrays_that_are_read_where_they_lie_go_with_any_others(study, lazy: str, flat: bool):
    """One of betas and targets is a Dask or Zarr array or an HDF5 dataset, the other whatever scikit-learn takes."""
    import dask.array
    import zarr

    X, Y, T = study(60, 90)
    y = Y[:, 0] if flat else Y
    expected = StreamingRidge(3.0).fit(X, y).predict(T)
    for kept in (zarr.array, lambda a: dask.array.from_array(a, chunks=17)):
        train = kept(X) if lazy != "targets" else X.tolist()
        targets = kept(y) if lazy != "betas" else y.tolist()
        found = StreamingRidge(3.0).fit(train, targets).predict(T)
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_no_targets_are_refused_wherever_they_lie(study):
    import zarr

    X, _, _ = study(60, 90)
    with pytest.raises(InputError, match="the targets have no columns"):
        StreamingRidge(3.0).fit(zarr.array(X), zarr.zeros(shape=(60, 0), dtype="f8"))
    with pytest.raises(InputError, match="there are no targets"):
        StreamingRidge(3.0).fit(zarr.array(X), None)
