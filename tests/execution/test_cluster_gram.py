"""Gram matrices and projections of targets that workers make: the bytes of one process, whoever dies on the way."""

import sys
from pathlib import Path
from typing import Any

import pytest
from support.cluster_studies import parts_of_a_fit
from support.clusters import Deadly, contents, run_twice, worker_here
from support.memory import held

import leanrecon
from leanrecon.errors import BudgetError
from leanrecon.execution.tasks import SHARE
from leanrecon.progress import Progress
from leanrecon.regression.ridge import on_workers

pytest.importorskip("distributed", reason="dask.distributed is not installed (extra cluster)")

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("rows", "voxels"), [(2100, 2500), (4000, 2100)])
def test_a_worker_that_dies_among_parts_of_a_fit_costs_its_tasks_alone(
    rows: int, voxels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_workers, "SHARED_OPERATIONS", 0)
    settings = parts_of_a_fit(tmp_path, rows, voxels, 700, "loo")
    options: dict[str, Any] = {"until": "regression", "memory": "2GB"}
    leanrecon.run(settings, study=tmp_path / "alone", progress=Progress(), **options)
    progress = Deadly("Gram matrix$", "projections of targets$", "regression big$")
    leanrecon.run(settings, study=tmp_path / "shared", progress=progress, cluster="local:2", **options)
    assert progress.left == {}, "a worker was killed in each"
    assert progress.pieces["regression big, Gram matrix"] >= 3
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")


def test_workers_too_small_for_a_part_are_refused_with_the_limit_that_would_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_workers, "SHARED_OPERATIONS", 0)
    settings = parts_of_a_fit(tmp_path, 2100, 2500, 700, 1000.0)
    limit = int((held() + 26_000_000) / SHARE)  # less than products take themselves
    with (
        worker_here(limit) as client,
        pytest.raises(BudgetError, match=r"big, Gram matrix needs at least .* on a worker .*--memory-limit \d+MB"),
    ):
        leanrecon.run(settings, study=tmp_path / "study", until="regression", progress=Progress(), cluster=client)
    assert not list((tmp_path / "study").rglob("*.part")), "nothing was begun"


@pytest.mark.long
@pytest.mark.kills
def test_a_driver_that_is_killed_among_parts_takes_them_up_and_leaves_nothing_behind(tmp_path: Path) -> None:
    import tomli_w

    (tmp_path / "s.toml").write_text(tomli_w.dumps(parts_of_a_fit(tmp_path, 4200, 6000, 1000, 1000.0)))
    command = [sys.executable, "-m", "leanrecon", "run", "s.toml", "--until", "regression", "--study"]
    fit, kept = tmp_path / "shared/predictions/big/fit", dict[Path, int]()

    def made(parts: int) -> bool:
        there = {path: path.stat().st_mtime_ns for path in fit.glob("*.part")}
        assert all(there.get(path) == stamp for path, stamp in kept.items()), "whole parts are not made again"
        kept.update(there)
        return len(there) >= parts

    run_twice(command, tmp_path, [lambda: made(1), lambda: made(3)])
    assert len(kept) >= 3
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone"), "and nothing is left behind"
