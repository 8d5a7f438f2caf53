"""Benchmark the streaming ridge beside its peers, and at the size of one subject of the Natural Scenes Dataset.

    python scripts/bench_ridge.py                 peers at n 4000, p 8000, m 300, t 16000; then the VDVAE shape
    python scripts/bench_ridge.py --all --loo     also 347,680 targets (12 GB on disk), and alpha by leave-one-out
    python scripts/bench_ridge.py --kernels       the VDVAE shape by a linear and by an rbf kernel in turns, and choices
    python scripts/bench_ridge.py --against DIR   the VDVAE shape by this source tree and by another one in turns
    python scripts/bench_ridge.py --device cuda   the VDVAE shape (with --all also 347,680 targets) on the CPU and on a GPU

Every measurement is a process of its own on the same float32 data on disk with a warm page cache. Peers are given
their arrays in memory and their loading is not counted; ours reads its stores within the time that is. Peak memory is
that of the whole process: anonymous (RssAnon) and resident (VmHWM). The error is the largest difference to a float64
closed form on 32 targets, over the targets' standard deviation. The GEMM rate is the median of products of order 4096
in float32, in the same process right afterwards.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ALPHA = 50_000.0
TREE = Path(__file__).resolve().parents[1]
PEERS = {"n": 4000, "p": 8000, "m": 300, "t": 16_000}
VDVAE = {"n": 8859, "p": 15_724, "m": 982, "t": 91_168}
ALL = VDVAE | {"t": 347_680}  # VDVAE latents and the CLIP features of text and vision
FORMS = {
    "leanrecon": {"alpha": ALPHA},
    "leanrecon rbf": {"kernel": "rbf", "gamma": 0.5, "alpha": 0.1},
    "leanrecon loo": {"alpha": "loo", "alphas": [10 ** (2 + 5 * k / 19) for k in range(20)]},
    "leanrecon choice": {"kernel": "rbf", "voxel_weights": "accuracy", "alpha": "loo"},
}
"""Forms of the ridge; the last one chooses its width, the power of its voxel weights and alpha."""
SAMPLE = 32  # targets that the closed form is computed for
SIGNAL = 16  # betas that each target depends on


def make_data(folder, shape):
    """Write betas and targets chunk by chunk; what is there already is kept."""
    import numpy as np

    from leanrecon.stores import Store

    n, p, m, t = shape["n"], shape["p"], shape["m"], shape["t"]
    for name, rows, columns, seed in (("X", n, p, 1), ("T", m, p, 2), ("Y", n, t, 3)):
        store = Store.create(folder / f"{name}.zarr", (rows, columns), "f4", made_of={"seed": seed})
        betas = Store.open(folder / "X.zarr") if name == "Y" and not store.complete else None
        for i in store.missing_row_groups():
            group = store.group_rows(i)
            block = np.random.default_rng((seed, i)).standard_normal((len(group), columns), dtype=np.float32)
            if betas is not None:
                some = betas[group.start : group.stop][:, :SIGNAL]
                block += some @ np.random.default_rng(4).standard_normal((SIGNAL, columns), dtype=np.float32)
            store.write_rows(i, block)
        store.finish()


def loaded(folder, name):
    """A whole store in memory, as peers need it."""
    import numpy as np

    from leanrecon.stores import Store

    store = Store.open(folder / f"{name}.zarr")
    out = np.empty(store.shape, np.float32)
    for i in range(store.row_groups):
        group = store.group_rows(i)
        out[group.start : group.stop] = store[group.start : group.stop]
    return out


def reference(folder):
    """Float64 predictions of the first targets by the closed form, kept beside the data."""
    import numpy as np
    from scipy.linalg import solve

    x, t = (loaded(folder, name).astype(np.float64) for name in "XT")
    y = loaded(folder, "Y")[:, :SAMPLE].astype(np.float64)
    mean, target_mean = x.mean(axis=0), y.mean(axis=0)
    x -= mean
    kernel = x @ x.T
    kernel[np.diag_indices(len(x))] += ALPHA
    predictions = (t - mean) @ (x.T @ solve(kernel, y - target_mean, assume_a="pos")) + target_mean
    np.save(folder / "reference.npy", np.vstack([predictions, y.std(axis=0)]))


def gemm_rate(times=5):
    """Seconds of float32 products of order 4096, as GFLOP/s."""
    import numpy as np

    from leanrecon.memory import buffer
    from leanrecon.regression.ridge import blas

    a, c = buffer((4096, 4096), np.float32), buffer((4096, 4096), np.float32)
    a[:] = 1
    rates = []
    for _ in range(times):
        started = time.perf_counter()
        blas.gemm(a, a, c, beta=0.0)
        rates.append(2 * 4096**3 / (time.perf_counter() - started) / 1e9)
    return rates


def peer(folder, name):
    """Fit and predict with one of the peers, its arrays in memory; returns the predictions of the sampled targets."""
    x, t, y = (loaded(folder, array) for array in "XTY")
    started = time.perf_counter()
    if name == "scikit-learn Ridge":
        from sklearn.linear_model import Ridge

        predictions = Ridge(alpha=ALPHA).fit(x, y).predict(t)
    else:  # kernel methods have no intercept: centre in place, as one does
        mean, target_mean = x.mean(axis=0), y.mean(axis=0)
        x -= mean
        t -= mean
        y -= target_mean
        if name == "scikit-learn KernelRidge":
            from sklearn.kernel_ridge import KernelRidge

            predictions = KernelRidge(alpha=ALPHA).fit(x, y).predict(t)
        else:
            from himalaya.kernel_ridge import KernelRidge

            predictions = KernelRidge(alpha=ALPHA, kernel="linear").fit(x, y).predict(t)
        predictions = predictions + target_mean
    return time.perf_counter() - started, predictions[:, :SAMPLE]


def ours(folder, budget, loo, how=None, device="cpu"):
    """Fit and predict from stores into a store; returns also what was planned."""
    from leanrecon.regression.ridge.ridge import StreamingRidge
    from leanrecon.stores import Store

    shutil.rmtree(folder / "P.zarr", ignore_errors=True)
    started = time.perf_counter()
    how = how or FORMS["leanrecon loo" if loo else "leanrecon"]
    how = how if device == "cpu" else how | {"device": device}
    ridge = StreamingRidge(**how, standardize=False, budget=budget, scratch=folder)
    ridge.fit(folder / "X.zarr", folder / "Y.zarr", test=folder / "T.zarr")
    fitted = time.perf_counter() - started
    shape = (Store.open(folder / "T.zarr").rows, Store.open(folder / "Y.zarr").columns)
    store = Store.create(folder / "P.zarr", shape, "f4", made_of={})
    ridge.predict_into(folder / "T.zarr", store)
    store.finish()
    seconds = time.perf_counter() - started
    extra = {"fit": fitted, "planned": ridge.projected_, "alpha": ridge.alpha_, "content": store.content}
    if device != "cpu":
        extra |= {"device": ridge.device_, "vram": gpu_peak(ridge.device_)}
    extra["form"] = str(getattr(getattr(ridge, "learned_", None), "form", "linear"))
    return seconds, store[0 : store.rows][:, :SAMPLE] if store.columns < 50_000 else None, extra


def gpu_peak(device):
    """The most bytes that PyTorch held on a CUDA GPU so far."""
    if device != "cuda":
        return None
    import torch

    return torch.cuda.max_memory_reserved()


def read_rate(folder):
    """Seconds to read all targets chunk by chunk, checked, and to throw them away."""
    import numpy as np

    from leanrecon.stores import Store

    store = Store.open(folder / "Y.zarr")
    memory, started = np.empty(store.buffer_nbytes(), np.uint8), time.perf_counter()
    for i in range(store.row_groups):
        for j in range(store.column_groups):
            store.read_chunk(i, j, memory)
    return time.perf_counter() - started


def worker(folder, name, budget, gemm, device="cpu"):
    """One measurement, in this process; prints its result as JSON."""
    from leanrecon.memory import PeakMemory

    if name == "reference":
        reference(folder)
        return
    extra = {}
    with PeakMemory() as memory:
        started = time.process_time()
        if name in FORMS:
            seconds, predictions, extra = ours(folder, budget, False, FORMS[name], device)
            extra["cpu"] = time.process_time() - started
        else:
            seconds, predictions = peer(folder, name)
    if name in FORMS and gemm:
        extra["gemm"] = statistics.median(gemm_rate())
    error = None
    if predictions is not None and (folder / "reference.npy").exists():
        import numpy as np

        known = np.load(folder / "reference.npy")
        error = float((np.abs(predictions - known[:-1]) / known[-1]).max())
    print(json.dumps({"seconds": seconds, "anon": memory.peak, "resident": memory.resident, "error": error, **extra}))


def measure(folder, name, budget=None, runs=1):
    """The median run of a measurement, each in a process of its own."""
    results = [measure_once(folder, name, budget) for _ in range(runs)]
    return median_run(results)


def measure_once(folder, name, budget=None, gemm=True, device="cpu"):
    command = [sys.executable, __file__, "--worker", name, "--data", str(folder)]
    command += (["--budget", budget] if budget else []) + ([] if gemm else ["--no-gemm"])
    command += [] if device == "cpu" else ["--device", device]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1]) if name != "reference" else None


def median_run(results):
    return sorted(results, key=lambda result: result["seconds"])[len(results) // 2] if results[0] else None


def flops(shape):
    n, p, m, t = shape["n"], shape["p"], shape["m"], shape["t"]
    return n * n * p + n**3 / 3 + 2 * m * n * p + 2 * m * n * n + 2 * m * n * t


def megabytes(n):
    return f"{n / 1e6:,.0f} MB"


def compare_peers(root, runs):
    folder = root / "peers"
    make_data(folder, PEERS)
    if not (folder / "reference.npy").exists():
        measure(folder, "reference")
    print(f"\n{PEERS}, alpha {ALPHA:g}, median of {runs}")
    print(f"{'':28}{'seconds':>9}{'anonymous':>12}{'resident':>12}{'error':>10}{'x slower':>10}{'x memory':>10}")
    mine = measure(folder, "leanrecon", "4GB", runs)
    for name in ("leanrecon", "scikit-learn Ridge", "scikit-learn KernelRidge", "himalaya KernelRidge"):
        it = mine if name == "leanrecon" else measure(folder, name, runs=runs)
        print(
            f"{name:28}{it['seconds']:9.2f}{megabytes(it['anon']):>12}{megabytes(it['resident']):>12}"
            f"{it['error']:10.1e}{it['seconds'] / mine['seconds']:10.1f}{it['resident'] / mine['resident']:10.1f}",
            flush=True,
        )


def full_size(root, shape, cases, runs):
    folder = root / f"t{shape['t']}"
    make_data(folder, shape)
    print(f"\n{shape}, {flops(shape):.3g} flop, median of {runs}")
    print(
        f"{'budget':12}{'seconds':>9}{'fit':>8}{'GFLOP/s':>9}{'GEMM':>7}{'share':>7}{'planned':>11}{'anonymous':>12}{'resident':>11}  result"
    )
    for name, budget in cases:
        it = measure(folder, name, budget, runs)
        rate = flops(shape) / it["seconds"] / 1e9
        print(
            f"{budget + (' loo' if name.endswith('loo') else ''):12}{it['seconds']:9.1f}{it['fit']:8.1f}{rate:9.0f}"
            f"{it['gemm']:7.0f}{rate / it['gemm']:7.0%}{megabytes(it['planned']):>11}{megabytes(it['anon']):>12}"
            f"{megabytes(it['resident']):>11}  {it['content'][:12]} alpha {it['alpha']:.4g}",
            flush=True,
        )


def compare_kernels(root, shape, budget, runs):
    """A linear and an rbf kernel of fixed width and alpha in turns; then, once each, what is chosen by leave-one-out.

    On a busy machine CPU seconds are the fairer measure.
    """
    folder = root / f"t{shape['t']}"
    make_data(folder, shape)
    results = {name: [] for name in ("leanrecon", "leanrecon rbf")}
    print(f"\n{shape}, {budget}, in turns", flush=True)
    print(f"{'':18}{'seconds':>9}{'CPU':>8}{'fit':>8}{'planned':>11}{'anonymous':>12}{'resident':>11}  form")
    for name in [*results] * runs + ["leanrecon choice", "leanrecon loo"]:
        it = measure_once(folder, name, budget, gemm=False)
        results.setdefault(name, []).append(it)
        print(
            f"{name:18}{it['seconds']:9.1f}{it['cpu']:8.1f}{it['fit']:8.1f}{megabytes(it['planned']):>11}"
            f"{megabytes(it['anon']):>12}{megabytes(it['resident']):>11}  {it['form']}, alpha {it['alpha']:.4g}",
            flush=True,
        )
    for key, said in (("seconds", "seconds"), ("cpu", "CPU seconds"), ("anon", "anonymous memory")):
        pairs = zip(results["leanrecon rbf"], results["leanrecon"], strict=True)
        print(f"rbf / linear, {said}: " + " ".join(f"{rbf[key] / linear[key]:.3f}" for rbf, linear in pairs))


def compare_devices(root, shape, device, budget, runs):
    """A fixed alpha and one by leave-one-out, on the CPU and on a GPU in turns; the share is that of reading the targets."""
    folder = root / f"t{shape['t']}"
    make_data(folder, shape)
    nbytes = 4 * shape["n"] * shape["t"]
    alone = read_rate(folder)
    print(
        f"\n{shape}, {budget}, in turns; the targets alone are read in {alone:.1f} s, {nbytes / alone / 1e9:.2f} GB/s"
    )
    print(
        f"{'':16}{'device':8}{'seconds':>9}{'fit':>8}{'predict':>9}{'share':>7}{'planned':>11}{'anonymous':>12}{'GPU':>11}"
    )
    for name in ("leanrecon", "leanrecon loo"):
        for on in ["cpu", device] * runs:
            it = measure_once(folder, name, budget, gemm=False, device=on)
            predicting = it["seconds"] - it["fit"]
            vram = megabytes(it["vram"]) if it.get("vram") else ""
            print(
                f"{name:16}{it.get('device', on):8}{it['seconds']:9.1f}{it['fit']:8.1f}{predicting:9.1f}"
                f"{alone / predicting:7.0%}{megabytes(it['planned']):>11}{megabytes(it['anon']):>12}{vram:>11}"
                f"  alpha {it['alpha']:.4g}",
                flush=True,
            )


IN_TREE = """
import contextlib, importlib, json, sys, time
from pathlib import Path
import bench_ridge
from leanrecon.memory import PeakMemory
for name in ("ridge.ridge", "ridge"):  # loaded before the clock starts
    with contextlib.suppress(ImportError):
        importlib.import_module(f"leanrecon.regression.{name}")
