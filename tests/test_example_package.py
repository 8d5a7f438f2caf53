"""The example package, installed beside leanrecon: each kind works by its name, and broken kinds are named.

Everything runs in processes of its own, as a user would run it: an installation can't be undone within one.
"""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("example package")]

PACKAGE = Path(__file__).parent / "example_package"
KINDS = {
    "datasets": "blobs",
    "features": "block-means",
    "regressors": "similar-rows",
    "alignments": "shared-axes",
    "decoders": "linear",
    "generators": "sharpen",
    "judges": "histogram",
}
SMALL = """
seed = 3
[stores]
chunk = "4KB"
[dataset]
kind = "blobs"
n_train = 60
n_test = 16
voxels = 80
"""
STUDY = (
    SMALL
    + """
[features.block-means]
[regression]
kind = "similar-rows"
[refine]
kind = "sharpen"
guide = "block-means"
[judges.histogram]
[evaluate]
permutations = 1
resamples = 100
"""
)
DECODER = (
    SMALL
    + """
[decode]
kind = "linear"
steps = 400
checkpoint = 5
[evaluate]
permutations = 1
resamples = 100
"""
)


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the example package was installed into by pip, as a user would, but for its dependencies."""
    target = tmp_path_factory.mktemp("site")
    source = shutil.copytree(PACKAGE, tmp_path_factory.mktemp("source") / "package")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*command, "--target", str(target), str(source)], check=True)
    return target


def environment(*folders: Path) -> dict[str, str]:
    """The environment of a process that finds packages in these folders."""
    paths = [str(folder) for folder in folders] + [os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONDONTWRITEBYTECODE": "1"}


def leanrecon(*arguments: str, folders: tuple[Path, ...], cwd: Path, code: int = 0) -> str:
    """Run the command line; returns both outputs in one text, lines unwrapped."""
    command = [sys.executable, "-m", "leanrecon", *arguments]
    done = subprocess.run(
        command, cwd=cwd, env=environment(*folders) | {"COLUMNS": "400"}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def files(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by its relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def results(study: Path) -> dict[str, bytes]:
    """Every file of a study, but for those that tell times and memory; of a store's record what every run agrees on."""
    kept = {}
    for name, data in files(study).items():
        if name.endswith("zarr.json"):  # the batch is the first run's
            record = json.loads(data)["attributes"]["leanrecon"]
            kept[name] = json.dumps({key: record[key] for key in ("fingerprint", "content", "complete")}).encode()
        elif Path(name).name not in ("run.json", "study.toml", "report.html"):
            kept[name] = data
    return kept


