"""The cluster of ``--cluster``: what it may be called, what is asked of its workers, and what is refused before work."""

import asyncio
import gc
import json
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from leanrecon import kinds
from leanrecon.context import Context
from leanrecon.errors import BudgetError, LeanreconError, NetworkError, SettingsError, StoreError
from leanrecon.execution.cluster import Cluster, allowed_each, check, local_workers
from leanrecon.execution.probe import Answer
from leanrecon.execution.tasks import WorkerBudget, different_versions, versions
from leanrecon.places import as_location
from leanrecon.progress import Progress
from leanrecon.stages.stage import Run
from leanrecon.study.layout import Study
from leanrecon.study.recipes import read_settings

SOUND = Answer(versions(), allowed=10**9, held=10**8, threads=1, host="here", sees=True, writes="")


@pytest.mark.parametrize(
    ("where", "count"), [("local:1", 1), ("local:12", 12), ("tcp://10.0.0.1:8786", None), ("scheduler.json", None)]
)
def test_a_cluster_is_an_address_a_file_or_workers_of_this_machine(where: str, count: int | None) -> None:
    assert local_workers(where) == count


@pytest.mark.parametrize("where", ["local", "local:0", "local:-2", "local:two", "10.0.0.1", "", "slurm"])
def test_anything_else_is_refused_with_what_was_expected(where: str) -> None:
    with pytest.raises(SettingsError, match=r"not a cluster.*tcp://HOST:PORT.*local:N"):
        Cluster(where)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"address"', "null", '{"address": 5}', "[" * 100_000])
def test_a_file_of_no_scheduler_is_refused(content: str, tmp_path: Path) -> None:
    pytest.importorskip("distributed", reason="dask.distributed is not installed (extra cluster)")
    file = tmp_path / "scheduler.json"
    file.write_text(content)
    with (
        pytest.raises(SettingsError, match="is not the JSON file of a Dask scheduler"),
        Cluster(str(file))._client(None),
    ):  # type: ignore[arg-type]
        pass
    file.unlink()
    with pytest.raises(SettingsError, match=f"there is no file {file}"), Cluster(str(file))._client(None):  # type: ignore[arg-type]
        pass


@pytest.mark.slow
def test_an_address_that_nobody_answers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed", reason="dask.distributed is not installed (extra cluster)")
    monkeypatch.setattr("leanrecon.execution.scheduler.CONNECT_WITHIN", 0.5)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # and nobody listens
        where = f"tcp://127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(NetworkError, match=f"no Dask scheduler answers at {where}"), Cluster(where)._client(None):  # type: ignore[arg-type]
            pass


