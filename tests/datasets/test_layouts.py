"""Datasets of the field, written here with other libraries from their descriptions, become studies equal to the truth."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from leanrecon.api import open as open_study
from leanrecon.api import run
from leanrecon.errors import InputError

RNG = np.random.default_rng(0)


def study(folder: Path, dataset: dict[str, Any]) -> Any:
    settings = {"dataset": dataset, "features": {"pca": {"components": 4, "size": 8}}}
    run(settings, study=folder / "study", until="dataset")
    return open_study(folder / "study")


def ids(made: Any, split: str) -> list[str]:
    return json.loads((made.path / "stimuli" / "ids.json").read_text())[split]


def averaged(betas: np.ndarray, names: list[str], wanted: list[str]) -> np.ndarray:
    of = np.array(names)
    return np.array([betas[of == name].mean(axis=0) for name in wanted])


# MindEye2


def write_mindeye(root: Path, *, sessions: int = 2, voxels: int = 20) -> dict[str, Any]:
    """Two sessions of 750 trials: 500 images three times, a fifth of them shared, out of a collection of 900."""
    root.mkdir(parents=True)
    shown = np.sort(RNG.choice(900, 250 * sessions, replace=False))
    image_of = RNG.permutation(np.repeat(shown, 3))
    shared = np.zeros(900, bool)
    shared[shown[::5]] = True
    code = RNG.standard_normal((900, 5))
    betas = (code[image_of] @ RNG.standard_normal((5, voxels)) + RNG.standard_normal((len(image_of), voxels))).astype(
        "f4"
    )
    images = RNG.random((900, 3, 6, 6)).astype("f2")
    with h5py.File(root / "betas_all_subj03_fp32_renorm.hdf5", "w") as file:
        file["betas"] = betas
    with h5py.File(root / "COCO_73k_subj_indices.hdf5", "w") as file:
        file["subj03"] = image_of
        file["subj01"] = image_of[::-1]
    np.save(root / "shared1000.npy", shared)
    with h5py.File(root / "coco_images_224_float16.hdf5", "w") as file:
        file["images"] = images
    return {"image_of": image_of, "betas": betas, "shared": shared, "images": images}


def test_mindeye_averages_repeats_and_tests_on_shared_images(tmp_path: Path) -> None:
    truth = write_mindeye(tmp_path / "me")
    made = study(tmp_path, {"kind": "mindeye", "root": str(tmp_path / "me"), "subject": 3})
    names = [f"nsd-{image:05}" for image in truth["image_of"]]
    for split, is_test in (("train", False), ("test", True)):
        wanted = ids(made, split)
        assert {truth["shared"][int(name[4:])] for name in wanted} == {is_test}
        np.testing.assert_allclose(made.betas(split), averaged(truth["betas"], names, wanted), atol=1e-6)
        numbers = [int(name[4:]) for name in wanted]
        pixels = np.rint(truth["images"][numbers].astype("f4") * 255).transpose(0, 2, 3, 1)
        np.testing.assert_array_equal(made.stimuli(split), pixels)


def test_mindeye_without_images_says_which_file_is_missing(tmp_path: Path) -> None:
    write_mindeye(tmp_path / "me")
    (tmp_path / "me" / "coco_images_224_float16.hdf5").unlink()
    with pytest.raises(InputError, match=r"coco_images_224_float16.hdf5"):
        study(tmp_path, {"kind": "mindeye", "root": str(tmp_path / "me"), "subject": 3})


# Brain-Diffuser


def write_brain_diffuser(root: Path) -> dict[str, Any]:
    folder = root / "subj02"
    folder.mkdir(parents=True)
    truth: dict[str, Any] = {}
    for split, n in (("train", 30), ("test", 8)):
        truth[split] = {
            "betas": RNG.standard_normal((n, 12)) * 300,
            "images": RNG.integers(0, 256, (n, 10, 10, 3)).astype("f8"),
            "captions": np.array(
                [[f"{split} {k}, caption {c}" if c < 4 else "" for c in range(5)] for k in range(n)], "<U250"
            ),
        }
        for name, key in (("fmriavg_nsdgeneral", "betas"), ("stim", "images"), ("cap", "captions")):
            np.save(folder / f"nsd_{split}_{name}_sub2.npy", truth[split][key])
    return truth


@pytest.mark.parametrize("below", ["", "subj02"])
def test_brain_diffusers_folder_is_divided_by_300_row_by_row(tmp_path: Path, below: str) -> None:
    truth = write_brain_diffuser(tmp_path / "bd")
    made = study(tmp_path, {"kind": "brain-diffuser", "root": str(tmp_path / "bd" / below), "subject": 2})
    for split, of in truth.items():
        np.testing.assert_allclose(made.betas(split), of["betas"] / 300, rtol=1e-6)
        np.testing.assert_array_equal(made.stimuli(split), of["images"])
        captions = json.loads((made.path / "captions" / f"{split}.json").read_text())
        assert captions == [[text for text in row if text] for row in of["captions"].tolist()]


# Algonauts


def write_algonauts(root: Path) -> dict[str, Any]:
    subject = root / "subj05"
    for name in ("training_split/training_fmri", "training_split/training_images", "roi_masks"):
        (subject / name).mkdir(parents=True)
    betas = {side: RNG.standard_normal((25, n)).astype("f4") for side, n in (("lh", 9), ("rh", 11))}
    numbers = np.sort(RNG.choice(73000, 25, replace=False))
    images = RNG.integers(0, 256, (25, 12, 12, 3), np.uint8)
    for k, number in enumerate(numbers):
        name = f"train-{k + 1:04}_nsd-{number:05}.png"
        Image.fromarray(images[k]).save(subject / "training_split" / "training_images" / name)
    labels = {}
    for side, own in betas.items():
        np.save(subject / "training_split" / "training_fmri" / f"{side}_training_fmri.npy", own)
        labels[side] = RNG.integers(0, 8, own.shape[1])
        np.save(subject / "roi_masks" / f"{side}.prf-visualrois_challenge_space.npy", labels[side])
        np.save(subject / "roi_masks" / f"mapping_{side}.npy", {0: "Unknown"}, allow_pickle=True)  # never opened
    return {
        "betas": betas,
        "numbers": numbers,
        "images": images,
        "labels": np.concatenate([labels["lh"], labels["rh"]]),
    }


def test_algonauts_joins_hemispheres_and_names_areas(tmp_path: Path) -> None:
    truth = write_algonauts(tmp_path / "algo")
    settings = {"kind": "algonauts", "root": str(tmp_path / "algo"), "subject": 5, "folds": 5}
    made = study(tmp_path, settings)
    np.testing.assert_array_equal(made.betas(), np.hstack([truth["betas"]["lh"], truth["betas"]["rh"]]))
    np.testing.assert_array_equal(made.stimuli(), truth["images"])
    assert ids(made, "train") == [f"nsd-{number:05}" for number in truth["numbers"]]
    with np.load(made.path / "betas" / "voxels.npz") as voxels:
        np.testing.assert_array_equal(voxels["area/V1"], np.isin(truth["labels"], (1, 2)))
        np.testing.assert_array_equal(voxels["area/hV4"], truth["labels"] == 7)


def test_algonauts_asks_what_is_tested(tmp_path: Path) -> None:
    write_algonauts(tmp_path / "algo")
    with pytest.raises(InputError, match="nothing says which trials are tested"):
        study(tmp_path, {"kind": "algonauts", "root": str(tmp_path / "algo"), "subject": 5})


# bdpy


def write_bdata(
    path: Path, stimulus: np.ndarray, kinds: np.ndarray | None = None, *, old: bool = False
) -> dict[str, Any]:
    """Voxels in 15 columns of which 10 are in ROI_VC, beside columns of labels, as bdpy's save() lays them out."""
    n = len(stimulus)
    voxels = RNG.standard_normal((n, 15))
    labels = [stimulus, np.repeat(np.arange(n), 1) // 5 + 1.0]
    keys = ["stimulus_id", "Run"]
    if kinds is not None:
        labels.append(kinds.astype(float))
        keys.append("DataType")
    matrix = np.hstack([voxels, np.array(labels).T])
    columns = matrix.shape[1]
    vc, v1 = np.zeros(15, bool), np.zeros(15, bool)
    vc[3:13], v1[3:6] = True, True
    flags = {"VoxelData": np.r_[np.ones(15), np.full(columns - 15, np.nan)]}
    for name, mask in (("ROI_VC", vc), ("ROI_V1", v1)):
        flags[name] = np.r_[mask.astype(float), np.full(columns - 15, np.nan)]
    for axis in "xyz":
        flags[f"voxel_{axis}"] = np.r_[RNG.standard_normal(15), np.full(columns - 15, np.nan)]
    for k, key in enumerate(keys):
        flags[key] = np.where(np.arange(columns) == 15 + k, 1.0, np.nan)
    data, meta = ("dataSet", "metaData") if old else ("dataset", "metadata")
    with h5py.File(path, "w") as file:
        file[data] = matrix
        file[f"{meta}/key"] = np.array([key.encode() for key in flags])
        file[f"{meta}/description"] = np.array([b"" for _ in flags])
        file[f"{meta}/value"] = np.array(list(flags.values()))
    return {"voxels": voxels, "vc": vc, "v1": v1[vc]}


IDS = np.array([1518878.005958, 1639765.052902, 2128385.020264, 3124170.013920, 4555897.001, 7734744.000042])
NAMES = ["n01518878_5958", "n01639765_52902", "n02128385_20264", "n03124170_13920", "n04555897_1000", "n07734744_42"]


def write_images(folder: Path) -> None:
    folder.mkdir()
    for name in NAMES:
        Image.fromarray(RNG.integers(0, 256, (9, 9, 3), np.uint8)).save(folder / f"{name}.JPEG", format="PNG")


@pytest.mark.parametrize("old", [False, True])
def test_bdata_of_one_file_is_split_by_data_type(tmp_path: Path, old: bool) -> None:
    write_images(tmp_path / "images")
    order = RNG.permutation(np.repeat(np.arange(6), 4))
    kinds = np.where(order < 4, 1, 2)
    kinds[:2] = 3  # imagery
    truth = write_bdata(tmp_path / "Subject1.h5", IDS[order], kinds, old=old)
    settings = {
        "kind": "bdpy",
        "path": str(tmp_path / "Subject1.h5"),
        "voxels": "ROI_VC",
        "images": str(tmp_path / "images"),
    }
    made = study(tmp_path, settings | {"check": "warn"})
    for split, kind in (("train", 1), ("test", 2)):
        wanted = ids(made, split)
        assert set(wanted) <= set(NAMES)
        rows = kinds == kind
        names = [NAMES[k] for k in order[rows]]
        truth_betas = averaged(truth["voxels"][rows][:, truth["vc"]], names, wanted)
        np.testing.assert_allclose(made.betas(split), truth_betas, atol=1e-6)
    with np.load(made.path / "betas" / "voxels.npz") as voxels:
        np.testing.assert_array_equal(voxels["area/V1"], truth["v1"])
        assert voxels["coordinates"].shape == (10, 3)


def test_bdata_of_two_files_are_train_and_test(tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    truth = {
        "train": write_bdata(tmp_path / "train.h5", IDS[np.repeat([0, 1, 2, 3], 2)]),
        "test": write_bdata(tmp_path / "test.h5", IDS[np.repeat([4, 5], 3)]),
    }
    paths = {split: str(tmp_path / f"{split}.h5") for split in truth}
    made = study(tmp_path, {"kind": "bdpy", **paths, "voxels": "ROI_V1", "images": str(tmp_path / "images")})
    assert ids(made, "test") == NAMES[4:]
    for split, of in truth.items():
        repeats = 2 if split == "train" else 3
        betas = of["voxels"][:, 3:6].reshape(-1, repeats, 3).mean(axis=1)
        np.testing.assert_allclose(made.betas(split), betas, atol=1e-6)


def test_an_unknown_key_of_bdata_is_refused_with_those_that_are_there(tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    write_bdata(tmp_path / "a.h5", IDS)
    settings = {"kind": "bdpy", "path": str(tmp_path / "a.h5"), "voxels": "ROI_V9", "images": str(tmp_path / "images")}
    with pytest.raises(InputError, match="ROI_VC"):
        study(tmp_path, settings | {"test_fraction": 0.3})


# Miyawaki


def labels_of(patterns: list[np.ndarray], rest: int, shown: int, pause: int) -> np.ndarray:
    """One line a volume: rest, then each pattern for ``shown`` volumes and ``pause`` volumes of rest."""
    lines = [np.full(100, -1)] * rest
    for pattern in patterns:
        lines += [pattern.reshape(-1, order="F")] * shown + [np.full(100, -1)] * pause
    return np.array(lines)


def write_miyawaki(root: Path) -> dict[str, Any]:
    """Three random and two figure runs of a response that lags by two volumes, on a level of 500 that drifts."""
    nibabel = pytest.importorskip("nibabel", reason="NIfTI files need nibabel")
    for name in ("func", "label", "mask"):
        (root / name).mkdir(parents=True)
    shape, affine = (5, 5, 4), np.diag([3.0, 3, 3, 1])
    mask = np.zeros(shape, bool)
    mask[1:4, 1:4, 1:3] = True
    weights = RNG.standard_normal((100, int(mask.sum())))
    figures = [np.pad(np.ones((4, 4), int), 3), np.eye(10, dtype=int), np.triu(np.ones((10, 10), int))]
    truth: dict[str, Any] = {"train": [], "test": [], "mask": mask}
    for session, runs, shown, pause in (("random", 3, 3, 3), ("figure", 2, 6, 6)):
        for number in range(1, runs + 1):
            patterns = [RNG.integers(0, 2, (10, 10)) for _ in range(6)] if session == "random" else figures
            labels = labels_of(patterns, 10, shown, pause)
            signal = np.where(labels[:, :1] < 0, 0, labels) @ weights
            lagged = np.vstack([np.zeros((2, signal.shape[1])), signal[:-2]])
            values = 500 + 0.5 * np.arange(len(labels))[:, None] + lagged
            volume = np.zeros((*shape, len(labels)), "f4")
            volume[mask] = values.T
            nibabel.save(nibabel.Nifti1Image(volume, affine), root / "func" / f"data_{session}_run{number:02}.nii.gz")
            name = root / "label" / f"data_{session}_run{number:02}_label.csv"
            np.savetxt(name, labels, fmt="%d", delimiter=",")
            truth["train" if session == "random" else "test"].append(
                (values.astype("f4").astype("f8"), labels, patterns)
            )
    nibabel.save(nibabel.Nifti1Image(mask.astype("u1"), affine), root / "mask" / "mask.nii.gz")
    for side, part in (("LH", np.s_[:2]), ("RH", np.s_[2:])):
        for area, z in (("V1d", 1), ("V2v", 2)):
            one = np.zeros(shape, bool)
            one[part, :, z] = mask[part, :, z]
            nibabel.save(nibabel.Nifti1Image(one.astype("u1"), affine), root / "mask" / f"{side}{area}.nii.gz")
    return truth


def block_changes(values: np.ndarray, labels: np.ndarray, shown: int) -> np.ndarray:
    """Percent signal change of each block by the book: detrend with SciPy, shift by two volumes, average."""
    from scipy.signal import detrend

    flat = detrend(values, axis=0) + values.mean(axis=0)
    flat, labels = flat[2:], labels[:-2]
    starts = np.flatnonzero((labels[1:, 0] >= 0) & (labels[:-1, 0] < 0)) + 1
    rest = flat[: starts[0]].mean(axis=0)
    return np.array([100 * (flat[start : start + shown].mean(axis=0) - rest) / rest for start in starts])


def test_miyawakis_blocks_are_percent_of_the_rest_before_them(tmp_path: Path) -> None:
    truth = write_miyawaki(tmp_path / "miyawaki2008")
    settings = {
        "kind": "miyawaki",
        "root": str(tmp_path / "miyawaki2008"),
        "repeats": "single",
        "test_repeats": "single",
    }
    made = study(tmp_path, settings | {"check": "warn"})
    for split, shown in (("train", 3), ("test", 6)):
        changes = np.vstack([block_changes(values, labels, shown) for values, labels, _ in truth[split]])
        np.testing.assert_allclose(made.betas(split), changes, rtol=1e-4, atol=1e-3)
        patterns = [pattern for _, _, of in truth[split] for pattern in of]
        images = made.stimuli(split)[made.stimulus(split)]
        np.testing.assert_array_equal(images[..., 0], np.array(patterns) * 255)
    with np.load(made.path / "betas" / "voxels.npz") as voxels:
        places = np.argwhere(truth["mask"])
        np.testing.assert_array_equal(voxels["area/V1"], places[:, 2] == 1)
        np.testing.assert_array_equal(voxels["area/V2v"], places[:, 2] == 2)


def test_miyawakis_volumes_are_rows_of_their_own_on_request(tmp_path: Path) -> None:
    write_miyawaki(tmp_path / "miyawaki2008")
    settings = {"kind": "miyawaki", "root": str(tmp_path / "miyawaki2008"), "samples": "volumes", "repeats": "single"}
    made = study(tmp_path, settings | {"test_repeats": "single", "check": "warn"})
    assert len(made.betas("train")) == 3 * 6 * 3
    assert len(made.betas("test")) == 2 * (3 * 6)


# GLMsingle


def write_glmsingle(folder: Path, *, ending: str, flat: bool = False) -> tuple[np.ndarray, list[str]]:
    """``betasmd`` of 4x3x2 voxels and 24 trials, as GLMsingle writes it from Python (HDF5) or MATLAB (v7.3)."""
    folder.mkdir()
    order = RNG.permutation(np.repeat(np.arange(8), 3))
    code = RNG.standard_normal((8, 24))
    betas = (code[order] + 0.2 * RNG.standard_normal((24, 24))).astype("f4")
    data = betas.T if flat else betas.reshape(24, 4, 3, 2).transpose(1, 2, 3, 0)
    (folder / "images").mkdir()
    for k in range(8):
        Image.fromarray(RNG.integers(0, 256, (9, 9, 3), np.uint8)).save(folder / "images" / f"i{k}.png")
    names = [f"i{k}" for k in order]
    lines = [
        "stimulus,split",
        *(f"{name},{'test' if k < 2 else 'train'}" for name, k in zip(names, order, strict=True)),
    ]
    (folder / "trials.csv").write_text("\n".join(lines))
    with h5py.File(folder / f"TYPED_FITHRF_GLMDENOISE_RR.{ending}", "w") as file:
        file["betasmd"] = data if ending == "hdf5" else data.T
        file["R2"] = np.zeros(3)
        if ending == "mat":
            file["betasmd"].attrs["MATLAB_class"] = np.bytes_("single")
    return betas, names


@pytest.mark.parametrize(("ending", "flat"), [("hdf5", False), ("hdf5", True), ("mat", False), ("mat", True)])
def test_glmsingles_trials_are_rows_in_the_order_of_the_table(tmp_path: Path, ending: str, flat: bool) -> None:
    betas, names = write_glmsingle(tmp_path / "glm", ending=ending, flat=flat)
    folder = tmp_path / "glm"
    settings = {
        "kind": "glmsingle",
        "root": str(folder),
        "trials": str(folder / "trials.csv"),
        "images": str(folder / "images"),
    }
    made = study(tmp_path, settings)
    for split in ("train", "test"):
        wanted = ids(made, split)
        np.testing.assert_allclose(made.betas(split), averaged(betas, names, wanted), atol=1e-6)


def test_glmsingles_pickles_are_never_loaded(tmp_path: Path) -> None:
    write_glmsingle(tmp_path / "glm", ending="hdf5")
    folder = tmp_path / "glm"
    (folder / "TYPED_FITHRF_GLMDENOISE_RR.hdf5").unlink()
    np.save(folder / "TYPED_FITHRF_GLMDENOISE_RR.npy", {"betasmd": np.zeros(3)}, allow_pickle=True)
    with pytest.raises(InputError, match="pickle"):
        study(tmp_path, {"kind": "glmsingle", "root": str(folder), "trials": str(folder / "trials.csv")})
