"""A run that is refused before any work leaves nothing behind; what was there stays."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.memory_place import MemoryPlace
from support.small_study import write_study

import leanrecon
from leanrecon.app import cli
from leanrecon.errors import BudgetError, LeanreconError, StoreError
from leanrecon.places import as_location
from leanrecon.places.hold import held
from leanrecon.progress import Progress
from leanrecon.stages.pipeline import Pipeline
from leanrecon.study.layout import Study
from leanrecon.study.mirror import Mirror
from leanrecon.study.settings import check_settings
from leanrecon.weights.fetch import fetch_all
from leanrecon.weights.needs import Need

SIMULATED: dict[str, Any] = {
    "dataset": {"kind": "simulated", "n_train": 40, "n_test": 8, "voxels": 20, "size": 16},
    "features": {"pca": {"components": 10}},
    "regression": {"alpha": 100.0},
}


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.fixture
def refused(tmp_path: Path) -> dict[str, dict[str, Any]]:
    """Settings that are refused once a run has begun, by why."""
    np.save(tmp_path / "betas.npy", np.ones((20, 5), np.float32))
    np.save(tmp_path / "black.npy", np.zeros((20, 8, 8, 3), np.uint8))
    arrays = {"betas": str(tmp_path / "betas.npy"), "test_fraction": 0.2}
    return {
        "budget": SIMULATED | {"memory": "20MB"},
        "no file": {"dataset": arrays | {"betas": str(tmp_path / "none.npy")}},
        "no folder": {"dataset": {"kind": "miyawaki", "root": str(tmp_path / "none")}},
        "black images": {"dataset": arrays | {"stimuli": str(tmp_path / "black.npy")}},
    }


@pytest.mark.parametrize("why", ["budget", "no file", "no folder", "black images"])
def test_a_refused_run_leaves_nothing(why: str, refused: dict[str, Any], tmp_path: Path) -> None:
    before = files(tmp_path)
    with pytest.raises(LeanreconError):
        leanrecon.run(refused[why], study=tmp_path / "a/b/study", mirror=tmp_path / "c/mirror", progress=Progress())
    assert files(tmp_path) == before


def test_a_run_without_its_cluster_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(LeanreconError):
        leanrecon.run(SIMULATED, study=tmp_path / "a/study", cluster=str(tmp_path / "none.json"), progress=Progress())
    assert files(tmp_path) == []


def test_what_was_there_stays(refused: dict[str, Any], tmp_path: Path) -> None:
    (study := tmp_path / "study").mkdir()
    with pytest.raises(BudgetError):
        leanrecon.run(refused["budget"], study=study, progress=Progress())
    assert files(study) == []
    (study / "notes.txt").write_text("mine")
    with pytest.raises(BudgetError):
        leanrecon.run(refused["budget"], study=study, progress=Progress())
    assert files(study) == ["notes.txt"]


def test_a_study_that_was_begun_stays_when_a_later_run_is_refused(tmp_path: Path) -> None:
    study = tmp_path / "study"
    leanrecon.run(SIMULATED, study=study, until="dataset", progress=Progress())
    before = {path: path.read_bytes() for path in study.rglob("*") if path.is_file()}
    with pytest.raises(BudgetError):
        leanrecon.run(SIMULATED | {"memory": "20MB"}, study=study, progress=Progress())
    assert {path: path.read_bytes() for path in study.rglob("*") if path.is_file()} == before


def test_no_stage_begins_if_a_later_one_is_sure_not_to_fit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "b.npy", rng.standard_normal((600, 20), dtype=np.float32))
    np.save(tmp_path / "s.npy", rng.integers(0, 256, (600, 64, 64, 3), np.uint8))
    settings = tmp_path / "s.toml"
    dataset = '[dataset]\nbetas = "b.npy"\nstimuli = "s.npy"\ntest_fraction = 0.1\n'
    settings.write_text(dataset + "[features.pca]\ncomponents = 100\n[evaluate]\npermutations = 0\n")

    def run(memory: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "leanrecon", "run", str(settings), "--study", str(tmp_path / "study")]
        return subprocess.run([*command, "--memory", memory], check=False, capture_output=True, text=True)

    refused = run("250MB")
    assert refused.returncode == 2
    assert "features pca, which needs most of all stages, needs at least" in refused.stderr
    assert "stage 1 of" not in refused.stderr
    assert not (tmp_path / "study").exists()
    enough = re.findall(r'"(\d+MB)"', refused.stderr)[0]
    assert run(enough).returncode == 0


def test_work_that_was_done_before_a_refusal_stays(tmp_path: Path) -> None:
    with pytest.raises(LeanreconError, match="V9"):
        leanrecon.run(SIMULATED | {"areas": {"V9": ["V9"]}}, study=tmp_path / "study", progress=Progress())
    assert (tmp_path / "study/study.toml").is_file()
    assert (tmp_path / "study/betas/train.zarr").is_dir()


def test_a_refused_run_leaves_no_keys_in_a_bucket(refused: dict[str, Any]) -> None:
    place = MemoryPlace()
    place.data["study/notes.txt"], place.stamps["study/notes.txt"] = b"mine", 1
    for root in (place.at("new"), place.at("study")):
        with pytest.raises(BudgetError):
            Pipeline(check_settings(refused["budget"]), Study(root)).run()
    assert list(place.data) == ["study/notes.txt"]


@pytest.mark.parametrize("command", ["run demo-fast", "demo --fast"])
def test_refused_commands_leave_nothing(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["leanrecon", *command.split(), "--memory", "20MB"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "the 20 MB allowed" in capsys.readouterr().err
    assert files(tmp_path) == []


def test_a_mirror_that_can_not_be_begun_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = write_study(as_location(tmp_path / "study"))

    def full(*_: Any) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr("leanrecon.study.mirror.copy", full)
    with pytest.raises(StoreError, match="full"):
        Mirror(study.root, tmp_path / "a/mirror").keep()
    assert not (tmp_path / "a").exists()


def test_weights_that_can_not_be_fetched_leave_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEANRECON_CACHE", str(tmp_path / "a/cache"))
    with pytest.raises(LeanreconError):
        fetch_all([Need("features.vdvae.checkpoint", "none.th")], Progress())
    assert files(tmp_path) == []


def test_a_folder_is_held_and_goes_again_if_it_stays_empty(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with held(tmp_path / "there/a/b", "another run", "wait for it"):
        assert files(tmp_path) == ["there", "there/a", "there/a/b"]
    assert files(tmp_path) == ["there"]
    with held(tmp_path / "there/a/b", "another run", "wait for it"):
        (tmp_path / "there/a/b/file").touch()
    assert files(tmp_path) == ["there", "there/a", "there/a/b", "there/a/b/file"]


# The plan of all stages comes before the first one


class Wide(Progress):
    """Notes what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def needs_most_late(tmp_path: Path) -> dict[str, Any]:
    """A study whose first stage takes least memory, with betas and images of its own."""
    rng = np.random.default_rng(0)
    np.save(tmp_path / "betas.npy", rng.normal(size=(40, 6)).astype(np.float32))
    np.save(tmp_path / "stimuli.npy", rng.integers(0, 256, (40, 16, 16, 3), np.uint8))
    arrays = {name: str(tmp_path / f"{name}.npy") for name in ("betas", "stimuli")}
    evaluate = {"permutations": 1, "resamples": 100}
    spaces, regression = {"pca": {"components": 4}}, {"alpha": 10.0}
    return {
        "dataset": arrays | {"test_fraction": 0.2},
        "features": spaces,
        "regression": regression,
        "evaluate": evaluate,
    }