@pytest.fixture(scope="module")
def finished(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with study.toml and decoder.toml, and the finished studies ``study`` and ``decoder``."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "study.toml").write_text(STUDY)
    (folder / "decoder.toml").write_text(DECODER)
    for name in ("study", "decoder"):
        leanrecon("run", f"{name}.toml", "--study", name, folders=(installed,), cwd=folder)
    return folder


def metrics(study: Path) -> dict[str, dict[str, dict[str, float]]]:
    return json.loads((study / "evaluation" / "metrics.json").read_bytes())


def test_every_kind_is_listed_with_its_distribution(installed: Path, tmp_path: Path) -> None:
    lines = leanrecon("kinds", folders=(installed,), cwd=tmp_path).splitlines()
    for group, name in KINDS.items():
        own = itertools.takewhile(lambda line: line.startswith(" "), lines[lines.index(group) + 1 :])
        (line,) = [line for line in own if line.strip().startswith(f"{name} ")]
        assert line.endswith("(by leanrecon-example)")


def test_the_settings_of_a_kind_are_listed_with_their_sentences(installed: Path, tmp_path: Path) -> None:
    shown = leanrecon("kinds", "regressors", "similar-rows", folders=(installed,), cwd=tmp_path)
    assert "neighbours = 5" in shown
    assert "Train rows that a prediction is the mean of." in shown


def test_without_the_package_its_kinds_are_unknown(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(STUDY)
    shown = leanrecon("plan", "study.toml", folders=(), cwd=tmp_path, code=2)
    assert "blobs" in shown
    assert "arrays" in shown  # the known ones


@pytest.mark.parametrize(("name", "summary"), [("study", "mean of 5 similar rows"), ("decoder", "400 steps")])
def test_a_study_is_planned_by_the_examples_themselves(
    installed: Path, tmp_path: Path, name: str, summary: str
) -> None:
    (tmp_path / "study.toml").write_text({"study": STUDY, "decoder": DECODER}[name])
    shown = leanrecon("plan", "study.toml", folders=(installed,), cwd=tmp_path)
    assert summary in shown
    assert os.listdir(tmp_path) == ["study.toml"]


def test_the_examples_reconstruct_what_was_seen(finished: Path) -> None:
    study, decoder = metrics(finished / "study"), metrics(finished / "decoder")
    assert study["final"]["two_way_pixels"]["low"] > 0.6
    assert decoder["final"]["two_way_pixels"]["low"] > 0.6
    assert "distance_histogram" in study["final"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("study", {"dataset": "blobs", "features block-means": "block-means", "regression block-means": "similar-rows", "refine": "sharpen"}),
        ("decoder", {"dataset": "blobs", "decode": "linear"}),
    ],
)  # fmt: skip
def test_the_record_names_kinds_and_their_distribution(finished: Path, name: str, expected: dict[str, str]) -> None:
    record = json.loads((finished / name / "run.json").read_bytes())
    assert {stage: record["stages"][stage]["settings"]["kind"] for stage in expected} == expected
    assert record["versions"]["leanrecon-example"] == "0.1.0"


def test_the_record_holds_what_the_kinds_return(finished: Path) -> None:
    stages = json.loads((finished / "study" / "run.json").read_bytes())["stages"]
    assert stages["regression block-means"]["neighbours"] == 5
    assert stages["refine"]["amount"] == 1.0


@pytest.mark.parametrize("name", ["study", "decoder"])
def test_every_stage_stays_below_its_plan(finished: Path, name: str) -> None:
    record = json.loads((finished / name / "run.json").read_bytes())
    for stage, measured in record["stages"].items():
        assert 0 < measured["peak_bytes"] <= measured["planned_bytes"], stage


def test_the_reports_reader_is_told_what_the_kinds_note(finished: Path) -> None:
    report = (finished / "study" / "report.html").read_text(encoding="utf-8")
    assert "Betas are simulated: voxels respond linearly to pixels" in report
    assert "means of 5 train images" in report
    assert "ignores where in the image a colour is" in report


def test_only_the_study_is_written(finished: Path, installed: Path, tmp_path: Path) -> None:
    before = files(installed)
    (tmp_path / "study.toml").write_text(STUDY)
    leanrecon("run", "study.toml", "--study", "study", "--until", "stage1", folders=(installed,), cwd=tmp_path)
    assert files(installed) == before
    assert sorted(os.listdir(tmp_path)) == ["study", "study.toml"]
    assert {Path(name).parts[0] for name in files(finished / "study")} <= {
        "study.toml", "run.json", "report.html", "betas", "stimuli", "features", "predictions", "reconstructions",
        "evaluation", "embeddings", "variants",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["study", "decoder"])
def test_workers_load_the_kinds_and_write_the_same_bytes(
    finished: Path, installed: Path, tmp_path: Path, name: str
) -> None:
    pytest.importorskip("distributed", reason="dask.distributed is not installed (extra cluster)")
    arguments = ("run", f"{name}.toml", "--study", str(tmp_path / name), "--cluster", "local:2", "--memory", "1GB")
    shown = leanrecon(*arguments, folders=(installed,), cwd=finished)
    assert "cluster: 2 workers on 1 machine" in shown
    assert results(tmp_path / name) == results(finished / name)


@pytest.mark.parametrize("name", ["study", "decoder"])
def test_a_finished_study_is_verified(finished: Path, installed: Path, name: str) -> None:
    leanrecon("verify", name, folders=(installed,), cwd=finished)


def test_damaged_chunks_are_made_again_by_the_kinds_that_made_them(
    finished: Path, installed: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished / "study", tmp_path / "study")
    whole = results(tmp_path / "study")
    for store in ("betas", "features/block-means", "predictions/block-means"):
        damage(next(path for path in (tmp_path / "study" / store / "test.zarr").rglob("c/**/*") if path.is_file()))
    damage(tmp_path / "study" / "reconstructions" / "final" / "00003.png")
    shown = leanrecon("verify", "study", folders=(installed,), cwd=tmp_path, code=1)
    assert shown.count("does not match its checksum") == 4
    leanrecon("verify", "study", "--repair", folders=(installed,), cwd=tmp_path)
    assert results(tmp_path / "study") == whole


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(bytes(data))


def kill_points(study: Path) -> Iterator[str]:
    """Files after whose appearance a run is killed: in the middle of what each kind writes."""
    for folder in ("stimuli/train.zarr", "betas/train.zarr", "features/block-means/train.zarr"):
        chunks = sorted(
            (path for path in (study / folder / "c").rglob("*") if path.is_file()), key=lambda p: p.stat().st_mtime_ns
        )
        yield str(chunks[len(chunks) // 2].relative_to(study))
    yield "predictions/block-means/test.zarr/zarr.json"
    yield "reconstructions/final/00007.png"


@pytest.mark.kills
@pytest.mark.skipif(os.name == "nt", reason="needs signals")
def test_killed_runs_end_with_the_same_bytes(finished: Path, installed: Path, tmp_path: Path) -> None:
    whole = results(finished / "study")
    killed = 0
    for k, place in enumerate(kill_points(finished / "study")):
        study = tmp_path / f"study{k}"
        killed += kill_at(study / place, "study.toml", study, finished, installed)
        leanrecon("run", "study.toml", "--study", str(study), folders=(installed,), cwd=finished)
        assert results(study) == whole, place
    assert killed >= 3


@pytest.mark.kills
@pytest.mark.skipif(os.name == "nt", reason="needs signals")
def test_a_killed_training_continues_from_its_checkpoint(finished: Path, installed: Path, tmp_path: Path) -> None:
    study = tmp_path / "study"
    network = next(path.relative_to(finished / "decoder") for path in (finished / "decoder").rglob("*.safetensors"))
    assert kill_at(study / network, "decoder.toml", study, finished, installed)
    leanrecon("run", "decoder.toml", "--study", str(study), folders=(installed,), cwd=finished)
    assert results(study) == results(finished / "decoder")


def kill_at(file: Path, settings: str, study: Path, cwd: Path, installed: Path) -> bool:
    """Run until a file is there, and kill; whether the run was killed before its end."""
    command = [sys.executable, "-m", "leanrecon", "run", settings, "--study", str(study)]
    process = subprocess.Popen(
        command, cwd=cwd, env=environment(installed), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not file.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert file.exists()
    return process.returncode == -signal.SIGKILL


def test_subjects_are_aligned_by_the_example(installed: Path, tmp_path: Path) -> None:
    for name, voxels in (("one", 80), ("two", 60)):
        (tmp_path / f"{name}.toml").write_text(SMALL.replace("voxels = 80", f"voxels = {voxels}"))
        leanrecon("run", f"{name}.toml", "--study", name, "--until", "dataset", folders=(installed,), cwd=tmp_path)
    (tmp_path / "group.toml").write_text(
        """
[dataset]
kind = "group"
members = ["one", "two"]
[dataset.alignment]
kind = "shared-axes"
dims = 8
components = 20
[features.block-means]
[regression]
kind = "similar-rows"
[evaluate]
permutations = 0
resamples = 100
"""
    )
    leanrecon("run", "group.toml", "--study", "group", folders=(installed,), cwd=tmp_path)
    import zarr

    assert zarr.open_array(str(tmp_path / "group" / "betas" / "train.zarr")).shape == (120, 8)
    assert zarr.open_array(str(tmp_path / "group" / "stimuli" / "train.zarr")).shape == (60, 24, 24, 3)
    betas = [np.asarray(zarr.open_array(str(tmp_path / name / "betas" / "test.zarr"))[:]) for name in ("one", "two")]
    together = np.asarray(zarr.open_array(str(tmp_path / "group" / "betas" / "test.zarr"))[:])
    raw = np.corrcoef(betas[0][:, :8].T, betas[1][:, :8].T)[:8, 8:].diagonal()
    aligned = np.corrcoef(together[:16].T, together[16:].T)[:8, 8:].diagonal()
    assert aligned.mean() > 0.7 > abs(raw).mean()  # responses to images that the alignment was not fitted on
    assert metrics(tmp_path / "group")["final"]["two_way_pixels"]["low"] > 0.6


# Broken kinds of other distributions

MODULE = """
from typing import Literal
from pydantic import BaseModel

class Settings(BaseModel):
    kind: Literal["half"] = "half"

class Half:
    Settings = Settings
    def plan(self, shapes, free): ...
"""


def broken_distribution(folder: Path, group: str, name: str, target: str) -> Path:
    """A folder with an installed distribution ``broken-kinds`` that has one entry point."""
    information = folder / "broken_kinds-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-kinds\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(f"[leanrecon.{group}]\n{name} = {target}\n")
    (folder / "broken_kinds.py").write_text(MODULE)
    return folder


@pytest.mark.parametrize(
    ("name", "target", "problem"),
    [
        ("lost", "not_there:Nothing", "No module named 'not_there'"),
        ("absent", "broken_kinds:Absent", "Absent"),
        ("half", "broken_kinds:Half", "predict"),
        ("ridge", "broken_kinds:Half", "taken"),
    ],
)
def test_a_broken_kind_is_named_with_its_distribution_and_the_rest_works(
    installed: Path, tmp_path: Path, name: str, target: str, problem: str
) -> None:
    broken = broken_distribution(tmp_path / "site", "regressors", name, target)
    work = tmp_path / "work"
    work.mkdir()
    shown = leanrecon("kinds", folders=(installed, broken), cwd=work)
    sentence = next(line for line in shown.splitlines() if "broken-kinds" in line and problem in line)
    assert name in sentence
    assert "similar-rows" in shown
    (work / "study.toml").write_text(STUDY)
    assert "similar rows" in leanrecon("plan", "study.toml", folders=(installed, broken), cwd=work)
    (work / "own.toml").write_text(STUDY.replace("similar-rows", name))
    refused = name != "ridge"  # there leanrecon's own ridge is used
    shown = leanrecon("plan", "own.toml", folders=(installed, broken), cwd=work, code=2 if refused else 0)
    assert ("broken-kinds" in shown and problem in shown) or not refused
