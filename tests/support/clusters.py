"""Dask clusters for tests, workers and drivers that are killed or stopped, and what has to be the same afterwards."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

import leanrecon
from leanrecon.progress import Progress

TIMED = {"run.json", "report.html"}
"""Files that tell how long stages took."""

FOLDERS = f"{Path(leanrecon.__file__).parents[1]}{os.pathsep}{Path(__file__).parents[1]}"
"""Where workers find leanrecon and what tests share."""


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a study but those that tell times, half-written ones among them."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files if file.name not in TIMED}


def differing(one: Path, other: Path) -> list[str]:
    """The files that only one of two studies has, and those with other bytes."""
    a, b = contents(one), contents(other)
    return sorted(name for name in {*a, *b} if a.get(name) != b.get(name))


# Clusters


@contextmanager
def worker_here(limit: int) -> Iterator[Any]:
    """A client of one worker in this process, which may hold ``limit`` bytes; of one thread, as the tests' other work."""
    import dask
    import distributed

    how: dict[str, Any] = {
        "n_workers": 1,
        "threads_per_worker": 1,
        "processes": False,
        "memory_limit": limit,
        "dashboard_address": None,
    }
    with (
        dask.config.set({"distributed.worker.memory.pause": False}),
        distributed.LocalCluster(**how) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@contextmanager
def workers_apart(
    folder: Path, faults: Sequence[Mapping[str, str]] = ({}, {}), *, nanny: bool = True, **scheduler: Any
) -> Iterator[tuple[Any, list[subprocess.Popen[bytes]]]]:
    """A client of a scheduler, and a process for each of its workers, as ``dask worker`` starts them.

    ``faults`` holds the variables of ``support.worker_faults`` for each worker; ``scheduler`` are settings of Dask's
    scheduler. Without a nanny a worker that died stays away.
    """
    import dask
    import distributed

    words = ["--nthreads", "1", "--no-dashboard", "--memory-limit", "2GB", "--nanny" if nanny else "--no-nanny"]
    words += ["--local-directory", str(folder), "--preload", "support.worker_faults"]
    given = {f"distributed.scheduler.{name.replace('_', '-')}": value for name, value in scheduler.items()}
    started: list[subprocess.Popen[bytes]] = []
    with (
        dask.config.set(given),
        distributed.LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0", silence_logs=50) as cluster,
        distributed.Client(cluster) as client,
    ):
        command = [sys.executable, "-m", "distributed.cli.dask_worker", cluster.scheduler_address, *words]
        try:
            for own in faults:
                variables = {**os.environ, "PYTHONPATH": FOLDERS, "DASK_DISTRIBUTED__WORKER__MEMORY__PAUSE": "False"}
                with (folder / "workers.txt").open("ab") as said:
                    started.append(
                        subprocess.Popen([*command], env={**variables, **own}, stdout=said, stderr=subprocess.STDOUT)
                    )
            client.wait_for_workers(len(faults), timeout=120)
            yield client, started
        finally:
            for process in started:
                for one in [*_children(process.pid), process]:
                    one.kill()
                process.wait()


SOON, LAST = "as soon as it was given up", "when all is done"
"""When a worker that was stopped wakes up."""


@contextmanager
def late_worker(folder: Path, stops: str, file: str, wakes: str = LAST, ttl: str = "") -> Iterator[Any]:
    """A client of two workers, one of which stops once it writes such a file, and is given up then.

    ``stops`` is BEFORE or WHILE it writes. It wakes up ``SOON`` or ``LAST``, when the block has ended, and ends as nobody
    knows it any more; else it never does. With ``ttl`` the scheduler itself notices after so long.
    """
    faults = [{"MARKS": str(folder), f"STOPS_{stops}": file}, {}]
    scheduler = {"worker_ttl": ttl} if ttl else {}
    with workers_apart(folder, faults, nanny=False, **scheduler) as (client, processes):
        late, addresses = processes[0], {pid: address for address, pid in client.run(os.getpid).items()}

        def notice() -> None:
            until = time.monotonic() + 60
            while not (folder / "stopped").exists() and time.monotonic() < until:
                time.sleep(0.02)
            if not ttl:
                give_up(client, addresses[late.pid])
            while addresses[late.pid] in client.nthreads() and time.monotonic() < until:
                time.sleep(0.05)
            if wakes == SOON:
                late.send_signal(signal.SIGCONT)

        noticing = threading.Thread(target=notice)
        noticing.start()
        yield client
        noticing.join()
        assert (folder / "stopped").read_text() == str(late.pid), "it stopped in the middle of its work"
        if wakes in (SOON, LAST):
            late.send_signal(signal.SIGCONT)
            late.wait(60)


def give_up(client: Any, address: str) -> None:
    """Let the scheduler give up a worker, as after a silence that is too long for it."""

    async def remove(dask_scheduler: Any) -> None:
        await dask_scheduler.remove_worker(address, stimulus_id="test")

    client.run_on_scheduler(remove)


def _children(pid: int) -> list[psutil.Process]:
    try:
        return list(psutil.Process(pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return []


# Deaths


def kill_a_worker() -> None:
    """Kill one worker of the cluster that this process uses."""
    import distributed

    os.kill(min(distributed.default_client().run(os.getpid).values()), signal.SIGKILL)


class Watched(Progress):
    """Keeps the lines that are said, counts the pieces of each task, and calls ``at`` once where a task is so far.

    ``at`` is told by patterns of tasks' names.
    """

    def __init__(self, at: Mapping[str, Callable[[], None]] | None = None, after: int = 1) -> None:
        self.left, self.after = dict(at or {}), after
        self.lines: list[str] = []
        self.pieces: dict[str, int] = {}

    @contextmanager
    def task(self, name: str, *, total: int, **options: Any) -> Iterator[Any]:
        def advance(n: int) -> None:
            self.pieces[name] = self.pieces.get(name, 0) + n
            reached = [one for one in self.left if re.search(one, name) and self.pieces[name] >= self.after]
            for one in reached:
                self.left.pop(one)()

        yield advance

    def say(self, text: str) -> None:
        self.lines.append(text)


class Deadly(Watched):
    """Kills a worker once in each of the tasks whose names match, after so many of their pieces have come."""

    def __init__(self, *names: str, after: int = 1) -> None:
        super().__init__(dict.fromkeys(names, kill_a_worker), after)


def kill_driver(command: Sequence[str], folder: Path, reached: Callable[[], bool]) -> None:
    """Start a driver with workers of its own, and kill it once it is so far; its workers end with it."""
    driver = subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 300
    while not reached() and driver.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    assert driver.poll() is None, "it is killed before its end"
    children = _children(driver.pid)
    driver.kill()
    driver.wait()
    assert not psutil.wait_procs(children, timeout=60)[1], "workers end with their driver"


def run_twice(command: Sequence[str], folder: Path, reached: Sequence[Callable[[], bool]]) -> None:
    """Run a study ``alone`` and, with drivers that are killed at each of these points, ``shared`` among workers."""
    subprocess.run([*command, "alone"], cwd=folder, check=True, capture_output=True)
    for point in reached:
        kill_driver([*command, "shared", "--cluster", "local:2"], folder, point)
    subprocess.run([*command, "shared", "--cluster", "local:2"], cwd=folder, check=True, capture_output=True)


# Slowness


@contextmanager
def mostly_stopped(pid: int, stopped: float = 0.4, running: float = 0.1) -> Iterator[list[int]]:
    """Stop a process for most of the time while the block runs; yields a list that holds how often, in the end."""
    ended, count = threading.Event(), [0]

    def turns() -> None:
        while not ended.is_set() and psutil.pid_exists(pid):
            os.kill(pid, signal.SIGSTOP)
            ended.wait(stopped)
            os.kill(pid, signal.SIGCONT)
            ended.wait(running)
            count[0] += 1

    thread = threading.Thread(target=turns)
    thread.start()
    try:
        yield count
    finally:
        ended.set()
        thread.join()
