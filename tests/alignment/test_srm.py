"""The shared response model against brainiak's stored reference, plain linear algebra on voxels, and known truths."""

import os
from pathlib import Path

import numpy as np
import pytest

from leanrecon.alignment.linear import folds_of_rows
from leanrecon.alignment.shared_response import deterministic, probabilistic
from leanrecon.alignment.srm import SRM
from leanrecon.errors import BudgetError, InputError, SettingsError

REFERENCE = Path(os.environ.get("LEANRECON_SHARED", "../shared")).resolve() / "data/srm/sr_v0_4.npz"
NOISE = 0.1**2 / 12
"""The variance of uniform noise between 0 and 0.1."""


class InVoxels:
    """One subject as brainiak updates it: by a singular value decomposition over voxels."""

    def __init__(self, betas: np.ndarray, *, raw_norm: bool = False, jitter: float = 0.0) -> None:
        self.betas = betas - betas.mean(axis=1, keepdims=True)  # [voxels, n]
        self.voxels = len(betas)
        self.norm = float(np.square(betas if raw_norm else self.betas).sum())
        self.jitter = jitter

    def turn(self, shared: np.ndarray) -> tuple[np.ndarray, float]:
        product = self.betas @ shared.T
        jitter = np.zeros(product.shape)
        np.fill_diagonal(jitter, self.jitter)
        left, _, right = np.linalg.svd(product + jitter, full_matrices=False)
        return (left @ right).T @ self.betas, float(np.sum(left @ right * product))


def spirals() -> list[np.ndarray]:
    """The data of brainiak's own test: two subjects of 100 voxels, 500 samples of a spiral."""
    rng = np.random.RandomState(0)
    theta, z = np.linspace(-4 * np.pi, 4 * np.pi, 500), np.linspace(-2, 2, 500)
    spiral = np.stack([(z**2 + 1) * np.sin(theta), (z**2 + 1) * np.cos(theta), z])
    subjects = []
    for _ in range(2):
        axes = np.linalg.qr(rng.random_sample((100, 3)))[0]
        subjects.append(axes @ spiral + 0.1 * rng.random_sample((100, 500)))
    return subjects


def brainiak_start(subjects: list[InVoxels]) -> list[np.ndarray]:
    rng = np.random.RandomState(0)
    seeds = [rng.randint(2**32, dtype=np.int64) for _ in subjects]
    first = [np.linalg.qr(np.random.RandomState(seed).random_sample((100, 3)))[0] for seed in seeds]
    return [w.T @ subject.betas for w, subject in zip(first, subjects, strict=True)]


@pytest.mark.skipif(not REFERENCE.exists(), reason=f"brainiak's reference is not at {REFERENCE} (set LEANRECON_SHARED)")
def test_with_the_uncentred_norm_the_response_is_brainiaks() -> None:
    with np.load(REFERENCE) as found:
        expected = found[found.files[0]]
    subjects = [InVoxels(betas, raw_norm=True, jitter=1e-3) for betas in spirals()]
    result = probabilistic(subjects, brainiak_start(subjects), 5)
    np.testing.assert_allclose(result.shared, expected, atol=2e-11)
    assert min(result.noise) > 3 * NOISE  # what the uncentred norm makes of it
    centred = [InVoxels(betas, jitter=1e-3) for betas in spirals()]
    ours = probabilistic(centred, brainiak_start(centred), 5)
    assert np.abs(ours.shared - expected).max() > 1e-3
    np.testing.assert_allclose(ours.noise, NOISE, rtol=0.02)


def test_the_noise_is_the_true_one() -> None:
    model = SRM(k=3, n_iter=20).fit([betas.T for betas in spirals()])
    np.testing.assert_allclose(model.noise_, NOISE, rtol=0.02)


def subjects(noise: float = 0.3, rows: int = 40) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    latent = rng.normal(size=(rows, 5))
    return [
        latent @ rng.normal(size=(5, p)) + 4 + noise * rng.normal(size=(rows, p)) for p in (60, 30, 90)
    ]  # one with fewer voxels than rows


@pytest.mark.parametrize(("kind", "solve"), [("probabilistic", probabilistic), ("deterministic", deterministic)])
def test_gram_matrices_lose_nothing(kind: str, solve) -> None:
    """The same iterations on voxels, started from the same response."""
    data = subjects()
    model = SRM(k=4, kind=kind, n_iter=6, seed=9).fit(data)
    start = np.random.default_rng(9).standard_normal((4, 40))
    plain = [InVoxels(betas.T) for betas in data]
    expected = solve(plain, [subject.turn(start)[0] for subject in plain], 6)
    np.testing.assert_allclose(model.shared_.T, expected.shared, atol=1e-9)
    np.testing.assert_allclose(model.objective_, expected.objective, rtol=1e-9)
    for own, subject in zip(model.transform(data), plain, strict=True):
        np.testing.assert_allclose(own.T, subject.turn(expected.shared)[0], atol=1e-8)


@pytest.mark.parametrize("kind", ["probabilistic", "deterministic"])
def test_maps_are_orthonormal_and_each_iteration_is_better(kind: str) -> None:
    model = SRM(k=5, kind=kind, n_iter=15).fit(subjects())
    for weights in model.weights_:
        np.testing.assert_allclose(weights.T @ weights, np.eye(5), atol=1e-9)
    steps = np.diff(model.objective_) * (1 if kind == "probabilistic" else -1)
    assert (steps > -1e-9 * abs(model.objective_[0])).all()
    assert steps[0] > 0


