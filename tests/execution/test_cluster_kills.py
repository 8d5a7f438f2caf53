"""Workers and drivers that are killed every few seconds, for a whole study: the bytes of one process."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from support.clusters import differing

pytest.importorskip("distributed", reason="dask.distributed is not installed (extra cluster)")

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.kills]

EVERY = 6.0
"""Seconds between two kills of a worker at most, once all are there: a tenth of what one process takes for all."""

KILLS_OF_A_DRIVER = 4
"""How many of its workers a driver sees die before it is killed itself."""

DRIVERS = 3
"""Drivers that are killed; the next one comes to the end, though its workers die too."""

SETTINGS: dict[str, Any] = {
    "dataset": {"kind": "simulated", "n_train": 240, "n_test": 80, "voxels": 300, "size": 48},
    "features": {"pca": {"components": 60, "size": 32}, "pixels": {"size": 48}},
    "regression": {"alpha": 100.0},
    "stores": {"chunk": "32KB"},
    "evaluate": {"permutations": 2, "resamples": 100},
}


def workers_of(driver: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The processes of a driver's workers: Dask starts them by ``spawn``."""
    found = []
    for child in psutil.Process(driver.pid).children(recursive=True):
        try:
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return found


def kill_workers(
    driver: subprocess.Popen[bytes], said: Path, rng: np.random.Generator, most: int | None, every: float
) -> int:
    """Kill a worker every few seconds until the driver ends, or has seen so many die; returns how many died."""
    killed, before = 0, said.stat().st_size
    while driver.poll() is None and b"cluster: " not in said.read_bytes()[before:]:
        time.sleep(0.2)  # a cluster of this machine gives up where workers die before it began
    while driver.poll() is None and (most is None or killed < most):
        time.sleep(every * rng.uniform(0.5, 1.5))
        try:
            here = workers_of(driver)
            if len(here) == 2:
                here[rng.integers(2)].kill()
                killed += 1
        except psutil.Error:  # it ended meanwhile
            continue
    return killed


def test_workers_and_drivers_that_die_all_the_time_leave_the_bytes_of_one_process(tmp_path: Path) -> None:
    import tomli_w

    (tmp_path / "s.toml").write_text(tomli_w.dumps(SETTINGS))
    command = [sys.executable, "-m", "leanrecon", "run", "s.toml", "--memory", "2GB", "--study"]
    began = time.monotonic()
    subprocess.run([*command, "alone"], cwd=tmp_path, check=True, capture_output=True)
    every = min((time.monotonic() - began) / 10, EVERY)
    rng, killed, drivers = np.random.default_rng(5), 0, 0
    until = time.monotonic() + 1800
    while time.monotonic() < until:
        with (tmp_path / "said.txt").open("ab") as said:
            driver = subprocess.Popen(
                [*command, "shared", "--cluster", "local:2"], cwd=tmp_path, stdout=said, stderr=said
            )
            most = KILLS_OF_A_DRIVER if drivers < DRIVERS else None
            killed += kill_workers(driver, tmp_path / "said.txt", rng, most, every)
            if driver.poll() is None:
                left = workers_of(driver)
                driver.kill()
                drivers += 1
                driver.wait()
                assert not psutil.wait_procs(left, timeout=120)[1], "workers end with their driver"
                continue
        assert driver.returncode == 0, (tmp_path / "said.txt").read_text()
        break
    print(f"{killed} workers and {drivers} drivers were killed")
    assert killed > 5
    assert drivers > 0
    assert differing(tmp_path / "alone", tmp_path / "shared") == [], "nothing is lost, and nothing is left behind"