@pytest.mark.parametrize(
    "where",
    [
        "tcp://127.0.0.1",
        "tcp://[::1",
        "tcp://127.0.0.1:port",
        "tls://127.0.0.1:8786",
        "ucx://127.0.0.1:8786",
        "inproc://x",
    ],
)
def test_what_is_no_address_is_refused_at_once(where: str, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("distributed", reason="dask.distributed is not installed (extra cluster)")
    began = time.monotonic()
    with pytest.raises(SettingsError, match=r"can't be reached: .*tcp://HOST:PORT"), Cluster(where)._client(None):  # type: ignore[arg-type]
        pass
    assert time.monotonic() - began < 10
    gc.collect()  # a client that was begun would complain now
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("running", [False, True])
def test_a_server_that_is_no_scheduler_is_refused_in_time(running: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed", reason="dask.distributed is not installed (extra cluster)")
    monkeypatch.setattr("leanrecon.execution.scheduler.CONNECT_WITHIN", 1.0)
    silent = socket.create_server(("127.0.0.1", 0))  # takes connections, and never answers

    def connect() -> None:
        where = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(NetworkError, match=f"no Dask scheduler answers at {where}"), Cluster(where)._client(None):  # type: ignore[arg-type]
            pass

    async def in_a_notebook() -> None:
        connect()

    began = time.monotonic()
    with silent:
        asyncio.run(in_a_notebook()) if running else connect()
    assert time.monotonic() - began < 10


@pytest.mark.slow
def test_a_worker_is_no_scheduler() -> None:
    distributed = pytest.importorskip("distributed", reason="dask.distributed is not installed (extra cluster)")
    how = {"n_workers": 1, "processes": False, "protocol": "tcp", "dashboard_address": "127.0.0.1:0"}
    with distributed.LocalCluster(**how) as cluster:
        at_worker = Cluster(cluster.workers[0].address)._client(None)  # type: ignore[arg-type]
        with pytest.raises(NetworkError, match="is a 'Worker' of Dask. Expected the address of its sched"), at_worker:
            pass
        with Cluster(cluster.scheduler_address)._client(None) as client:  # type: ignore[arg-type]
            assert client.submit(int, 3).result(20) == 3


def test_more_workers_than_the_memory_can_start_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leanrecon.execution.cluster.available_memory", lambda: 10 * 10**9)
    monkeypatch.setattr("leanrecon.execution.cluster.process_memory", lambda: 10**9)
    assert allowed_each(7, None) == 10**9  # a share for the driver, too
    assert allowed_each(8, "3GB") == 3 * 10**9
    for count, memory, most in ((8, None, 7), (9, "3GB", 8), (9999, "3GB", 8)):
        with pytest.raises(BudgetError, match=rf"{count} workers hold {count} GB|{count} workers hold .* TB") as error:
            allowed_each(count, memory)
        assert f"Start {most} or fewer (--cluster local:{most})" in str(error.value)
    monkeypatch.setattr("leanrecon.execution.cluster.available_memory", lambda: 10**9)
    with pytest.raises(BudgetError, match="Close other programs"):
        allowed_each(1, None)


def test_other_versions_are_named_with_both() -> None:
    other = replace(SOUND, versions={**versions(), "numpy": "1.0", "moon": "3"})
    with pytest.raises(
        LeanreconError, match=rf"tcp://b.*moon 3 \(driver: is missing\), numpy 1\.0 \(driver: {versions()['numpy']}\)"
    ):
        check({"tcp://a": SOUND, "tcp://b": other}, as_location("study"))
    assert different_versions(versions(), versions()) == []


def test_workers_that_see_another_folder_or_may_not_write_are_refused() -> None:
    check({"tcp://a": SOUND}, as_location("study"))
    with pytest.raises(StoreError, match="1 of 2 workers don't see study, such as tcp://b"):
        check({"tcp://a": SOUND, "tcp://b": replace(SOUND, sees=False)}, as_location("study"))
    with pytest.raises(StoreError, match="tcp://b can't write to study: read-only"):
        check({"tcp://a": SOUND, "tcp://b": replace(SOUND, writes="read-only")}, as_location("study"))


def test_work_too_big_for_a_worker_names_the_limit_that_would_do() -> None:
    budget = WorkerBudget(allowed=800_000_000, reserved=200_000_000)  # of a limit of 1 GB
    assert budget.require("features", 600_000_000) == 800_000_000
    with pytest.raises(BudgetError, match=r"needs at least 1 GB on a worker.*limit of \"(\d+)MB\"") as refused:
        budget.require("features", 800_000_000)
    enough = int(str(refused.value).split('limit of "')[1].split("MB")[0]) * 1_000_000
    WorkerBudget(int(0.8 * enough), 200_000_000).require("features", 800_000_000)


def test_without_dask_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    with pytest.raises(LeanreconError, match="cluster"), Cluster("local:2")._client(None):  # type: ignore[arg-type]
        pass


def test_versions_are_plain_values() -> None:
    found: Any = json.loads(json.dumps(versions()))
    assert found["python"].count(".") == 1
    assert found["leanrecon"]


def test_a_worker_tells_of_the_packages_whose_kinds_the_driver_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker loads kinds with its first task, and may have loaded those of an earlier study."""
    before = versions()
    assert {"pytest", "ruff"}.isdisjoint(before)
    worker = versions(["pytest"])  # has loaded no kind of it
    monkeypatch.setattr(kinds, "_loaded", {"leanrecon", "pytest"})
    driver = versions()
    assert driver["pytest"] == pytest.__version__
    assert different_versions(driver, worker) == []
    assert different_versions(driver, versions(driver)) == []
    monkeypatch.setattr(kinds, "_loaded", {"leanrecon", "pytest", "ruff"})  # those of an earlier study, on a worker
    assert different_versions(driver, versions(["pytest"])) == []
    assert different_versions(before, versions([])) == []
    assert different_versions({**driver, "moon": "3"}, versions(["pytest", "moon"])) == ["moon is missing (driver: 3)"]


class Said(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


class SomeWorkers:
    def piece(self, stage: str, named: Any) -> str:
        return f"{stage} {named}"


def test_a_kind_without_tasks_for_workers_says_that_it_works_here(tmp_path: Path) -> None:
    settings, _ = read_settings("demo-fast")
    run = Run(settings, Study(tmp_path), progress=Said())
    context = Context.of(None, label="regression pca")
    assert run.shared(context, "regression", {}, shares=False) is context
    assert run.progress.lines == []
    run.workers = SomeWorkers()  # type: ignore[assignment]
    assert run.shared(context, "regression", {}, shares=False).executor is None
    assert run.progress.lines == ["regression pca: in this process, because this kind has no tasks for workers"]
    assert run.shared(context, "regression", {"space": "pca"}).executor == "regression {'space': 'pca'}"


def test_workers_that_die_while_they_start_are_started_again_and_then_given_up() -> None:
    from leanrecon.execution import cluster

    said: list[str] = []

    class Said(Progress):
        def say(self, text: str) -> None:
            said.append(text)

    class Dask:
        deaths = 2

        def LocalCluster(self, **how: Any) -> str:  # noqa: N802 (the name that Dask has)
            self.deaths -= 1
            if self.deaths >= 0:
                raise RuntimeError("Nanny failed to start.")
            return f"{how['n_workers']} workers"

    assert cluster._started(Dask(), {"n_workers": 2}, Said()) == "2 workers"
    assert said == ["a worker died while it started (Nanny failed to start.): starting all workers again"] * 2
    Dask.deaths = 9
    with pytest.raises(NetworkError, match=r"could not be started in 3 attempts: Nanny failed to start\."):
        cluster._started(Dask(), {"n_workers": 2}, Said())
