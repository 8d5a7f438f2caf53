"""leanrecon from Python: run, plan and open give arrays, predictions, images and figures."""

import numpy as np
import pytest
from PIL import Image

import leanrecon
from leanrecon.errors import InputError, LeanreconError, SettingsError, StoreError

TABLES = {
    "dataset": {"kind": "simulated", "n_train": 40, "n_test": 12, "size": 16, "voxels": 50},
    "features": {"pixels": {"size": 8}},
    "regression": {"alpha": 30.0},
    "evaluate": {"permutations": 1, "resamples": 100},
}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    return leanrecon.run(TABLES, study=tmp_path_factory.mktemp("api") / "study", memory="4GB")


def test_arrays_are_what_the_stores_hold(done):
    import zarr

    for split, rows in (("train", 40), ("test", 12)):
        assert done.betas(split).shape == (rows, 50)
        np.testing.assert_array_equal(done.betas(split), zarr.open_array(done.path / "betas" / f"{split}.zarr")[:])
        assert done.stimuli(split).shape == (rows, 16, 16, 3)
        assert done.features("pixels", split).shape == (rows, 8 * 8 * 3)
    assert done.predictions("pixels").shape == (12, 192)
    np.testing.assert_array_equal(done.stimulus("train"), np.arange(40))


def test_images_are_pillow_images_of_the_test_rows(done):
    images = done.images()
    assert len(images) == 12
    assert all(isinstance(image, Image.Image) and image.size == (16, 16) for image in images)
    with Image.open(done.path / "reconstructions" / "final" / "00003.png") as saved:
        assert saved.tobytes() == images[3].tobytes()


@pytest.mark.parametrize("stage", ["nope", "../final", "", None, 5])
def test_images_of_another_stage_are_refused_with_those_there_are(done, stage):
    with pytest.raises(SettingsError, match=r'stage = .*Expected "stage1" \(first images\) or "final"'):
        done.images(stage)


def test_figures_scores_and_settings_are_plain_values(done):
    assert 0 < done.figures["final"]["pixcorr"]["value"] < 1
    assert float(done.scores[0]["final.pixcorr"]) == pytest.approx(done.figures["final"]["pixcorr"]["value"], abs=1)
    assert len(done.scores) == 12
    assert done.settings["regression"]["alpha"] == 30.0
    assert done.report.read_text().startswith("<!doctype html>") or done.report.exists()


def test_open_reads_what_run_wrote(done):
    again = leanrecon.open(done.path)
    np.testing.assert_array_equal(again.predictions("pixels"), done.predictions("pixels"))
    assert again.variants == ["oracle", "shuffled00"]
    assert again.of("shuffled00").predictions("pixels").shape == (12, 192)
    with pytest.raises(InputError, match="shuffled00"):
        again.of("shuffled01")


def test_a_run_continues_and_changes_nothing(done):
    before = {path: path.stat().st_mtime_ns for path in done.path.rglob("*.zarr/**/*") if path.is_file()}
    leanrecon.run(TABLES, study=done.path, memory="4GB")
    assert before == {path: path.stat().st_mtime_ns for path in done.path.rglob("*.zarr/**/*") if path.is_file()}


def test_until_and_set(tmp_path):
    partial = leanrecon.run(TABLES, study=tmp_path / "study", until="regression", set=["regression.alpha=5.0"])
    assert partial.settings["regression"]["alpha"] == 5.0
    assert partial.predictions("pixels").shape == (12, 192)
    with pytest.raises(StoreError):
        _ = partial.figures
    with pytest.raises(SettingsError, match="did you mean"):
        leanrecon.run(TABLES, study=tmp_path / "study", until="regresion")


def test_plan_does_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stages = leanrecon.plan(TABLES, memory="4GB")
    assert [stage.stage for stage in stages] == [
        "dataset", "features pixels", "regression pixels", "stage1", "refine", "evaluate",
    ]  # fmt: skip
    assert all(stage.memory > 0 for stage in stages)
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_by_name_and_a_file(tmp_path):
    with pytest.raises(LeanreconError):
        leanrecon.run("digits69", study=tmp_path / "study")  # its data are not here
    file = tmp_path / "mine.toml"
    file.write_text('[dataset]\nkind = "simulated"\nn_train = 20\nn_test = 5\nsize = 16\nvoxels = 30\n')
    done = leanrecon.run(file, study=tmp_path / "study", until="dataset")
    assert done.betas("test").shape == (5, 30)


def test_a_folder_that_is_no_study_is_refused(tmp_path):
    with pytest.raises(StoreError, match="not the folder of a study"):
        leanrecon.open(tmp_path)
