"""Benchmark the training of networks at the size of one subject of the Natural Scenes Dataset.

    python scripts/bench_mlp.py                        8859 rows, 15,724 voxels, 91,168 targets (3.8 GB on disk)
    python scripts/bench_mlp.py --full-rows 8859       the full head on all rows, not on 1500 of them

Every measurement is a process of its own that trains for one epoch from stores on disk. It prints the median seconds a
step, the share of time that steps waited for data, the planned memory, and the peak memory of the whole process:
anonymous (RssAnon) and resident (VmHWM), from the import to the last prediction.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from bench_ridge import make_data

NSD = {"n": 8859, "p": 15_724, "m": 982, "t": 91_168}

NETWORKS = {
    "full head": {"head": "full", "skip": "none", "inputs": "betas"},
    "PCA head": {"skip": "none", "inputs": "betas"},
    "PCA head + ridge": {"inputs": "betas", "alpha": 50_000.0},
    "PCA head + ridge, of its predictions": {"inputs": "ridge", "alpha": 50_000.0},
}
"""Settings that differ from the defaults."""


def worker(folder, name, budget, hidden, blocks):
    """Train for an epoch and predict, in this process; prints the result as JSON."""
    from leanrecon.memory import PeakMemory
    from leanrecon.progress import Progress
    from leanrecon.regression.mlp.mlp import StreamingMLP
    from leanrecon.stores import Store

    class Clock(Progress):
        """Notes when every step was done."""

        steps = ()

        @contextmanager
        def task(self, name, *, total, unit, done=0, note=None):
            times = [time.perf_counter()]
            yield lambda n: times.append(time.perf_counter())
            if unit == "steps":
                self.steps = times

    clock = Clock()
    shutil.rmtree(folder / "network", ignore_errors=True)
    shutil.rmtree(folder / "P.zarr", ignore_errors=True)
    started = time.perf_counter()
    with PeakMemory() as memory:
        mlp = StreamingMLP(
            **NETWORKS[name], hidden=hidden, blocks=blocks, epochs=1, budget=budget, folder=folder / "network", scratch=folder,
            progress=clock,
        )  # fmt: skip
        mlp.fit(folder / "X.zarr", folder / "Y.zarr", test_rows=Store.open(folder / "T.zarr").rows)
        planned = mlp.projected_
        shape = (Store.open(folder / "T.zarr").rows, Store.open(folder / "Y.zarr").columns)
        store = Store.create(folder / "P.zarr", shape, "f4", made_of={})
        mlp.predict_into(folder / "T.zarr", store)
    steps = [b - a for a, b in zip(clock.steps[:-1], clock.steps[1:], strict=True)]
    training = clock.steps[-1] - clock.steps[0]
    kept = {file.name: file.stat().st_size for file in (folder / "network").iterdir()}
    print(
        json.dumps(
            {
                "step": statistics.median(steps), "steps": len(steps), "training": training, "waited": mlp.waited_,
                "seconds": time.perf_counter() - started, "planned": planned, "anon": memory.peak,
                "resident": memory.resident, "weights": sum(p.numel() for p in mlp.network_.parameters()), "kept": kept,
            }
        )
    )  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder to keep the synthetic data in")
    parser.add_argument("--rows", type=int, default=NSD["n"])
    parser.add_argument("--full-rows", type=int, default=1500, help="train rows of the full head")
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--blocks", type=int, default=1)
    parser.add_argument("--budget", default="8GB")
    parser.add_argument("--only", choices=NETWORKS, action="append")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.data, arguments.worker, arguments.budget, arguments.hidden, arguments.blocks)
        return
    with tempfile.TemporaryDirectory() as temporary:
        root = arguments.data or Path(temporary)
        print(f"{NSD}, hidden {arguments.hidden}, blocks {arguments.blocks}, batch 64, AdamW (fused)")
        print(
            f"{'':38}{'rows':>6}{'weights':>13}{'s/step':>8}{'waited':>8}{'planned':>10}{'anonymous':>11}{'resident':>10}{'in all':>9}"
        )
        for name in arguments.only or NETWORKS:
            rows = arguments.full_rows if name.startswith("full") else arguments.rows
            folder = root / f"n{rows}"
            make_data(folder, NSD | {"n": rows})
            command = [sys.executable, __file__, "--worker", name, "--data", str(folder), "--budget", arguments.budget]
            command += ["--hidden", str(arguments.hidden), "--blocks", str(arguments.blocks)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            result = json.loads(done.stdout.splitlines()[-1])
            share = result["waited"] / result["training"]
            print(
                f"{name:38}{rows:6}{result['weights']:13,}{result['step']:8.3f}{share:8.1%}"
                f"{result['planned'] / 1e6:7,.0f} MB{result['anon'] / 1e6:8,.0f} MB{result['resident'] / 1e6:7,.0f} MB"
                f"{result['seconds']:7.0f} s  kept {sum(result['kept'].values()) / 1e6:,.0f} MB",
                flush=True,
            )


if __name__ == "__main__":
    main()
