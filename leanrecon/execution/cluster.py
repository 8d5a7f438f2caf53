"""``--cluster``: connects to a running Dask cluster, or starts one on this machine, and checks its workers."""

import contextlib
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from leanrecon import kinds
from leanrecon.errors import (
    BudgetError,
    LeanreconError,
    NetworkError,
    SettingsError,
    StoreError,
    installing,
    plain,
    shown,
)
from leanrecon.execution.probe import Answer, answer
from leanrecon.execution.scheduler import connected
from leanrecon.execution.tasks import SHARE, Task, WorkerBudget, different_versions, versions
from leanrecon.execution.workers import DEATHS, Workers
from leanrecon.memory import DEFAULT_SHARE, available_memory, format_bytes, parse_bytes, process_memory
from leanrecon.places import Location
from leanrecon.places.local import PARTIAL
from leanrecon.progress import Progress
from leanrecon.stages.stage import Run

WORKERS_WITHIN = 120.0
"""Seconds to wait for the first worker: a queue may start workers late."""

STARTS = 3
"""Attempts at starting the workers of this machine, if one dies before all have started."""

LEAST_WORK = 100_000_000
"""Bytes of work that the error about workers without free memory asks for; the needs of a stage are not known yet."""

EXPECTED = "tcp://HOST:PORT, the scheduler's JSON file (dask scheduler --scheduler-file), or local:N for N workers here"

_ADDRESS = re.compile(r"(tcp|tls|ucx|ws|wss|inproc)://.+")


