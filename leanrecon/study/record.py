"""What a study keeps of its runs: who holds it, what every stage took, and whether it is one of ours."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from leanrecon.memory import MemoryBudget, PeakMemory
from leanrecon.places import files
from leanrecon.places.files import read_json, write_json
from leanrecon.places.hold import held
from leanrecon.stores import Store
from leanrecon.stores.pictures import Pictures
from leanrecon.study.layout import Study

VERSIONS = (
    "leanrecon",
    "numpy",
    "scipy",
    "scikit-learn",
    "zarr",
    "pillow",
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
)

HEADER = "# The settings of this study as they were run, with all defaults. Written by leanrecon.\n"
"""First line of a study's study.toml, which tells it from a settings file that someone wrote."""

SWEPT = ("betas", "captions", "evaluation", "evaluation/latent_r2", "reconstructions")
"""The folders of a study with small files beside its stores."""


def versions() -> dict[str, str]:
    """The versions of the libraries that decide results, of those that are installed."""
    found = {}
    for name in VERSIONS:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


@contextlib.contextmanager
def recorded(
    stage: str, study: Study, memory: str | None, *, made: Sequence[Path]
) -> Iterator[tuple[dict[str, Any], MemoryBudget]]:
    """Measure a stage and keep its record in ``run.json``, unless all that it makes was there and stays as it was."""
    budget = MemoryBudget.of(memory)
    record: dict[str, Any] = {}
    before = [_stamp(path) for path in made]
    started = time.monotonic()
    with PeakMemory() as peak:
        yield record, budget
    if [_stamp(path) for path in made] == before:
        return
    record |= {
        "seconds": round(time.monotonic() - started, 3),
        "budget_bytes": budget.allowed,
        "planned_bytes": record.get("planned_bytes", 0),
        "peak_bytes": peak.peak,
        "peak_resident_bytes": peak.resident,
    }
    records = read_json(study.record) or {"stages": {}}
    records["versions"] = versions()
    records["stages"][stage] = record
    write_json(study.record, records, indent=2)


def _stamp(path: Path) -> int | None:
    """When a store, a folder of images or a file was begun or completed last; None where it is not there."""
    for file in (path / "zarr.json", path.with_name(f"{path.name}.json"), path):
        with contextlib.suppress(OSError):
            return file.stat().st_mtime_ns
    return None


def sweep(study: Study) -> None:
    """Remove what a killed run left half-written beside the stores, which sweep themselves."""
    for root in (study.root, *study.root.glob("variants/*"), *study.root.glob("variants/*/variants/*")):
        files.sweep(root, *(root / name for name in SWEPT))


def is_study(root: Path) -> bool:
    """Whether a folder is that of a study: whether leanrecon wrote the study.toml in it."""
    settings = Study(root).settings
    return settings.is_file() and settings.read_bytes().startswith(HEADER.encode())


def is_complete(path: Path) -> bool:
    """Whether there is a complete store, or a complete folder of images, at a path."""
    if (path / "zarr.json").exists():
        return Store.open(path, incomplete=True).complete
    return Pictures.there(path) and Pictures.open(path, incomplete=True).complete


def only_run(root: Path) -> contextlib.AbstractContextManager[None]:
    """Hold a study's folder against a second run at the same time; the hold ends with the process, however it ends."""
    return held(root, "another run", "wait for it, or choose another --study")
