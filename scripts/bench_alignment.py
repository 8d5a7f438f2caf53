"""Benchmark alignments of four subjects of the Natural Scenes Dataset's size: memory as planned and measured, seconds.

    python scripts/bench_alignment.py                     srm (both models) and pca, 1,000 and 9,000 common images
    python scripts/bench_alignment.py --rows 1000 --methods srm pca procrustes --budget 4GB

Each measurement is a process of its own, which fits the alignment as a group does: from stores of betas on disk, Gram
matrices in memory or in files. Memory is RssAnon: what the process held before, the plan on top of it, the highest seen.
A plan that does not fit is said instead. The betas take 2.3 GB on disk at full size.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SUBJECTS = 4
LATENT = 100  # numbers that tell an image, in the betas of all subjects
METHODS = {
    "srm": {"kind": "srm"},
    "srm-deterministic": {"kind": "srm", "model": "deterministic"},
    "pca": {"kind": "pca"},
    "procrustes": {"kind": "procrustes"},
}


def make_data(folder, rows, voxels):
    """Write the betas of every subject: a signal that subjects share, and noise; what is there already is kept."""
    import numpy as np

    from leanrecon.stores import Store

    latent = np.random.default_rng(1).standard_normal((rows, LATENT), dtype=np.float32)
    latent *= np.arange(1, LATENT + 1, dtype=np.float32) ** -0.5
    for k in range(SUBJECTS):
        to_voxels = np.random.default_rng((2, k)).standard_normal((LATENT, voxels), dtype=np.float32) / 2
        store = Store.create(folder / f"{k}.zarr", (rows, voxels), np.float32, made_of={"subject": k})
        for i in store.missing_row_groups():
            group = store.group_rows(i)
            block = np.random.default_rng((3, k, i)).standard_normal((len(group), voxels), dtype=np.float32)
            block += latent[group.start : group.stop] @ to_voxels
            store.write_rows(i, block)
        store.finish()


def worker(folder, name, k, budget):
    """One measurement, in this process; prints its result as JSON."""
    import numpy as np

    from leanrecon import kinds
    from leanrecon.alignment.alignment import AlignmentShapes
    from leanrecon.context import Context
    from leanrecon.datasets.group.dataset import OVERHEAD
    from leanrecon.errors import BudgetError
    from leanrecon.memory import PeakMemory
    from leanrecon.stores.matrix import as_matrix

    settings = kinds.settings_of("alignments", METHODS[name] | {"k": k}, "alignment.", default="none")
    alignment = kinds.kind_of("alignments", settings)(settings)
    matrices = {f"subject {i}": as_matrix(folder / f"{i}.zarr") for i in range(SUBJECTS)}
    context = Context.of(budget, scratch=folder)
    shapes = AlignmentShapes({of: m.shape[1] for of, m in matrices.items()}, matrices["subject 0"].shape[0])
    plan = alignment.plan(shapes, context.budget.free)
    held = context.budget.reserved
    reading = max(matrix.scratch_nbytes for matrix in matrices.values())
    try:
        planned = context.budget.require(name, OVERHEAD + plan.work + reading)
    except BudgetError as error:
        print(json.dumps({"refused": str(error)}))
        return
    started, before = time.perf_counter(), time.process_time()
    with PeakMemory() as memory:
        alignment.fit(matrices, context)
    seconds, cpu = time.perf_counter() - started, time.process_time() - before
    assert all(np.isfinite(values).all() for values in alignment.state().values())
    found = {"held": held, "planned": planned, "measured": memory.peak, "disk": plan.scratch}
    print(json.dumps(found | {"cpu": cpu, "seconds": seconds}))


def measure(folder, name, k, budget):
    command = [sys.executable, __file__, "--worker", name, "--data", str(folder), "--budget", budget, "--k", str(k)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 9000], help="common images")
    parser.add_argument("--voxels", type=int, default=15_724)
    parser.add_argument("--k", type=int, default=300)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["srm", "srm-deterministic", "pca"])
    parser.add_argument("--budget", default="4GB")
    parser.add_argument("--data", type=Path, help="folder for the data; by default a temporary one")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.data, arguments.worker, arguments.k, arguments.budget)
        return
    with tempfile.TemporaryDirectory() as temporary:
        print(f"{SUBJECTS} subjects of {arguments.voxels} voxels, k = {arguments.k}, budget {arguments.budget}")
        print(f"{'':20}{'rows':>7}{'in files':>11}{'held':>9}{'planned':>11}{'measured':>11}{'CPU s':>8}{'s':>7}")
        for rows in arguments.rows:
            folder = (arguments.data or Path(temporary)) / str(rows)
            make_data(folder, rows, arguments.voxels)
            for name in arguments.methods:
                it = measure(folder, name, arguments.k, arguments.budget)
                if "refused" in it:
                    print(f"{name:20}{rows:7}  {it['refused']}", flush=True)
                    continue
                sizes = "".join(f"{it[key] / 1e6:8,.0f} MB" for key in ("planned", "measured"))
                print(
                    f"{name:20}{rows:7}{it['disk'] / 1e6:8,.0f} MB{it['held'] / 1e6:6,.0f} MB{sizes}"
                    f"{it['cpu']:8.0f}{it['seconds']:7.0f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
