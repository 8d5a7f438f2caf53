"""Alignments of a user's own arrays keep scikit-learn's rules, and take test betas from wherever they lie."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from leanrecon.alignment.grams import ROWS
from leanrecon.alignment.pca import GroupPCA
from leanrecon.alignment.procrustes import Procrustes
from leanrecon.alignment.ridge import RidgeMap
from leanrecon.alignment.srm import SRM
from leanrecon.errors import BudgetError, InputError, SettingsError
from leanrecon.stores.store import Store

EVERY = [SRM(k=4, n_iter=3), GroupPCA(k=4), Procrustes(k=4), RidgeMap(alphas=(0.1, 1.0))]


def betas(rows: int = 30) -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    latent = rng.normal(size=(rows, 4))
    return [latent @ rng.normal(size=(4, p)) + rng.normal(size=(rows, p)) + 2 for p in (20, 25)]


def fitted(model, subjects: list[np.ndarray]):
    if isinstance(model, RidgeMap):
        return clone(model).fit(subjects[0], subjects[1][:, :4])
    return clone(model).fit(subjects)


def scores(model, source) -> np.ndarray:
    return model.transform(source) if isinstance(model, RidgeMap) else model.transform([source, None])[0]


@pytest.mark.parametrize("model", EVERY, ids=repr)
def test_a_clone_has_the_parameters_and_not_the_fit(model) -> None:
    copy = clone(fitted(model, betas()))
    assert copy.get_params() == model.get_params()
    with pytest.raises(NotFittedError, match=f"this {type(model).__name__} is not fitted yet"):
        scores(copy, betas()[0])
    assert copy.set_params(budget="3GB").budget == "3GB"
    with pytest.raises(SettingsError, match="has no parameter 'components'.*one of"):
        copy.set_params(budget="2GB", components=3)
    assert copy.budget == "3GB"  # nothing is changed where one name is wrong


def test_it_is_shown_with_the_parameters_that_differ_from_the_defaults() -> None:
    assert repr(SRM(k=4, kind="deterministic")) == "SRM(k=4, kind='deterministic')"
    assert repr(RidgeMap()) == "RidgeMap()"


@pytest.mark.parametrize("model", EVERY, ids=repr)
def test_test_betas_are_read_from_wherever_they_lie(model, tmp_path: Path) -> None:
    import dask.array
    import zarr

    data = betas()
    found = fitted(model, data)
    expected = (data[0] - data[0].mean(axis=0)) @ (found.weights_ if isinstance(model, RidgeMap) else found.weights_[0])
    expected += getattr(found, "offset_", 0)
    store = Store.create(tmp_path / "betas.zarr", data[0].shape, np.float64, made_of={})
    for group in store.missing_row_groups():
        rows = store.group_rows(group)
        store.write_rows(group, data[0][rows.start : rows.stop])
    store.finish()
    for source in (
        data[0],
        data[0].tolist(),
        zarr.array(data[0]),
        dask.array.from_array(data[0], chunks=(7, 9)),
        store,
        str(tmp_path / "betas.zarr"),
    ):
        np.testing.assert_allclose(scores(found, source), expected, atol=1e-10)


class Counted:
    """A matrix that notes how many rows are read at once."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.shape, self.dtype, self.most = values, values.shape, values.dtype, 0

    def __getitem__(self, key: tuple[slice, slice]) -> np.ndarray:
        self.most = max(self.most, key[0].stop - key[0].start)
        return self.values[key]


@pytest.mark.parametrize("model", EVERY, ids=repr)
def test_scores_are_made_panel_by_panel_in_the_budget(model) -> None:
    found = fitted(model, betas())
    many = np.tile(betas()[0], (60, 1))
    source = Counted(many)
    np.testing.assert_allclose(scores(found, source)[-30:], scores(found, many[:30]), atol=1e-10)
    assert 0 < source.most <= ROWS < len(many)
    found.set_params(budget="1MB")
    with pytest.raises(BudgetError, match="bringing betas into the shared space needs at least"):
        scores(found, many)


@pytest.mark.parametrize("model", EVERY, ids=repr)
def test_test_betas_that_are_nan_are_refused(model) -> None:
    data = betas()
    found = fitted(model, data)
    wrong = data[0].copy()
    wrong[7, 3] = np.nan
    with pytest.raises(InputError, match="NaN or infinite in row 7"):
        scores(found, wrong)
