"""Folds end to end: predictions and images of all rows as one array and one folder, in the order of the rows."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from PIL import Image
from support.small_study import damage_of

import leanrecon
from leanrecon.places.files import write_whole
from leanrecon.stages.joined import join_nbytes
from leanrecon.stages.repair import mend
from leanrecon.study.layout import Study
from leanrecon.study.verify import find_damage

pytestmark = pytest.mark.slow

N, VOXELS, FOLDS = 22, 9, 3


def settings_of(folder: Path) -> dict[str, Any]:
    return {
        "memory": "4GB",
        "dataset": {"betas": str(folder / "betas.npy"), "stimuli": str(folder / "stimuli.npy"), "folds": FOLDS},
        "stores": {"chunk": "1KB"},
        "areas": {"V1": ["V1"]},
        "features": {"pixels": {"size": 8}, "pca": {"components": 40, "size": 8}},
        "regression": {"alpha": 10.0},
        "stage1": {"space": "pixels"},
        "evaluate": {"permutations": 1, "resamples": 100},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("joined")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (N, 12, 12, 1), np.uint8)
    np.save(folder / "stimuli.npy", images)
    np.save(folder / "betas.npy", (images.reshape(N, -1) @ rng.standard_normal((144, VOXELS))).astype(np.float32))
    settings = settings_of(folder)
    leanrecon.run(settings, study=folder / "study", until="dataset", set=["areas={}"])
    areas = np.where(np.arange(VOXELS) < 5, "V1", "V2")
    write_whole(Study(folder / "study").voxels, lambda file: np.savez(file, index=np.arange(VOXELS), areas=areas))
    leanrecon.run(settings, study=folder / "study")
    return folder


@pytest.fixture
def study(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder / "study", tmp_path / "study"))


def rows_of_folds(study: Path) -> list[list[int]]:
    folds: list[list[int]] = json.loads((study / "folds.json").read_text())["folds"]
    return folds


@pytest.mark.parametrize(("area", "where"), [("", "."), ("-V1", "variants/V1")])
def test_row_i_is_row_i_of_the_betas(folder: Path, area: str, where: str) -> None:
    study = folder / "study"
    joined = zarr.open_array(study / where / "predictions/pixels/test.zarr")[:]
    assert joined.shape == (N, 64)
    for k, rows in enumerate(rows_of_folds(study)):
        fold = study / f"variants/fold{k:02d}{area}"
        np.testing.assert_array_equal(joined[rows], zarr.open_array(fold / "predictions/pixels/test.zarr")[:])
        for stage in ("stage1", "final"):
            for i, row in enumerate(rows):
                one, other = (p / "reconstructions" / stage for p in (study / where, fold))
                one, other = one / f"{row:05d}.png", other / f"{i:05d}.png"
                assert one.read_bytes() == other.read_bytes()
                assert one.stat().st_ino == other.stat().st_ino, "linked, not copied"
    assert len(list((study / where / "reconstructions/final").iterdir())) == N


def test_a_space_that_learns_has_its_own_features_in_each_fold_and_nan_beyond_them(folder: Path) -> None:
    study = folder / "study"
    joined = leanrecon.open(study).predictions("pca")
    widths = set()
    for k, rows in enumerate(rows_of_folds(study)):
        own = zarr.open_array(study / f"variants/fold{k:02d}/predictions/pca/test.zarr")[:]
        widths.add(own.shape[1])
        np.testing.assert_array_equal(joined[rows, : own.shape[1]], own)
        assert np.isnan(joined[rows, own.shape[1] :]).all()
    assert len(widths) == 2  # 22 rows are not shared out evenly
    assert joined.shape[1] == max(widths)


def test_python_gives_all_rows_in_order(folder: Path) -> None:
    done = leanrecon.open(folder / "study")
    assert done.predictions("pixels").shape == (N, 64)
    drawn = np.stack([np.asarray(image) for image in done.images("final")])
    assert drawn.shape == (N, 12, 12)
    assert done.of("V1").predictions("pixels").shape == (N, 64)


def test_a_finished_study_stays_as_it_is(study: Path, folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in study.rglob("*") if path.is_file()}
    leanrecon.run(settings_of(folder), study=study)
    after = {path: path.stat().st_mtime_ns for path in study.rglob("*") if path.is_file()}
    assert {path for path in before | after if before.get(path) != after.get(path)} <= {study / "study.toml"}


@pytest.mark.parametrize("lost", ["predictions/pixels/test.zarr", "reconstructions/final", "reconstructions/stage1"])
def test_what_is_lost_is_joined_again_with_the_same_bytes(study: Path, folder: Path, lost: str) -> None:
    before = {path.relative_to(study): path.read_bytes() for path in (study / lost).rglob("*") if path.is_file()}
    files = sorted(path for path in (study / lost).rglob("*") if path.is_file() and path.name != "zarr.json")
    for path in files[::2]:
        path.unlink()
    damage = find_damage(study)
    assert {str(one.path) for one in damage} == {str(study / lost)}
    mend(study, damage)
    assert damage_of(study) == {}
    after = {path.relative_to(study): path.read_bytes() for path in (study / lost).rglob("*") if path.is_file()}
    assert after == before


def test_a_damaged_image_that_two_folders_share_is_mended_in_both(study: Path) -> None:
    row = rows_of_folds(study)[1][0]
    shared = study / "variants/fold01/reconstructions/stage1/00000.png"
    for path in (study / f"reconstructions/stage1/{row:05d}.png", study / f"reconstructions/final/{row:05d}.png"):
        path.unlink()
        os.link(shared, path)  # copytree made files of their own
    good = shared.read_bytes()
    shared.write_bytes(good[:-20] + bytes(20))
    mend(study, find_damage(study))
    assert damage_of(study) == {}
    assert (study / f"reconstructions/final/{row:05d}.png").read_bytes() == good
    assert np.asarray(Image.open(shared)).shape == (12, 12)


def test_the_mirror_has_them_and_restores_them(folder: Path, tmp_path: Path) -> None:
    settings = settings_of(folder) | {"areas": {}, "stores": {}, "features": {"pixels": {"size": 8}}}
    settings["evaluate"] = {"permutations": 0}
    leanrecon.run(settings, study=tmp_path / "study", until="regression", mirror=tmp_path / "mirror")
    record = Path("predictions/pixels/test.zarr/zarr.json")
    before = (tmp_path / "study" / record).read_bytes()
    assert (tmp_path / "mirror" / record).read_bytes() == before
    shutil.rmtree(tmp_path / "study" / "predictions")
    leanrecon.run(settings, study=tmp_path / "study", until="regression", mirror=tmp_path / "mirror")
    assert (tmp_path / "study" / record).read_bytes() == before


def test_the_plan_counts_them(folder: Path, tmp_path: Path) -> None:
    settings = settings_of(folder) | {"areas": {}}
    leanrecon.run(settings, study=tmp_path / "study", until="regression")
    chunks = [path for path in (tmp_path / "study").glob("**/predictions/pixels/*.zarr/c/**/*") if path.is_file()]
    planned = {line.stage: line for line in leanrecon.plan(settings)}["regression pixels"]
    assert 0.8 * planned.disk < sum(path.stat().st_size for path in chunks) < 1.05 * planned.disk


@pytest.mark.alone
def test_joining_takes_no_more_memory_than_planned(folder: Path) -> None:
    stages = json.loads((folder / "study/run.json").read_text())["stages"]
    for name in ("regression pixels, all folds", "stage1, all folds", "refine, all folds"):
        assert stages[name]["peak_bytes"] <= stages[name]["planned_bytes"], name
    assert join_nbytes(1000, 91_168, 8_000_000) < 60_000_000  # however wide a row is
