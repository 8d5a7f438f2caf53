"""Measured memory stays under the plan, and streamed weights are not in it."""

import json
import os
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from support.diffusion_models import write_base  # noqa: E402
from support.versatile_models import write_versatile  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.networks]

SIZE = 128

MEASURED = """
import json, sys
from pathlib import Path
import numpy as np
from leanrecon import kinds
from leanrecon.context import Context
from leanrecon.memory import PeakMemory
from leanrecon.stores.matrix import ArrayMatrix
from leanrecon.stores.pictures import Pictures

folder, table = Path(sys.argv[1]), json.loads(sys.argv[2])
size = table["size"]
first = Pictures.create(folder / "first", 1, (size, size, 3), made_of={})
first.write(0, np.full((size, size, 3), 50, np.uint8))
first.finish()
out = Pictures.create(folder / "out", 1, (size, size, 3), made_of={})
text, vision = (ArrayMatrix(np.ones((1, tokens * 16), np.float32)) for tokens in (77, 257))
predicted = {"text": text} | ({"vision": vision} if table["kind"] == "versatile" else {})
unconditional = {role: rows.array[0] for role, rows in predicted.items()}
settings = kinds.settings_of("generators", table, "refine.", default="none")
kind = kinds.kind_of("generators", settings)
generator = kind(settings, device="cpu", scratch=folder / "scratch", unconditional=unconditional)
with PeakMemory() as memory:
    context = Context.of("8GB")
    generator.draw(first, predicted, out, context)
print(json.dumps([context.peaks.projected[0], memory.peak]))
"""


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A base whose UNet has 66 million weights, 265 MB."""
    return write_base(tmp_path_factory.mktemp("wide") / "base", channels=(320, 640))


@pytest.fixture(scope="module")
def versatile(tmp_path_factory):
    """Versatile Diffusion whose joined network has 69 million weights."""
    return write_versatile(tmp_path_factory.mktemp("wide") / "versatile", channels=(320, 640))


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    """The wide base with latents a quarter of an image wide: four times as many."""
    return write_base(tmp_path_factory.mktemp("wide") / "larger", channels=(320, 640), autoencoder=(8, 8, 16))


@pytest.mark.parametrize(
    ("of", "precision"),
    [("wide", "float32"), ("larger", "float32"), ("larger", "bfloat16"), ("versatile", "float32")],
)
@pytest.mark.parametrize("offload", ["none", "stream"])
def test_measured_memory_stays_under_the_plan(offload, of, precision, request, tmp_path):
    base, kind = str(request.getfixturevalue(of)), "versatile" if of == "versatile" else "lcm"
    table = {"kind": kind, "base": base, "text": "clip", "size": SIZE, "steps": 1, "precision": precision}
    table |= {"vision": "seen"} if kind == "versatile" else {}
    command = [sys.executable, "-c", MEASURED, str(tmp_path), json.dumps(table | {"offload": offload})]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "2"})
    assert run.returncode == 0, run.stderr
    projected, measured = json.loads(run.stdout.splitlines()[-1])
    print(f"{offload}: measured {measured / 1e6:.0f} MB of {projected / 1e6:.0f} MB projected")
    assert 0.6 * projected <= measured <= projected
