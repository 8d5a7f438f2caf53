"""A slice of the mutation harness: leanrecon answers every mutated file with a result or a LeanreconError."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SECONDS = int(os.environ.get("LEANRECON_FUZZ_SECONDS", "60"))
SEED = int(os.environ.get("LEANRECON_FUZZ_SEED", "1"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the harness forks and reads /proc"),
]

SLICE = """
import itertools, sys, time
from fuzz.harness import run_all
seconds, seed = int(sys.argv[1]), int(sys.argv[2])
start = 7919 * seed  # another part of the cases for each seed
done = 0
for outcome in run_all(itertools.count(start), seed, 1, until=time.monotonic() + seconds):
    done += 1
    if outcome.fault:
        print(f"seed {seed}, case {outcome.number}, {outcome.seed.name}: {outcome.fault}")
print(f"done {done}")
"""


def test_a_mutated_file_gives_a_result_or_one_of_our_errors() -> None:
    folder = Path(__file__).parents[1]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(folder), str(folder.parent)]),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", SLICE, str(SECONDS), str(SEED)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS + 240)
    *faults, last = done.stdout.splitlines() or [""]
    assert done.returncode == 0, done.stderr
    assert last.startswith("done "), done.stdout
    assert int(last.split()[1]) > 0, "no case was tried"
    assert not faults, "\n".join(faults)
