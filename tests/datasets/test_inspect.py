"""`inspect` names what a file or folder is, and prints settings that read it."""

import tomllib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
from support.lab import write_lab
from support.layouts import (
    IDS,
    write_algonauts,
    write_bdata,
    write_brain_diffuser,
    write_glmsingle,
    write_images,
    write_mindeye,
    write_miyawaki,
)

from leanrecon.api import run
from leanrecon.datasets.inspect.inspect import inspect
from leanrecon.errors import InputError

WRITERS: dict[str, Any] = {
    "mindeye": write_mindeye,
    "brain-diffuser": write_brain_diffuser,
    "algonauts": write_algonauts,
    "miyawaki": write_miyawaki,
    "glmsingle": lambda root: write_glmsingle(root, ending="hdf5"),
    "nifti": write_lab,
}


@pytest.mark.parametrize("layout", WRITERS)
def test_each_layout_is_named_and_its_settings_read_it(tmp_path: Path, layout: str) -> None:
    WRITERS[layout](tmp_path / "data")
    found = inspect(tmp_path / "data")
    assert found.layout == layout
    settings = tomllib.loads(found.text()[found.text().index("[dataset]") :])
    settings["dataset"]["check"] = "warn"
    run(settings | {"features": {"pca": {"components": 4}}}, study=tmp_path / "study", until="dataset")
    assert (tmp_path / "study" / "betas" / "rows.json").is_file()


def test_bdata_is_named_with_its_keys(tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    write_bdata(tmp_path / "Subject1.h5", IDS)
    found = inspect(tmp_path / "Subject1.h5")
    assert found.layout == "bdpy"
    assert found.settings["voxels"] == "ROI_VC"
    assert inspect(tmp_path / "images").layout == "images"


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
