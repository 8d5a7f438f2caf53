"""Demos of recipes: each system from simulated data in its own layout to its report, and what is said of it."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from support.memory import held
from typer.testing import CliRunner

from leanrecon.app import cli, demos
from leanrecon.app.demos import Demo
from leanrecon.app.options import read
from leanrecon.app.recipes import every, text_of
from leanrecon.datasets.nsd.simulate import simulate_nsd
from leanrecon.errors import BudgetError, InputError, SettingsError, StoreError
from leanrecon.memory import parse_bytes
from leanrecon.progress import Progress
from leanrecon.stages import pipeline
from leanrecon.stages.stage import PlannedStage
from leanrecon.study.recipes import read_settings, recipes
from leanrecon.study.settings import check_settings

NAMES = ("brain-diffuser", "deeprecon-gan", "miyawaki", "nsd", "ntab", "sd-ddpm", "srm-gan")


def test_there_is_a_demo_of_every_system() -> None:
    assert tuple(demos.demos()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_demo_is_the_recipe_with_the_changes_that_it_tells(name: str, tmp_path: Path) -> None:
    demo, recipe = Demo.of(name), tomllib.loads(recipes()[name].read_text())
    tables = demo.tables(tmp_path)
    settings = check_settings(tables)
    assert {key: type(table) for key, table in recipe.items()}.items() <= {
        key: type(table) for key, table in tables.items()
    }.items()
    assert settings.dataset.kind == recipe["dataset"]["kind"], "the recipe's own layout"
    told = {change.key for change in demo.changed(tmp_path)}
    networks = tuple(line.partition(" = ")[0] for line in demo.networks)

    def compare(before: dict, now: dict, prefix: str = "") -> None:
        for key in {**before, **now}:
            own = f"{prefix}{key}"
            if isinstance(before.get(key), dict) and isinstance(now.get(key), dict):
                compare(before[key], now[key], f"{own}.")
            elif before.get(key) != now.get(key):
                known = own in told or own.startswith(networks) or any(one.startswith(f"{own}.") for one in told)
                assert known, f"{own} is changed and not told"

    compare(recipe, tables)
    assert all(str(tmp_path) in text for text in _paths(tables["dataset"])), "no data but its own"


def _paths(table: dict) -> list[str]:
    return [text for value in table.values() for text in ([value] if isinstance(value, str) else ()) if "/" in text]


def test_folders_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(StoreError, match="holds other files"):
        Demo.of("miyawaki").prepare(tmp_path, memory=None, overwrite=True, progress=Progress())
    assert (tmp_path / "mine.txt").read_text() == "mine"
    with pytest.raises(SettingsError, match="no demo of nsdd .*nsd"):
        Demo.of("nsdd")


def test_every_recipe_has_lines_of_its_facts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LEANRECON_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    lines = {one.name: one for one in every()}
    assert list(lines) == list(recipes())
    assert "CreativeML OpenRAIL-M" in lines["nsd"].weights
    assert lines["digits69"].weights == "none"
    assert lines["demo"].weights == "come with leanrecon"
    for one in lines.values():
        head, *facts = one.lines()
        assert head == f"{one.name}: {one.paper}"
        assert [fact.split()[0] for fact in facts] == ["data", "weights", "memory", "time", "reported"]
        assert not any("\n" in line for line in one.lines())
        assert "not looked up" not in one.weights, one.name
        assert re.search(r"planned under 4GB|leanrecon plan", one.memory), one.name


FIRST_IMAGES = {
    **dict.fromkeys(("nsd", "ntab", "sd-ddpm"), ("clip",)),
    "brain-diffuser": ("clip-text", "clip-vision"),
}
"""Recipes of NSD that tell what first images alone take, with the feature spaces that only their generators use."""


@pytest.mark.parametrize("name", ["demo", "demo-fast", "demo-unet", "digits69", *FIRST_IMAGES])
def test_the_memory_that_is_told_is_what_the_plan_says(name: str, tmp_path: Path) -> None:
    """Digits: arrays of the true shapes, random numbers in them. NSD: from what is published, as without the network."""
    sets = _digits(tmp_path) if name == "digits69" else []
    if name in FIRST_IMAGES:
        sets = [f"features.{space}=false" for space in FIRST_IMAGES[name]]
        sets += ["refine=false", "dataset.captions=false"]
    command = [sys.executable, "-m", "leanrecon", "plan", name, "--memory", "4GB"]  # this process may hold libraries
    command += [part for one in sets for part in ("--set", one)]
    nowhere = {"HTTPS_PROXY": "http://127.0.0.1:9", "LEANRECON_CACHE": str(tmp_path), "HF_HUB_CACHE": str(tmp_path)}
    found = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **nowhere})
    assert ("uses the published sizes of NSD" in found.stderr) == (name in FIRST_IMAGES)
    peak = parse_bytes(re.search(r"peak memory ([\d.]+ [MG]B)", found.stdout)[1])
    (told,) = (one.memory for one in every() if one.name == name)
    assert parse_bytes(told.partition(" planned")[0]) == pytest.approx(peak, rel=0.05)


def _digits(folder: Path) -> list[str]:
    from scipy.io import savemat

    rng = np.random.default_rng(0)
    arrays = {
        f"{what}{split}": rng.integers(0, 256, (rows, columns)).astype(kind)
        for split, rows in (("Trn", 90), ("Test", 10))
        for what, columns, kind in (("fmri", 3092, float), ("stim", 784, np.uint8))
    }
    savemat(folder / "digits.mat", arrays)
    return [f"dataset.path={folder / 'digits.mat'}", "dataset.folds=10"]


def test_a_recipe_is_printed_with_what_is_said_of_it_and_reads_as_its_file() -> None:
    text = text_of("nsd")
    assert text.startswith("# paper: Allen et al. 2022")
    assert "CreativeML OpenRAIL-M" in text
    assert tomllib.loads(text) == tomllib.loads(recipes()["nsd"].read_text())


FAST = {"miyawaki": {"scale": 0.3, "random_runs": 6, "figure_runs": 2}}
"""Smaller data for the test that runs with every change."""


@pytest.fixture
def small_miyawaki(monkeypatch: pytest.MonkeyPatch) -> None:
    """Demos on smaller data."""
    of = Demo.of

    def smaller(name: str) -> Demo:
        demo = of(name)
        demo.writes.update(FAST[name])
        return demo

    monkeypatch.setattr(Demo, "of", staticmethod(smaller))


def _run(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, *sets: str) -> dict:
    monkeypatch.chdir(folder)
    demos.run_demo(name, None, "2GB", overwrite=False, sets=list(sets))
    study = folder / f"demo-{name}"
    stages = json.loads((study / "run.json").read_text())["stages"]
    for stage, own in stages.items():
        assert own["peak_bytes"] <= own["planned_bytes"] <= 2e9, stage
    metrics: dict = json.loads((study / "evaluation" / "metrics.json").read_text())
    assert metrics["simulated"] is True
    page = (study / "report.html").read_text()
    assert "SIMULATED SUBJECT" in page
    assert not re.search(r'(src|href)="(https?:)?//', page)
    settings, _ = read_settings(study / "study.toml")
    assert settings.dataset.kind == Demo.of(name).tables(folder)["dataset"]["kind"]
    return metrics


@pytest.mark.slow
def test_the_demo_of_local_decoders_runs_to_its_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], small_miyawaki: None
) -> None:
    pytest.importorskip("nibabel")
    metrics = _run("miyawaki", tmp_path, monkeypatch, "features.patches.scales=[[1,1]]", "evaluate.permutations=0")
    assert metrics["final"]["two_way_pixels"]["low"] > 0.5
    said = capsys.readouterr().out
    assert "dataset.root = " in said
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    _run("miyawaki", tmp_path, monkeypatch, "features.patches.scales=[[1,1]]", "evaluate.permutations=0")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before


def _refused(name: str, study: Path, memory: str) -> str:
    with pytest.raises(BudgetError) as refused:
        demos.run_demo(name, study, memory, overwrite=False, sets=["features.patches.scales=[[1,1]]"])
    return str(refused.value)


@pytest.mark.slow
def test_a_demo_that_is_refused_for_its_budget_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_miyawaki: None
) -> None:
    pytest.importorskip("nibabel")
    monkeypatch.chdir(tmp_path)
    told = _refused("miyawaki", Path("a/b/demo"), f"{held() // 10**6 + 1}MB")
    assert re.search(r"needs at least [\d.]+ MB.*raise the budget to", told, re.IGNORECASE)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "demo-data").mkdir()
    (tmp_path / "demo-data" / "mine.txt").write_text("mine")
    with pytest.raises(StoreError, match="holds other files"):
        demos.run_demo("miyawaki", Path("demo"), None, overwrite=False, sets=None)
    assert [path.name for path in tmp_path.rglob("*")] == ["demo-data", "mine.txt"]


@pytest.mark.slow
def test_a_demo_is_refused_before_its_first_stage_and_keeps_data_that_were_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_miyawaki: None
) -> None:
    """The first stages fit into the budget, and a later one does not."""
    pytest.importorskip("nibabel")
    plan = pipeline._planned
    too_much = PlannedStage("a later stage", "", 50 * 10**9, 0)
    monkeypatch.setattr(pipeline, "_planned", lambda *given, **named: [*plan(*given, **named), too_much])
    Demo.of("miyawaki").prepare(tmp_path / "demo-data", memory=None, overwrite=False, progress=Progress())
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    told = _refused("miyawaki", tmp_path / "demo", "2GB")
    assert told.startswith("a later stage, which needs most of all stages, needs at least 50 GB (")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.networks
@pytest.mark.parametrize("name", NAMES)
def test_every_demo_runs_to_its_report(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("torch", "transformers", "diffusers", "nibabel"):
        pytest.importorskip(library)
    metrics = _run(name, tmp_path, monkeypatch)
    assert metrics["stage1"]["two_way_pixels"]["low"] > 0.5


@pytest.mark.parametrize(
    ("command", "name"),
    [*(("plan", name) for name in ("digits69", "miyawaki", "srm-gan", "deeprecon-gan")), ("run", "miyawaki")],
)
def test_a_recipe_without_its_data_tells_where_they_come_from(
    command: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused = CliRunner().invoke(cli.app, [command, name]).exception
    assert isinstance(refused, InputError | SettingsError)
    assert f"`leanrecon recipes {name}`" in str(refused)
    assert "# data: " in text_of(name)


def test_captions_that_can_be_downloaded_name_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LEANRECON_CACHE", str(tmp_path))
    simulate_nsd(tmp_path / "small", sessions=1, scale=0.1)
    options = ["--until", "dataset", "--set", f"dataset.root={tmp_path / 'small'}", "--set", "dataset.sessions=1"]
    monkeypatch.setenv("COLUMNS", "200")
    planned = CliRunner().invoke(cli.app, ["plan", "nsd", *options])
    assert planned.exit_code == 0
    assert "missing weights and captions: COCO_73k_annots_curated.npy (dataset.captions)" in planned.output
    assert "leanrecon fetch-weights" in planned.output
    refused = CliRunner().invoke(cli.app, ["run", "nsd", *options]).exception
    assert isinstance(refused, InputError)
    assert "no file COCO_73k_annots_curated.npy" in str(refused)
    assert not (tmp_path / "nsd").exists()


def test_a_setting_of_ones_own_keeps_its_own_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match="alpa") as refused:
        read("digits69", ["regression.alpa=1"], None)
    assert "leanrecon recipes" not in str(refused.value)
