"""``leanrecon init``: settings for data that ``inspect`` understood, with every other setting in a comment."""

import re
import tomllib
from pathlib import Path

import numpy as np
import pytest

from leanrecon.app.init import study_text
from leanrecon.datasets.layouts.bdpy_simulate import simulate_bdpy
from leanrecon.errors import InputError
from leanrecon.study.recipes import read_settings
from leanrecon.study.settings import check_settings


@pytest.fixture(scope="module")
def bdata(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bdata")
    simulate_bdpy(folder, train=6, test=3, voxels=40, size=16)
    return folder


def test_what_was_found_is_set_and_all_else_is_a_comment(bdata: Path, tmp_path: Path) -> None:
    text = study_text(bdata)
    tables = tomllib.loads(text)
    assert tables["dataset"]["kind"] == "bdpy"
    assert tables["dataset"]["images"] == str(bdata / "images")
    assert {name: table for name, table in tables.items() if name != "dataset"} == {
        "features": {"pca": {}}, "regression": {}, "stage1": {}, "evaluate": {}
    }  # fmt: skip
    (tmp_path / "study.toml").write_text(text)
    settings, _ = read_settings(tmp_path / "study.toml")
    assert settings.dataset.simulated


def test_comments_hold_the_defaults(bdata: Path) -> None:
    """A file with every comment of a value taken away means the same."""
    text = study_text(bdata)
    every = re.sub(r"^# (\w+ = .+)$", r"\1", text, flags=re.M)
    assert len(tomllib.loads(every)["evaluate"]) >= 4
    assert check_settings(tomllib.loads(every)).tables() == check_settings(tomllib.loads(text)).tables()


def test_data_of_no_known_layout_are_refused_with_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match=r"unknown.*notes\.txt"):
        study_text(tmp_path)


def test_a_simulated_bdata_subject_is_read_as_it_was_drawn(bdata: Path) -> None:
    """Labels name the images, areas and repeats are those of the layout."""
    import h5py

    with h5py.File(bdata / "sub-01_perceptionNaturalImageTraining_original_VC.h5") as file:
        keys = [key.decode() for key in file["metadata/key"]]
        flags = file["metadata/value"][:]
        label = file["dataset"][:, np.flatnonzero(flags[keys.index("stimulus_id")] == 1)[0]]
        voxels = int((flags[keys.index("ROI_VC")] == 1).sum())
    names, counts = np.unique(np.round(label, 6), return_counts=True)
    assert voxels == 40
    assert counts.tolist() == [5] * 6
    files = {path.stem for path in (bdata / "images").iterdir()}
    assert {f"n{int(name):08}_{round(name % 1 * 1e6)}" for name in names} <= files
    areas = sum((flags[keys.index(f"ROI_{name}")] == 1).astype(int) for name in ("V1", "V2", "V3", "hV4", "HVC"))
    assert (areas[:40] == 1).all()
