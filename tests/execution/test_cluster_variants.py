"""Folds and areas that workers fit whole: files and records of one process, whoever dies on the way."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from support.clusters import worker_here

import leanrecon
from leanrecon.errors import BudgetError
from leanrecon.execution.tasks import SHARE
from leanrecon.memory import process_memory
from leanrecon.progress import Progress
from leanrecon.stages.whole_variants import Operations, worth_it

distributed = pytest.importorskip("distributed", reason="dask.distributed is not installed (extra cluster)")

TIMED = {"run.json", "report.html"}

OWN = {"seconds", "peak_bytes", "peak_resident_bytes", "planned_bytes", "budget_bytes", "workers", "worker_peak_bytes"}
"""What a record tells of the machine rather than of the result."""


@pytest.mark.parametrize(
    ("fits", "streams", "workers", "whole"),
    [
        ([1, 1, 1, 1], [1, 1, 1, 1], 2, True),  # 4 against 4 + 2
        ([1] * 10, [3] * 10, 4, True),  # 12 against 10 + 7.5
        ([1, 1], [9, 9], 8, False),  # 10 against 2 + 2.25
        ([8, 8], [1, 1], 8, True),  # 9 against 16 + 0.25
        ([1], [1], 8, False),  # there is nothing to share but blocks
        ([1, 1, 1], [2, 2, 2], 1, True),  # 9 either way
        ([100, 1, 1, 1], [90, 5, 5, 5], 2, False),  # one variant outweighs the others: 190 against 103 + 52.5
        ([], [], 2, False),
    ],
)
def test_whole_variants_are_tasks_where_blocks_would_take_no_less(
    fits: list[float], streams: list[float], workers: int, whole: bool
) -> None:
    costs = [Operations(fit, stream) for fit, stream in zip(fits, streams, strict=True)]
    assert worth_it(costs, workers) == whole


def settings_of(folder: Path) -> dict[str, Any]:
    """Forty images in five folds, of which two areas are decoded besides."""
    rng = np.random.default_rng(0)
    code = rng.standard_normal((40, 6))
    images = np.clip(128 + 40 * (code @ rng.standard_normal((6, 432))), 0, 255).astype(np.uint8)
    betas = code @ rng.standard_normal((6, 60)) + 0.3 * rng.standard_normal((40, 60))
    np.save(folder / "b.npy", betas.astype(np.float32))
    np.save(folder / "s.npy", images.reshape(40, 12, 12, 3))
    np.save(folder / "a.npy", np.repeat(np.array(["V1", "V2", "FFA"]), 20))
    return {
        "dataset": {
            "betas": str(folder / "b.npy"),
            "stimuli": str(folder / "s.npy"),
            "areas": str(folder / "a.npy"),
            "folds": 5,
        },
        "areas": {"early": ["V1", "V2"], "face": ["FFA"]},
        "features": {"pixels": {"size": 12}, "pca": {"components": 5, "size": 8}},
        "regression": {"alpha": "loo", "voxel_weights": "accuracy", "voxel_power": 0.5},
        "stage1": {"space": "pixels"},
        "stores": {"chunk": "1KB"},
        "evaluate": {"permutations": 2, "resamples": 100},
    }


def contents(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files if file.name not in TIMED}


def records(study: Path) -> dict[str, Any]:
    """What run.json of the study and of every variant keeps of each stage, but for times and memory."""
    found = {}
    for file in study.rglob("run.json"):
        for stage, record in json.loads(file.read_text())["stages"].items():
            found[f"{file.parent.relative_to(study)} {stage}"] = {k: v for k, v in record.items() if k not in OWN}
    return found


class Deadly(Progress):
    """Kills a worker once some variants came."""

    def __init__(self, after: int | None) -> None:
        self.after, self.came = after, 0
        self.lines: list[str] = []

    @contextmanager
    def task(self, name: str, *, total: int, **options: Any) -> Iterator[Any]:
        def advance(n: int) -> None:
            if name != "regression of whole variants":
                return
            self.came += n
            if self.came == self.after:
                os.kill(min(distributed.default_client().run(os.getpid).values()), signal.SIGKILL)

        yield advance

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.mark.slow
def test_variants_that_workers_fit_whole_have_the_files_and_records_of_one_process(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    options: dict[str, Any] = {"until": "regression", "memory": "2GB"}
    leanrecon.run(settings, study=tmp_path / "alone", progress=Progress(), **options)
    progress = Deadly(after=3)
    leanrecon.run(settings, study=tmp_path / "shared", progress=progress, cluster="local:2", **options)
    assert "regression: 15 of 15 variants are tasks of their own" in progress.lines
    assert progress.came == 15, "workers did all, and one was killed"
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")
    alone, shared = records(tmp_path / "alone"), records(tmp_path / "shared")
    assert len([name for name in shared if "regression" in name]) >= 30
    assert shared == alone
    one = json.loads((tmp_path / "shared/variants/fold03-early/run.json").read_text())["stages"]["regression pca"]
    assert one["seconds"] > 0
    assert one["worker_peak_bytes"] > 50_000_000
    assert one["planned_bytes"] >= one["worker_peak_bytes"]
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "shared").rglob("*") if file.is_file()}
    progress = Deadly(after=None)
    leanrecon.run(settings, study=tmp_path / "shared", progress=progress, cluster="local:1", **options)
    assert progress.came == 0, "nothing is left to do"
    changed = [path.name for path, stamp in before.items() if path.stat().st_mtime_ns != stamp]
    assert changed == []


@pytest.mark.slow
@pytest.mark.parametrize("room", [6_000_000])
def test_workers_too_small_for_a_variant_leave_it_to_the_driver_and_say_what_they_lack(
    room: int, tmp_path: Path
) -> None:
    settings = settings_of(tmp_path)
    limit = int((process_memory() + room) / SHARE)
    said = Deadly(after=None)
    with (
        worker_here(limit) as client,
        pytest.raises(BudgetError, match=r"needs at least .* on a worker .*--memory-limit \d+MB"),
    ):
        leanrecon.run(settings, study=tmp_path / "study", until="regression", progress=said, cluster=client)
    assert said.came == 0


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.kills
def test_a_driver_that_is_killed_among_variants_continues_to_the_same_bytes(tmp_path: Path) -> None:
    import tomli_w

    (tmp_path / "s.toml").write_text(tomli_w.dumps(settings_of(tmp_path)))
    command = [sys.executable, "-m", "leanrecon", "run", "s.toml", "--until", "regression", "--study"]
    subprocess.run([*command, "alone"], cwd=tmp_path, check=True, capture_output=True)
    for reached in ("fold01", "fold03-face"):
        driver = subprocess.Popen(
            [*command, "shared", "--cluster", "local:2"],
            cwd=tmp_path,
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        until, file = time.monotonic() + 300, tmp_path / "shared/variants" / reached / "run.json"
        while not file.exists() and driver.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        assert driver.poll() is None, "it is killed before its end"
        children = psutil.Process(driver.pid).children(recursive=True)
        driver.kill()
        driver.wait()
        assert not psutil.wait_procs(children, timeout=60)[1], "workers end with their driver"
    subprocess.run([*command, "shared", "--cluster", "local:2"], cwd=tmp_path, check=True, capture_output=True)
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")
    assert records(tmp_path / "shared") == records(tmp_path / "alone")
