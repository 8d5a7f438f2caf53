"""Recipes that follow a paper keep its ridge: linear, of voxels that weigh alike, with the penalties it states."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from leanrecon import kinds
from leanrecon.context import Context
from leanrecon.regression.regressor import Output, RegressionData
from leanrecon.stores import Store, as_matrix
from leanrecon.study.recipes import read_settings

PUBLISHED = {
    "brain-diffuser": {"vdvae": 5e4, "clip-vision": 6e4, "clip-text": 1e5},
    "nsd": {"vdvae": 5e4, "clip": 1e5},
    "sd-ddpm": {"vdvae": 5e4, "clip": 1e5},
    "ntab": {"vdvae": 5e4, "clip": 1e5},
}
"""The alphas of Ozcelik & VanRullen (2023) by recipe and feature space."""


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_penalties_are_those_of_the_paper_and_first_images_are_left_as_they_are(recipe):
    settings, _ = read_settings(recipe)
    assert {name: ridge.alpha for name, ridge in settings.regression.items()} == PUBLISHED[recipe]
    assert settings.tables()["stage1"]["calibrate"] == {"kind": "none"}


@pytest.mark.parametrize(
    ("recipe", "space"), [(recipe, space) for recipe in PUBLISHED if recipe != "ntab" for space in PUBLISHED[recipe]]
)
def test_it_is_a_ridge_of_z_scored_voxels(study, tmp_path, recipe, space):
    settings = read_settings(recipe)[0].regression[space]
    X, Y, T = study(60, 90, m=12)
    store = Store.create(tmp_path / "out.zarr", (12, 23), np.float32, made_of={})
    data = RegressionData(as_matrix(X), as_matrix(Y), as_matrix(T), [""] * 60)
    regressor = kinds.kind_of("regressors", settings)(settings)
    regressor.predict(data, [Output(store, tmp_path / "net")], Context.of("4GB", scratch=tmp_path), {})
    mean, scale = X.mean(axis=0), X.std(axis=0, ddof=1)
    ridge = Ridge(PUBLISHED[recipe][space]).fit((X - mean) / scale, Y)
    expected = ridge.predict((T - mean) / scale)
    if recipe == "brain-diffuser":  # as its scripts give predictions the moments of training
        expected = (expected - expected.mean(axis=0)) / expected.std(axis=0) * Y.std(axis=0) + Y.mean(axis=0)
    # such alphas shrink the predictions of so few rows to next to nothing, so errors are seen beside their own spread
    assert (np.abs(store[0:12] - expected) / expected.std(axis=0)).max() < 1e-3
