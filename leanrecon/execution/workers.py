"""The driver's side of a cluster: it submits tasks, takes their results, and submits tasks again if a worker died."""

import queue
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from leanrecon.context import Arrived
from leanrecon.errors import BudgetError, LeanreconError, LeanreconWarning, NetworkError, plain
from leanrecon.execution.tasks import Done, Task, do
from leanrecon.progress import Progress

RETRIES = 3
"""Retries of a task after an unexpected error, such as one of a shared drive."""

DEATHS = 20
"""Deaths of workers on the same task after which the run stops: preemptible machines may take many workers away."""

WAIT_FOR_WORKERS = 300.0
"""Seconds without any worker after which a run gives up; the same command continues it."""

_LOOK_EVERY = 5.0  # seconds


@dataclass
class Workers:
    """The workers of a cluster, for one study."""

    client: Any
    task: Task
    """The values that all tasks have in common."""
    progress: Progress
    free: int
    """Bytes that work may take on the smallest worker, beyond what it held when it was checked."""
    peaks: dict[str, int] = field(default_factory=dict)
    """The most that each worker held, in bytes."""

    @property
    def count(self) -> int:
        """The present number of workers."""
        return len(self.addresses())

    def told(self) -> dict[str, int]:
        """The most bytes that each worker held since the last call."""
        peaks, self.peaks = self.peaks, {}
        return peaks

    def addresses(self) -> list[str]:
        return sorted(self.client.nthreads())

    def piece(self, stage: str, named: Mapping[str, Any]) -> "SharedPiece":
        """The workers for one piece of a stage."""
        return SharedPiece(self, stage, dict(named))


@dataclass
class SharedPiece:
    """One piece of a stage on the workers of a cluster (``context.Executor``)."""

    of: Workers
    stage: str
    named: dict[str, Any]

    @property
    def workers(self) -> int:
        return self.of.count

    @property
    def free(self) -> int:
        return self.of.free

    def share(self, tasks: Sequence[Sequence[int]], given: Mapping[str, Any], arrived: Arrived) -> None:
        whole = replace(self.of.task, stage=self.stage, named=self.named | dict(given))
        words = [self.stage, *(str(value) for value in self.named.values() if isinstance(value, str) and value)]
        _Sharing(self.of, "-".join(["leanrecon", *words]), whole).run(tasks, arrived)


@dataclass
class _Sent:
    """A task that was submitted to the scheduler."""

    numbers: tuple[int, ...]
    deaths: int = 0
    workers: frozenset[str] = frozenset()
    """Workers that may run it; empty: all."""