folder, shape, budget = Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]
if not budget:
    bench_ridge.make_data(folder, shape)
    sys.exit()
with PeakMemory() as memory:
    started = time.process_time()
    seconds, _, extra = bench_ridge.ours(folder, budget, False)
    cpu = time.process_time() - started
print(json.dumps({"seconds": seconds, "cpu": cpu, "anon": memory.peak, **extra}))
"""
"""Writes the data, or measures one run, with the package and the benchmark of a source tree."""


def in_tree(tree, folder, shape, budget=""):
    environment = os.environ | {"PYTHONPATH": f"{tree}{os.pathsep}{tree / 'scripts'}"}
    command = [sys.executable, "-c", IN_TREE, str(folder.resolve()), json.dumps(shape), budget]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment, cwd=tree)
    return json.loads(done.stdout.splitlines()[-1]) if budget else None


def compare_trees(root, other, shape, budget, runs):
    """Runs of this source tree and of another one in turns, each on stores that it has written.

    On a busy machine CPU seconds are the fairer measure.
    """
    trees = {"this": TREE, "other": other.resolve()}
    for name, tree in trees.items():
        in_tree(tree, root / name, shape)
    results = {name: [] for name in trees}
    for k in range(runs):
        for name in sorted(trees, reverse=k % 2 == 1):
            results[name].append(in_tree(trees[name], root / name, shape, budget))
    print(f"\n{shape}, {budget}, median of {runs}, in turns")
    print(f"{'':8}{'seconds':>9}{'CPU':>8}{'planned':>11}{'anonymous':>12}  result, all CPU seconds")
    medians = {
        name: {key: statistics.median(run[key] for run in runs) for key in ("seconds", "cpu", "planned", "anon")}
        for name, runs in results.items()
    }
    for name, it in medians.items():
        print(
            f"{name:8}{it['seconds']:9.1f}{it['cpu']:8.1f}{megabytes(it['planned']):>11}{megabytes(it['anon']):>12}  "
            f"{results[name][0]['content'][:12]} " + " ".join(f"{run['cpu']:.1f}" for run in results[name])
        )
    ratios = [medians["this"][key] / medians["other"][key] for key in ("seconds", "cpu", "anon")]
    print("ratio: seconds {:.3f}, CPU seconds {:.3f}, memory {:.3f}".format(*ratios))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder to keep the synthetic data in (5 GB; 17 GB with --all)")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--skip-peers", action="store_true")
    parser.add_argument("--skip-vdvae", action="store_true")
    parser.add_argument("--all", action="store_true", help="also 347,680 targets")
    parser.add_argument("--loo", action="store_true", help="also alpha by leave-one-out at the VDVAE shape")
    parser.add_argument("--kernels", action="store_true", help="a linear and an rbf kernel in turns, and nothing else")
    parser.add_argument("--against", type=Path, metavar="DIR", help="another source tree to compare with")
    parser.add_argument(
        "--shape", type=int, nargs=4, default=VDVAE.values(), metavar=("N", "P", "M", "T"), help="of it"
    )
    parser.add_argument("--device", default="cpu", help="auto, cuda or mps: beside the CPU, and nothing else")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--no-gemm", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--budget", help="of --kernels and --device, 1.1GB and 4GB where none is given")
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.data, arguments.worker, arguments.budget, not arguments.no_gemm, arguments.device)
        return
    with tempfile.TemporaryDirectory() as temporary:
        root = arguments.data or Path(temporary)
        shape = dict(zip("npmt", arguments.shape, strict=True))
        if arguments.against:
            compare_trees(root, arguments.against, shape, "350MB", arguments.runs)
            return
        if arguments.kernels:
            compare_kernels(root, shape, arguments.budget or "1.1GB", arguments.runs)
            return
        if arguments.device != "cpu":
            for one in [shape] + ([ALL] if arguments.all else []):
                compare_devices(root, one, arguments.device, arguments.budget or "4GB", arguments.runs)
            return
        if not arguments.skip_peers:
            compare_peers(root, arguments.runs)
        if not arguments.skip_vdvae:
            cases = [("leanrecon", budget) for budget in ("350MB", "220MB", "1GB", "2GB", "4GB")]
            full_size(root, VDVAE, cases, arguments.runs)
        if arguments.loo:
            full_size(root, VDVAE, [("leanrecon loo", "1.1GB")], 1)
        if arguments.all:
            full_size(root, ALL, [("leanrecon", "4GB"), ("leanrecon", "500MB")], 1)


if __name__ == "__main__":
    main()
