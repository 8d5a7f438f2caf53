"""Folds and areas that workers fit whole: files and records of one process, whoever dies on the way."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from support.cluster_studies import whole_variants
from support.clusters import Deadly, Watched, contents, run_twice, worker_here
from support.memory import held

import leanrecon
from leanrecon.errors import BudgetError
from leanrecon.execution.tasks import SHARE
from leanrecon.progress import Progress
from leanrecon.stages.whole_variants import Operations, worth_it

pytest.importorskip("distributed", reason="dask.distributed is not installed (extra cluster)")

OWN = {"seconds", "peak_bytes", "peak_resident_bytes", "planned_bytes", "budget_bytes", "workers", "worker_peak_bytes"}
"""What a record tells of the machine rather than of the result."""

WHOLE = "regression of whole variants"


@pytest.mark.parametrize(
    ("fits", "streams", "workers", "whole"),
    [
        ([1, 1, 1, 1], [1, 1, 1, 1], 2, True),  # 4 against 4 + 2
        ([1] * 10, [3] * 10, 4, True),  # 12 against 10 + 7.5
        ([1, 1], [9, 9], 8, False),  # 10 against 2 + 2.25
        ([8, 8], [1, 1], 8, True),  # 9 against 16 + 0.25
        ([1], [1], 8, False),  # there is nothing to share but blocks
        ([1, 1, 1], [2, 2, 2], 1, True),  # 9 either way
        ([100, 1, 1, 1], [90, 5, 5, 5], 2, False),  # one variant outweighs the others: 190 against 103 + 52.5
        ([], [], 2, False),
    ],
)
def test_whole_variants_are_tasks_where_blocks_would_take_no_less(
    fits: list[float], streams: list[float], workers: int, whole: bool
) -> None:
    costs = [Operations(fit, stream) for fit, stream in zip(fits, streams, strict=True)]
    assert worth_it(costs, workers) == whole


def records(study: Path) -> dict[str, Any]:
    """What run.json of the study and of every variant keeps of each stage, but for times and memory."""
    found = {}
    for file in study.rglob("run.json"):
        for stage, record in json.loads(file.read_text())["stages"].items():
            found[f"{file.parent.relative_to(study)} {stage}"] = {k: v for k, v in record.items() if k not in OWN}
    return found


@pytest.mark.slow
def test_variants_that_workers_fit_whole_have_the_files_and_records_of_one_process(tmp_path: Path) -> None:
    settings = whole_variants(tmp_path)
    options: dict[str, Any] = {"until": "regression", "memory": "2GB"}
    leanrecon.run(settings, study=tmp_path / "alone", progress=Progress(), **options)
    progress = Deadly(WHOLE, after=3)
    leanrecon.run(settings, study=tmp_path / "shared", progress=progress, cluster="local:2", **options)
    assert "regression: 15 of 15 variants are tasks of their own" in progress.lines
    assert progress.left == {}
    assert progress.pieces[WHOLE] == 15, "workers did all, and one was killed"
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")
    alone, shared = records(tmp_path / "alone"), records(tmp_path / "shared")
    assert len([name for name in shared if "regression" in name]) >= 30
    assert shared == alone
    one = json.loads((tmp_path / "shared/variants/fold03-early/run.json").read_text())["stages"]["regression pca"]
    assert one["seconds"] > 0
    assert one["worker_peak_bytes"] > 50_000_000
    assert one["planned_bytes"] >= one["worker_peak_bytes"]
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "shared").rglob("*") if file.is_file()}
    progress = Watched()
    leanrecon.run(settings, study=tmp_path / "shared", progress=progress, cluster="local:1", **options)
    assert WHOLE not in progress.pieces, "nothing is left to do"
    changed = [path.name for path, stamp in before.items() if path.stat().st_mtime_ns != stamp]
    assert changed == []


@pytest.mark.slow
@pytest.mark.parametrize("room", [6_000_000])
def test_workers_too_small_for_a_variant_leave_it_to_the_driver_and_say_what_they_lack(
    room: int, tmp_path: Path
) -> None:
    settings = whole_variants(tmp_path)
    limit = int((held() + room) / SHARE)
    said = Watched()
    with (
        worker_here(limit) as client,
        pytest.raises(BudgetError, match=r"needs at least .* on a worker .*--memory-limit \d+MB"),
    ):
        leanrecon.run(settings, study=tmp_path / "study", until="regression", progress=said, cluster=client)
    assert WHOLE not in said.pieces


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.kills
def test_a_driver_that_is_killed_among_variants_continues_to_the_same_bytes(tmp_path: Path) -> None:
    import tomli_w

    (tmp_path / "s.toml").write_text(tomli_w.dumps(whole_variants(tmp_path)))
    command = [sys.executable, "-m", "leanrecon", "run", "s.toml", "--until", "regression", "--study"]
    files = [tmp_path / "shared/variants" / reached / "run.json" for reached in ("fold01", "fold03-face")]
    run_twice(command, tmp_path, [file.exists for file in files])
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")
    assert records(tmp_path / "shared") == records(tmp_path / "alone")
