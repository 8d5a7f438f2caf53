"""Tasks of stages as plain values, and how a worker runs them.

A worker keeps one piece of work open: its stores and its loaded networks. It runs one task at a time, with all of its
threads.
"""

import os
import sys
import threading
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from leanrecon import __version__
from leanrecon.errors import BudgetError, LeanreconError, LeanreconWarning
from leanrecon.memory import SPARE, MemoryBudget, PeakMemory, format_bytes, process_memory
from leanrecon.progress import Progress
from leanrecon.stages.pipeline import stages_of
from leanrecon.stages.stage import Piece, Run
from leanrecon.stores.fingerprint import fingerprint
from leanrecon.stores.metadata import load_library
from leanrecon.study import record
from leanrecon.study.layout import Study
from leanrecon.study.settings import check_settings

SHARE = 0.8
"""The share of a worker's memory limit that it may hold: above it Dask gives the worker no further task."""


@dataclass(frozen=True)
class Task:
    """A part of one piece of a stage, in plain values. Any process that sees the study's folder can run it."""

    study: str
    settings: Mapping[str, Any]
    base_dir: str | None
    stage: str
    named: Mapping[str, Any]
    """What identifies the piece within the stage, and its inputs."""
    numbers: tuple[int, ...]
    """Numbers of the chunks, rows or blocks to make."""
    versions: Mapping[str, str]
    """Versions of the driver."""
    threads: int | None = None
    """Threads of arithmetic; None: all of the worker's."""

    @property
    def piece(self) -> str:
        """A fingerprint that identifies the piece."""
        named = {name: self.named[name] for name in sorted(self.named)}
        return fingerprint(
            {"study": self.study, "settings": repr(self.settings), "base_dir": self.base_dir, "stage": self.stage}
            | {"named": repr(named)}
        )


@dataclass(frozen=True)
class Done:
    """What a worker returns of a task."""

    worker: str
    returned: Any = None
    error: LeanreconError | None = None
    said: tuple[str, ...] = ()
    warned: tuple[str, ...] = ()
    peak: int = 0
    """The most bytes that the worker held."""


@dataclass(frozen=True)
class WorkerBudget(MemoryBudget):
    """The memory that a worker may hold, as a share of its memory limit."""

    def require(self, stage: str, work: int) -> int:
        projected = self.reserved + work
        if projected > self.allowed:
            enough = -(-int((projected + SPARE) / SHARE) // 1_000_000)
            raise BudgetError(
                f"{stage} needs at least {format_bytes(projected)} on a worker ({format_bytes(self.reserved)} held "
                f"already and {format_bytes(work)} of work), more than the {format_bytes(self.allowed)} that it may hold, "
                f"which is {SHARE:.0%} of its memory limit",
                todo=f'start workers with a limit of "{enough}MB" or more (dask worker --memory-limit {enough}MB; with '
                f"--cluster local:N, --memory {-(-(projected + SPARE) // 1_000_000)}MB)",
            )
        return projected


class Collected(Progress):
    """Collects lines of progress, which the driver prints."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@dataclass
class _Open:
    """The piece of work that this process has open."""

    task: Task
    worker: Any
    reserved: int
    """Bytes that the process held before it."""
    progress: Collected = field(default_factory=Collected)

    @cached_property
    def run(self) -> Run:
        base_dir = None if self.task.base_dir is None else Path(self.task.base_dir)
        return Run(check_settings(self.task.settings), Study(self.task.study), base_dir, progress=self.progress)

    @cached_property
    def work(self) -> Piece:
        stage: Any = next(one for one in stages_of(self.run.settings) if one.name == self.task.stage)
        context = replace(self.run.context(self.task.stage), budget=budget_of(self.worker, self.reserved), keeps=True)
        piece: Piece = stage.piece(self.run, self.task.named, context)
        return piece

    def close(self) -> None:
        if (close := getattr(self.__dict__.get("work"), "close", None)) is not None:
            close()
        for space in self.run.spaces.values():
            space.release()


_open: _Open | None = None
_one_at_a_time = threading.Lock()


def do(task: Task) -> Done:
    """Run a task in this process, a worker's, and return its results, or an error that a user can fix."""
    from distributed import get_worker

    with _one_at_a_time:
        return _do(task, get_worker())


def _do(task: Task, worker: Any) -> Done:
    name = str(worker.address)
    if differing := different_versions(task.versions, versions(task.versions)):
        found = f"the worker {name} has other versions: {', '.join(differing)}"
        return Done(name, error=LeanreconError(found, todo="install the same versions on all machines of the cluster"))
    use_threads(task.threads or threads_of(worker))
    try:
        with warnings.catch_warnings(record=True) as caught, PeakMemory() as peak:
            warnings.simplefilter("always", LeanreconWarning)
            opened = _opened(task, worker)
            returned = opened.work(task.numbers)
    except LeanreconError as error:
        _close()
        return Done(name, error=error)
    said, opened.progress.lines = tuple(opened.progress.lines), []
    warned = tuple(str(one.message) for one in caught if issubclass(one.category, LeanreconWarning))
    return Done(name, returned, None, said, warned, peak.peak)


def _opened(task: Task, worker: Any) -> _Open:
    """The piece of a task, opened if another one is open."""
    global _open
    if _open is None or _open.task.piece != task.piece:
        _close()
        load_library()
        _open = _Open(task, worker, process_memory())
    return _open


def _close() -> None:
    global _open
    closing, _open = _open, None
    if closing is not None and "run" in closing.__dict__:
        closing.close()


# Workers


def threads_of(worker: Any) -> int:
    """The number of threads of a ``distributed.Worker``."""
    return int(worker.state.nthreads)


def budget_of(worker: Any, reserved: int) -> MemoryBudget:
    """The budget of a worker: a share of its memory limit, or of the machine's free memory if it has no limit."""
    limit = int(worker.memory_manager.memory_limit or 0)
    if not limit:
        return replace(MemoryBudget.of(None), reserved=reserved)
    return WorkerBudget(int(SHARE * limit), reserved)


def use_threads(count: int) -> None:
    """Set the number of threads of arithmetic: Dask's nanny has set it to one before libraries are loaded."""
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = str(count)  # for libraries that are loaded later
    try:
        import threadpoolctl
    except ImportError:
        return
    threadpoolctl.threadpool_limits(count)
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(count)


def versions(packages: Iterable[str] | None = None) -> dict[str, str]:
    """The versions of this process that decide results.

    A worker is asked for the ``packages`` whose kinds the driver has loaded, as it loads them with its first task; None:
    those that this process has loaded.
    """
    python = ".".join(map(str, sys.version_info[:2]))
    return {**record.versions(packages), "python": python, "leanrecon": __version__}


def different_versions(driver: Mapping[str, str], worker: Mapping[str, str]) -> list[str]:
    """The versions that differ, in words, for a message."""
    return [
        f"{name} {worker.get(name, 'is missing')} (driver: {driver.get(name, 'is missing')})"
        for name in sorted({*driver, *worker})
        if driver.get(name) != worker.get(name)
    ]
