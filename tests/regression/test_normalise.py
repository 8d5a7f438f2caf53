"""Voxel moments against NumPy in float64, and betas centred with them."""

import dask.array
import numpy as np
import pytest

from leanrecon.errors import InputError
from leanrecon.regression.normalise import Centred, moments
from leanrecon.stores.matrix import RowSubset, as_matrix


def draw(n, p, far=0.0, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, p)) * rng.uniform(0.1, 10, p) + far * rng.standard_normal(p)).astype(dtype)


def reference(betas):
    betas = betas.astype(np.float64)
    return betas.mean(axis=0), betas.std(axis=0, ddof=1)


@pytest.mark.parametrize("n", [2, 255, 256, 257, 700])
@pytest.mark.parametrize("p", [1, 30, 5000])
def test_moments_of_every_column(n, p):
    betas = draw(n, p)
    mean, std = reference(betas)
    found = moments(as_matrix(betas))
    np.testing.assert_allclose(found.mean, mean, atol=1e-13)
    np.testing.assert_allclose(found.std, std, rtol=1e-11)
    assert found.rows == n
    assert found.usable.all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("far", [1e2, 1e4, 1e6])
def test_a_mean_of_a_million_standard_deviations_costs_no_precision(dtype, far):
    betas = draw(600, 50, far, dtype)
    mean, std = reference(betas)
    found = moments(as_matrix(betas))
    assert (np.abs(found.mean - mean) / std).max() < (1e-7 if dtype == np.float32 else 1e-8)
    np.testing.assert_allclose(found.std, std, rtol=1e-6 if dtype == np.float32 else 1e-9)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, bool])
def test_moments_of_integers(dtype):
    betas = np.random.default_rng(1).integers(0, 256, (400, 20)).astype(dtype)
    mean, std = reference(betas)
    found = moments(as_matrix(betas))
    np.testing.assert_allclose(found.mean, mean, rtol=1e-13)
    np.testing.assert_allclose(found.std, std, rtol=1e-12)


def test_half_precision_betas_do_not_overflow():
    betas = (draw(400, 20) * 1000).astype(np.float16)
    mean, std = reference(betas)
    found = moments(as_matrix(betas))
    np.testing.assert_allclose(found.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(found.std, std, rtol=1e-12)


def test_the_betas_are_left_as_they_were():
    betas = draw(300, 20)
    before = betas.copy()
    moments(as_matrix(betas))
    np.testing.assert_array_equal(betas, before)


def test_the_same_moments_wherever_the_betas_lie(stored):
    betas = draw(600, 3000, 5, np.float32)
    whole = moments(as_matrix(betas))
    for source in (
        stored(betas, "large.zarr"),
        stored(betas, "small.zarr", chunk="100kB"),
        dask.array.from_array(betas),
    ):
        found = moments(as_matrix(source))
        np.testing.assert_allclose(found.mean, whole.mean, atol=1e-12)
        np.testing.assert_allclose(found.std, whole.std, rtol=1e-12)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e-30, 12345.678, 1e30])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_constant_voxel_has_a_standard_deviation_of_exactly_zero(value, dtype):
    betas = draw(700, 4, dtype=dtype)
    betas[:, 2] = value
    found = moments(as_matrix(betas))
    assert found.std[2] == 0
    np.testing.assert_array_equal(found.usable, [True, True, False, True])


def test_a_voxel_that_varies_in_its_last_digit_is_no_constant():
    betas = np.full((300, 1), 12345.678, np.float32)
    betas[7] = np.nextafter(betas[7], np.float32(np.inf))
    found = moments(as_matrix(betas))
    np.testing.assert_allclose(found.std, reference(betas)[1], rtol=1e-6)
    assert found.usable.all()


def test_one_row_varies_nowhere():
    assert not moments(as_matrix(draw(1, 5))).usable.any()


def test_a_voxel_that_is_nan_everywhere_is_absent():
    betas = draw(600, 6)
    betas[:, [0, 4]] = np.nan
    found = moments(as_matrix(betas))
    np.testing.assert_array_equal(found.absent, [True, False, False, False, True, False])
    np.testing.assert_array_equal(found.usable, ~found.absent)
    np.testing.assert_allclose(found.std[1:4], reference(betas)[1][1:4])


@pytest.mark.parametrize("rows", [[0], [599], [300, 500], list(range(1, 600))])
def test_nan_in_some_rows_is_refused_by_column_and_row(rows):
    betas = draw(600, 5000)
    betas[rows, 4321] = np.nan
    betas[:, 4400] = np.nan  # outside of the mask: that is fine
    expected = rf"betas hold NaN: 1 of 5000 columns .* column 4321 in {len(rows)} rows, row {rows[0]} first"
    with pytest.raises(InputError, match=expected):
        moments(as_matrix(betas))


@pytest.mark.parametrize("value", [np.inf, -np.inf])
@pytest.mark.parametrize("row", [0, 555])
def test_infinite_values_are_refused_by_row_and_column(value, row):
    betas = draw(600, 5000)
    betas[row, 4321] = value
    betas[:, 4400] = np.nan
    with pytest.raises(InputError, match=f"targets are infinite at row {row}, column 4321"):
        moments(as_matrix(betas), what="targets")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [False, True])
def test_betas_are_centred_as_they_are_read(dtype, scale):
    betas, test = draw(600, 40, 100), draw(50, 40, 100)
    betas[:, 3], betas[:, 7] = 5, np.nan
    test[:, 7] = np.nan
    train = moments(as_matrix(betas))
    mean, std = reference(betas)
    std[3] = np.nan
    expected = np.nan_to_num((test - mean) / (std if scale else std / std))  # what is left out reads 0
    centred = Centred(as_matrix(test), train, scale=scale)
    found = centred.read(range(5, 50), range(2, 40), np.empty(45 * 38 * 8, np.uint8), dtype)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected[5:50, 2:40], atol=1e-4 if dtype == np.float32 else 1e-12)


def test_rows_of_a_subset_are_those_rows(stored):
    betas = draw(900, 30)
    rows = np.sort(np.random.default_rng(0).choice(900, 500, replace=False))
    subset = RowSubset(as_matrix(stored(betas, "betas.zarr", chunk="20kB")), rows)
    mean, std = reference(betas[rows])
    found = moments(subset)
    np.testing.assert_allclose(found.mean, mean, atol=1e-13)
    np.testing.assert_allclose(found.std, std, rtol=1e-11)