@dataclass
class _Sharing:
    """The tasks of one piece, until all are done."""

    workers: Workers
    name: str
    whole: Task
    sent: dict[Any, _Sent] = field(default_factory=dict)
    finished: "queue.SimpleQueue[Any]" = field(default_factory=queue.SimpleQueue)
    too_small: dict[str, BudgetError] = field(default_factory=dict)
    """Workers that refused a task for its memory, with their errors."""
    seen: set[str] = field(default_factory=set)
    """All workers that were seen."""
    waiting: list[_Sent] = field(default_factory=list)
    """Tasks that wait for a worker with enough memory."""

    def run(self, tasks: Sequence[Sequence[int]], arrived: Arrived) -> None:
        self.seen.update(self.workers.addresses())
        try:
            for numbers in tasks:
                self._send(_Sent(tuple(numbers)))
            for future in self._completed():
                sent = self.sent.pop(future)
                done = self._result(future, sent)
                if done is not None:
                    self._take(done, sent, arrived)
        finally:
            if self.sent:
                self.workers.client.cancel(list(self.sent), force=True)

    def _send(self, sent: _Sent) -> None:
        if self.too_small:
            here = frozenset(self.workers.addresses())
            self.seen |= here
            sent.workers = here - self.too_small.keys()
            if not sent.workers:  # a larger worker that died may come back
                if self.seen <= self.too_small.keys():
                    raise min(self.too_small.values(), key=str)
                self.waiting.append(sent)
                return
        task = replace(self.whole, numbers=sent.numbers)
        # Dask's dashboard groups tasks by the words of their keys; the last part makes the key of a retry a new one.
        key = f"{self.name}-{sent.numbers[0]:06d}-{uuid.uuid4().hex[:8]}"
        workers = sorted(sent.workers) or None
        future = self.workers.client.submit(do, task, key=key, pure=False, retries=RETRIES, workers=workers)
        self.sent[future] = sent
        future.add_done_callback(self.finished.put)

    def _completed(self) -> Iterator[Any]:
        """Futures as they are done; raises NetworkError if all workers are gone for long, or the scheduler is."""
        alone = None
        while self.sent or self.waiting:
            try:
                future = self.finished.get(timeout=_LOOK_EVERY)
            except queue.Empty:
                if self.workers.client.status != "running":
                    raise lost("the connection to it was closed") from None
                if self._has_workers():
                    self._send_stranded()
                    if self.sent or not self.waiting:
                        alone = None
                        continue
                alone = alone or time.monotonic()
                if time.monotonic() - alone < _LOOK_EVERY:
                    which = "no worker with enough memory" if self.waiting else "no worker"
                    self.workers.progress.say(f"{which} is left: waiting for one")
                if time.monotonic() - alone > WAIT_FOR_WORKERS:
                    if self.waiting and self.too_small:
                        raise min(self.too_small.values(), key=str) from None
                    raise NetworkError(
                        f"there was no worker for {WAIT_FOR_WORKERS:.0f} s",
                        todo="start workers and run the same command again, which continues the study",
                    ) from None
                continue
            if future in self.sent:
                yield future

    def _send_stranded(self) -> None:
        """Submit tasks again whose workers are all gone: a restarted worker has another address."""
        here = set(self.workers.addresses())
        waiting, self.waiting = self.waiting, []
        for sent in waiting:
            self._send(sent)
        for future, sent in list(self.sent.items()):
            if sent.workers and not sent.workers & here:
                del self.sent[future]
                self.workers.client.cancel([future], force=True)
                self._send(sent)

    def _has_workers(self) -> bool:
        try:
            return bool(self.workers.addresses())
        except (OSError, TimeoutError) as error:
            raise lost(str(error)) from error

    def _result(self, future: Any, sent: _Sent) -> Done | None:
        """The result of a task; None if its worker died and the task was submitted again or is waited for again."""
        from distributed import KilledWorker

        if future.status in ("pending", "lost"):  # its worker died with the result: Dask runs it again
            self.sent[future] = sent
            future.add_done_callback(self.finished.put)
            return None
        if future.status == "finished":
            done: Done = future.result()
            return done
        if future.status == "cancelled":
            raise lost("it cancelled a task")
        error = future.exception()
        if not isinstance(error, KilledWorker):
            raise LeanreconError(
                f"a task of {self.whole.stage} failed on the workers {RETRIES + 1} times: {type(error).__name__}: {error}",
                todo="read the logs of the workers; finished work is kept, and the same command continues",
            ) from error
        sent.deaths += getattr(error, "allowed_failures", 0) + 1
        if sent.deaths >= DEATHS:
            raise LeanreconError(
                f"{sent.deaths} workers died while they worked on the same task of {self.whole.stage}",
                todo="give workers more memory, and read their logs; the same command continues",
            ) from error
        self._send(sent)
        return None

    def _take(self, done: Done, sent: _Sent, arrived: Arrived) -> None:
        for line in done.said:
            self.workers.progress.say(line)
        for text in done.warned:
            warnings.warn(plain(text), LeanreconWarning, stacklevel=2)
        if isinstance(done.error, BudgetError):
            if done.worker not in self.too_small:
                self.workers.progress.say(
                    f"the worker {done.worker} gets no more tasks of this kind: {done.error.found}"
                )
            self.too_small[done.worker] = done.error
            self._send(sent)
        elif done.error is not None:
            raise done.error
        else:
            self.workers.peaks[done.worker] = max(self.workers.peaks.get(done.worker, 0), done.peak)
            arrived(sent.numbers, done.returned, done.worker)


def lost(why: str) -> NetworkError:
    """The error of a lost scheduler."""
    return NetworkError(
        f"lost the scheduler of the cluster: {why}",
        todo="start it and its workers again, and run the same command, which continues the study",
    )
