"""How much faster two workers of one core are than one: a fetch of NSD, features, streaming of a regression, refinement.

    OMP_NUM_THREADS=1 python scripts/bench_cluster.py --work /tmp/bench [--only dataset features …] [--repeat 1]
    OMP_NUM_THREADS=1 python scripts/bench_cluster.py --work /tmp/bench --tiny       a few minutes: whether it runs

dataset: sessions of subject 1's volume and their images, from the server of bench_slow_links.py in a process of its own
that imitates a link (--link: Mbit/s and milliseconds). features: VDVAE at its published size (imagenet64, 31 latents) with random weights, 256 images: four chunks, which are
what workers share, in some twenty minutes. regression: 982 test rows of 91,168 targets through the hat matrix of 8,859
images, as of NSD's subject 1. refine: the demo's latent diffusion. Every number of workers runs studies of its own from
the same seed; the stores and images of all must have the same bytes. Seconds are those of the shared work alone, from the
moment that it is given out until the last receipt; a smaller study is run first on the same workers, so that libraries
are loaded. It needs two cores that nothing else uses; the load of the machine is printed beside.
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
from leanrecon.stores import Store
from leanrecon.stores.pictures import Pictures
from leanrecon.study.recipes import recipes

PARTS = {
    "dataset": ("betas", "stimuli"),
    "features": ("vdvae, ",),
    "regression": ("regression big",),
    "refine": ("refine",),
}
"""What is measured, and how the tasks of its progress begin."""

SESSIONS = 4
"""Sessions that are fetched, with some 2,500 images."""

VOXELS, TEST, TARGETS, IMAGES = 2000, 982, 91_168, 8859
"""Of the regression: its targets are those of 31 latents."""


class Timed(PlainProgress):
    """Adds up the seconds of tasks by how their names begin."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)

    @contextmanager
    def task(self, name: str, **options: Any) -> Iterator[Any]:
        began = time.perf_counter()
        with super().task(name, **options) as advance:
            yield advance
        for part, start in PARTS.items():
            if name.startswith(start):
                self.seconds[part] += time.perf_counter() - began


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
    settings = demo(max(round(256 * size), 4), 2)
    settings["features"] = {"vdvae": settings["features"]["vdvae"]}
    if not tiny:
        write_weights(work / "imagenet64.safetensors")
        settings["features"] = {"vdvae": {"checkpoint": str(work / "imagenet64.safetensors")}}
    return {key: value for key, value in settings.items() if key not in ("refine", "judges")}


def regression(work: Path, size: float, tiny: bool) -> dict[str, Any]:
    """Precomputed features of random numbers."""
    shrink = 20 if tiny else 1
    images, targets = max(round(IMAGES * size), 300) // shrink, TARGETS // shrink
    folder = work / f"arrays-{images}"
    folder.mkdir(parents=True, exist_ok=True)
    rows = {"train": images, "test": TEST // shrink}
    rng = np.random.default_rng(0)
    for name, width in (("betas", VOXELS // shrink), ("targets", targets)):
        for split, n in rows.items():
            path = folder / f"{name}_{split}.npy"
            if not path.exists():
                array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(n, width))
                for start in range(0, n, 256):
                    array[start : start + 256] = rng.standard_normal((min(256, n - start), width), np.float32)
                array.flush()
    found = {split: str(folder / f"targets_{split}.npy") for split in rows}
    return {
        "dataset": {f"betas_{split}": str(folder / f"betas_{split}.npy") for split in rows},
        "features": {"big": {"kind": "precomputed", **found}},
        "regression": {"alpha": 1000.0},
    }


def refine(work: Path, size: float, tiny: bool) -> dict[str, Any]:
    """The demo up to its final images."""
    return demo(64, max(round(160 * size), 4))


SETTINGS = {"dataset": dataset, "features": features, "regression": regression, "refine": refine}


def contents(study: Path) -> dict[str, str]:
    """The content of every store and folder of images."""
    paths: Iterable[Path] = study.rglob("zarr.json")
    found = {path.parent.relative_to(study).as_posix(): Store.open(path.parent).content for path in paths}
    for path in study.rglob("reconstructions/*.json"):
        found[path.relative_to(study).as_posix()] = Pictures.open(path.with_suffix("")).content
    return found


def measure(
    work: Path, workers: int, parts: Iterable[str], tiny: bool
) -> tuple[dict[str, float], dict[str, Mapping[str, str]]]:
    """The seconds of each part on so many workers, and what came of it."""
    from distributed import Client, LocalCluster

    took, made = {}, {}
    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, memory_limit="5GB", dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        for part in parts:
            for name, size in (("warm", 1 / 16), ("timed", 1 / 8 if tiny else 1.0)):
                cpu = sum(client.run(time.process_time).values())
                study, progress = work / f"{part}-{name}-{workers}", Timed()
                shutil.rmtree(study, ignore_errors=True)
                settings = SETTINGS[part](work, size, tiny)
                options: dict[str, Any] = {"until": part, "memory": "4GB", "cluster": client, "progress": progress}
                leanrecon.run(settings, study=study, **options)
            took[part], made[part] = progress.seconds[part], contents(study)
            cpu = sum(client.run(time.process_time).values()) - cpu
            print(f"  {part} on {workers}: {cpu:.1f} processor seconds of workers", flush=True)
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
    parser.add_argument("--tiny", action="store_true", help="Small networks and arrays: whether it runs.")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    best: dict[int, dict[str, float]] = {}
    made: list[dict[str, Mapping[str, str]]] = []
    with linked(given.work, *given.link) if "dataset" in given.only else nullcontext():
        for _ in range(given.repeat):
            for workers in given.workers:  # in turns, so that a busy minute hits all of them
                took, stores = measure(given.work, workers, given.only, given.tiny)
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
