"""Measured memory stays under the plan, and streamed weights are not in it."""

import json
import os
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from diffusion_models import write_base  # noqa: E402

SIZE = 128

MEASURED = """
import json, sys
from pathlib import Path
import numpy as np
from leanrecon.memory import MemoryBudget, PeakMemory
from leanrecon.refinement.refiner import Refiner
from leanrecon.refinement.settings import RefineSettings
from leanrecon.stores.matrix import ArrayMatrix
from leanrecon.stores.pictures import Pictures

folder, table = Path(sys.argv[1]), json.loads(sys.argv[2])
size = table["size"]
first = Pictures.create(folder / "first", 1, (size, size, 3), made_of={})
first.write(0, np.full((size, size, 3), 50, np.uint8))
first.finish()
out = Pictures.create(folder / "out", 1, (size, size, 3), made_of={})
text = ArrayMatrix(np.ones((1, 77 * 16), np.float32))
refiner = Refiner(RefineSettings(**table), device="cpu", scratch=folder / "scratch")
with PeakMemory() as memory:
    budget = MemoryBudget.of("8GB")
    refiner.refine(first, {"text": text}, out, budget=budget)
print(json.dumps([budget.required[0], memory.peak]))
"""


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A base whose UNet has 66 million weights, 265 MB."""
    return write_base(tmp_path_factory.mktemp("wide") / "base", channels=(320, 640))


@pytest.mark.parametrize("offload", ["none", "stream"])
def test_measured_memory_stays_under_the_plan(offload, wide, tmp_path):
    table = {"kind": "lcm", "base": str(wide), "text": "clip", "size": SIZE, "steps": 1, "precision": "float32"}
    command = [sys.executable, "-c", MEASURED, str(tmp_path), json.dumps(table | {"offload": offload})]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "2"})
    assert run.returncode == 0, run.stderr
    projected, measured = json.loads(run.stdout.splitlines()[-1])
    print(f"{offload}: measured {measured / 1e6:.0f} MB of {projected / 1e6:.0f} MB projected")
    assert 0.6 * projected <= measured <= projected
