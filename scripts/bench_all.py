"""One table of all benchmarks: ours beside peers or beside what the machine allows, and what became slower.

    python scripts/bench_all.py --record ratios.json      all that can be run here, and their ratios kept in a file
    python scripts/bench_all.py --against ratios.json     the same, and the ratios that fell by more than 10 %
    python scripts/bench_all.py --small --only ridge      sizes that take seconds, to try it

Every ratio is the better the larger it is: what the peer takes over what ours takes, or the share of the limit that is
reached. Both are measured in turns on the same machine, so that ratios of two machines may be compared, seconds may not.
Peers that are not installed are said to be missing. The refinement is measured only with --models, a folder for the
3.5 GB of random weights that bench_refine.py writes. The exit status is 1 where a ratio fell.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bench_layouts
import bench_refine
import bench_repeats
import bench_ridge

FELL = 0.1
"""Share of a recorded ratio by which it may fall before it is told."""

PACKAGES = ("leanrecon", "numpy", "scipy", "zarr", "scikit-learn", "himalaya", "torch", "diffusers")

RIDGE_PEERS = {
    "scikit-learn Ridge": "sklearn",
    "scikit-learn KernelRidge": "sklearn",
    "himalaya KernelRidge": "himalaya",
}
"""Peers of the ridge, and what has to be installed for them."""

SMALL_RIDGE = {"n": 300, "p": 600, "m": 20, "t": 800}


@dataclass(frozen=True)
class Line:
    """One line of the table; ``ratio`` None where the peer is missing."""

    name: str
    ours: str
    beside: str
    """The peer, or the limit, and what it takes or allows."""
    ratio: float | None


@dataclass(frozen=True)
class How:
    """How everything is measured."""

    folder: Path
    small: bool
    runs: int
    models: Path | None


def ridge(how: How) -> Iterator[Line]:
    """Seconds and resident memory of the ridge beside its peers, and its share of the rate of matrix products."""
    shape = SMALL_RIDGE if how.small else bench_ridge.PEERS
    data = how.folder / "ridge"
    bench_ridge.make_data(data, shape)
    peers = {name: needed for name, needed in RIDGE_PEERS.items() if find_spec(needed)}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ("leanrecon", *peers)}
    for _ in range(how.runs):
        for name in found:
            budget = "4GB" if name == "leanrecon" else None
            found[name].append(bench_ridge.measure_once(data, name, budget, gemm=not how.small))
    median = {name: bench_ridge.median_run(results) for name, results in found.items()}
    ours = median["leanrecon"]
    for name in RIDGE_PEERS:
        for key, what, write in (("seconds", "seconds", seconds), ("resident", "memory", megabytes)):
            if name not in peers:
                yield Line(f"ridge, {what}, {name}", write(ours[key]), f"{name}: not installed", None)
                continue
            beside = f"{name}: {write(median[name][key])}"
            yield Line(f"ridge, {what}, {name}", write(ours[key]), beside, median[name][key] / ours[key])
    if not how.small:
        share = statistics.median(
            bench_ridge.flops(shape) / one["seconds"] / one["gemm"] / 1e9 for one in found["leanrecon"]
        )
        rate = bench_ridge.flops(shape) / ours["seconds"] / 1e9
        yield Line("ridge, rate", f"{rate:.0f} GFLOP/s", f"one matrix product: {ours['gemm']:.0f} GFLOP/s", share)
    yield planned("ridge, memory of the plan", ours["anon"], ours["planned"])


def repeats(how: How) -> Iterator[Line]:
    """Targets that hold each image once, beside targets repeated for three trials of each image."""
    images, voxels, targets, test = (200, 300, 1500, 20) if how.small else (2000, 4000, 16_000, 300)
    data = how.folder / "repeats"
    data.mkdir()
    bench_repeats.make_data(data, images, voxels, targets, test)
    once, repeated = (bench_repeats.measure(data, name, "4GB") for name in ("images", "rows"))
    for key, write in (("seconds", seconds), ("read", megabytes)):
        beside = f"targets repeated: {write(repeated[key])}"
        yield Line(f"repeats, {key}", write(once[key]), beside, repeated[key] / once[key])
    yield planned("repeats, memory of the plan", once["anon"], once["planned"])


def layouts(how: How) -> Iterator[Line]:
    """Bytes read of files of images, beside the files, and memory beside the plan."""
    found = bench_layouts.measure("brain-diffuser", how.folder / "layouts", 0.005 if how.small else 0.05)
    beside = f"the files: {megabytes(found['size'])}"
    yield Line("layouts, bytes read", megabytes(found["read"]), beside, found["size"] / found["read"])
    yield planned("layouts, memory of the plan", found["peak"], found["planned"])


def refine(how: How) -> Iterator[Line]:
    """An image of Stable Diffusion 1.5 beside diffusers in float32 with the whole autoencoder."""
    names = [("float32", "none", "full"), ("bfloat16", "stream", "full"), ("bfloat16", "stream", "tiny")]
    if how.models is None or not find_spec("diffusers"):
        why = "no --models" if find_spec("diffusers") else "not installed"
        for name in names:
            yield Line(f"refine, processor seconds, {_named(name)}", "", f"diffusers: {why}", None)
        return
    how.models.mkdir(parents=True, exist_ok=True)
    asked = SimpleNamespace(data=how.models, warm=1, threads=os.cpu_count() or 1)
    image = how.folder / "image.npy"
    bench_refine.measured("models", asked, image)
    peer = bench_refine.measured("plain", asked, image)
    for name in names:
        ours = bench_refine.measured("ours", asked, image, *name)
        for key, what, write in (("cpu", "processor seconds", seconds), ("resident", "memory", megabytes)):
            beside = f"diffusers float32: {write(peer[key])}"
            yield Line(f"refine, {what}, {_named(name)}", write(ours[key]), beside, peer[key] / ours[key])


def _named(how: tuple[str, str, str]) -> str:
    """A way to refine, in words."""
    precision, _, autoencoder = how
    return f"{precision}, {autoencoder} autoencoder"


BENCHMARKS: dict[str, Callable[[How], Iterator[Line]]] = {
    "ridge": ridge,
    "repeats": repeats,
    "layouts": layouts,
    "refine": refine,
}


def planned(name: str, measured: float, plan: float) -> Line:
    """Measured memory beside what was planned: a plan that is far too large is worth less."""
    return Line(name, megabytes(measured), f"planned: {megabytes(plan)}", measured / plan)


def seconds(value: float) -> str:
    return f"{value:.2f} s"


def megabytes(value: float) -> str:
    return f"{value / 1e6:,.0f} MB"


def machine() -> str:
    """The processor, the system and how busy it is, in a line."""
    info = Path("/proc/cpuinfo")
    models = (
        [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    name = models[0] if models else platform.processor() or platform.machine()
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    system = f"{platform.system()}, Python {platform.python_version()}"
    return f"{name}, {os.cpu_count()} cores, {threads} threads{load}, {system}"


def versions() -> dict[str, str]:
    """Of the packages that decide speed, where they are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def table(lines: list[Line]) -> str:
    """All lines as a table in Markdown."""
    rows = [("", "ours", "peer or limit", "ratio")]
    rows += [
        (line.name, line.ours or "-", line.beside, "missing" if line.ratio is None else f"{line.ratio:.2f}")
        for line in lines
    ]
    widths = [max(len(row[k]) for row in rows) for k in range(4)]
    written = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    written.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(written)


