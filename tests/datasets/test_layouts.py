"""Datasets of the field, written here with other libraries from their descriptions, become studies equal to the truth."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from support.layouts import (
    BDATA_FORMS,
    IDS,
    NAMES,
    RNG,
    write_algonauts,
    write_bdata,
    write_brain_diffuser,
    write_glmsingle,
    write_images,
    write_mindeye,
    write_miyawaki,
)

from leanrecon.api import open as open_study
from leanrecon.api import run
from leanrecon.datasets.files.hdf5 import H5Rows
from leanrecon.datasets.layouts.bdata import BData
from leanrecon.errors import InputError


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


def test_mindeyes_images_are_read_once_in_the_order_of_their_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mindeye(tmp_path / "me")
    monkeypatch.setattr("leanrecon.datasets.files.rows.NEAR", 0)  # these images are small
    spans: list[tuple[int, int]] = []
    read = H5Rows._read

    def counted(self: H5Rows, region: tuple[slice, ...]) -> np.ndarray:
        if self.key == "images":
            spans.append((region[0].start, region[0].stop))
        return read(self, region)

    monkeypatch.setattr(H5Rows, "_read", counted)
    made = study(tmp_path, {"kind": "mindeye", "root": str(tmp_path / "me"), "subject": 3})
    numbers = [int(name[4:]) for split in ("train", "test") for name in ids(made, split)]
    train = len(ids(made, "train"))
    assert numbers[:train] == sorted(numbers[:train])
    assert numbers[train:] == sorted(numbers[train:])
    assert [row for start, stop in spans for row in range(start, stop)] == numbers, "each once, and no other"


def test_mindeye_without_images_says_which_file_is_missing(tmp_path: Path) -> None:
    write_mindeye(tmp_path / "me")
    (tmp_path / "me" / "coco_images_224_float16.hdf5").unlink()
    with pytest.raises(InputError, match=r"coco_images_224_float16.hdf5"):
        study(tmp_path, {"kind": "mindeye", "root": str(tmp_path / "me"), "subject": 3})


# Brain-Diffuser


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


@pytest.mark.parametrize("form", BDATA_FORMS)
def test_bdata_of_one_file_is_split_by_data_type(tmp_path: Path, form: str) -> None:
    write_images(tmp_path / "images")
    order = RNG.permutation(np.repeat(np.arange(6), 4))
    kinds = np.where(order < 4, 1, 2)
    kinds[:2] = 3  # imagery
    path = tmp_path / f"Subject1.{'mat' if form.startswith('mat') else 'h5'}"
    truth = write_bdata(path, IDS[order], kinds, form=form)
    settings = {
        "kind": "bdpy",
        "path": str(path),
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


@pytest.mark.parametrize("form", BDATA_FORMS)
def test_bdata_is_read_the_same_as_bdpy_reads_it(tmp_path: Path, form: str) -> None:
    bdpy = pytest.importorskip("bdpy", reason="the reference reader: pip install bdpy")
    path = tmp_path / f"a.{'mat' if form.startswith('mat') else 'h5'}"
    write_bdata(path, IDS[np.arange(6)], np.arange(6) % 2 + 1, form=form)
    if form == "mat 7.3":  # which bdpy does not read
        mat73 = pytest.importorskip("mat73", reason="the reference reader: pip install mat73").loadmat(str(path))
        np.testing.assert_array_equal(BData(path).flags, mat73["metaData"]["value"])
        assert list(BData(path).keys) == mat73["metaData"]["key"]
        np.testing.assert_array_equal(BData(path).numbers("stimulus_id")["stimulus_id"], mat73["dataSet"][:, 15])
        return
    theirs, ours = bdpy.BData(str(path)), BData(path)
    np.testing.assert_array_equal(ours.flags, theirs.metadata.value)
    assert list(ours.keys) == list(theirs.metadata.key)
    values = ours.numbers("stimulus_id", "Run", "DataType")
    for key, found in values.items():
        np.testing.assert_array_equal(found, theirs.get(key).ravel())
    with ours.voxels(ours.columns_of("ROI_V1")) as rows:
        np.testing.assert_array_equal(rows[0:6], theirs.select("ROI_V1 = 1").astype("f4"))


def test_names_in_vmap_are_the_stimuli(tmp_path: Path) -> None:
    write_bdata(tmp_path / "a.h5", np.array([1.0, 2.0, 1.0]))
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["vmap/stimulus_id/1.0"] = "n01518878_5958"
        file["vmap/stimulus_id/2.0"] = np.bytes_("grüße".encode())
        file["vmap/stimulus_id/no number"] = "x"
        file["vmap/loop"] = h5py.SoftLink("/vmap")
        file["vmap/other/1.0"] = np.ones(3)
    data = BData(tmp_path / "a.h5")
    assert data.labels("stimulus_id", data.numbers("stimulus_id")["stimulus_id"]) == [
        "n01518878_5958",
        "grüße",
        "n01518878_5958",
    ]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.pop("metadata"), "not a BData file"),
        (lambda file: file["metadata"].pop("key"), "no array 'metadata/key'"),
        (lambda file: file.move("dataset", "metadata/x") or file.__setitem__("dataset", np.ones(3)), r"shape \(3,\)"),
        (
            lambda file: file["metadata"].pop("value") is file["metadata"].__setitem__("value", np.ones((7, 9))),
            "(7, 9)",
        ),
    ],
)
def test_a_file_that_is_bdata_in_part_is_refused(tmp_path: Path, damage: Any, message: str) -> None:
    write_bdata(tmp_path / "a.h5", IDS)
    with h5py.File(tmp_path / "a.h5", "a") as file:
        damage(file)
    with pytest.raises(InputError, match=message):
        BData(tmp_path / "a.h5")


@pytest.mark.slow
@pytest.mark.parametrize("form", ["bdpy", "mat 5, packed"])
def test_bdata_is_read_within_its_plan(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"a.{'mat' if form.startswith('mat') else 'h5'}"
    rows, voxels = 750, 6000
    kinds = np.where(np.arange(rows) < 450, 1.0, 2.0)
    stimulus = np.where(kinds == 1, np.arange(rows) % 300, 1000 + np.arange(rows) % 30)
    matrix = np.random.default_rng(0).integers(0, 99, (rows, voxels + 2)).astype("f8")
    matrix[:, voxels:] = np.array([stimulus, kinds]).T
    keys = ["VoxelData", "stimulus_id", "DataType"]
    flags = np.full((3, voxels + 2), np.nan)
    flags[0, :voxels] = flags[1, voxels] = flags[2, voxels + 1] = 1
    BDATA_FORMS[form](path, matrix, keys, flags)
    code = (
        "import sys; from leanrecon.api import run;"
        "dataset = {'kind': 'bdpy', 'path': sys.argv[1], 'zscore': 'train', 'check': 'warn'};"
        "run({'dataset': dataset, 'features': {'pca': {}}}, study=sys.argv[2], until='dataset', memory='400MB')"
    )
    subprocess.run([sys.executable, "-c", code, str(path), str(tmp_path / "study")], check=True)
    record = json.loads((tmp_path / "study" / "run.json").read_text())["stages"]["dataset"]
    assert record["peak_bytes"] <= record["planned_bytes"] <= 400e6
    of = matrix[:, :voxels]
    z = (of - of[kinds == 1].mean(axis=0)) / of[kinds == 1].std(axis=0)
    found = open_study(tmp_path / "study").betas("test")
    np.testing.assert_allclose(found, z[450:].reshape(10, 30, voxels).mean(axis=0), atol=1e-4)


def test_an_unknown_key_of_bdata_is_refused_with_those_that_are_there(tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    write_bdata(tmp_path / "a.h5", IDS)
    settings = {"kind": "bdpy", "path": str(tmp_path / "a.h5"), "voxels": "ROI_V9", "images": str(tmp_path / "images")}
    with pytest.raises(InputError, match="ROI_VC"):
        study(tmp_path, settings | {"test_fraction": 0.3})


# Miyawaki


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


@pytest.mark.parametrize("ending", ["hdf5", "mat"])
@pytest.mark.parametrize("form", ["volumes", "grid", "mask", "mask, 4-D"])
def test_voxels_of_a_mask_are_found_in_the_order_of_the_program_that_wrote_them(
    tmp_path: Path, ending: str, form: str
) -> None:
    nibabel = pytest.importorskip("nibabel", reason="NIfTI files need nibabel")
    betas, names = write_glmsingle(tmp_path / "glm", ending=ending)
    folder = tmp_path / "glm"
    mask = np.arange(24).reshape(4, 3, 2) % 5 != 1
    nibabel.save(nibabel.Nifti1Image(mask.astype("u1"), np.eye(4)), folder / "mask.nii.gz")
    volumes = betas.reshape(24, 4, 3, 2).transpose(1, 2, 3, 0)
    if form == "grid":
        data = volumes.reshape(24, 24, order="F" if ending == "mat" else "C")
    elif form != "volumes":  # data(mask) in MATLAB, data[mask] in NumPy
        data = volumes.transpose(2, 1, 0, 3)[mask.T] if ending == "mat" else volumes[mask]
        data = data[:, None, None] if "4-D" in form else data
    else:
        data = volumes
    with h5py.File(folder / f"TYPED_FITHRF_GLMDENOISE_RR.{ending}", "a") as file:
        del file["betasmd"]
        file["betasmd"] = data if ending == "hdf5" else data.T
        if ending == "mat":
            file["betasmd"].attrs["MATLAB_class"] = np.bytes_("single")
    settings = {"kind": "glmsingle", "root": str(folder), "trials": str(folder / "trials.csv")}
    made = study(tmp_path, settings | {"images": str(folder / "images"), "mask": str(folder / "mask.nii.gz")})
    for split in ("train", "test"):
        truth = averaged(betas, names, ids(made, split))[:, mask.reshape(-1)]
        np.testing.assert_allclose(made.betas(split), truth, atol=1e-6)
    with np.load(made.path / "betas" / "voxels.npz") as voxels:
        np.testing.assert_array_equal(voxels["index"], np.flatnonzero(mask))


@pytest.mark.parametrize("shape", [(3, 4, 2), (2, 3, 4), (24, 1, 1)])
def test_a_mask_with_other_sides_is_refused_though_it_has_as_many_voxels(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    nibabel = pytest.importorskip("nibabel", reason="NIfTI files need nibabel")
    write_glmsingle(tmp_path / "glm", ending="hdf5")
    folder = tmp_path / "glm"
    nibabel.save(nibabel.Nifti1Image(np.ones(shape, "u1"), np.eye(4)), folder / "mask.nii.gz")
    settings = {"kind": "glmsingle", "root": str(folder), "trials": str(folder / "trials.csv")}
    with pytest.raises(InputError, match=r"mask.nii.gz has shape .* \(4, 3, 2\)"):
        study(tmp_path, settings | {"mask": str(folder / "mask.nii.gz")})


def test_glmsingles_pickles_are_never_loaded(tmp_path: Path) -> None:
    write_glmsingle(tmp_path / "glm", ending="hdf5")
    folder = tmp_path / "glm"
    (folder / "TYPED_FITHRF_GLMDENOISE_RR.hdf5").unlink()
    np.save(folder / "TYPED_FITHRF_GLMDENOISE_RR.npy", {"betasmd": np.zeros(3)}, allow_pickle=True)
    with pytest.raises(InputError, match="pickle"):
        study(tmp_path, {"kind": "glmsingle", "root": str(folder), "trials": str(folder / "trials.csv")})


def test_trials_that_were_never_written_are_refused(tmp_path: Path) -> None:
    write_glmsingle(tmp_path / "glm", ending="hdf5")
    folder = tmp_path / "glm"
    with h5py.File(folder / "TYPED_FITHRF_GLMDENOISE_RR.hdf5", "a") as file:
        del file["betasmd"]
        betas = file.create_dataset("betasmd", (4, 3, 2, 24), "f4", chunks=(1, 3, 2, 24))
        betas[0] = 1
    with pytest.raises(InputError, match="never written"):
        study(tmp_path, {"kind": "glmsingle", "root": str(folder), "trials": str(folder / "trials.csv")})