@dataclass(frozen=True)
class Cluster:
    """Where tasks run: ``where`` is a value of the option ``--cluster``, or a Dask client."""

    where: Any

    def __post_init__(self) -> None:
        if isinstance(self.where, os.PathLike):
            object.__setattr__(self, "where", os.fspath(self.where))
        if isinstance(self.where, str):
            local_workers(self.where)  # raises SettingsError for other values
        elif not hasattr(self.where, "nthreads"):
            raise SettingsError(
                f"{shown(self.where)} is not a cluster", expected=f"{EXPECTED}, or a dask.distributed.Client"
            )

    @contextlib.contextmanager
    def opened(self, run: Run) -> Iterator[Workers]:
        """The workers for one study, checked.

        Raises NetworkError if no scheduler or worker answers, LeanreconError for differing versions, StoreError for a
        folder that workers can't read or write.
        """
        try:
            with self._client(run) as client:
                yield ready(client, run, self._threads())
        finally:
            run.study.root.sweep(deep=True)  # unfinished files of workers that died

    @contextlib.contextmanager
    def _client(self, run: Run) -> Iterator[Any]:
        try:
            distributed: Any = import_module("distributed")
        except ImportError:
            raise LeanreconError(
                "--cluster needs dask.distributed, which is not installed",
                todo=installing("cluster"),
            ) from None
        if not isinstance(self.where, str):
            yield self.where
        elif (count := local_workers(self.where)) is not None:
            with _local(distributed, count, self._threads() or 1, run) as client:
                yield client
        else:
            with connected(distributed, self.where) as client:
                yield client

    def _threads(self) -> int | None:
        """Threads of a worker's arithmetic; None: the threads that it was started with."""
        count = local_workers(self.where) if isinstance(self.where, str) else None
        if count is None:
            return None
        return int(os.environ.get("OMP_NUM_THREADS", 0)) or max((os.cpu_count() or 1) // count, 1)


def local_workers(where: str) -> int | None:
    """N of ``local:N``; None for an address or a file. Raises SettingsError for anything else."""
    if match := re.fullmatch(r"local:([0-9]{1,4})", where):
        if int(match[1]) > 0:
            return int(match[1])
    elif where.endswith(".json") or _ADDRESS.fullmatch(where):
        return None
    raise SettingsError(f'--cluster "{where}" is not a cluster', expected=EXPECTED)


@contextlib.contextmanager
def _local(distributed: Any, count: int, threads: int, run: Run) -> Iterator[Any]:
    """A client of new workers on this machine, each a process with its own budget."""
    import dask

    allowed = allowed_each(count, run.settings.general.memory)
    # Dask holds no data of a study: it has nothing to spill, and a paused worker would wait for ever.
    settings = {
        "distributed.scheduler.allowed-failures": DEATHS,
        "distributed.worker.memory.target": False,
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.pause": False,
        "distributed.nanny.pre-spawn-environ": dict.fromkeys(
            ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads
        ),
    }
    each: dict[str, Any] = {"n_workers": count, "threads_per_worker": 1, "memory_limit": int(allowed / SHARE)}
    with (
        dask.config.set(settings),
        _started(distributed, each, run.progress) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def allowed_each(count: int, memory: str | None) -> int:
    """Bytes that each worker of this machine may hold. Raises BudgetError for more workers than fit into memory.

    A new worker holds about as much as this process, because both have imported leanrecon.
    """
    free, held = int(DEFAULT_SHARE * available_memory()), process_memory()
    allowed = free // (count + 1) if memory is None else parse_bytes(memory)
    most = free // held - (memory is None)
    if count > most:
        raise BudgetError(
            f"{count} workers hold {format_bytes(count * held)} before they do any work",
            expected=f"no more than {format_bytes(free)}, {DEFAULT_SHARE:.0%} of the free memory".replace("%", " %"),
            todo=f"start {most} or fewer (--cluster local:{most})" if most > 0 else "close other programs",
        )
    return allowed


def _started(distributed: Any, each: Mapping[str, Any], progress: Progress) -> Any:
    """A cluster on this machine; if a worker dies while it starts, all are started again, up to ``STARTS`` times."""
    address = None if _lacks_bokeh() else "127.0.0.1:0"
    for attempt in range(1, STARTS + 1):
        try:
            return distributed.LocalCluster(processes=True, dashboard_address=address, silence_logs=50, **each)
        except (RuntimeError, OSError, TimeoutError) as error:
            if attempt == STARTS:
                raise NetworkError(
                    f"the workers of this machine could not be started in {STARTS} attempts: {plain(str(error))}",
                    todo="free memory, or start fewer workers, and run the same command again",
                ) from error
            progress.say(f"a worker died while it started ({plain(str(error))}): starting all workers again")
    raise AssertionError("the last attempt returns or raises")


def _lacks_bokeh() -> bool:
    return find_spec("bokeh") is None


def ready(client: Any, run: Run, threads: int | None) -> Workers:
    """The workers of a client after they were checked; prints their number and memory."""
    study = run.study.root
    _wait_for_workers(client, run.progress)
    answers = probed(client, study)
    check(answers, study)
    roomy = with_room(answers)
    for address in sorted(answers.keys() - roomy.keys()):
        run.progress.say(f"the worker {address} gets no tasks: it already holds as much memory as it may")
    tell_limit(client, run.progress)
    task = Task(
        study=study.place.address(study.key),
        settings=run.settings.located(run.base_dir).tables(),
        base_dir=None if run.base_dir is None else os.path.abspath(run.base_dir),
        stage="",
        named={},
        numbers=(),
        versions=versions(),
        threads=threads,
    )
    hosts = len({one.host for one in roomy.values()})
    least = min(roomy.values(), key=lambda one: one.allowed - one.held)
    run.progress.say(
        f"cluster: {len(roomy)} worker{'s' if len(roomy) > 1 else ''} on {hosts} machine{'s' if hosts > 1 else ''}, "
        f"each may hold {format_bytes(least.allowed)} or more"
        + (f"; dashboard {client.dashboard_link}" if client.dashboard_link and not _lacks_bokeh() else "")
    )
    return Workers(client, task, run.progress, least.allowed - least.held)


def _wait_for_workers(client: Any, progress: Progress) -> None:
    if client.nthreads():
        return
    progress.say("the scheduler has no workers yet: waiting for one")
    try:
        client.wait_for_workers(1, timeout=WORKERS_WITHIN)
    except TimeoutError:
        raise NetworkError(
            f"the scheduler has no workers after {WORKERS_WITHIN:.0f} s",
            todo="start some with `dask worker`, and run the same command again",
        ) from None


def probed(client: Any, study: Location) -> dict[str, Answer]:
    """The answer of every worker by its address; raises LeanreconError for a worker that can't run leanrecon."""
    token = uuid.uuid4().hex
    probe = f"probe-{token}{PARTIAL}"
    (study / probe).write_text(token)
    try:
        asked = (study.place.address(study.key), probe, token, kinds.providers())
        found: dict[str, Answer] = client.run(answer, *asked, on_error="return")
        for address, one in found.items():
            if isinstance(one, BaseException):
                raise LeanreconError(
                    f"the worker {address} can't run leanrecon: {type(one).__name__}: {one}",
                    todo="install the same leanrecon on every worker",
                )
        return found
    finally:
        (study / probe).unlink(missing_ok=True)
        study.sweep()  # probe files of workers that died


def check(answers: Mapping[str, Answer], study: Location) -> None:
    """Raise LeanreconError for workers of other versions, StoreError for workers that can't read or write the study."""
    mine = versions()
    for address, one in answers.items():
        if differing := different_versions(mine, one.versions):
            raise LeanreconError(
                f"the worker {address} has other versions than this process: {', '.join(differing)}",
                expected="the same versions, so that results have the same bytes",
                todo="install the same versions on all machines, for example from one lock file or container image",
            )
    blind = [address for address, one in answers.items() if not one.sees]
    if blind:
        raise StoreError(
            f"{len(blind)} of {len(answers)} workers don't see {study}, such as {blind[0]}",
            expected="a folder that all machines see under the same path, or a bucket",
            todo="put the study on a shared drive or into a bucket (--study)",
        )
    for address, one in answers.items():
        if one.writes:
            raise StoreError(
                f"the worker {address} can't write to {study}: {one.writes}",
                todo="give the workers' user write permission there, or choose another --study",
            )


def with_room(answers: Mapping[str, Answer]) -> dict[str, Answer]:
    """The workers below their memory limit; raises BudgetError if there are none: Dask gives others no tasks."""
    roomy = {address: one for address, one in answers.items() if one.allowed > one.held}
    if not roomy:
        least = min(answers.values(), key=lambda one: one.held)
        WorkerBudget(least.allowed, least.held).require("any work", LEAST_WORK)
    return roomy


def tell_limit(client: Any, progress: Progress) -> None:
    """Say so if the scheduler gives tasks up after fewer deaths of workers than ``DEATHS``."""
    try:
        # A lambda is sent by value, so the scheduler needs no leanrecon.
        limit = client.run_on_scheduler(lambda dask_scheduler: int(dask_scheduler.allowed_failures))
    except Exception:  # a scheduler that refuses functions
        return
    if limit < DEATHS:
        progress.say(
            f"the scheduler gives a task up after {limit + 1} workers died on it; leanrecon submits it again, up to "
            f"{DEATHS} deaths (avoid this with DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES={DEATHS} on the scheduler)"
        )
