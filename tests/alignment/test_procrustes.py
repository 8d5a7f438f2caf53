"""Procrustes against SciPy and against hyperalignment written out on voxels."""

import numpy as np
import pytest
from scipy.linalg import orthogonal_procrustes

from leanrecon.alignment.linear import folds_of_rows
from leanrecon.alignment.procrustes import Procrustes
from leanrecon.errors import InputError, SettingsError

RNG = np.random.default_rng(4)
LATENT = RNG.normal(size=(20, 6)) * np.arange(6, 0, -1)


def rotated(voxels: int, noise: float = 0.2) -> np.ndarray:
    axes = np.linalg.qr(RNG.normal(size=(voxels, 6)))[0]
    return LATENT @ axes.T + 3 + noise * RNG.normal(size=(20, voxels))


SUBJECTS = [rotated(p) for p in (40, 40, 40)]
CENTRED = [betas - betas.mean(axis=0) for betas in SUBJECTS]


def distances(rows: np.ndarray) -> np.ndarray:
    return np.linalg.norm(rows[:, None] - rows[None], axis=2)


def test_onto_one_subject_it_is_scipys() -> None:
    model = Procrustes(onto=1).fit(SUBJECTS)
    found = model.transform(SUBJECTS)
    target = CENTRED[1]
    for betas, own in zip(CENTRED, found, strict=True):
        expected = betas @ orthogonal_procrustes(betas, target)[0]
        np.testing.assert_allclose(distances(own), distances(expected), atol=1e-9)
        cross = own @ found[1].T  # the same angles to the subject that it was turned onto
        np.testing.assert_allclose(cross, expected @ target.T, atol=1e-8)


def test_the_template_is_that_of_hyperalignment_on_voxels() -> None:
    """Three levels, as written down by Haxby et al. 2011, with SciPy's rotations."""

    def turn(betas: np.ndarray, target: np.ndarray) -> np.ndarray:
        return betas @ orthogonal_procrustes(betas, target)[0]

    template, aligned = CENTRED[0], [CENTRED[0]]
    for betas in CENTRED[1:]:
        aligned.append(turn(betas, template))
        template = (template + aligned[-1]) / 2
    again = [turn(CENTRED[k], (sum(aligned) - aligned[k]) / 2) for k in range(3)]
    template = np.mean(again, axis=0)
    expected = [turn(betas, template) for betas in CENTRED]
    found = Procrustes().fit(SUBJECTS).transform(SUBJECTS)
    for a in range(3):
        for b in range(3):
            np.testing.assert_allclose(found[a] @ found[b].T, expected[a] @ expected[b].T, atol=1e-7)


def test_subjects_with_other_numbers_of_voxels_meet_on_new_rows() -> None:
    # 12 rows span more than the 6 signal dimensions, and 8 are new.
    data = [rotated(p, noise=0.02) for p in (30, 90, 17)]
    model = Procrustes(k=6).fit([betas[:12] for betas in data])
    one, two, three = model.transform([betas[12:] for betas in data])
    assert one.shape == (8, 6)
    assert min(np.corrcoef(one.ravel(), other.ravel())[0, 1] for other in (two, three)) > 0.98


def test_held_out_scores_are_those_of_rotations_without_these_rows() -> None:
    model = Procrustes(k=5).fit(SUBJECTS)
    for betas, held_out in zip(CENTRED, model.held_out_, strict=True):
        for fold in folds_of_rows(20, 0):
            known = np.setdiff1d(np.arange(20), fold)
            left, _, right = np.linalg.svd(betas[known].T @ model.shared_[known], full_matrices=False)
            np.testing.assert_allclose(held_out[fold], betas[fold] @ left @ right, atol=1e-8)


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match="there is no subject 3 of 3"):
        Procrustes(onto=3).fit(SUBJECTS)
    with pytest.raises(InputError, match="Procrustes of 20 dimensions needs more than the 20"):
        Procrustes(k=20).fit(SUBJECTS)
    with pytest.raises(SettingsError, match="k = 0. Expected a whole number, 1 or more"):
        Procrustes(k=0).fit(SUBJECTS)
