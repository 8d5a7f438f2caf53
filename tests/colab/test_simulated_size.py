"""The script that runs NSD's true size with made-up numbers, here at a small one."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="limits of address space are Linux's"),
]


def simulate(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(ROOT / "scripts" / "simulate_nsd_run.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_every_stage_is_run_and_stays_within_its_plan(tmp_path: Path) -> None:
    done = simulate("--scale", "0.03", "--loo", "--folder", str(tmp_path))
    assert done.returncode == 0, done.stderr
    stages = re.findall(r"^(\S.*?)\s+([\d.]+)\s+([\d,]+) MB\s+([\d,]+) MB\s+([\d,]+) MB$", done.stdout, re.MULTILINE)
    assert [name for name, *_ in stages] == [
        "dataset (check, average)",
        *(f"features {name}" for name in ("vdvae", "clip")),
        *2 * [f"regression {name}" for name in ("vdvae", "clip")],
    ]
    for name, _, planned, measured, _ in stages:
        assert 20 < int(measured.replace(",", "")) <= int(planned.replace(",", "")), name
    assert "ABOVE THE PLAN" not in done.stdout
    found = dict(re.findall(r"^regression, (fixed alpha|leave-one-out) .*vdvae ([\d.]+),", done.stdout, re.MULTILINE))
    assert float(found["leave-one-out"]) > float(found["fixed alpha"]) > 0.05, "alpha is the one for the true size"
    assert "repeat reliability: responses to the same image correlate" in done.stderr


def test_a_limit_that_is_too_small_ends_the_stage(tmp_path: Path) -> None:
    done = simulate("--scale", "0.03", "--folder", str(tmp_path), "--limit", "100MB")
    assert done.returncode != 0
    assert "make failed under a limit of 100MB" in done.stderr
