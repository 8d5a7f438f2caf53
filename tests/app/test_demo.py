"""The demo: offline from simulated responses to a report, through the small models that come with leanrecon."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import leanrecon
from leanrecon.weights import packaged

pytestmark = [pytest.mark.slow, pytest.mark.networks]

PACKAGE = Path(leanrecon.__file__).parent

SMALL = ("--set", "dataset.n_train=60", "--set", "dataset.n_test=8", "--set", "evaluate.permutations=1")

OFFLINE = """
import socket, runpy
socket.socket.connect = socket.getaddrinfo = None
runpy.run_module('leanrecon', run_name='__main__')
"""

WITHOUT = """
import runpy, sys
from importlib import util
found, lacking = util.find_spec, sys.argv.pop(1).split()
util.find_spec = lambda name, package=None: None if name in lacking else found(name, package)
runpy.run_module('leanrecon', run_name='__main__')
"""


def command(program: str, *arguments: object, cwd: Path, code: int = 0, package: Path = PACKAGE) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(package.parent), "COLUMNS": "400"}
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def needs_models() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    pytest.importorskip("diffusers")
    if not (packaged.FOLDER / packaged.MANIFEST).is_file():
        pytest.skip(f"{packaged.FOLDER} has no {packaged.MANIFEST}: run scripts/train_demo_models.py")


@pytest.fixture
def damaged(tmp_path: Path, needs_models: None) -> Path:
    """A copy of the package."""
    return Path(shutil.copytree(PACKAGE, tmp_path / "installed" / "leanrecon", ignore=shutil.ignore_patterns("*.pyc")))


def test_the_demo_runs_offline_from_voxels_to_final_images(needs_models: None, tmp_path: Path) -> None:
    said = command(OFFLINE, "demo", *SMALL, cwd=tmp_path)
    assert "done: demo/report.html" in said.splitlines()
    study = tmp_path / "demo"
    for where in ("", "variants/prior", "variants/shuffled", "variants/oracle"):
        assert len(list((study / where).glob("reconstructions/final/*.png"))) == 8, where
    metrics = json.loads((study / "evaluation" / "metrics.json").read_text())
    assert metrics["simulated"] is True
    assert {"prior_only", "shuffled_predictions", "shuffled_betas"} <= set(metrics["baselines"])
    assert {"true_features", "oracle"} <= set(metrics["upper_bounds"])
    assert metrics["final"]["pixcorr"] != metrics["stage1"]["pixcorr"]
    stages = json.loads((study / "run.json").read_text())["stages"]
    assert {"features vdvae", "features clip", "regression vdvae", "regression clip", "stage1", "refine"} <= set(stages)
    for name, stage in stages.items():
        assert stage["peak_bytes"] <= stage["planned_bytes"], name
    page = (study / "report.html").read_text()
    assert "simulated" in page
    assert not re.search(r'(src|href)="(https?:)?//', page)
    before = {path: path.stat().st_mtime_ns for path in study.rglob("*") if path.is_file()}
    command(OFFLINE, "demo", *SMALL, cwd=tmp_path)
    assert {path: path.stat().st_mtime_ns for path in study.rglob("*") if path.is_file()} == before
    said = command(OFFLINE, "demo", *SMALL, "--set", "dataset.n_test=9", cwd=tmp_path, code=2)
    assert "--overwrite" in said
    assert "--study" in said


def test_a_damaged_model_is_refused_by_name_before_any_work(damaged: Path, tmp_path: Path) -> None:
    weights = damaged / "models" / "vdvae" / "vdvae.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    for arguments in (("demo",), ("run", "demo"), ("plan", "demo"), ("fetch-weights", "demo")):
        said = command(OFFLINE, *arguments, cwd=tmp_path, code=2, package=damaged)
        assert f"{weights} is damaged, or another version" in said
        assert "Install leanrecon again" in said
    assert [path.name for path in tmp_path.iterdir()] == ["installed"]
    assert f"{weights} is damaged, or another version" in command(OFFLINE, "doctor", cwd=tmp_path, package=damaged)


def test_networks_that_can_not_run_are_told_before_any_work(tmp_path: Path) -> None:
    said = command(WITHOUT, "torch diffusers", "demo", cwd=tmp_path, code=2)
    assert "needs torch, diffusers, which are not installed" in said
    assert 'pip install ".[models]"' in said, "as README installs"
    assert "`leanrecon demo --fast`" in said
    assert "needs torch" in command(WITHOUT, "torch", "demo", "--recipe", "nsd", cwd=tmp_path, code=2)
    assert list(tmp_path.iterdir()) == []


def test_the_recipe_is_run_whatever_study_of_its_name_is_there(tmp_path: Path) -> None:
    """One of an earlier leanrecon, say, which is not to be taken for what this one does."""
    less = ("--set", "dataset.n_train=60", "--set", "dataset.n_test=8", "--set", "features.pca.components=5")
    command(OFFLINE, "run", "demo-fast", *less, "--until", "dataset", cwd=tmp_path)
    said = command(OFFLINE, "demo", "--fast", cwd=tmp_path, code=2)
    assert "shape was [60, 64, 64, 3], is [400, 64, 64, 3]" in said
    assert "choose another --study" in said
    assert "--overwrite" in said
    said = command(OFFLINE, "run", "demo-fast", "--until", "dataset", cwd=tmp_path)
    assert "demo-fast is a study here: its own settings hold, not those of the recipe demo-fast" in said


def test_recipes_take_their_own_models_and_no_folder_beside_the_current_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from leanrecon.study.recipes import read_settings, recipes

    (tmp_path / "models" / "clip").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    settings, _ = read_settings(recipes()["demo"])
    assert settings.features["clip"].model == str(PACKAGE / "models" / "clip")
    assert settings.features["vdvae"].checkpoint == str(PACKAGE / "models" / "vdvae" / "vdvae.safetensors")
    assert settings.refine.base == str(PACKAGE / "models" / "diffusion")
    assert settings.refine.lora == str(PACKAGE / "models" / "lcm-lora")
    (tmp_path / "own.toml").write_text((PACKAGE / "recipes" / "demo.toml").read_text())
    own, _ = read_settings(tmp_path / "own.toml")
    assert own.features["clip"].model == str(tmp_path / "here" / "../models/clip")


def test_the_recipe_describes_the_network_that_is_trained() -> None:
    from leanrecon.study.recipes import read_settings, recipes

    pytest.importorskip("torch")
    from demo_models.vdvae import CONFIG

    settings, _ = read_settings(recipes()["demo"])
    assert settings.features["vdvae"].network == CONFIG
    assert settings.features["vdvae"].network.dims(6) == 8 + 2 * 128 + 3 * 512
