"""Group PCA and the ridge to a shared space, against scikit-learn and refits by hand."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from leanrecon.alignment.pca import GroupPCA
from leanrecon.alignment.ridge import ALPHAS, RidgeMap
from leanrecon.errors import InputError, SettingsError

RNG = np.random.default_rng(8)
LATENT = RNG.normal(size=(50, 4))
SUBJECTS = [LATENT @ RNG.normal(size=(4, p)) + 2 + 0.5 * RNG.normal(size=(50, p)) for p in (40, 25, 70)]


def test_scores_are_those_of_a_pca_of_all_voxels() -> None:
    from sklearn.decomposition import PCA

    model = GroupPCA(k=6).fit(SUBJECTS)
    expected = PCA(n_components=6, svd_solver="full").fit_transform(np.concatenate(SUBJECTS, axis=1))
    signs = np.sign((expected * model.shared_).sum(axis=0))
    np.testing.assert_allclose(model.shared_, expected * signs, atol=1e-9)


def test_maps_are_ridges_with_the_penalty_of_the_least_left_out_error() -> None:
    model = GroupPCA(k=3).fit(SUBJECTS)
    for k, betas in enumerate(SUBJECTS):
        unit = np.square(betas - betas.mean(axis=0)).sum() / 50
        left_out = {}
        for share in ALPHAS[::4]:
            found = np.empty((50, 3))
            for row in range(50):
                known = np.delete(np.arange(50), row)
                ridge = Ridge(alpha=share * unit).fit(betas[known], model.shared_[known])
                found[row] = ridge.predict(betas[row : row + 1])[0]
            left_out[share] = found
        errors = {share: np.square(found - model.shared_).sum() for share, found in left_out.items()}
        own = RidgeMap(alphas=tuple(ALPHAS[::4]), standardize=False).fit(betas, model.shared_)
        best = min(errors, key=errors.__getitem__)
        assert own.alpha_ == pytest.approx(best * unit)
        np.testing.assert_allclose(own.held_out_, left_out[best], atol=1e-8)
        np.testing.assert_allclose(
            own.transform(betas), Ridge(alpha=own.alpha_).fit(betas, model.shared_).predict(betas), atol=1e-8
        )
        assert own.error_ == pytest.approx(errors[best] / np.square(model.shared_).sum())
        fine = RidgeMap(standardize=False).fit(betas, model.shared_)
        np.testing.assert_allclose(model.held_out_[k], fine.held_out_, atol=1e-9)
        np.testing.assert_allclose(model.transform(SUBJECTS)[k], fine.transform(betas), atol=1e-9)


def test_what_is_held_out_tells_nothing_of_targets_without_signal() -> None:
    rng = np.random.default_rng(1)
    betas, targets = rng.normal(size=(60, 200)), rng.normal(size=(60, 5))
    ridge = RidgeMap(alphas=(1e-3,)).fit(betas, targets)
    assert np.corrcoef(ridge.transform(betas).ravel(), targets.ravel())[0, 1] > 0.99
    assert abs(np.corrcoef(ridge.held_out_.ravel(), targets.ravel())[0, 1]) < 0.15


def test_components_of_each_subject_alone_are_scikit_learns() -> None:
    from sklearn.decomposition import PCA

    model = GroupPCA(k=3, of="subject").fit(SUBJECTS)
    for betas, found in zip(SUBJECTS, model.transform(SUBJECTS), strict=True):
        expected = PCA(n_components=3, svd_solver="full").fit_transform(betas)
        np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-8)


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match="a group PCA of 50 dimensions needs more than the 50 common images"):
        GroupPCA(k=50).fit(SUBJECTS)
    with pytest.raises(SettingsError, match="GroupPCA with of = 'both'"):
        GroupPCA(of="both").fit(SUBJECTS)
    with pytest.raises(InputError, match=r"50 rows and scores have shape \(49, 4\)"):
        RidgeMap().fit(SUBJECTS[0], LATENT[:49])
    with pytest.raises(InputError, match="2 common rows are too few"):
        RidgeMap().fit(SUBJECTS[0][:2], LATENT[:2])
    with pytest.raises(InputError, match="scores hold NaN"):
        RidgeMap().fit(SUBJECTS[0], np.full((50, 2), np.nan))


def test_whole_numbers_are_centred_by_their_exact_means() -> None:
    """The same numbers as float64 give the same map and scores, though means are not whole numbers."""
    whole = np.round(10 * SUBJECTS[0]).astype(np.int16)
    targets = GroupPCA(k=3).fit(SUBJECTS).shared_
    for standardize in (False, True):
        exact = RidgeMap(standardize=standardize).fit(whole.astype(np.float64), targets)
        found = RidgeMap(standardize=standardize).fit(whole, targets)
        np.testing.assert_allclose(found.weights_, exact.weights_, atol=1e-6)
        for kind in (np.int16, np.int64, np.float16):
            betas = whole.astype(kind)
            np.testing.assert_allclose(found.transform(betas), exact.transform(betas.astype(np.float64)), atol=1e-4)


def test_voxels_outside_of_the_mask_are_left_out() -> None:
    """A subject with voxels that are NaN in every row is aligned as without them."""
    masked = np.insert(SUBJECTS[0], [0, 7, 40], np.nan, axis=1)
    kept = np.flatnonzero(~np.isnan(masked[0]))
    for scale, standardize in ((False, False), (True, True)):
        how = {"k": 3, "scale": scale, "standardize": standardize}
        expected, found = GroupPCA(**how).fit(SUBJECTS), GroupPCA(**how).fit([masked, *SUBJECTS[1:]])
        np.testing.assert_allclose(found.weights_[0][kept], expected.weights_[0], atol=1e-12)
        np.testing.assert_array_equal(np.delete(found.weights_[0], kept, axis=0), 0)
        given = [masked[:5], None, None]
        np.testing.assert_allclose(found.transform(given)[0], expected.transform([SUBJECTS[0][:5], None, None])[0])
    ridge = RidgeMap().fit(masked, expected.shared_)
    np.testing.assert_allclose(
        ridge.transform(masked), RidgeMap().fit(SUBJECTS[0], expected.shared_).transform(SUBJECTS[0])
    )


def test_nan_in_some_rows_is_refused() -> None:
    broken = SUBJECTS[0].copy()
    broken[3, 4] = np.nan
    with pytest.raises(InputError, match="betas of voxel 4 are NaN or infinite in some rows"):
        RidgeMap().fit(broken, LATENT)
    broken[:, 4] = np.nan
    broken[3, 4] = np.inf
    with pytest.raises(InputError, match="betas of voxel 4 are NaN or infinite in some rows"):
        RidgeMap().fit(broken, LATENT)