def test_a_budget_that_a_later_stage_exceeds_is_refused_before_the_first(tmp_path: Path) -> None:
    settings = needs_most_late(tmp_path)
    lines = leanrecon.plan(settings)
    largest = max(lines, key=lambda line: line.memory)
    assert largest.memory > lines[0].memory + 40_000_000
    enough = f"{lines[0].memory + 20_000_000}"
    before, progress = files(tmp_path), Wide()
    for study in (tmp_path / "study", tmp_path / "a/b"):
        with pytest.raises(BudgetError, match="which needs most of all stages, needs at least .*Raise the budget to"):
            leanrecon.run(settings, study=study, memory=enough, progress=progress)
    assert progress.lines == []
    assert files(tmp_path) == before
    leanrecon.run(settings, study=tmp_path / "study", until="dataset", memory=enough, progress=progress)


def test_a_study_that_was_begun_asks_stage_by_stage(tmp_path: Path) -> None:
    """What is complete needs no memory again: neither here, nor in a study that comes back from its mirror."""
    settings = needs_most_late(tmp_path)
    leanrecon.run(settings, study=tmp_path / "study", mirror=tmp_path / "mirror", progress=Progress())
    least = f"{leanrecon.plan(settings)[0].memory + 20_000_000}"
    leanrecon.run(settings, study=tmp_path / "study", memory=least, progress=Progress())
    leanrecon.run(settings, study=tmp_path / "again", mirror=tmp_path / "mirror", memory=least, progress=Progress())
    assert (tmp_path / "again/report.html").is_file()
