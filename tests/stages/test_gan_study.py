"""Studies decoded end to end: nothing of test images reaches a reconstruction, areas and baselines stand beside."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import leanrecon
from leanrecon.errors import LeanreconWarning
from leanrecon.stores import Store

pytestmark = [pytest.mark.slow, pytest.mark.networks]

TABLES = {
    "memory": "2GB",
    "dataset": {"kind": "simulated", "n_train": 40, "n_test": 6, "size": 16, "voxels": 60},
    "decode": {
        "kind": "gan", "size": 32, "width": 8, "hidden": 16, "discriminator_width": 8, "batch_size": 12, "epochs": 2,
        "learning_rate": 2e-3, "checkpoint_minutes": 0.0,
    },
    "evaluate": {"permutations": 1, "resamples": 100},
    "areas": {"early": ["V1", "V2"]},
}  # fmt: skip


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """A finished study, and what the stage dataset left of it."""
    root = tmp_path_factory.mktemp("gan")
    leanrecon.run(TABLES, study=root / "study", until="dataset")
    shutil.copytree(root / "study", root / "dataset")
    return leanrecon.run(TABLES, study=root / "study"), root / "dataset"


def made(root: Path) -> dict[str, bytes]:
    """Images and networks."""
    found = [*root.rglob("reconstructions/*/*.png"), *root.rglob("networks/**/*.safetensors")]
    return {str(path.relative_to(root)): path.read_bytes() for path in found}


def test_test_images_reach_no_reconstruction(studies, tmp_path):
    study, dataset = studies
    other = Path(shutil.copytree(dataset, tmp_path / "other"))
    store = Store.open(other / "stimuli" / "test.zarr")
    noise = np.random.default_rng(0).integers(0, 256, store.shape, np.uint8)
    store.discard([(i, 0) for i in range(store.row_groups)])
    for i in range(store.row_groups):
        store.write_rows(i, noise[store.group_rows(i).start : store.group_rows(i).stop])
    with pytest.warns(LeanreconWarning, match="not to the same bytes"):
        store.finish()
    leanrecon.run(TABLES, study=other)
    found = made(other)
    assert (
        len([name for name in found if name.endswith(".png")]) == 5 * 6
    )  # first and final images of all voxels and of an area, first ones of shuffled betas
    assert found == made(study.path)


def test_record_report_and_layout_tell_of_the_training(studies):
    study, _ = studies
    record = json.loads((study.path / "run.json").read_text())["stages"]["decode"]
    assert len(record["curve"]["losses"]["image"]) == 2
    assert record["settings"]["kind"] == "gan"
    assert record["peak_bytes"] <= record["planned_bytes"]
    report = study.report.read_text()
    assert "From brain to image in one network" in report
    assert "Discriminator, generated images" in report
    assert study.variants == ["early", "shuffled00"]
    assert sorted(os.listdir(study.path / "networks" / "decoder")) == ["network.safetensors"]


@pytest.mark.kills
@pytest.mark.skipif(os.name == "nt", reason="needs signals")
@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=pytest.mark.long)])
def test_a_killed_run_ends_with_the_same_bytes(studies, tmp_path, kills):
    study, dataset = studies
    other = Path(shutil.copytree(dataset, tmp_path / "study"))
    settings = Path(shutil.copy(study.path / "study.toml", tmp_path / "settings.toml"))
    command = [sys.executable, "-m", "leanrecon", "run", str(settings), "--study", str(other)]
    for kill in range(kills):
        before = progress(other)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        while progress(other) == before and process.poll() is None:
            time.sleep(0.002)
        time.sleep(0.02 * kill)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, f"the run ended before kill {kill + 1}"
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    undisturbed = Path(shutil.copytree(dataset, tmp_path / "undisturbed"))
    subprocess.run([*command[:-1], str(undisturbed)], check=True, capture_output=True, timeout=600)
    assert made(other) == made(undisturbed)


def progress(root: Path) -> set[tuple[str, int]]:
    """What a killed run had written: checkpoints by their times, and images."""
    found = set()
    for path in [*root.rglob("networks/**/*.safetensors"), *root.rglob("reconstructions/*/*.png")]:
        with contextlib.suppress(FileNotFoundError):
            found.add((str(path), path.stat().st_mtime_ns))
    return found
