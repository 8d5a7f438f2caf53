"""What stands in for all eigenvectors of a large Gram matrix: a band for ridges, block Lanczos for leading components."""

import numpy as np
import pytest
from scipy.linalg import eigh
from sklearn.decomposition import PCA
from sklearn.linear_model import RidgeCV

from leanrecon.alignment import leading
from leanrecon.alignment.banded import BAND, Banded
from leanrecon.alignment.pca import GroupPCA
from leanrecon.alignment.ridge import ALPHAS, RidgeMap
from leanrecon.errors import InputError, SettingsError


def gram(rows: int, columns: int) -> np.ndarray:
    betas = np.random.default_rng(rows).normal(size=(rows, columns)) * np.arange(1, columns + 1) ** -0.5
    betas -= betas.mean(axis=0)
    return betas @ betas.T


@pytest.mark.parametrize("columns", [20, 700])
@pytest.mark.parametrize("rows", [1, 5, BAND, BAND + 1, 2 * BAND, 3 * BAND - 2, 600])
def test_a_band_solves_as_the_matrix_does(rows: int, columns: int) -> None:
    matrix, targets = gram(rows, columns), np.random.default_rng(1).normal(size=(rows, 3))
    banded = Banded(matrix.copy())
    for alpha in (0.01, 5.0):
        inverse = np.linalg.inv(matrix + alpha * np.eye(rows))
        solved, diagonal = banded.solve(alpha, banded.turn @ targets)
        np.testing.assert_allclose(solved, inverse @ targets, atol=1e-9 / alpha)
        np.testing.assert_allclose(diagonal, np.diag(inverse), rtol=1e-9)


def test_left_out_errors_over_several_blocks_are_scikit_learns() -> None:
    rng = np.random.default_rng(4)
    latent = rng.normal(size=(200, 6))
    betas = latent @ rng.normal(size=(6, 90)) + rng.normal(size=(200, 90))
    targets = latent + 0.3 * rng.normal(size=latent.shape)
    unit = np.square(betas - betas.mean(axis=0)).sum() / 200
    model = RidgeMap(standardize=False).fit(betas, targets)
    expected = RidgeCV([share * unit for share in ALPHAS], store_cv_results=True).fit(betas, targets)
    errors = expected.cv_results_.sum(axis=(0, 1))
    assert model.alpha_ == pytest.approx(expected.alpha_)
    assert model.error_ == pytest.approx(errors.min() / np.square(targets - targets.mean(axis=0)).sum())
    np.testing.assert_allclose(model.transform(betas), expected.predict(betas), atol=1e-9)


def test_penalties_below_rounding_errors_are_passed_over() -> None:
    rng = np.random.default_rng(5)
    betas = (rng.normal(size=(130, 3)) @ rng.normal(size=(3, 40))).astype(np.float32)
    targets = rng.normal(size=(130, 2))
    with pytest.raises(InputError, match="too imprecise for penalties"):
        RidgeMap((1e-13,)).fit(betas, targets)
    assert RidgeMap((1e-13, 1.0)).fit(betas, targets).alpha_ == RidgeMap((1.0,)).fit(betas, targets).alpha_
    with pytest.raises(SettingsError, match="penalties"):
        RidgeMap((0.0, 1.0)).fit(betas, targets)


@pytest.mark.parametrize(("columns", "by_lanczos"), [(30, True), (4000, False)])
def test_leading_eigenvectors_are_lapacks(columns: int, by_lanczos: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leading, "DENSE", 100)
    matrix = gram(260, columns) if by_lanczos else np.cov(np.random.default_rng(0).normal(size=(260, columns)))
    assert (leading._lanczos(matrix, 25) is not None) == by_lanczos
    values, vectors = leading.leading(matrix.copy(), 25)
    expected, axes = (found[..., ::-1] for found in eigh(matrix, subset_by_index=(235, 259)))
    np.testing.assert_allclose(values, expected, rtol=1e-10)
    np.testing.assert_allclose(np.abs((vectors * axes).sum(axis=0)), 1, atol=1e-9)


def test_components_of_many_rows_are_scikit_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leading, "DENSE", 100)
    rng = np.random.default_rng(6)
    latent = rng.normal(size=(300, 8)) * np.arange(1, 9) ** -0.7
    subjects = [latent @ rng.normal(size=(8, p)) + 0.1 * rng.normal(size=(300, p)) for p in (50, 30)]
    expected = PCA(n_components=8, svd_solver="full").fit_transform(np.concatenate(subjects, axis=1))
    found = GroupPCA(k=8).fit(subjects).shared_
    signs = np.sign((expected * found).sum(axis=0))
    np.testing.assert_allclose(found, expected * signs, atol=1e-8)
    alone = GroupPCA(k=8, of="subject").fit(subjects).held_out_[1]
    expected = PCA(n_components=8, svd_solver="full").fit_transform(subjects[1])
    np.testing.assert_allclose(np.abs(alone), np.abs(expected), atol=1e-8)
