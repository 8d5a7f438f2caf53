"""Studies whose predictions come from a network: whole, in folds, killed, damaged, and with other settings."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leanrecon.errors import StoreError
from leanrecon.memory import MemoryBudget
from leanrecon.stages.pipeline import Pipeline, plan_study
from leanrecon.stages.repair import mend
from leanrecon.stores import Store
from leanrecon.study.layout import Study
from leanrecon.study.settings import check_settings
from leanrecon.study.verify import find_damage

torch = pytest.importorskip("torch")

pytestmark = [pytest.mark.slow, pytest.mark.networks]

KILLS = int(os.environ.get("LEANRECON_KILLS", "3"))

NETWORK = {"kind": "mlp", "hidden": 24, "blocks": 1, "epochs": 3, "batch_size": 16, "alpha": 30.0}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("arrays")
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((64, 30))
    for split, n in (("train", 120), ("test", 20)):
        stimuli = np.kron(rng.integers(0, 256, (n, 4, 4)), np.ones((1, 2, 2))).astype(np.uint8)
        betas = stimuli.reshape(n, -1) / 255 @ mixing + rng.standard_normal((n, 30))
        np.save(folder / f"stimuli_{split}.npy", stimuli)
        np.save(folder / f"betas_{split}.npy", betas.astype(np.float32))
    return {
        f"{role}_{split}": str(folder / f"{role}_{split}.npy")
        for role in ("betas", "stimuli")
        for split in ("train", "test")
    }


def tables(dataset: dict[str, Any], **network: Any) -> dict[str, Any]:
    return {
        "dataset": dataset,
        "stores": {"chunk": "1KB"},
        "features": {"pca": {"components": 10}, "pixels": {}},
        "regression": {"pca": NETWORK | network, "pixels": {"alpha": 3.0}},
        "stage1": {"space": "pca"},
        "evaluate": {"permutations": 1, "resamples": 100},
    }


def run(root: Path, settings: dict[str, Any], until: str = "evaluate", **how: Any) -> Pipeline:
    pipeline = Pipeline(check_settings(settings), Study(root), **how)
    pipeline.run(until)
    return pipeline


def content(path: Path) -> str:
    return Store.open(path).content


def test_a_study_goes_its_whole_way_with_a_network(dataset, tmp_path):
    run(tmp_path, tables(dataset))
    stage = json.loads((tmp_path / "run.json").read_text())["stages"]["regression pca"]
    assert stage["epochs_trained"] == 3
    assert len(stage["curve"]["train"]) == len(stage["curve"]["validation"]) == 4
    assert stage["peak_bytes"] <= stage["planned_bytes"] <= stage["budget_bytes"]
    metrics = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    assert metrics["final"]["pixcorr"]["value"] > metrics["baselines"]["shuffled_betas"]["pixcorr"]["value"]
    report = (tmp_path / "report.html").read_text()
    assert report.count("Losses while the network learned") == 1
    assert '<polyline class="curve held"' in report
    shuffled = Study(tmp_path).variant("shuffled00")
    assert content(shuffled.predictions("pca")) != content(Study(tmp_path).predictions("pca"))
    assert sorted(p.name for p in Study(tmp_path).network("pca").iterdir()) == [
        "coordinates.safetensors", "network.safetensors", "ridge.safetensors",
    ]  # fmt: skip
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    run(tmp_path, tables(dataset))
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}


def test_folds_have_networks_of_their_own(dataset, tmp_path):
    split = {key.removesuffix("_train"): value for key, value in dataset.items() if key.endswith("train")} | {
        "folds": 2
    }
    run(tmp_path, tables(split))
    networks = [tmp_path / "variants" / f"fold0{k}" / "networks" / "pca" / "network.safetensors" for k in (0, 1)]
    assert networks[0].read_bytes() != networks[1].read_bytes()
    assert "Dashed: the loss of the rows learned from in fold00" in (tmp_path / "report.html").read_text()


def test_damaged_predictions_are_made_again_from_the_kept_weights(dataset, tmp_path):
    run(tmp_path, tables(dataset), until="regression")
    study = Study(tmp_path)
    path = Path(study.predictions("pca"))
    known, weights = content(path), Path(study.network("pca") / "network.safetensors")
    written = weights.stat().st_mtime_ns
    chunk = next(file for file in (path / "c").rglob("*") if file.is_file())
    data = bytearray(chunk.read_bytes())
    data[3] ^= 1
    chunk.write_bytes(bytes(data))
    mend(tmp_path, find_damage(tmp_path))
    assert not find_damage(tmp_path)
    assert content(path) == known
    assert weights.stat().st_mtime_ns == written


def test_a_damaged_network_is_found_and_trained_again_to_the_same_weights(dataset, tmp_path):
    run(tmp_path, tables(dataset), until="regression")
    study = Study(tmp_path)
    weights, other = (study.network("pca") / f"{name}.safetensors" for name in ("network", "ridge"))
    whole, kept, known = weights.read_bytes(), other.stamp(), content(study.predictions("pca"))
    weights.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    found = find_damage(tmp_path)
    assert [what for parts in found.values() for _, what in parts] == [f"{weights} does not match its checksum"]
    mend(tmp_path, found)
    assert not find_damage(tmp_path)
    assert weights.read_bytes() == whole
    assert other.stamp() == kept
    assert content(study.predictions("pca")) == known


def test_another_setting_is_refused_by_its_name_and_replaced_on_demand(dataset, tmp_path):
    alone = {"skip": "none", "inputs": "betas"}
    run(tmp_path, tables(dataset, **alone), until="regression")
    first = content(Study(tmp_path).predictions("pca"))
    with pytest.raises(StoreError, match=r"regression\.dropout was 0\.5, is 0\.1.*--overwrite"):
        run(tmp_path, tables(dataset, **alone, dropout=0.1), until="regression")
    run(tmp_path, tables(dataset, **alone, checkpoint_minutes=2), until="regression")  # this decides no result
    run(tmp_path, tables(dataset, **alone, dropout=0.1), until="regression", overwrite=True)
    assert content(Study(tmp_path).predictions("pca")) != first


def test_test_images_decide_nothing_that_is_predicted(dataset, tmp_path):
    other = np.random.default_rng(9).integers(0, 256, (20, 8, 8), np.uint8)
    np.save(tmp_path / "other.npy", other)
    run(tmp_path / "a", tables(dataset), until="regression")
    run(tmp_path / "b", tables(dataset | {"stimuli_test": str(tmp_path / "other.npy")}), until="regression")
    a, b = (Study(tmp_path / name) for name in "ab")
    assert content(a.features("pca", "test")) != content(b.features("pca", "test"))
    assert content(a.predictions("pca")) == content(b.predictions("pca"))


def test_the_plan_tells_how_often_a_network_is_trained_and_what_is_kept(dataset):
    settings = tables(dataset) | {"evaluate": {"permutations": 4}}
    stages = {stage.stage: stage for stage in plan_study(check_settings(settings), base_dir=None)}
    stage = stages["regression pca"]
    assert stage.summary.endswith("18 steps of 16 rows at most, 5 fits")  # (120 - 12) // 16 · 3
    weights = 24 * 10 + 24 + 48 + 48 + 24 * 24 + 24 + 48 + 10 * 24 + 10  # the ridge's 10 predictions are the inputs
    kept = 4 * weights + 2 * 120 * 10 * 4
    assert 5 * kept <= stage.disk <= 5 * kept + 5 * 20 * 10 * 4 * 4
    assert stage.memory > MemoryBudget.of(None).reserved
    assert "trained" not in stages["regression pixels"].summary


# Killed

SETTINGS = """
[stores]
chunk = "1KB"
[features.pca]
components = 10
[regression]
kind = "mlp"
hidden = 24
blocks = 1
epochs = 30
batch_size = 16
alpha = 30.0
checkpoint_minutes = 0
[evaluate]
permutations = 1
[dataset]
"""


def start(folder: Path, study: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "leanrecon", "run", "study.toml", "--study", study, "--until", "regression"]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def made(study: Path) -> dict[str, bytes]:
    found = [*study.rglob("networks/**/*"), *study.rglob("predictions/**/c/**/*")]
    return {str(path.relative_to(study)): path.read_bytes() for path in found if path.is_file()}


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
def test_a_training_that_is_killed_again_and_again_ends_with_the_same_bytes(dataset, tmp_path):
    lines = "\n".join(f'{key} = "{value}"' for key, value in dataset.items())
    (tmp_path / "study.toml").write_text(SETTINGS + lines)
    _, err = (undisturbed := start(tmp_path, "whole")).communicate(timeout=300)
    assert undisturbed.returncode == 0, err.decode()
    rng = np.random.default_rng(KILLS)
    killed = 0
    for _ in range(KILLS):
        process = start(tmp_path, "killed")
        seen = made(tmp_path / "killed")
        deadline = time.monotonic() + 120
        while process.poll() is None and unchanged(tmp_path / "killed", seen) and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(float(rng.random()) * 0.4)  # somewhere in the training, a checkpoint or the predictions
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
    _, err = (last := start(tmp_path, "killed")).communicate(timeout=300)
    assert last.returncode == 0, err.decode()
    assert killed >= min(KILLS, 2)
    expected, found = made(tmp_path / "whole"), made(tmp_path / "killed")
    assert sorted(found) == sorted(expected)
    assert [name for name in expected if found[name] != expected[name]] == []


def unchanged(study: Path, seen: dict[str, bytes]) -> bool:
    """Whether nothing has been written yet since then."""
    try:
        return made(study) == seen
    except FileNotFoundError:  # renamed meanwhile
        return False
