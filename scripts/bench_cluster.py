"""How much faster two workers of one core are than one, for features, regression and refinement.

    OMP_NUM_THREADS=1 python scripts/bench_cluster.py --work /tmp/bench [--workers 1 2] [--images 512] [--repeat 1]

Every number of workers runs a study of its own from the same seed; the stores of all must have the same bytes. Seconds
are those of run.json's stages, less the start of workers and the loading of libraries: each study runs a smaller one first
on the same workers. It needs two cores that nothing else uses; the load of the machine is printed beside the figures.
"""

import argparse
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import leanrecon
from leanrecon.progress import PlainProgress
from leanrecon.stores import Store

STAGES = ("features", "regression", "refine")


def settings(images: int, test: int) -> dict[str, Any]:
    """The demo's settings for so many images; alpha is fixed, so that the regression is its streaming."""
    import tomllib

    from leanrecon.study.recipes import recipes

    path = recipes()["demo"]
    tables = tomllib.loads(path.read_text())
    tables["dataset"] |= {"n_train": images, "n_test": test}
    tables["regression"] = {"alpha": 1000.0}
    tables["refine"] |= {"baselines": []}
    for table in (*tables["features"].values(), *tables.get("judges", {}).values(), tables["refine"]):
        for key, value in table.items():
            if isinstance(value, str) and value.startswith("../models"):
                table[key] = str((path.parent / value).resolve())
    return tables


def seconds(study: Path) -> dict[str, float]:
    """Seconds of each kind of stage."""
    records = json.loads((study / "run.json").read_text())["stages"]
    return {
        stage: sum(record["seconds"] for name, record in records.items() if name.split()[0] == stage)
        for stage in STAGES
    }


def contents(study: Path) -> dict[str, str]:
    """The content of every store."""
    paths: Iterable[Path] = study.rglob("zarr.json")
    return {path.parent.relative_to(study).as_posix(): Store.open(path.parent).content for path in paths}


def measure(work: Path, workers: int, images: int, test: int) -> tuple[dict[str, float], dict[str, str]]:
    """The seconds of the stages on so many workers, and what came of them."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, memory_limit="4GB", dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        for name, count, few in (("warm", max(images // 8, 16), 8), ("timed", images, test)):
            study = work / f"{name}-{workers}"
            shutil.rmtree(study, ignore_errors=True)
            options: dict[str, Any] = {"study": study, "until": "refine", "memory": "3GB", "cluster": client}
            leanrecon.run(settings(count, few), progress=PlainProgress(), **options)
    return seconds(study), contents(study)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--test", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=1)
    given = parser.parse_args()
    best: dict[int, dict[str, float]] = {}
    made: list[dict[str, str]] = []
    for _ in range(given.repeat):
        for workers in given.workers:  # in turns, so that a busy minute hits all of them
            took, stores = measure(given.work, workers, given.images, given.test)
            made.append(stores)
            known = best.setdefault(workers, took)
            best[workers] = {stage: min(known[stage], took[stage]) for stage in STAGES}
            print(f"{workers} workers: {took}, load {os.getloadavg()[0]:.1f}", flush=True)
    assert all(stores == made[0] for stores in made), "the stores differ"
    fewest, most = min(best), max(best)
    for stage in STAGES:
        ratio = best[fewest][stage] / best[most][stage]
        print(f"{stage}: {best[fewest][stage]:.1f} s on {fewest}, {best[most][stage]:.1f} s on {most}: {ratio:.2f}×")


if __name__ == "__main__":
    main()