def recorded(lines: list[Line], small: bool) -> dict[str, Any]:
    """What is kept in a file of ratios."""
    ratios = {line.name: round(line.ratio, 4) for line in lines if line.ratio is not None}
    return {"machine": machine(), "versions": versions(), "small": small, "ratios": ratios}


def fallen(lines: list[Line], before: dict[str, float]) -> list[str]:
    """A sentence for each ratio that is more than 10 % below the recorded one."""
    return [
        f"{line.name}: {line.ratio:.2f}, {1 - line.ratio / before[line.name]:.0%} below {before[line.name]:.2f}"
        for line in lines
        if line.ratio is not None and line.name in before and line.ratio < (1 - FELL) * before[line.name]
    ]


def main(asked: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS))
    parser.add_argument("--small", action="store_true", help="sizes that take seconds, whose ratios tell little")
    parser.add_argument("--runs", type=int, default=3, help="of the ridge and each peer, in turns; the median counts")
    parser.add_argument("--models", type=Path, help="folder for the models of the refinement (3.5 GB, and 1.9 GB)")
    parser.add_argument("--folder", type=Path, help="where data are written for a while; absent: the temporary folder")
    parser.add_argument("--record", type=Path, metavar="FILE", help="keep the ratios there, as JSON")
    parser.add_argument("--against", type=Path, metavar="FILE", help="ratios of an earlier run to compare with")
    given = parser.parse_args(asked)
    before = json.loads(given.against.read_text()) if given.against else None
    if before is not None and before["small"] != given.small:
        parser.error(f"{given.against} holds ratios of {'small' if before['small'] else 'full'} sizes")
    lines = []
    for name in given.only:
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            lines += BENCHMARKS[name](How(Path(folder), given.small, given.runs, given.models))
    print(f"\n{machine()}\n{', '.join(f'{name} {found}' for name, found in versions().items())}\n\n{table(lines)}")
    if given.record:
        given.record.write_text(json.dumps(recorded(lines, given.small), indent=1) + "\n")
    if before is None:
        return 0
    told = fallen(lines, before["ratios"])
    unseen = sorted(set(before["ratios"]) - {line.name for line in lines if line.ratio is not None})
    print("\n" + "\n".join(told or [f"no ratio is more than {FELL:.0%} below that of {given.against}"]))
    if unseen:
        print("not measured now: " + "; ".join(unseen))
    return 1 if told else 0


if __name__ == "__main__":
    sys.exit(main())
