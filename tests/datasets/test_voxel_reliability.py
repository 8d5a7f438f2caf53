"""Voxels chosen by how reliable they are: against NumPy, from train images alone, told and recorded."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.lab import Lab, write_lab

import leanrecon
from leanrecon.datasets.files.open import open_array
from leanrecon.datasets.voxel_reliability import AT_ONCE, voxel_reliability
from leanrecon.errors import InputError, SettingsError, StoreError

Array = np.ndarray[Any, Any]

pytest.importorskip("nibabel", reason="NIfTI files need nibabel")


def correlations(betas: Array, trials: list[list[int]]) -> Array:
    """Pearson's r of first and second showings, voxel by voxel."""
    pairs = [rows[:2] for rows in trials if len(rows) > 1]
    first, second = (betas[[pair[k] for pair in pairs]].astype(float) for k in range(2))
    return np.array([np.corrcoef(first[:, v], second[:, v])[0, 1] for v in range(betas.shape[1])])


@pytest.mark.parametrize("images", [12, AT_ONCE, 3 * AT_ONCE + 5])
def test_reliability_is_the_correlation_of_two_showings(tmp_path: Path, images: int) -> None:
    rng = np.random.default_rng(images)
    order = rng.permutation(np.repeat(np.arange(images), 3))
    signal = rng.standard_normal((images, 9))
    betas = (1000 + signal[order] + rng.standard_normal((len(order), 9))).astype(np.float32)
    betas[:, 4] = 3
    np.save(tmp_path / "b.npy", betas)
    trials = [np.flatnonzero(order == k).tolist() for k in range(images)]
    with open_array(str(tmp_path / "b.npy")) as rows:
        found = voxel_reliability(rows, trials)
    expected = correlations(np.delete(betas, 4, axis=1), trials)
    np.testing.assert_allclose(np.delete(found, 4), expected, rtol=1e-5, atol=1e-6)
    assert np.isnan(found[4])


def build(lab: Lab, name: str, least: float, **more: Any) -> Path:
    run = {"until": "dataset", "set": [f"dataset.min_reliability={least}", *more.pop("set", [])], **more}
    leanrecon.run(str(lab.folder / "s.toml"), study=lab.folder / name, **run)
    return lab.folder / name


def train_trials(lab: Lab) -> list[list[int]]:
    names = sorted({name for name, split in zip(lab.stimulus, lab.split, strict=True) if split == "train"})
    return [[t for t, name in enumerate(lab.stimulus) if name == own] for own in names]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return write_lab(tmp_path_factory.mktemp("reliable") / "lab", noise=2.0)


def test_voxels_below_are_left_out_and_counted(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    expected = correlations(lab.betas, train_trials(lab))
    kept = np.flatnonzero(expected >= 0.5)
    assert 3 < len(kept) < len(expected) - 3
    study = build(lab, "half", 0.5, set=["dataset.zscore='none'", "dataset.repeats='single'"])
    with np.load(study / "betas/voxels.npz") as voxels:
        np.testing.assert_allclose(voxels["reliability"], expected[kept], rtol=1e-5)
        np.testing.assert_array_equal(voxels["area/V1"], lab.areas["V1"][kept])
    rows = [t for t, split in enumerate(lab.split) if split == "train"]
    np.testing.assert_array_equal(leanrecon.open(study).betas("train"), lab.betas[rows][:, kept])
    assert leanrecon.open(study).betas("test").shape[1] == len(kept)
    out = len(expected) - len(kept)
    assert json.loads((study / "run.json").read_text())["stages"]["dataset"]["voxels_left_out"] == out
    assert f"{out} of {len(expected)} voxels are left out: over the 12 train images" in capsys.readouterr().err


def test_test_betas_decide_nothing(lab: Lab, tmp_path: Path) -> None:
    """Noise in the place of test responses leaves the same voxels."""
    other = write_lab(tmp_path / "lab", noise=2.0)
    import nibabel

    test = np.array(other.split) == "test"
    for number in range(3):
        path = other.folder / f"sub-01_run-{number + 1}_betas.nii.gz"
        image = nibabel.load(path)
        volume = image.get_fdata(dtype=np.float32).copy()
        own = test[np.array(other.run) == number]
        volume[..., own] = np.random.default_rng(number).standard_normal((*volume.shape[:3], int(own.sum())))
        nibabel.save(nibabel.Nifti1Image(volume, image.affine), path)
    found = []
    for of, name in ((lab, "as measured"), (other, "noise")):
        study = build(of, name, 0.5, set=["dataset.check='warn'"])
        with np.load(study / "betas/voxels.npz") as voxels:
            found.append(voxels["reliability"])
    np.testing.assert_array_equal(*found)


def test_a_kill_after_the_choice_ends_with_the_same_bytes(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = build(lab, "whole", 0.5)
    with monkeypatch.context() as patched:
        patched.setattr(
            "leanrecon.datasets.builder.build.fill_betas", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            build(lab, "part", 0.5)
        patched.setattr("leanrecon.datasets.builder.build.voxel_reliability", None)  # it is known by now
        with pytest.raises(KeyboardInterrupt):
            build(lab, "part", 0.5)
    part = build(lab, "part", 0.5)
    for name in ("betas/voxels.npz", "betas/voxel_reliability.npz", "betas/train.zarr/c/0/0", "betas/test.zarr/c/0/0"):
        assert (part / name).read_bytes() == (whole / name).read_bytes()


def test_another_threshold_is_refused_and_replaced_on_request(lab: Lab) -> None:
    study = build(lab, "other", 0.2)
    before = leanrecon.open(study).betas("train").shape[1]
    with pytest.raises(StoreError, match="min_reliability"):
        build(lab, "other", 0.6)
    build(lab, "other", 0.6, overwrite=True)
    assert leanrecon.open(study).betas("train").shape[1] < before


@pytest.mark.parametrize(
    ("least", "images", "words"),
    [(0.999, 16, "no voxel answers to repeats alike by 0.999"), (0.5, 8, "6 train images were shown more than once")],
)
def test_nothing_to_choose_from_is_refused(tmp_path: Path, least: float, images: int, words: str) -> None:
    lab = write_lab(tmp_path / "lab", images=images, noise=2.0)
    with pytest.raises(InputError, match=words):
        build(lab, "study", least)


def test_folds_leave_no_train_rows_to_choose_by(lab: Lab) -> None:
    with pytest.raises(SettingsError, match="every row is tested"):
        build(lab, "folds", 0.5, set=["dataset.folds=3"])
