"""Folders of the field's layouts, written with h5py, nibabel and Pillow from their descriptions."""

from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
from PIL import Image

RNG = np.random.default_rng(0)


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
        labels[side] = RNG.permutation(np.arange(own.shape[1]) % 8)
        np.save(subject / "roi_masks" / f"{side}.prf-visualrois_challenge_space.npy", labels[side])
        np.save(subject / "roi_masks" / f"mapping_{side}.npy", {0: "Unknown"}, allow_pickle=True)  # never opened
    return {
        "betas": betas,
        "numbers": numbers,
        "images": images,
        "labels": np.concatenate([labels["lh"], labels["rh"]]),
    }


def write_bdata(
    path: Path, stimulus: np.ndarray, kinds: np.ndarray | None = None, *, form: str = "bdpy"
) -> dict[str, Any]:
    """Voxels in 15 columns of which 10 are in ROI_VC, beside columns of labels, in one of ``BDATA_FORMS``."""
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
    BDATA_FORMS[form](path, matrix, list(flags), np.array(list(flags.values())))
    return {"voxels": voxels, "vc": vc, "v1": v1[vc]}


def _bdata_hdf5(path: Path, matrix: np.ndarray, keys: list[str], flags: np.ndarray, *, old: bool = False) -> None:
    """As bdpy's save() writes HDF5, now or in older versions."""
    data, meta = ("dataSet", "metaData") if old else ("dataset", "metadata")
    with h5py.File(path, "w") as file:
        file[data] = matrix
        file[f"{meta}/key"] = np.array([key.encode() for key in keys])
        file[f"{meta}/description"] = np.array([b"" for _ in keys])
        file[f"{meta}/value"] = flags


def _bdata_mat5(path: Path, matrix: np.ndarray, keys: list[str], flags: np.ndarray, *, packed: bool = False) -> None:
    """As MATLAB's save writes the older toolbox's variables: a struct with cells of strings beside a matrix."""
    cells = np.empty((1, len(keys)), object)
    cells[0, :] = keys
    described = np.empty((1, len(keys)), object)
    described[0, :] = "of a voxel"
    meta = {"key": cells, "description": described, "value": flags}
    scipy.io.savemat(path, {"metaData": meta, "dataSet": matrix, "note": "x"}, do_compression=packed)


def _bdata_mat73(path: Path, matrix: np.ndarray, keys: list[str], flags: np.ndarray) -> None:
    """As MATLAB's save -v7.3 writes the same: dimensions reversed, cells as references to arrays of UTF-16."""
    with h5py.File(path, "w") as file:
        file["dataSet"] = matrix.T
        file["dataSet"].attrs["MATLAB_class"] = np.bytes_("double")
        file.create_group("metaData").attrs["MATLAB_class"] = np.bytes_("struct")
        file["metaData/value"] = flags.T
        file["metaData/value"].attrs["MATLAB_class"] = np.bytes_("double")
        for name in ("key", "description"):
            cells = file.create_dataset(f"metaData/{name}", (len(keys), 1), h5py.ref_dtype)
            cells.attrs["MATLAB_class"] = np.bytes_("cell")
            for k, key in enumerate(keys):
                text = file.create_dataset(f"#refs#/{name}{k}", data=np.array([[ord(c)] for c in key], "u2"))
                text.attrs["MATLAB_class"] = np.bytes_("char")
                cells[k, 0] = text.ref


BDATA_FORMS: dict[str, Any] = {
    "bdpy": _bdata_hdf5,
    "older": partial(_bdata_hdf5, old=True),
    "mat 5": _bdata_mat5,
    "mat 5, packed": partial(_bdata_mat5, packed=True),
    "mat 7.3": _bdata_mat73,
}


IDS = np.array([1518878.005958, 1639765.052902, 2128385.020264, 3124170.013920, 4555897.001, 7734744.000042])
NAMES = ["n01518878_5958", "n01639765_52902", "n02128385_20264", "n03124170_13920", "n04555897_1000", "n07734744_42"]


def write_images(folder: Path) -> None:
    folder.mkdir()
    for name in NAMES:
        Image.fromarray(RNG.integers(0, 256, (9, 9, 3), np.uint8)).save(folder / f"{name}.JPEG", format="PNG")


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


def write_glmsingle(folder: Path, *, ending: str, flat: bool = False) -> tuple[np.ndarray, list[str]]:
    """``betasmd`` of 4x3x2 voxels and 24 trials, as GLMsingle writes it from Python (HDF5) or MATLAB (v7.3)."""
    folder.mkdir(parents=True)
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
