"""Calibrated first images in studies: learned from train rows alone, resumed, compared fairly, told where left out."""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from leanrecon.errors import InputError, LeanreconWarning, SettingsError
from leanrecon.memory import MemoryBudget
from leanrecon.progress import Progress
from leanrecon.stages.pipeline import Pipeline, plan_study
from leanrecon.stages.repair import mend
from leanrecon.stores import Store
from leanrecon.study.layout import Study
from leanrecon.study.mirror import Mirror
from leanrecon.study.settings import check_settings
from leanrecon.study.verify import find_damage
from leanrecon.weights.checkpoint import Folder

N, TEST, SIDE, VOXELS = 60, 10, 12, 40

BOOST = {"kind": "boost", "iterations": 10, "least_leaf": 20}
CONV = {"kind": "conv", "epochs": 4, "width": 8, "batch_size": 8, "learning_rate": 4e-3, "checkpoint_minutes": 0.0}
EVERY = ["linear", BOOST, CONV]


def name_of(table):
    return table if isinstance(table, str) else table["kind"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """[dataset] of smooth images and noisy betas; ten train images are shown twice."""
    folder = tmp_path_factory.mktemp("arrays")
    rng = np.random.default_rng(4)
    smooth = gaussian_filter(rng.standard_normal((N + TEST, SIDE, SIDE, 1)), (0, 1.5, 1.5, 0))
    stimuli = np.where(smooth > 0, 220, 30).astype(np.uint8)
    betas = stimuli.reshape(len(stimuli), -1) / 255 @ rng.standard_normal((SIDE**2, VOXELS))
    betas = (betas + 1.5 * rng.standard_normal(betas.shape)).astype(np.float32)
    train = np.concatenate([np.arange(N), np.arange(10)])
    table = {"repeats": "single"}
    for part, rows in (("train", train), ("test", np.arange(N, N + TEST))):
        for name, array in (("betas", betas), ("stimuli", stimuli)):
            np.save(folder / f"{name}_{part}.npy", array[rows])
            table[f"{name}_{part}"] = str(folder / f"{name}_{part}.npy")
    return table


def settings_of(dataset, calibrate, **changes):
    tables = {
        "memory": "3GB",
        "dataset": dataset,
        "stores": {"chunk": "2KB"},
        "features": {"pixels": {}},
        "regression": {"alpha": 200.0},
        "stage1": {"calibrate": calibrate},
        "evaluate": {"permutations": 2, "resamples": 100},
    }
    return check_settings(tables | changes)


class Said(Progress):
    def __init__(self):
        super().__init__()
        self.said = []

    def say(self, text):
        self.said.append(text)


def run(study, settings, until=None):
    progress = Said()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LeanreconWarning)
        Pipeline(settings, Study(study), progress=progress).run(until)
    return progress.said


def pngs(study, part="reconstructions/stage1"):
    return [path.read_bytes() for path in sorted((study / part).glob("*.png"))]


def learned(study):
    return {path.name: path.read_bytes() for path in sorted((study / "networks" / "calibration").iterdir())}


def metrics(study):
    return json.loads((study / "evaluation" / "metrics.json").read_text())


def stage1(study):
    return json.loads((study / "run.json").read_text())["stages"]["stage1"]


@pytest.fixture(scope="module", params=EVERY, ids=name_of)
def done(request, dataset, tmp_path_factory):
    root = tmp_path_factory.mktemp(name_of(request.param))
    settings = settings_of(dataset, request.param)
    run(root / "dataset", settings, "dataset")
    shutil.copytree(root / "dataset", root / "study")
    run(root / "study", settings)
    run(root / "plain", settings_of(dataset, "none"))
    return root, settings


@pytest.mark.slow
def test_calibrated_images_are_nearer_and_the_ceiling_stays(done):
    root, _ = done
    study, plain = root / "study", root / "plain"
    found, before = metrics(study)["stage1"]["mse"]["value"], metrics(plain)["stage1"]["mse"]["value"]
    assert found < 0.97 * before
    record = stage1(study)["calibration"]
    assert record["held_out_mse"]["after"] < record["held_out_mse"]["before"]
    assert any("First images were calibrated" in note for note in metrics(study)["notes"])
    assert not any("calibrated" in note for note in metrics(plain)["notes"])
    ceiling = "variants/oracle/reconstructions/stage1"
    assert pngs(study, ceiling) == pngs(plain, ceiling)
    shuffled = "variants/shuffled01/reconstructions/stage1"
    assert len(pngs(study, shuffled)) == TEST
    assert pngs(study, shuffled) != pngs(plain, shuffled)  # the same map is applied
    assert not (study / "calibration").exists()


@pytest.mark.slow
def test_test_rows_teach_nothing(done, tmp_path):
    """With other test betas and test images the learned files are the same; with other train images they are not."""
    root, settings = done
    for split, same in (("test", True), ("train", False)):
        other = Path(shutil.copytree(root / "dataset", tmp_path / split))
        for name in ("betas", "stimuli"):
            poison(other / name / f"{split}.zarr")
        run(other, settings)
        assert (learned(other) == learned(root / "study")) is same


def poison(path):
    store = Store.open(path)
    rng = np.random.default_rng(9)
    store.discard([(i, j) for i in range(store.row_groups) for j in range(store.column_groups)])
    for i in range(store.row_groups):
        rows = (len(store.group_rows(i)), *store.shape[1:])
        noise = rng.integers(0, 256, rows).astype(np.uint8) if store.dtype == np.uint8 else rng.standard_normal(rows)
        store.write_rows(i, noise.astype(store.dtype))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LeanreconWarning)
        store.finish()


