"""`inspect` names what a file or folder is, and prints settings that read it."""

import tomllib
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
from support.lab import write_lab
from support.layouts import (
    BDATA_FORMS,
    IDS,
    write_algonauts,
    write_bdata,
    write_brain_diffuser,
    write_glmsingle,
    write_images,
    write_mindeye,
    write_miyawaki,
)

import leanrecon
from leanrecon.api import plan, run
from leanrecon.datasets.inspect.inspect import inspect
from leanrecon.errors import InputError


def write_bdpy(root: Path, files: dict[str, Any], **options: Any) -> None:
    root.mkdir()
    write_images(root / "images")
    for name, order in files.items():
        kinds = np.where(order < 4, 1, 2) if len(files) == 1 else None
        write_bdata(root / name, IDS[order], kinds, **options)


def write_arrays(root: Path, ending: str) -> None:
    """Betas and images whose names say which are for testing, in files of one kind."""
    rng = np.random.default_rng(0)
    root.mkdir()
    arrays = {f"betas_{split}": rng.standard_normal((n, 9)).astype("f4") for split, n in (("train", 30), ("test", 8))}
    arrays |= {
        f"images_{split}": rng.integers(0, 256, (n, 8, 8, 3), np.uint8) for split, n in (("train", 30), ("test", 8))
    }
    if ending == "npy":
        for name, array in arrays.items():
            np.save(root / f"{name}.npy", array)
    elif ending == "npz":
        np.savez(root / "all.npz", **arrays)
    elif ending == "mat":
        scipy.io.savemat(root / "all.mat", arrays)
    else:
        with h5py.File(root / "all.h5", "w") as file:
            for name, array in arrays.items():
                file[f"group/{name}"] = array


EVERY, FIRST, LAST = np.repeat(np.arange(6), 2), np.repeat(np.arange(4), 2), np.repeat([4, 5], 3)

WRITERS: dict[str, tuple[str, Any]] = {
    "mindeye": ("mindeye", write_mindeye),
    "brain-diffuser": ("brain-diffuser", write_brain_diffuser),
    "algonauts": ("algonauts", write_algonauts),
    "miyawaki": ("miyawaki", write_miyawaki),
    "glmsingle, HDF5": ("glmsingle", lambda root: write_glmsingle(root, ending="hdf5")),
    "glmsingle, MATLAB": ("glmsingle", lambda root: write_glmsingle(root, ending="mat")),
    "nifti": ("nifti", write_lab),
    "nifti, not compressed": ("nifti", lambda root: write_lab(root, ending="nii", scaled=True)),
    "bdpy, one file": ("bdpy", lambda root: write_bdpy(root, {"Subject1.h5": EVERY})),
    "bdpy, MATLAB 5": ("bdpy", lambda root: write_bdpy(root, {"Subject1.mat": EVERY}, form="mat 5")),
    "bdpy, MATLAB 7.3": ("bdpy", lambda root: write_bdpy(root, {"Subject1.mat": EVERY}, form="mat 7.3")),
    "bdpy, two files": (
        "bdpy",
        lambda root: write_bdpy(root, {"sub-01_Training_VC.h5": FIRST, "sub-01_Test_VC.h5": LAST}),
    ),
    **{f"arrays, {ending}": ("arrays", partial(write_arrays, ending=ending)) for ending in ("npy", "npz", "mat", "h5")},
}


def settings_of(path: Path) -> dict[str, Any]:
    """The printed table, as somebody would put it into a file."""
    text = inspect(path).text()
    return tomllib.loads(text[text.index("[dataset]") :])["dataset"]


def plan_and_ingest(dataset: dict[str, Any], study: Path) -> None:
    settings = {"dataset": dataset, "features": {"pca": {"components": 4}}}
    planned = plan(settings, until="dataset")
    run(settings, study=study, until="dataset")
    assert (study / "betas" / "rows.json").is_file()
    on_disk = sum(file.stat().st_size for file in study.rglob("c/*/*") if file.is_file())
    assert 0 < on_disk <= planned[0].disk


@pytest.mark.parametrize("layout", WRITERS)
def test_each_layout_is_named_and_its_settings_read_it(tmp_path: Path, layout: str) -> None:
    kind, write = WRITERS[layout]
    root = tmp_path / 'a "quoted" folder'
    write(root)
    assert inspect(root).layout == kind
    plan_and_ingest(settings_of(root) | ({} if kind == "arrays" else {"check": "warn"}), tmp_path / "study")


def test_a_table_that_does_not_say_what_is_tested_gets_a_share(tmp_path: Path) -> None:
    lab = write_lab(tmp_path / "lab")
    table = next(lab.folder.glob("*.tsv"))
    assert "test_fraction" not in settings_of(lab.folder)
    table.write_text(table.read_text().replace("split", "half", 1))
    found = settings_of(lab.folder)
    assert found["test_fraction"] == 0.1
    plan_and_ingest(found | {"check": "warn"}, tmp_path / "study")


@pytest.mark.parametrize("form", BDATA_FORMS)
def test_a_file_of_bdata_is_named_and_its_settings_read_it(tmp_path: Path, form: str) -> None:
    name = f"Subject1.{'mat' if form.startswith('mat') else 'h5'}"
    write_bdpy(tmp_path / "data", {name: EVERY}, form=form)
    found = settings_of(tmp_path / "data" / name)
    assert (found["kind"], found["voxels"], found["label"]) == ("bdpy", "ROI_VC", "stimulus_id")
    plan_and_ingest(found | {"check": "warn"}, tmp_path / "study")
    assert inspect(tmp_path / "data" / "images").layout == "images"


