"""Every stage of a real run holds what its plan said, within the budget, on stores larger than it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow

ROWS, TEST_ROWS, VOXELS = 5000, 300, 30_000  # 0.64 GB of betas
IMAGE = (96, 96)  # 0.2 GB of pixel features

BASE = "import leanrecon.stages.pipeline; from leanrecon.memory import process_memory; print(process_memory())"

SETTINGS = """
[dataset]
betas_train = "betas_train.npy"
betas_test = "betas_test.npy"
stimuli_train = "stimuli_train.npy"
stimuli_test = "stimuli_test.npy"
[features.pixels]
[features.pca]
components = 20
size = 32
[regression]
alpha = 1e4
[regression.pixels]
restandardize = "inductive"
[evaluate]
permutations = 1
"""


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("arrays")
    rng = np.random.default_rng(0)
    for split, rows in (("train", ROWS), ("test", TEST_ROWS)):
        stimuli = rng.integers(0, 256, (rows, *IMAGE), dtype=np.uint8)
        np.save(folder / f"stimuli_{split}.npy", stimuli)
        with (folder / f"betas_{split}.npy").open("wb") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": (rows, VOXELS)}
            np.lib.format.write_array_header_1_0(file, header)
            for start in range(0, rows, 500):
                block = rng.standard_normal((min(500, rows - start), VOXELS), dtype=np.float32)
                block[:, :100] += stimuli[start : start + 500].reshape(len(block), -1)[:, :100] / 255
                file.write(block.data)
    (folder / "study.toml").write_text(SETTINGS)
    return folder


@pytest.mark.parametrize("megabytes", [256, pytest.param(512, marks=pytest.mark.long)])
def test_each_stage_stays_within_its_plan_and_the_budget(arrays: Path, tmp_path: Path, megabytes: int) -> None:
    base = int(subprocess.run([sys.executable, "-c", BASE], check=True, capture_output=True, text=True).stdout)
    budget = base + megabytes * 1_000_000
    command = [sys.executable, "-m", "leanrecon", "run", str(arrays / "study.toml")]
    command += ["--study", str(tmp_path / "study"), "--memory", str(budget)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=arrays)
    assert done.returncode == 0, done.stderr
    stages = json.loads((tmp_path / "study" / "run.json").read_text())["stages"]
    assert set(stages) == {
        "dataset",
        "features pixels",
        "features pca",
        "regression pixels",
        "regression pca",
        "stage1",
        "refine",
        "evaluate",
    }
    for stage, record in stages.items():
        planned, peak = record["planned_bytes"], record["peak_bytes"]
        assert peak <= planned <= budget, f"{stage}: measured {peak}, planned {planned}, allowed {budget}"
        if planned > 300_000_000:
            assert peak >= 0.6 * planned, f"{stage}: measured {peak} is far under the plan of {planned}"


def test_a_budget_that_no_plan_fits_is_refused_before_any_work(arrays: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "leanrecon", "run", str(arrays / "study.toml"), "--memory", "40MB"]
    command += ["--study", str(tmp_path / "study")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=arrays)
    assert done.returncode == 2
    assert "needs at least" in done.stderr
    assert not list((tmp_path / "study").rglob("zarr.json"))
