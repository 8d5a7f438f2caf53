"""Gram matrices and projections of targets that workers make: the bytes of one process, whoever dies on the way."""

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
from leanrecon.regression.ridge import on_workers

distributed = pytest.importorskip("distributed", reason="dask.distributed is not installed (extra cluster)")

pytestmark = pytest.mark.slow

TIMED = {"run.json", "report.html"}


def contents(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files if file.name not in TIMED}


def settings_of(folder: Path, rows: int, voxels: int, targets: int, alpha: Any) -> dict[str, Any]:
    """Targets that some voxels carry, of other programs."""
    rng = np.random.default_rng(0)
    paths: dict[str, str] = {}
    for split, n in (("train", rows), ("test", 20)):
        betas = rng.standard_normal((n, voxels), np.float32)
        features = 9 * rng.standard_normal((n, targets), np.float32)
        features += betas[:, :20] @ np.resize([1, -2, 3], (20, targets)).astype(np.float32)
        for name, array in (("betas", betas), ("features", features)):
            np.save(folder / f"{name}_{split}.npy", array)
            paths[f"{name}_{split}"] = str(folder / f"{name}_{split}.npy")
    return {
        "dataset": {"betas_train": paths["betas_train"], "betas_test": paths["betas_test"]},
        "features": {"big": {"kind": "precomputed", "train": paths["features_train"], "test": paths["features_test"]}},
        "regression": {"alpha": alpha},
        "stores": {"chunk": "500KB"},
    }


class Deadly(Progress):
    """Kills a worker once in each of the tasks whose names end so, after their first part has come; counts parts."""

    def __init__(self, *names: str) -> None:
        self.names = list(names)
        self.parts: dict[str, int] = {}

    @contextmanager
    def task(self, name: str, *, total: int, **options: Any) -> Iterator[Any]:
        def advance(n: int) -> None:
            self.parts[name] = self.parts.get(name, 0) + n
            doomed = [one for one in self.names if name.endswith(one)]
            if doomed:
                self.names.remove(doomed[0])
                os.kill(min(distributed.default_client().run(os.getpid).values()), signal.SIGKILL)

        yield advance


@pytest.mark.parametrize(("rows", "voxels"), [(2100, 2500), (4000, 2100)])
def test_a_worker_that_dies_among_parts_of_a_fit_costs_its_tasks_alone(
    rows: int, voxels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_workers, "SHARED_OPERATIONS", 0)
    settings = settings_of(tmp_path, rows, voxels, 700, "loo")
    options: dict[str, Any] = {"until": "regression", "memory": "2GB"}
    leanrecon.run(settings, study=tmp_path / "alone", progress=Progress(), **options)
    progress = Deadly("Gram matrix", "projections of targets", "regression big")
    leanrecon.run(settings, study=tmp_path / "shared", progress=progress, cluster="local:2", **options)
    assert progress.names == [], "a worker was killed in each"
    assert progress.parts["regression big, Gram matrix"] >= 3
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")


def test_workers_too_small_for_a_part_are_refused_with_the_limit_that_would_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_workers, "SHARED_OPERATIONS", 0)
    settings = settings_of(tmp_path, 2100, 2500, 700, 1000.0)
    limit = int((process_memory() + 26_000_000) / SHARE)  # less than products take themselves
    with (
        worker_here(limit) as client,
        pytest.raises(BudgetError, match=r"big, Gram matrix needs at least .* on a worker .*--memory-limit \d+MB"),
    ):
        leanrecon.run(settings, study=tmp_path / "study", until="regression", progress=Progress(), cluster=client)
    assert not list((tmp_path / "study").rglob("*.part")), "nothing was begun"


@pytest.mark.long
@pytest.mark.kills
def test_a_driver_that_is_killed_among_parts_takes_them_up_and_leaves_nothing_behind(tmp_path: Path) -> None:
    import tomli_w

    (tmp_path / "s.toml").write_text(tomli_w.dumps(settings_of(tmp_path, 4200, 6000, 1000, 1000.0)))
    command = [sys.executable, "-m", "leanrecon", "run", "s.toml", "--until", "regression", "--study"]
    subprocess.run([*command, "alone"], cwd=tmp_path, check=True, capture_output=True)
    kept: dict[Path, int] = {}
    for parts in (1, 3):
        driver = subprocess.Popen(
            [*command, "shared", "--cluster", "local:2"],
            cwd=tmp_path,
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        until, fit = time.monotonic() + 300, tmp_path / "shared/predictions/big/fit"
        while len(list(fit.glob("*.part"))) < parts and driver.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        assert driver.poll() is None, "it is killed before its end"
        children = psutil.Process(driver.pid).children(recursive=True)
        driver.kill()
        driver.wait()
        assert not psutil.wait_procs(children, timeout=60)[1], "workers end with their driver"
        there = {path: path.stat().st_mtime_ns for path in fit.glob("*.part")}
        assert all(there[path] == stamp for path, stamp in kept.items()), "whole parts are not made again"
        kept = there
    assert len(kept) >= 3
    subprocess.run([*command, "shared", "--cluster", "local:2"], cwd=tmp_path, check=True, capture_output=True)
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone"), "and nothing is left behind"
