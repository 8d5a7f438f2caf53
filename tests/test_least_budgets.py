"""The least budget that ``plan`` names is enough for every stage, and no stage takes more than its plan said."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io

pytestmark = pytest.mark.slow

TEXT = "word " * 100_000  # half a megabyte


def draw(rows: int, voxels: int = 50, image: tuple[int, ...] = (16, 16, 3)) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "betas": rng.standard_normal((rows, voxels), dtype=np.float32),
        "stimuli": rng.integers(0, 256, (rows, *image), np.uint8),
    }


def plain(folder: Path, arrays: dict[str, Any], **lines: str) -> str:
    """Write the arrays as .npy files and give the table of their dataset."""
    given = {"test_fraction": "0.2", **lines}
    for name, array in arrays.items():
        if name not in given:
            np.save(folder / f"{name}.npy", array)
            given[name] = f'"{name}.npy"'
    return "[dataset]\n" + "".join(f"{name} = {value}\n" for name, value in given.items())


def captions_json(folder: Path) -> str:
    (folder / "c.json").write_text(json.dumps([[TEXT + str(k)] for k in range(60)]))
    return plain(folder, draw(60), captions='"c.json"')


def captions_emoji(folder: Path) -> str:
    texts = [[f"\N{GRINNING FACE} {TEXT} {k}"] for k in range(40)]
    (folder / "c.json").write_text(json.dumps(texts, ensure_ascii=False), encoding="utf-8")
    return plain(folder, draw(40), captions='"c.json"')


def captions_txt(folder: Path) -> str:
    (folder / "c.txt").write_text("".join(f"{TEXT}{k}\tb {k}\n" for k in range(60)))
    return plain(folder, draw(60), captions='"c.txt"')


def captions_npy(folder: Path) -> str:
    np.save(folder / "c.npy", np.array([TEXT + str(k) for k in range(40)]))
    return plain(folder, draw(40), captions='"c.npy"')


def captions_many(folder: Path) -> str:
    (folder / "c.json").write_text(json.dumps([[f"a cat {k} {n}" for n in range(5)] for k in range(20_000)]))
    return plain(folder, draw(20_000, 10, (4, 4, 3)), test_fraction="0.02", captions='"c.json"')


def matlab(folder: Path) -> str:
    arrays = draw(400, 300, (64, 64, 3))
    scipy.io.savemat(folder / "d.mat", {"b": arrays["betas"], "s": arrays["stimuli"].astype(np.uint16)})
    return plain(folder, {}, betas='"d.mat:b"', stimuli='"d.mat:s"')


def hdf5(folder: Path) -> str:
    arrays = draw(300, 3000, (96, 96, 3))
    with h5py.File(folder / "d.h5", "w") as file:
        file.create_dataset("b", data=arrays["betas"], chunks=(300, 100), compression="gzip")
        file.create_dataset("s", data=arrays["stimuli"], chunks=(16, 96, 96, 3))
    return plain(folder, {}, betas='"d.h5:b"', stimuli='"d.h5:s"')


def fortran(folder: Path) -> str:
    np.save(folder / "f.npy", np.asfortranarray(draw(2000, 4000)["betas"]))
    return plain(folder, {"stimuli": draw(2000)["stimuli"]}, betas='"f.npy"')


def floats(folder: Path) -> str:
    arrays = draw(300, 50, (64, 64, 3))
    return plain(folder, {"betas": arrays["betas"].astype(float), "stimuli": arrays["stimuli"] / 255})


def repeated(folder: Path) -> str:
    arrays = draw(600, 2000)
    arrays["stimuli"] = arrays["stimuli"][np.arange(600) // 3]
    return plain(folder, arrays, repeats='"average"', test_repeats='"average"')


def areas(folder: Path) -> str:
    """Folds of many voxels, averaged."""
    arrays = draw(120, 20_000)
    arrays["stimuli"] = arrays["stimuli"][np.arange(120) // 2]
    return plain(folder, arrays, folds="3", test_fraction="").replace("test_fraction = \n", "")


Make = Callable[[Path], str]
PCA = "[features.pca]\ncomponents = 8\n"
QUICK = "[evaluate]\npermutations = 1\nresamples = 100\n"


def table(rows: int, voxels: int = 50, image: tuple[int, ...] = (16, 16, 3), **lines: str) -> Make:
    return lambda folder: plain(folder, draw(rows, voxels, image), **lines).replace("test_fraction = \n", "")


SHAPES: dict[str, tuple[Make, str]] = {
    "few rows": (table(30), PCA),
    "many rows": (table(20_000, 20, (4, 4, 3), test_fraction="0.02"), PCA),
    "wide voxels": (table(60, 200_000), PCA),
    "rows and voxels": (table(2500, 3000), PCA),
    "big images": (table(40, 50, (700, 900, 3)), PCA),
    "wide images": (table(24, 50, (20, 20_000, 3)), PCA),
    "grey images": (table(200, 50, (64, 64)), PCA),
    "many components": (table(400, 50, (64, 64, 3)), "[features.pca]\ncomponents = 256\n"),
    "pixels of full size": (table(100, 50, (128, 128, 3)), "[features.pixels]\nsize = 128\n"),
    "captions in json": (captions_json, PCA),
    "captions with emoji": (captions_emoji, PCA),
    "captions in txt": (captions_txt, PCA),
    "captions in npy": (captions_npy, PCA),
    "many captions": (captions_many, PCA),
    "matlab of uint16": (matlab, PCA),
    "hdf5 in chunks": (hdf5, PCA),
    "fortran order": (fortran, PCA),
    "floating-point numbers": (floats, PCA),
    "repeats averaged": (repeated, PCA),
    "folds of wide voxels": (areas, PCA),
    "ten folds": (table(100, folds="10", test_fraction=""), PCA),
    "half of the rows tested": (table(1500, 200, test_fraction="0.5"), PCA),
    "fixed alpha": (table(800, 2000), PCA + "[regression]\nalpha = 100.0\n"),
    "an alpha for each target": (table(800, 2000), PCA + "[regression]\nper_target = true\n"),
    "inductive moments": (table(800, 2000), PCA + '[regression]\nrestandardize = "inductive"\n'),
    "an rbf kernel": (table(800, 2000), PCA + '[regression]\nkernel = "rbf"\ngamma = 0.5\n'),
    "an rbf of more rows": (table(1500, 200), PCA + '[regression]\nkernel = "rbf"\ngamma = 0.5\nalpha = 1.0\n'),
    "weighed voxels": (table(800, 2000), PCA + '[regression]\nvoxel_weights = "accuracy"\n'),
    "a chosen form": (table(1000, 2500), PCA + '[regression]\nkernel = "auto"\nvoxel_weights = "auto"\n'),
}


def leanrecon(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "leanrecon", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, cwd=folder, timeout=300)


def least_budget(folder: Path) -> str:
    """The least budget that plan names, in its own words."""
    told = leanrecon(folder, "plan", "study.toml", "--memory", "100MB")
    found = re.search(r'"(\d+MB)"\s+is\s+enough', told.stdout + told.stderr)
    assert found, told.stdout + told.stderr
    return found[1]


@pytest.mark.parametrize("name", SHAPES)
def test_the_least_budget_is_enough_for_every_stage(name: str, tmp_path: Path) -> None:
    make, tables = SHAPES[name]
    (tmp_path / "study.toml").write_text(make(tmp_path) + tables + QUICK)
    budget = least_budget(tmp_path)
    done = leanrecon(tmp_path, "run", "study.toml", "--study", "study", "--memory", budget)
    assert done.returncode == 0, f"plan named {budget}: {done.stderr[-600:]}"
    records = [json.loads(path.read_text()) for path in (tmp_path / "study").rglob("run.json")]
    stages = [(stage, of) for record in records for stage, of in record["stages"].items()]
    assert {stage.split()[0] for stage, _ in stages} >= {"dataset", "features", "regression", "stage1", "evaluate"}
    peaks = {stage: (of["peak_bytes"] / 1e6, of["planned_bytes"] / 1e6) for stage, of in stages}
    print(f"{name}: {budget}; " + ", ".join(f"{stage} {a:.0f} of {b:.0f}" for stage, (a, b) in peaks.items()))
    over = {stage: pair for stage, pair in peaks.items() if pair[0] > pair[1]}
    assert not over, f"measured above planned, in MB: {over}"
