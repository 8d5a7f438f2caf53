"""How much faster two workers of one core are than one: a fetch of NSD, features, parts of a regression, refinement.

    OMP_NUM_THREADS=1 python scripts/bench_cluster.py --work /tmp/bench [--only dataset gram loo folds] [--repeat 1]
    OMP_NUM_THREADS=1 python scripts/bench_cluster.py --work /tmp/bench --tiny       a few minutes: whether it runs

dataset: sessions of subject 1's volume and their images, from the server of bench_slow_links.py in a process of its own
that imitates a link (--link: Mbit/s and milliseconds). features: VDVAE at its published size (imagenet64, 31 latents) with
random weights, 512 train images: two chunks, which are what workers share, in some twenty minutes. gram: the Gram matrix of
8,859 train rows of 15,724 voxels, and products with 982 test rows, as of NSD's subject 1. regression: 982 test rows of
91,168 targets through the hat matrix of as many images. loo: 512 projections of these targets. folds: ten folds of 1,500
rows, 4,000 voxels and 2,000 targets, which workers fit whole. refine: the demo's latent diffusion.

Every number of workers runs studies of its own from the same seed; the stores and images of all must have the same bytes.
Seconds are those of the shared work alone, from the moment that it is given out until the last receipt; a smaller study is
run first on the same workers, so that libraries are loaded. Each worker keeps to a core of its own, unless --free: a
worker reads ahead in a thread, which would take a part of the other core where one worker runs. Scheduler and driver
run where they find room. It needs two cores that nothing else uses; the load of the machine is printed beside, and the
CPU seconds that each worker and the driver took meanwhile, which others disturb less.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import bench_nsd_fetch
import bench_slow_links
import numpy as np
from bench_vdvae import write_weights

import leanrecon
from leanrecon.progress import PlainProgress
from leanrecon.regression.ridge import on_workers
from leanrecon.stores import Store
from leanrecon.stores.pictures import Pictures
from leanrecon.study.recipes import recipes

PARTS = {
    "dataset": ("betas", "stimuli"),
    "features": ("vdvae, train",),
    "gram": ("regression nsd, Gram matrix",),
    "regression": ("regression big",),
    "loo": ("regression loo, projections of targets",),
    "folds": ("regression of whole variants",),
    "refine": ("refine",),
}
"""What is measured, and how the tasks of its progress begin."""

SESSIONS = 4
"""Sessions that are fetched, with some 2,500 images."""

TEST, TARGETS, IMAGES, VOXELS = 982, 91_168, 8859, 15_724
"""Of NSD's subject 1; targets are those of 31 latents."""

FEW_VOXELS, FEW_TARGETS = 2000, 2000
"""Where the other is measured."""


class Timed(PlainProgress):
    """Adds up the seconds of tasks by how their names begin, and the CPU seconds of the driver and of each worker."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.cpu: dict[str, list[float]] = {part: [] for part in PARTS}

    def _cpu(self) -> list[float]:
        return [time.process_time(), *self.client.run(time.process_time).values()]

    @contextmanager
    def task(self, name: str, **options: Any) -> Iterator[Any]:
        before, began = self._cpu(), time.perf_counter()
        with super().task(name, **options) as advance:
            yield advance
        took = time.perf_counter() - began
        for part, starts in PARTS.items():
            if name in starts or (not name.startswith("regression") and name.startswith(starts)):
                self.seconds[part] += took
                known = self.cpu[part] or [0.0] * len(before)
                both = zip(known, before, self._cpu(), strict=True)
                self.cpu[part] = [round(so_far + now - then, 1) for so_far, then, now in both]


def demo(images: int, test: int, **tables: Any) -> dict[str, Any]:
    """The demo's settings for so many images, without what takes long and is not measured."""
    path = recipes()["demo"]
    settings = tomllib.loads(path.read_text())
    settings["dataset"] |= {"n_train": images, "n_test": test}
    settings["regression"] = {"alpha": 1000.0}
    settings["refine"] |= {"baselines": []}
    settings["evaluate"] = {"permutations": 0}
    for table in (*settings["features"].values(), *settings["judges"].values(), settings["refine"]):
        for key, value in table.items():
            if isinstance(value, str) and value.startswith("../models"):
                table[key] = str((path.parent / value).resolve())
    return settings | tables


