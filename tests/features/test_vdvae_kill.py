"""An extraction that is killed anywhere, again and again, ends with the same bytes.

Four kills by default; ``LEANRECON_KILLS=20 pytest tests/features/test_vdvae_kill.py`` for more.
"""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from support.vdvae_models import SMALL, random_weights  # noqa: E402

from leanrecon.context import Context  # noqa: E402
from leanrecon.features.extract import extract  # noqa: E402
from leanrecon.features.vdvae import VDVAESettings, VDVAESpace  # noqa: E402
from leanrecon.stores import Store  # noqa: E402

KILLS = int(os.environ.get("LEANRECON_KILLS", "4"))
IMAGES = 2000
CHUNK = 20_000

EXTRACT = """
import json, sys
from pathlib import Path
import torch
from leanrecon.context import Context
from leanrecon.features.extract import extract
from leanrecon.features.vdvae import VDVAESettings, VDVAESpace
from leanrecon.stores import Store

torch.set_num_threads(1)
space = VDVAESpace(VDVAESettings(**json.loads(sys.argv[3])), seed=7)
extract(space, Store.open(sys.argv[1]), Path(sys.argv[2]), Context.of(chunk=int(sys.argv[4])), batch=int(sys.argv[5]))
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.kills,
    pytest.mark.networks,
    pytest.mark.skipif(os.name == "nt", reason="needs signals"),
]


def test_killed_extractions_end_with_the_same_bytes(tmp_path, store_of, smooth_images, files_of):
    checkpoint = tmp_path / "small.th"
    torch.save(random_weights(), checkpoint)
    images = store_of(smooth_images(IMAGES, 16, 16, 3), chunk="50KB")
    table = {"checkpoint": str(checkpoint), "config": SMALL.as_table(), "n_latents": 5}
    started = time.monotonic()
    space = VDVAESpace(VDVAESettings(**table), seed=7)
    whole = extract(space, images, tmp_path / "whole.zarr", Context.of(chunk=CHUNK), batch=7)
    chunk_seconds = (time.monotonic() - started) / whole.row_groups
    assert whole.row_groups >= 20
    killed = tmp_path / "killed.zarr"

    def begin(batch):
        command = [
            sys.executable,
            "-c",
            EXTRACT,
            str(images.path),
            str(killed),
            json.dumps(table),
            str(CHUNK),
            str(batch),
        ]
        return subprocess.Popen(command, stderr=subprocess.PIPE)

    rng = np.random.default_rng(KILLS)
    moments = []
    for chunk in sorted(rng.integers(0, whole.row_groups - 1, KILLS).tolist()):
        # The first run alone decides the batch. If this chunk is there before, the kill falls on the start-up.
        run, delay = begin(64 if moments else 7), chunk_seconds * rng.random()
        deadline = time.monotonic() + 120
        while not (killed / "c" / str(chunk)).exists() and run.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(delay)
        run.send_signal(signal.SIGKILL)
        _, err = run.communicate()
        assert run.returncode == -signal.SIGKILL, err.decode()
        written = len(list(killed.glob("c/*/0")))
        moments.append(f"killed {delay:.3f} s after chunk {chunk}: {written} of {whole.row_groups} chunks written")
    print("", *moments, sep="\n")
    assert not Store.open(killed, incomplete=True).complete
    last = begin(64)
    _, err = last.communicate(timeout=300)
    assert last.returncode == 0, err.decode()
    assert files_of(killed) == files_of(whole.path)