class StoppedError(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("every", [3, 11])
def test_a_run_killed_anywhere_ends_with_the_same_bytes(done, tmp_path, monkeypatch, every):
    root, settings = done
    left = [0]

    def stopping(owner, name):
        whole = getattr(owner, name)

        def stops(self, *given, **options):
            left[0] -= 1
            if left[0] < 0:
                raise StoppedError
            return whole(self, *given, **options)

        monkeypatch.setattr(owner, name, stops)

    study = Path(shutil.copytree(root / "dataset", tmp_path / "study"))
    run(study, settings, "regression")
    stopping(Store, "write_chunk")
    stopping(Folder, "write")
    runs = 0
    while True:
        left[0], runs = every, runs + 1
        try:
            run(study, settings, "stage1")
            break
        except StoppedError:
            continue
    assert runs > 1
    assert learned(study) == learned(root / "study")
    assert pngs(study) == pngs(root / "study")
    assert not (study / "calibration").exists()


@pytest.mark.slow
def test_damage_of_what_was_learned_is_found_and_repaired(done, tmp_path):
    root, _ = done
    study = Path(shutil.copytree(root / "study", tmp_path / "study"))
    assert find_damage(study) == {}
    (file,) = (study / "networks" / "calibration").glob("*.safetensors")
    content = file.read_bytes()
    file.write_bytes(content[:-9] + bytes(9))
    damage = find_damage(study)
    assert [one.path.name for one in damage] == ["calibration"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LeanreconWarning)
        mend(study, damage)
    assert file.read_bytes() == content
    assert find_damage(study) == {}
    assert pngs(study) == pngs(root / "study")


@pytest.mark.slow
def test_a_mirror_keeps_what_was_learned(done, tmp_path):
    root, _ = done
    study = Path(shutil.copytree(root / "study", tmp_path / "study"))
    Mirror(Study(study).root, tmp_path / "mirror").keep()
    mirrored = sorted(path.name for path in (tmp_path / "mirror").rglob("*.safetensors"))
    assert mirrored == sorted(name for name in learned(study) if name.endswith(".safetensors"))


@pytest.mark.slow
def test_each_fold_learns_its_own(dataset, tmp_path):
    whole = {name.removesuffix("_train"): path for name, path in dataset.items() if name.endswith("_train")}
    run(tmp_path / "study", settings_of({"repeats": "single", "folds": 3, **whole}, "linear"))
    kept = [learned(tmp_path / "study" / "variants" / f"fold{k:02d}") for k in range(3)]
    assert kept[0] != kept[1] != kept[2]
    assert any("First images were calibrated (linear)" in note for note in metrics(tmp_path / "study")["notes"])


@pytest.mark.slow
def test_too_few_images_are_told_and_nothing_is_learned(dataset, tmp_path):
    for part in ("betas", "stimuli"):
        np.save(tmp_path / f"{part}.npy", np.load(dataset[f"{part}_train"])[:15])
    few = {name: path for name, path in dataset.items() if not name.endswith("_train")}
    few |= {f"{part}_train": str(tmp_path / f"{part}.npy") for part in ("betas", "stimuli")}
    said = run(tmp_path / "study", settings_of(few, BOOST))
    sentence = 'First images were not calibrated: 15 train images are fewer than the 20 that calibrate = "boost" needs.'
    assert sentence in said
    assert stage1(tmp_path / "study")["notes"] == [sentence]
    assert sentence in metrics(tmp_path / "study")["notes"]
    assert not (tmp_path / "study" / "networks").exists()
    assert not (tmp_path / "study" / "predictions" / "pixels" / "train.zarr").exists()
    plain = run_plain(few, tmp_path)
    assert pngs(tmp_path / "study") == pngs(plain)


def run_plain(dataset, tmp_path):
    run(tmp_path / "plain", settings_of(dataset, "none"))
    return tmp_path / "plain"


@pytest.mark.slow
def test_the_plan_has_a_line_for_it(dataset):
    lines = {line.stage: line for line in plan_study(settings_of(dataset, BOOST), base_dir=None)}
    line = lines["stage1 calibration"]
    assert line.summary == f"10 trees on {70 * 144} pixels"
    assert line.memory > MemoryBudget.of("3GB").reserved + 150_000_000
    assert line.scratch >= 2 * 70 * 144
    assert "stage1 calibration" not in {line.stage for line in plan_study(settings_of(dataset, "none"), base_dir=None)}


def test_settings_are_written_out_and_refused(dataset):
    settings = settings_of(dataset, BOOST)
    assert settings.tables()["stage1"]["calibrate"]["iterations"] == 10
    assert check_settings(settings.tables()) == settings
    assert settings_of(dataset, "none").tables()["stage1"]["calibrate"] == {"kind": "none"}
    with pytest.raises(SettingsError, match=r"stage1\.calibrate.*did you mean linear"):
        settings_of(dataset, "linaer")
    with pytest.raises(SettingsError, match=r"features\.calibration: another name"):
        settings_of(dataset, "linear", features={"calibration": {"kind": "pixels"}})


@pytest.mark.slow
def test_fewer_runs_than_folds_are_refused(dataset, tmp_path):
    runs = dataset | {"group": "run"}
    for part, rows in (("train", N + 10), ("test", TEST)):
        np.save(tmp_path / f"{part}.npy", np.arange(rows) // 24)
        runs[f"runs_{part}"] = str(tmp_path / f"{part}.npy")
    with pytest.raises(InputError, match="groups of train rows for 5 folds"):
        run(tmp_path / "study", settings_of(runs, "linear"))
