"""Workers that are slow, wake up late, die of a task or are too small, and second drivers: the bytes of one process."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import cluster_studies
from support.clusters import FOLDERS, LAST, SOON, Watched, differing, late_worker, mostly_stopped, workers_apart

import leanrecon
from leanrecon.errors import LeanreconError
from leanrecon.execution import workers
from leanrecon.progress import Progress
from leanrecon.regression.ridge import on_workers
from leanrecon.study.verify import find_damage

pytest.importorskip("distributed", reason="dask.distributed is not installed (extra cluster)")

pytestmark = pytest.mark.slow

TTL = "5s"
"""Silence of a worker after which the scheduler gives its tasks to others; Dask takes no less."""


def fit(folder: Path) -> dict[str, Any]:
    return cluster_studies.parts_of_a_fit(folder, 2100, 2500, 700, "loo")


def blocks(folder: Path) -> dict[str, Any]:
    return cluster_studies.BLOCKS


# Slow workers


@pytest.mark.long
def test_a_worker_that_is_stopped_most_of_the_time_changes_nothing(tmp_path: Path) -> None:
    leanrecon.run(cluster_studies.BLOCKS, study=tmp_path / "alone", progress=Progress())
    with workers_apart(tmp_path, worker_ttl=TTL) as (client, _):
        slow = min(client.run(os.getpid).values())
        with mostly_stopped(slow) as stops:
            leanrecon.run(cluster_studies.BLOCKS, study=tmp_path / "shared", progress=Progress(), cluster=client)
    assert stops[0] > 5
    assert differing(tmp_path / "alone", tmp_path / "shared") == []


@pytest.mark.long
@pytest.mark.parametrize(("stops", "wakes"), [("BEFORE", LAST), ("WHILE", SOON), ("WHILE", "never")])
@pytest.mark.parametrize(
    ("settings", "until", "file"),
    [
        (blocks, "stage1", r"features/pca/train\.zarr/c/"),
        (blocks, "stage1", r"reconstructions/stage1/\d+\.png"),
        (fit, "regression", r"fit/gram-.*\.part"),
        (cluster_studies.whole_variants, "regression", r"variants/.*/predictions/.*\.zarr/c/"),
    ],
    ids=["chunk", "image", "part", "variant"],
)
def test_a_worker_that_wakes_up_late_leaves_what_another_made(
    settings: Callable[[Path], dict[str, Any]],
    until: str,
    file: str,
    stops: str,
    wakes: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(on_workers, "SHARED_OPERATIONS", 0)
    options: dict[str, Any] = {"until": until, "memory": "2GB", "progress": Progress()}
    tables = settings(tmp_path)
    leanrecon.run(tables, study=tmp_path / "alone", **options)
    with late_worker(tmp_path, stops, file, wakes) as client:
        leanrecon.run(tables, study=tmp_path / "shared", cluster=client, **options)
    assert differing(tmp_path / "alone", tmp_path / "shared") == [], "nothing is lost, and nothing is left behind"
    assert find_damage(tmp_path / "shared") == {}


@pytest.mark.long
def test_a_worker_that_is_silent_for_too_long_is_followed_by_another(tmp_path: Path) -> None:
    leanrecon.run(cluster_studies.BLOCKS, study=tmp_path / "alone", progress=Progress())
    with late_worker(tmp_path, "WHILE", r"predictions/pca/.*/c/", SOON, ttl=TTL) as client:
        leanrecon.run(cluster_studies.BLOCKS, study=tmp_path / "shared", progress=Progress(), cluster=client)
    assert differing(tmp_path / "alone", tmp_path / "shared") == []


@pytest.mark.long
@pytest.mark.networks
def test_refined_images_of_a_worker_that_wakes_up_late_are_those_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("diffusers")
    from support.refined_study import write_refined_study

    write_refined_study(tmp_path, "study.toml", "")
    monkeypatch.chdir(tmp_path)
    options: dict[str, Any] = {"until": "refine", "progress": Progress()}
    leanrecon.run("study.toml", study="alone", **options)
    with late_worker(tmp_path, "WHILE", r"reconstructions/final/\d+\.png", SOON) as client:
        leanrecon.run("study.toml", study="shared", cluster=client, **options)
    assert differing(tmp_path / "alone", tmp_path / "shared") == []


# Deadly tasks


@pytest.mark.long
@pytest.mark.parametrize("limit", [0, 1])
def test_a_task_that_its_workers_die_of_goes_out_again(limit: int, tmp_path: Path) -> None:
    leanrecon.run(cluster_studies.BLOCKS, study=tmp_path / "alone", until="features", progress=Progress())
    faults = {"MARKS": str(tmp_path), "DIES_OF": "2", "DEATHS": str(2 * (limit + 1))}
    said = Watched()
    with workers_apart(tmp_path, [faults, faults], allowed_failures=limit) as (client, _):
        leanrecon.run(
            cluster_studies.BLOCKS, study=tmp_path / "shared", until="features", progress=said, cluster=client
        )
    assert len(list(tmp_path.glob("died-*"))) == 2 * (limit + 1)
    assert [line for line in said.lines if f"gives a task up after {limit + 1} workers died on it" in line]
    assert differing(tmp_path / "alone", tmp_path / "shared") == []


@pytest.mark.long
def test_a_task_that_all_workers_die_of_ends_the_run_and_a_later_one_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "DEATHS", 3)
    options: dict[str, Any] = {"until": "features", "progress": Progress()}
    leanrecon.run(cluster_studies.BLOCKS, study=tmp_path / "alone", **options)
    faults = {"MARKS": str(tmp_path), "DIES_OF": "2", "DEATHS": "1000"}
    with workers_apart(tmp_path, [faults, faults], allowed_failures=0) as (client, _):
        with pytest.raises(LeanreconError, match="3 workers died while they worked on the same task of features"):
            leanrecon.run(cluster_studies.BLOCKS, study=tmp_path / "shared", cluster=client, **options)
        there = {file: file.stat().st_mtime_ns for file in (tmp_path / "shared").rglob("c/*/*")}
        assert there, "what others did is kept"
        for k in range(1000):
            (tmp_path / f"died-{k}").touch()  # the reason is gone
        leanrecon.run(cluster_studies.BLOCKS, study=tmp_path / "shared", cluster=client, **options)
    assert {file: file.stat().st_mtime_ns for file in there} == there, "and is not done again"
    assert differing(tmp_path / "alone", tmp_path / "shared") == []


# Small workers, second drivers


@pytest.mark.long
@pytest.mark.parametrize(
    ("settings", "until"), [(blocks, "stage1"), (fit, "regression")], ids=["blocks", "parts of a fit"]
)
def test_a_worker_that_is_too_small_leaves_all_to_one_that_is_large_enough(
    settings: Callable[[Path], dict[str, Any]], until: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_workers, "SHARED_OPERATIONS", 0)
    options: dict[str, Any] = {"until": until, "memory": "2GB"}
    tables, said = settings(tmp_path), Watched()
    leanrecon.run(tables, study=tmp_path / "alone", progress=Progress(), **options)
    with workers_apart(tmp_path) as (client, _):
        small = min(client.nthreads())

        def lessen(dask_worker: Any) -> None:
            from leanrecon.execution.tasks import SHARE
            from leanrecon.memory import process_memory

            dask_worker.memory_manager.memory_limit = int((process_memory() + 6_000_000) / SHARE)

        client.run(lessen, workers=[small])
        leanrecon.run(tables, study=tmp_path / "shared", progress=said, cluster=client, **options)
    assert [line for line in said.lines if line.startswith(f"the worker {small} gets no more tasks of this kind")]
    # A store notes down its batch size, which goes by the smallest worker.
    changed = [name for name in differing(tmp_path / "alone", tmp_path / "shared") if not name.endswith("zarr.json")]
    assert changed == []


@pytest.mark.long
def test_a_second_driver_is_refused_while_the_first_one_works_and_changes_nothing(tmp_path: Path) -> None:
    import tomli_w

    (tmp_path / "s.toml").write_text(tomli_w.dumps(cluster_studies.BLOCKS))
    leanrecon.run(cluster_studies.BLOCKS, study=tmp_path / "alone", progress=Progress())
    command = [sys.executable, "-m", "leanrecon", "run", "s.toml", "--study", "shared", "--cluster"]
    refused: list[subprocess.CompletedProcess[str]] = []
    with workers_apart(tmp_path) as (client, _):

        def second() -> None:
            own = {**os.environ, "PYTHONPATH": FOLDERS}
            words = [*command, client.scheduler.address]
            refused.append(subprocess.run(words, cwd=tmp_path, env=own, capture_output=True, text=True))

        said = Watched({"^pca, train": second})
        leanrecon.run(cluster_studies.BLOCKS, study=tmp_path / "shared", progress=said, cluster=client)
    assert refused[0].returncode == 2
    assert "another run is using" in refused[0].stderr
    assert differing(tmp_path / "alone", tmp_path / "shared") == []