def test_nsds_folder_is_named_with_the_sessions_that_are_there(small_nsd: Path, tmp_path: Path) -> None:
    found = settings_of(small_nsd)
    assert (found["kind"], found["sessions"]) == ("nsd", 2)
    plan_and_ingest(found, tmp_path / "study")


def test_arrays_are_described_with_their_likely_scale(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "betas_train.npy", (rng.standard_normal((40, 30)) * 300).astype("i2"))
    np.save(tmp_path / "betas_test.npy", (rng.standard_normal((10, 30)) * 300).astype("i2"))
    np.savez(tmp_path / "images.npz", train=rng.random((40, 3, 8, 8)), test=rng.random((10, 3, 8, 8)))
    found = inspect(tmp_path)
    assert found.layout == "arrays"
    assert found.settings["betas_train"].endswith("betas_train.npy")
    assert found.settings["stimuli_test"].endswith("images.npz:test")
    text = found.text()
    assert "divide by 300" in text
    assert "channels come first" in text


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("patterns_train", "patterns_test"),
        ("contrast_train", "contrast_test"),
        ("fmriTrn", "fmriTest"),
        ("Xtr", "Xte"),
        ("XTrain", "XTest"),
        ("train_filtered", "test_filtered"),
    ],
)
def test_train_and_test_arrays_are_told_apart_by_their_names(tmp_path: Path, train: str, test: str) -> None:
    rng = np.random.default_rng(0)
    for name, rows in ((train, 40), (test, 10)):
        np.save(tmp_path / f"{name}.npy", rng.standard_normal((rows, 30)))
    settings = inspect(tmp_path).settings
    assert Path(settings["betas_train"]).stem == train
    assert Path(settings["betas_test"]).stem == test


def test_rows_on_the_last_axis_are_read_so(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {"betas": rng.standard_normal((30, 50)), "stimuli": rng.integers(0, 256, (9, 9, 3, 50), np.uint8)}
    scipy.io.savemat(tmp_path / "all.mat", arrays)
    found = settings_of(tmp_path / "all.mat")
    assert found["rows_last"] is True
    plan_and_ingest(found, tmp_path / "study")


@pytest.mark.parametrize(("channels", "last"), [(1, False), (1, True), (3, False)])
def test_flat_images_get_their_shape_and_are_no_betas(tmp_path: Path, channels: int, last: bool) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (50, 12 * 12 * channels)).astype(np.uint8)
    arrays = {"I": images, "R": rng.standard_normal((50, 30))}
    scipy.io.savemat(tmp_path / "all.mat", {name: array.T if last else array for name, array in arrays.items()})
    found = settings_of(tmp_path / "all.mat")
    assert (found["betas"][-1], found["stimuli"][-1]) == ("R", "I")
    assert found["image_shape"] == ([12, 12] if channels == 1 else [12, 12, 3])
    assert found["image_order"] == "F"
    plan_and_ingest(found, tmp_path / "study")
    first = leanrecon.open(tmp_path / "study").stimuli("train")[0]
    assert any(np.array_equal(first, row.reshape(channels, 12, 12).transpose(2, 1, 0)) for row in images)


def test_files_of_several_subjects_are_not_mixed(tmp_path: Path) -> None:
    pytest.importorskip("nibabel", reason="NIfTI files need nibabel")
    for subject in ("sub-A", "sub-B"):
        lab = write_lab(tmp_path / "data" / subject)
        for file in lab.folder.glob("sub-01*"):
            file.rename(file.with_name(file.name.replace("sub-01", subject)))
    (tmp_path / "data" / "participants.tsv").write_text("participant_id\tage\nsub-A\t30\n")
    found = inspect(tmp_path / "data")
    assert any("not for sub-B/sub-B_run-1_betas.nii.gz" in line for line in found.lines)
    assert Path(found.settings["trials"]).parent.name == "sub-A"
    assert Path(found.settings["mask"]).parent.name == "sub-A"
    plan_and_ingest(settings_of(tmp_path / "data") | {"check": "warn"}, tmp_path / "study")


def test_what_a_study_needs_and_a_folder_lacks_is_told(tmp_path: Path) -> None:
    pytest.importorskip("nibabel", reason="NIfTI files need nibabel")
    lab = write_lab(tmp_path / "lab")
    (lab.folder / "images").rename(tmp_path / "images")
    (lab.folder / "trials.tsv").unlink()
    text = inspect(lab.folder).text()
    assert "missing: a table of trials" in text
    assert "missing: the folder of the images" in text


def test_a_file_of_5000_data_sets_is_described_in_part(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "many.h5", "w") as file:
        for k in range(5000):
            file[f"s{k:04}"] = np.zeros(2)
    assert len(inspect(tmp_path / "many.h5").lines) <= 20


def test_nothing_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing at"):
        inspect(tmp_path / "gone")
    (tmp_path / "notes.doc").write_text("x")
    with pytest.raises(InputError, match="unknown kind"):
        inspect(tmp_path / "notes.doc")


@pytest.mark.parametrize("ending", ["mat", "npz", "h5"])
def test_a_damaged_file_is_named_by_the_checked_readers(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    if ending == "mat":
        scipy.io.savemat(path, {"x": np.ones(20), "y": np.ones(5)})
    elif ending == "npz":
        np.savez(path, x=np.ones(20))
    else:
        with h5py.File(path, "w") as file:
            file["x"] = np.ones(20)
    path.write_bytes(path.read_bytes()[:140])
    with pytest.raises(InputError, match="can't be read"):
        inspect(path)
