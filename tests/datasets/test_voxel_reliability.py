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
from leanrecon.study.layout import Study
from leanrecon.study.voxels import read_reliability

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
        patched.setattr("leanrecon.datasets.voxel_reliability.voxel_reliability", None)  # it is known by now
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


class Arrays:
    """Betas of repeated images in arrays: half of the voxels answer to images, areas overlap."""

    def __init__(self, folder: Path) -> None:
        rng = np.random.default_rng(5)
        images = rng.integers(0, 256, (40, 6, 6, 1), np.uint8)
        self.order = rng.permutation(np.repeat(np.arange(40), 2))
        signal = rng.standard_normal((40, 30)) * (np.arange(30) % 2)
        self.betas = (signal[self.order] + 0.7 * rng.standard_normal((80, 30))).astype(np.float32)
        self.test = np.flatnonzero(self.order >= 30)
        self.areas = {"V1": np.arange(30) < 12, "V2": (np.arange(30) >= 8) & (np.arange(30) < 20)}
        self.mask = np.arange(30) != 9
        self.folder = folder
        np.save(folder / "b.npy", self.betas)
        np.save(folder / "s.npy", images[self.order])
        np.savez(folder / "areas.npz", **self.areas)
        np.save(folder / "mask.npy", self.mask)
        np.save(folder / "test.npy", self.test)
        np.save(folder / "names.npy", np.where(self.areas["V1"], "V1", np.where(self.areas["V2"], "V2", "")))
        (folder / "names.txt").write_text("".join(f"{name}\n" for name in np.load(folder / "names.npy")))

    def run(self, name: str, until: str | None = "dataset", **dataset: Any) -> Path:
        dataset = {
            key: str(self.folder / value) if key in ("areas", "mask") else value for key, value in dataset.items()
        }
        settings = {
            "dataset": {
                "betas": str(self.folder / "b.npy"),
                "stimuli": str(self.folder / "s.npy"),
                "test_index": str(self.folder / "test.npy"),
                **dataset,
            },
            "features": {"pixels": {}},
            "evaluate": {"permutations": 1, "resamples": 100},
        }
        leanrecon.run(settings, study=self.folder / name, until=until)
        return self.folder / name

    @property
    def train(self) -> Array:
        return np.setdiff1d(np.arange(80), self.test)


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Arrays:
    return Arrays(tmp_path_factory.mktemp("arrays"))


def voxels_of(study: Path) -> dict[str, Array]:
    with np.load(study / "betas/voxels.npz") as voxels:
        return {name: voxels[name] for name in voxels.files}


def test_a_mask_and_areas_choose_columns_of_arrays(arrays: Arrays) -> None:
    study = arrays.run("masked", mask="mask.npy", areas="areas.npz", voxels=["V1", "V2"])
    kept = np.flatnonzero((arrays.areas["V1"] | arrays.areas["V2"]) & arrays.mask)
    found = voxels_of(study)
    np.testing.assert_array_equal(found["index"], kept)
    np.testing.assert_array_equal(found["area/V2"], arrays.areas["V2"][kept])
    np.testing.assert_array_equal(leanrecon.open(study).betas("train"), arrays.betas[arrays.train][:, kept])
    np.testing.assert_array_equal(leanrecon.open(study).betas("test"), arrays.betas[arrays.test][:, kept])


@pytest.mark.parametrize("areas", ["names.npy", "names.txt"])
def test_areas_may_be_names_of_voxels(arrays: Arrays, areas: str) -> None:
    study = arrays.run(f"named by {areas}", areas=areas, voxels="V2")
    kept = np.flatnonzero(arrays.areas["V2"] & ~arrays.areas["V1"])
    np.testing.assert_array_equal(voxels_of(study)["index"], kept)


def test_reliable_voxels_of_arrays_are_chosen_by_train_rows(arrays: Arrays) -> None:
    trials = [np.flatnonzero(arrays.order == k).tolist() for k in range(30)]
    expected = correlations(arrays.betas, trials)
    kept = np.flatnonzero(expected >= 0.4)
    assert 10 < len(kept) < 20
    study = arrays.run("reliable", min_reliability=0.4, test_repeats="average")
    found = voxels_of(study)
    np.testing.assert_array_equal(found["index"], kept)
    np.testing.assert_allclose(found["reliability"], expected[kept], rtol=1e-5)
    np.testing.assert_array_equal(leanrecon.open(study).betas("train"), arrays.betas[arrays.train][:, kept])
    assert json.loads((study / "run.json").read_text())["stages"]["dataset"]["voxels_left_out"] == 30 - len(kept)


def test_the_noise_of_voxels_of_arrays_follows_from_repeats(arrays: Arrays) -> None:
    found = voxels_of(arrays.run("noise", areas="areas.npz"))
    by_image = np.stack([arrays.betas[arrays.order == k].astype(float) for k in range(40)])
    noise = by_image.var(axis=1, ddof=1).mean(axis=0)
    total = arrays.betas.astype(float).var(axis=0, ddof=1)
    expected = np.sqrt(np.maximum(total - noise, 0) / noise)
    np.testing.assert_allclose(found["ncsnr"], expected, rtol=1e-4, atol=1e-4)


def test_what_weighs_voxels_knows_no_test_row(arrays: Arrays) -> None:
    own = arrays.order < 30
    by_image = np.stack([arrays.betas[arrays.order == k].astype(float) for k in range(30)])
    noise = by_image.var(axis=1, ddof=1).mean(axis=0)
    ratio = np.maximum(arrays.betas[own].astype(float).var(axis=0, ddof=1) - noise, 0) / noise
    study = arrays.run("weighed", repeats="average")
    found = read_reliability(Study(study), 2.0)
    assert found is not None
    np.testing.assert_allclose(found, 2 * ratio / (2 * ratio + 1), rtol=1e-3, atol=1e-3)
    folds = arrays.run("in folds", folds=4, test_index=None)
    assert read_reliability(Study(folds), 2.0) is None


@pytest.mark.slow
def test_the_report_tells_of_areas_of_any_name_and_who_estimated_the_noise(arrays: Arrays) -> None:
    study = arrays.run("reported", until=None, areas="areas.npz", min_reliability=0.2)
    page = (study / "report.html").read_text()
    assert "Noise ceilings" in page
    assert "estimated here" in page
    assert "published estimate" not in page
    assert "voxels left out" in page


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        ({"mask": "test.npy"}, "tells of 20 voxels and the betas have 30"),
        ({"areas": "areas.npz", "voxels": "V9"}, "'V9', which is not an area"),
        ({"areas": "nowhere.npz"}, "there is no file"),
    ],
)
def test_what_does_not_fit_the_voxels_is_refused(arrays: Arrays, dataset: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        arrays.run("refused", **dataset)


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        ({"voxels": "V1"}, "set areas"),
        ({"min_reliability": 0.3, "folds": 3, "test_index": None}, "every row is tested"),
        ({"min_reliability": 0.3, "stimuli": None}, "only images tell which rows show the same"),
    ],
)
def test_settings_that_cant_choose_voxels_are_refused(arrays: Arrays, dataset: Any, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        arrays.run("refused", **dataset)
