"""Reduced betas are the same data: equal products, and a first layer over voxels that answers alike."""

import numpy as np
import pytest

from leanrecon.decoders.decoder import DecoderShapes
from leanrecon.decoders.gan.gan import GAN
from leanrecon.decoders.gan.plan import phases
from leanrecon.decoders.gan.reduction import Noise, Standardised, reduced
from leanrecon.decoders.gan.settings import GANSettings
from leanrecon.errors import InputError
from leanrecon.memory import PeakMemory, give_back, process_memory
from leanrecon.stores.matrix import ArrayMatrix


def betas_of(n, p, seed=0):
    rng = np.random.default_rng(seed)
    return (5 + rng.standard_normal((n, 12)) @ rng.standard_normal((12, p)) + rng.standard_normal((n, p))).astype("f4")


def read(matrix):
    out = np.empty(matrix.shape, np.float32)
    matrix.read(range(matrix.shape[0]), range(matrix.shape[1]), out)
    return out


def z_scored(betas):
    return (betas - betas.mean(axis=0)) / betas.std(axis=0)


def test_betas_are_z_scored_and_voxels_that_tell_nothing_are_zero():
    betas = betas_of(600, 7)
    betas[:, 2] = 4.0
    betas[17, 5] = np.nan
    matrix = Standardised.of(ArrayMatrix(betas))
    found = read(matrix)
    some = np.empty((2, 3), np.float32)
    matrix.read_rows(np.array([1, 7]), range(2, 5), some)
    np.testing.assert_array_equal(some, found[[1, 7], 2:5])
    kept = [0, 1, 3, 4, 6]
    np.testing.assert_allclose(found[:, kept], z_scored(betas[:, kept].astype(float)), atol=2e-5)
    assert not found[:, [2, 5]].any()
    with pytest.raises(InputError, match="none of 3 voxels varies"):
        Standardised.of(ArrayMatrix(np.ones((10, 3), np.float32)))


@pytest.mark.parametrize(
    ("n", "p", "reduction", "dims"),
    [
        (60, 300, "exact", 50),
        (300, 40, "exact", 40),
        (300, 40, "pca", None),
        (60, 300, "pca", None),
        (60, 90, "none", 90),
    ],
)
def test_inputs_are_the_same_data_on_orthonormal_axes(n, p, reduction, dims):
    betas = betas_of(n, p)
    fit = np.setdiff1d(np.arange(n), np.arange(0, n, 6))
    settings = GANSettings(reduction=reduction, explained=0.8)
    inputs = reduced(Standardised.of(ArrayMatrix(betas)), fit, settings)
    found = np.empty((n, inputs.dims), np.float32)
    inputs.take(np.arange(n), found)
    z = z_scored(betas.astype(float))
    values, axes = np.linalg.eigh(z[fit].T @ z[fit])  # independent: voxel by voxel
    if dims is not None:
        assert inputs.dims == dims
    else:
        share = np.cumsum(values[::-1]) / values.sum()
        assert share[inputs.dims - 2] < 0.8 <= share[inputs.dims - 1]
    axes = axes[:, ::-1][:, : inputs.dims]
    onto = z @ axes @ axes.T
    np.testing.assert_allclose(found @ found.T, onto @ onto.T, atol=2e-3 * p)
    weights = np.random.default_rng(1).standard_normal((9, inputs.dims)).astype(np.float32)
    first = inputs.first_layer(weights)
    assert first.shape == (9, p)
    np.testing.assert_allclose(z @ first.T, found @ weights.T, atol=3e-3 * np.abs(found @ weights.T).max())
    np.testing.assert_allclose(first @ first.T, weights @ weights.T, atol=2e-3 * (weights @ weights.T).max())


def test_noise_follows_from_seed_stream_and_row_and_not_from_betas():
    one, two = (Noise(ArrayMatrix(betas_of(8, 50, seed)), 3, 1) for seed in (0, 1))
    np.testing.assert_array_equal(read(one), read(two))
    part = np.empty((1, 10), np.float32)
    one.read(range(5, 6), range(20, 30), part)
    np.testing.assert_array_equal(part[0], read(one)[5, 20:30])
    one.read_rows(np.array([5]), range(20, 30), part)
    np.testing.assert_array_equal(part[0], read(one)[5, 20:30])
    assert np.corrcoef(read(one)[:2])[0, 1] < 0.5
    assert (read(one) != read(Noise(one.matrix, 3, 2))).all()


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.parametrize(("n", "p", "reduction"), [(2000, 3000, "exact"), (3000, 2000, "pca")])
def test_reduction_takes_what_was_planned(n, p, reduction):
    reduced(Standardised.of(ArrayMatrix(betas_of(40, 60))), np.arange(40), GANSettings())  # SciPy is imported
    betas, settings = betas_of(n, p), GANSettings(validation=0.0, reduction=reduction)
    sizes = GAN(settings)._sizes(DecoderShapes(n, p, 0, n, (16, 16, 3)))
    give_back()
    planned, before = phases(sizes)["reduce"], process_memory()
    with PeakMemory() as peak:
        reduced(Standardised.of(ArrayMatrix(betas)), np.arange(n), settings)
    taken = peak.peak - before
    print(f"{taken / 1e6:.0f} of {planned / 1e6:.0f} MB")
    assert 0.4 * planned <= taken <= planned