def test_subjects_agree_on_rows_that_the_fit_never_saw() -> None:
    data = subjects(rows=80)
    model = SRM(k=5).fit([betas[:60] for betas in data])
    one, two, three = model.transform([betas[60:] for betas in data])
    assert min(np.corrcoef(one.ravel(), other.ravel())[0, 1] for other in (two, three)) > 0.95
    assert np.corrcoef(one.ravel(), np.roll(two, 1, axis=0).ravel())[0, 1] < 0.5


def test_scaling_lets_subjects_count_alike() -> None:
    data = subjects()
    louder = [data[0] * 100, *data[1:]]
    scaled = [SRM(k=3, n_iter=5, scale=True, kind="deterministic").fit(of) for of in (data, louder)]
    np.testing.assert_allclose(scaled[0].shared_, scaled[1].shared_, atol=1e-8)
    np.testing.assert_allclose(scaled[0].transform(data)[0], scaled[1].transform(louder)[0], atol=1e-8)


def test_held_out_scores_are_those_of_a_map_without_these_rows() -> None:
    data = subjects()
    model = SRM(k=4, n_iter=6).fit(data)
    for betas, held_out in zip(data, model.held_out_, strict=True):
        centred = betas - betas.mean(axis=0)
        for fold in folds_of_rows(40, 0):
            known = np.setdiff1d(np.arange(40), fold)
            left, _, right = np.linalg.svd(centred[known].T @ model.shared_[known], full_matrices=False)
            np.testing.assert_allclose(held_out[fold], centred[fold] @ left @ right, atol=1e-8)


def test_the_same_seed_gives_the_same_and_a_budget_decides_nothing() -> None:
    data = [betas.astype(np.float32) for betas in subjects(rows=1100)]
    kept = SRM(k=4, n_iter=3, budget="8GB").fit(data)
    again = SRM(k=4, n_iter=3).fit(data)
    from leanrecon.alignment.linear import fit_nbytes
    from leanrecon.memory import MemoryBudget, process_memory

    method = kept._method()
    reserved = process_memory()
    least, in_memory = fit_nbytes(method, 1100, [60, 30, 90], 0)
    assert not in_memory
    small = SRM(k=4, n_iter=3, budget=MemoryBudget(reserved + least + 3_000_000, reserved)).fit(data)
    for one, two, three in zip(kept.weights_, again.weights_, small.weights_, strict=True):
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(one, three)


# What doesn't fit


def test_bad_input_is_refused() -> None:
    data = subjects()
    with pytest.raises(InputError, match="1 subject can't be aligned"):
        SRM(k=3).fit(data[:1])
    with pytest.raises(InputError, match="different numbers of rows: 40, 39, 40"):
        SRM(k=3).fit([data[0], data[1][:39], data[2]])
    with pytest.raises(InputError, match="of 40 dimensions needs more than the 40 common images.*Set k = 39 or less"):
        SRM(k=40).fit(data)
    with pytest.raises(InputError, match="of 35 dimensions has no orthonormal map from 30 voxels.*Set k = 30 or less"):
        SRM(k=35).fit(data)
    few = [data[0], np.concatenate([data[1][:, :3], np.ones((40, 9)), np.full((40, 9), np.nan)], axis=1)]
    with pytest.raises(InputError, match="no orthonormal map from 3 voxels"):
        SRM(k=5, standardize=True).fit(few)
    data[1][3, 7] = np.nan
    with pytest.raises(InputError, match="voxel 7 are NaN"):
        SRM(k=3).fit(data)
    with pytest.raises(InputError, match="do not vary"):
        SRM(k=3).fit([data[0], np.ones((40, 5))])
    with pytest.raises(SettingsError, match="SRM of kind 'robust'"):
        SRM(k=3, kind="robust").fit(subjects())
    with pytest.raises(BudgetError, match="a shared response model of 3 subjects needs at least"):
        SRM(k=3, budget=1_000_000).fit(subjects())


def test_transform_takes_the_subjects_of_fit() -> None:
    from sklearn.exceptions import NotFittedError

    data = subjects()
    with pytest.raises(NotFittedError):
        SRM().transform(data)
    model = SRM(k=3).fit(data)
    assert len(model.transform([None, data[1], None])) == 1
    with pytest.raises(InputError, match="2 matrices for 3 subjects"):
        model.transform(data[:2])
    with pytest.raises(InputError, match=r"betas of shape \(40, 30\).*\[rows, 60\]"):
        model.transform([data[1], data[1], data[2]])


def test_voxels_outside_of_the_mask_count_for_nothing() -> None:
    subjects = [np.random.default_rng(k).normal(size=(40, 20 + k)) for k in range(2)]
    masked = [np.insert(subjects[0], [0, 5, 5], np.nan, axis=1), subjects[1]]
    found, expected = SRM(k=3).fit(masked), SRM(k=3).fit(subjects)
    np.testing.assert_allclose(found.noise_, expected.noise_)
    np.testing.assert_allclose(found.shared_, expected.shared_, atol=1e-9)
    np.testing.assert_allclose(found.transform(masked)[0], expected.transform(subjects)[0], atol=1e-9)
