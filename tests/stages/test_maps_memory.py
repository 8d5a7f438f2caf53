"""Maps of betas that are larger than the budget hold what was planned."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import leanrecon

pytestmark = pytest.mark.slow

pytest.importorskip("nibabel", reason="NIfTI files need nibabel")

ROWS, TEST_ROWS, VOXELS, SIDE = 1000, 50, 25_000, 128  # 0.1 GB of betas, a volume of 8 MB

MEASURE = """
import sys
from pathlib import Path
from leanrecon.memory import PeakMemory, process_memory
from leanrecon.stages.export import export_maps
from leanrecon.stages.stage import Run
from leanrecon.study.layout import Study
from leanrecon.study.recipes import read_settings
import leanrecon.context
planned = []
require = leanrecon.context.Context.require
leanrecon.context.Context.require = lambda self, *given: planned.append(require(self, *given)) or planned[-1]
settings, base_dir = read_settings(Path(sys.argv[1]) / "study.toml", memory=str(process_memory() + int(sys.argv[3])))
with PeakMemory() as peak:
    export_maps(Run(settings, Study(Path(sys.argv[1])), base_dir=base_dir), Path(sys.argv[2]), sys.argv[4:])
print(max(planned), peak.peak)
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    rng = np.random.default_rng(0)
    for split, rows in (("train", ROWS), ("test", TEST_ROWS)):
        stimuli = rng.integers(0, 256, (rows, 16, 16), dtype=np.uint8)
        np.save(folder / f"stimuli_{split}.npy", stimuli)
        betas = np.lib.format.open_memmap(folder / f"betas_{split}.npy", "w+", "<f4", (rows, VOXELS))
        for start in range(0, rows, 100):
            betas[start : start + 100] = rng.standard_normal(
                (len(betas[start : start + 100]), VOXELS), dtype=np.float32
            )
            betas[start : start + 100, :256] += stimuli[start : start + 100].reshape(-1, 256) / 255
    table = {f"{what}_{split}": str(folder / f"{what}_{split}.npy") for what in ("betas", "stimuli") for split in ("train", "test")}  # fmt: skip
    leanrecon.run(
        {"dataset": table, "features": {"pixels": {}}, "regression": {"alpha": 1e4}, "evaluate": {"permutations": 0}},
        study=folder / "study", until="regression",
    )  # fmt: skip
    index = np.sort(rng.choice(SIDE**3, VOXELS, replace=False))
    affine = np.diag([1.8, 1.8, 1.8, 1])
    np.savez(folder / "study" / "betas" / "voxels.npz", index=index, shape=np.array([SIDE] * 3), affine=affine)
    return folder / "study"


@pytest.mark.parametrize("names", [["accuracy"], ["weights:pixels:0", "pattern:pixels:0", "pattern:luminance:3,4"]])
def test_maps_stay_within_their_plan_and_the_budget(study: Path, tmp_path: Path, names: list[str]) -> None:
    budget = 100_000_000
    command = [sys.executable, "-c", MEASURE, str(study), str(tmp_path / "maps"), str(budget), *names]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    planned, peak = map(int, done.stdout.split())
    assert 0.5 * planned <= peak <= planned
