"""The record of a study's runs: what every stage took, which versions ran it, and whether a folder is a study."""

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from leanrecon import kinds
from leanrecon.context import Context
from leanrecon.errors import StoreError
from leanrecon.memory import PeakMemory
from leanrecon.places import Location, LocationLike, as_location, seals
from leanrecon.places.files import read_json, read_record, unreadable, write_json
from leanrecon.stores import metadata
from leanrecon.stores.copies import opened
from leanrecon.stores.fingerprint import fingerprint
from leanrecon.stores.pictures import beside
from leanrecon.study.layout import FORMAT, SMALL, Role, Study
from leanrecon.study.network_copies import copied_back
from leanrecon.study.networks import Network, seal, unseal

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
"""First line of a study's study.toml; settings files that people wrote lack it."""

_ALTERED = 3
"""Most bytes of that line that differ where it is damaged; a file that a person wrote has another one."""


def versions(packages: Iterable[str] | None = None) -> dict[str, str]:
    """The versions of the libraries that decide results, and of the packages of kinds, of those that are installed.

    ``packages`` names these packages; None: those whose kinds this process has loaded.
    """
    found = {name: _version(name) for name in (*VERSIONS, *(kinds.providers() if packages is None else packages))}
    return {name: number for name, number in found.items() if number is not None}


@cache
def _version(name: str) -> str | None:
    """The version of a package; None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


@contextlib.contextmanager
def recorded(
    stage: str, study: Study, context: Context, made: Sequence[Location], networks: Sequence[Location] = ()
) -> Iterator[dict[str, Any]]:
    """Measure a stage and keep its record in ``run.json``, unless all that it makes was there, told of, and stays.

    ``made`` are the stores, folders of images and files that the stage writes, ``networks`` the folders of networks
    that it may train: their checksums are fixed when it ends. Yields the record, for the stage to add to; its seconds, as of
    a worker, count besides. The largest peak that was planned is the largest that ``context.require`` was asked for.
    """
    record: dict[str, Any] = {}
    before = [_stamp(path) for path in made]
    if not all(is_complete(path) for path in made):
        for network in networks:
            unseal(network)
    started = time.monotonic()
    with PeakMemory() as peak, copied_back(networks):
        yield record
    for network in networks:
        seal(network)
    if [_stamp(path) for path in made] == before and (not record or tells(study, stage, made)):
        return
    record |= {
        "seconds": round(time.monotonic() - started + record.get("seconds", 0), 3),
        "budget_bytes": context.budget.allowed,
        "planned_bytes": max(context.peaks.largest, record.get("planned_bytes", 0)),
        "peak_bytes": peak.peak,
        "peak_resident_bytes": peak.resident,
        "of": _made_of(made),
    }
    records = read_record(study.record) or {"stages": {}}
    if not isinstance(records.get("stages"), dict):
        raise unreadable(study.record, "it lists no stages")
    records |= {"format": FORMAT, "versions": versions()}
    records["stages"][stage] = record
    write_json(study.record, records, indent=2)


def stage_record(study: Study, stage: str) -> dict[str, Any]:
    """What run.json tells of a stage; empty where it tells nothing."""
    stages: dict[str, dict[str, Any]] = (read_record(study.record) or {}).get("stages", {})
    return stages.get(stage, {})


def tells(study: Study, stage: str, made: Sequence[Location]) -> bool:
    """Whether run.json tells of what a stage made as it is now; a kill after the last chunk leaves it untold.

    Records of earlier versions don't say what they are of, and are trusted.
    """
    found = stage_record(study, stage)
    return bool(found) and ("of" not in found or found["of"] == _made_of(made))


def _made_of(made: Sequence[Location]) -> str:
    kept = [opened(path) for path in made]
    return fingerprint({"made of": [None if one is None else one.made_of for one in kept]})


def _stamp(path: Location) -> int | str | None:
    """When a store, a folder of images or a file was begun or completed last; None where it is not there."""
    stamps = (file.stamp() for file in (path / metadata.NAME, beside(path), path))
    return next((stamp for stamp in stamps if stamp is not None), None)


def sweep(study: Study) -> None:
    """Remove what a killed run left half-written beside the stores, which sweep themselves."""
    for folder in study.folders(*SMALL, Role.PICTURES, Role.NETWORK):
        if not folder.leads_out_of(study.root):
            folder.sweep()
    for of in (study, *study.variants()):
        if not (of.root / "networks").leads_out_of(study.root):
            (of.root / "networks").sweep(deep=True)


def is_study(root: LocationLike) -> bool:
    """Whether a folder is that of a study: whether leanrecon wrote the study.toml in it, which may be damaged since."""
    study, header = Study(root), HEADER.encode()
    if not study.settings.is_file():
        return False
    first = study.settings.read_bytes()[: len(header)]
    if first == header:
        return True
    altered = sum(a != b for a, b in zip(first, header, strict=False)) <= _ALTERED
    return (altered or not first.strip(b"\0")) and seals.keeps(study.root)


def study_above(path: LocationLike) -> Study | None:
    """The study that a location is or lies in; None where it belongs to none."""
    path = as_location(path)
    return next((Study(folder) for folder in (path, *path.parents) if is_study(folder)), None)


def is_complete(path: LocationLike) -> bool:
    """Whether there is a complete store, folder of images or network at a location, or another file."""
    path = as_location(path)
    if path.parent.name == "networks" and beside(path).is_file():
        return Network.open(path).complete
    kept = opened(path)
    return path.is_file() if kept is None else kept.complete


def check_format(study: Study) -> None:
    """Raise StoreError for a study that an earlier leanrecon wrote, in format 1."""
    try:
        rows = read_json(study.rows)
    except StoreError:  # damaged, which is not another format
        return
    if isinstance(rows, dict) and rows.get("format") != FORMAT and (study.betas("train") / metadata.NAME).is_file():
        raise StoreError(
            f"{study.root} is a study of format {rows.get('format', 1)}, written by an earlier leanrecon",
            expected=f"format {FORMAT}, which counts images apart from responses",
            todo="choose another --study, or make this one again with --overwrite",
        )