def dataset(work: Path, size: float, tiny: bool) -> dict[str, Any]:
    """Sessions and images through the link whose server stands in ``work``."""
    root = {"root": "s3://natural-scenes-dataset", "endpoint_url": (work / "link").read_text(), "accept_terms": True}
    how = {"image_size": 64, "check": "warn", "allow_shared_stimuli": True}  # most of the server's images are black
    sessions = 1 if tiny else max(round(SESSIONS * size), 1)
    return {"dataset": {"kind": "nsd", "sessions": sessions, **root, **how}, "features": {"pixels": {"size": 8}}}


@contextmanager
def linked(work: Path, rate: float, latency: float) -> Iterator[None]:
    """A server of NSD's files behind a link, whose address stands in ``work``."""
    bench_nsd_fetch.build(work / "nsd")
    command = [sys.executable, bench_slow_links.__file__, "--folder", str(work / "nsd"), "--serve"]
    command += ["--rate", str(rate), "--latency", str(latency)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        (work / "link").write_text(f"http://127.0.0.1:{server.stdout.readline().strip()}")
        try:
            yield
        finally:
            server.kill()


def features(work: Path, size: float, tiny: bool) -> dict[str, Any]:
    """Images through VDVAE alone."""
    settings = demo(max(round(512 * size), 4), 2)
    settings["features"] = {"vdvae": settings["features"]["vdvae"]}
    if not tiny:
        write_weights(work / "imagenet64.safetensors")
        settings["features"] = {"vdvae": {"checkpoint": str(work / "imagenet64.safetensors")}}
    return {key: value for key, value in settings.items() if key not in ("refine", "judges")}


def arrays(work: Path, rows: Mapping[str, int], voxels: int, targets: int, name: str, alpha: Any) -> dict[str, Any]:
    """Precomputed features of random numbers, the first of which some voxels carry."""
    folder = work / "-".join(map(str, ("arrays", *rows.values(), voxels, targets)))
    folder.mkdir(parents=True, exist_ok=True)
    for split, n in rows.items():
        rng = np.random.default_rng(n)
        betas = rng.standard_normal((n, voxels), np.float32)
        np.save(folder / f"betas_{split}.npy", betas)
        path = folder / f"targets_{split}.npy"
        if not path.exists():
            array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(n, targets))
            for start in range(0, n, 256):
                some = slice(start, min(start + 256, n))
                array[some] = rng.standard_normal((some.stop - start, targets), np.float32) + betas[some, :1]
            array.flush()
    betas, found = ({split: str(folder / f"{one}_{split}.npy") for split in rows} for one in ("betas", "targets"))
    return {
        "dataset": {f"betas_{split}" if len(rows) > 1 else "betas": path for split, path in betas.items()},
        "features": {name: {"kind": "precomputed", **(found if len(rows) > 1 else {"array": found["train"]})}},
        "regression": {"alpha": alpha},
    }


def rows_of(size: float, tiny: bool) -> tuple[dict[str, int], int]:
    """Train and test rows of a study, and by what widths are divided."""
    shrink = 20 if tiny else 1
    return {"train": max(round(IMAGES * size), 300) // shrink, "test": TEST // shrink}, shrink


def gram(work: Path, size: float, tiny: bool) -> dict[str, Any]:
    """Many voxels, few targets."""
    rows, shrink = rows_of(size, tiny)
    return arrays(work, rows, VOXELS // shrink, FEW_TARGETS // shrink, "nsd", 1000.0)


def regression(work: Path, size: float, tiny: bool) -> dict[str, Any]:
    """Many targets, few voxels."""
    rows, shrink = rows_of(size, tiny)
    return arrays(work, rows, FEW_VOXELS // shrink, TARGETS // shrink, "big", 1000.0)


def loo(work: Path, size: float, tiny: bool) -> dict[str, Any]:
    """Many targets, few voxels, and an alpha by leave-one-out."""
    rows, shrink = rows_of(size, tiny)
    return arrays(work, rows, FEW_VOXELS // shrink, TARGETS // shrink, "loo", "loo")


def folds(work: Path, size: float, tiny: bool) -> dict[str, Any]:
    """Ten folds of a small study."""
    rows = {"train": max(round(1500 * size), 100)}
    shrink = 20 if tiny else 1
    settings = arrays(work, rows, 4000 // shrink, 2000 // shrink, "small", 1000.0)
    return settings | {"dataset": settings["dataset"] | {"folds": 10}}


def refine(work: Path, size: float, tiny: bool) -> dict[str, Any]:
    """The demo up to its final images."""
    return demo(64, max(round(480 * size), 4))


SETTINGS = {
    "dataset": dataset,
    "features": features,
    "gram": gram,
    "regression": regression,
    "loo": loo,
    "folds": folds,
    "refine": refine,
}

UNTIL = ("dataset", "features", "refine")
"""The parts that are stages of their own."""


def contents(study: Path) -> dict[str, str]:
    """The content of every store and folder of images."""
    paths: Iterable[Path] = study.rglob("zarr.json")
    found = {path.parent.relative_to(study).as_posix(): Store.open(path.parent).content for path in paths}
    for path in study.rglob("reconstructions/*.json"):
        found[path.relative_to(study).as_posix()] = Pictures.open(path.with_suffix("")).content
    return found


def pin(core: int) -> None:
    """Keep all threads of this process to one core."""
    for thread in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(thread), {core})


def measure(
    work: Path, workers: int, parts: Iterable[str], tiny: bool, free: bool
) -> tuple[dict[str, float], dict[str, Mapping[str, str]]]:
    """The seconds of each part on so many workers, and what came of it."""
    from distributed import Client, LocalCluster

    took, made = {}, {}
    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, memory_limit="5GB", dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        for core, address in enumerate(() if free else sorted(client.nthreads())):
            client.run(pin, core, workers=[address])
        for part in parts:
            for name, size in (("warm", 1 / 16), ("timed", 1 / 8 if tiny else 1.0)):
                study, progress = work / f"{part}-{name}-{workers}", Timed(client)
                shutil.rmtree(study, ignore_errors=True)
                settings = SETTINGS[part](work, size, tiny)
                options: dict[str, Any] = {
                    "until": part if part in UNTIL else "regression",
                    "memory": "4GB",
                    "cluster": client,
                    "progress": progress,
                }
                leanrecon.run(settings, study=study, **options)
            print(f"{part}, {workers} workers: CPU seconds of driver and workers {progress.cpu[part]}", flush=True)
            took[part], made[part] = progress.seconds[part], contents(study)
            for name in ("warm", "timed"):
                shutil.rmtree(work / f"{part}-{name}-{workers}")
    return took, made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--only", nargs="+", choices=[*PARTS], default=[*PARTS])
    parser.add_argument(
        "--link", type=float, nargs=2, default=[500.0, 100.0], help="Mbit/s and ms, of the dataset's server"
    )
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--free", action="store_true", help="Let workers run on any core, as systems without Linux do.")
    parser.add_argument("--tiny", action="store_true", help="Small networks and arrays: whether it runs.")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    on_workers.SHARED_OPERATIONS = 0  # the smaller studies share their parts, too
    best: dict[int, dict[str, float]] = {}
    made: list[dict[str, Mapping[str, str]]] = []
    with linked(given.work, *given.link) if "dataset" in given.only else nullcontext():
        for _ in range(given.repeat):
            for workers in given.workers:  # in turns, so that a busy minute hits all of them
                took, stores = measure(given.work, workers, given.only, given.tiny, given.free)
                made.append(stores)
                known = best.setdefault(workers, took)
                best[workers] = {part: min(known[part], took[part]) for part in given.only}
                print(f"{workers} workers: {took}, load {os.getloadavg()[0]:.1f}", flush=True)
    assert all(made[0].values()), "there is something to compare"
    assert all(stores == made[0] for stores in made), "the stores differ"
    print(
        f"the same bytes in {len(made)} runs: {', '.join(sorted(name for part in made[0].values() for name in part))}"
    )
    fewest, most = min(best), max(best)
    for part in given.only:
        one, many = best[fewest][part], best[most][part]
        print(f"{part}: {one:.1f} s on {fewest}, {many:.1f} s on {most}: {one / many:.2f}×")


if __name__ == "__main__":
    main()
