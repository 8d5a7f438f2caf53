"""How many requests are under way at once: as many as raise what arrives, and no more."""

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Made = TypeVar("Made")

FIRST = 32
"""Requests under way at the beginning, where an answer begins within ``SHORT`` seconds; more in proportion otherwise."""

SHORT = 0.05
"""Seconds from a request to its answer."""

HELPS = 1.2
"""What twice the requests must bring, as a factor, to be kept: 2 where latency decides, 1 where the link is full."""

AGAIN = 16
"""Measurements after which more requests are tried again: networks change."""

CALM = 1.0
"""Seconds after a refusal in which further ones say nothing new."""

_LEAST = 0.1  # seconds of a measurement


class Pace:
    """How many requests may be under way: their number doubles as long as that raises the pace, up to ``most``.

    The pace is the geometric mean of requests and bytes a second: one is steady where latency decides, the other where
    the link's rate does.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.limit = min(FIRST, most)
        self._before: float | None = None
        """The pace with half as many requests; None where it is not known."""
        self._rests = 0
        self._refused: float | None = None
        """When fewer requests were asked for."""
        self._requests = self._counted = 0
        self._since = time.monotonic()

    def begin(self, trip: float) -> None:
        """Begin with as many requests as are right where an answer comes after ``trip`` seconds; before any has landed."""
        self.limit = min(max(FIRST, round(FIRST * trip / SHORT)), self.most)

    def landed(self, nbytes: int, asked: int) -> None:
        """Take note of a request whose ``nbytes`` have all come; ``asked`` are under way, this one among them, or wait."""
        if asked < self.limit:  # too little was asked for to learn from it
            self._begin()
            return
        self._requests += 1
        if self._requests == self.limit:  # those before may have opened their connections
            self._since, self._counted = time.monotonic(), 0
        if self._requests <= self.limit:
            return
        self._counted += nbytes
        n, seconds = self._requests - self.limit, time.monotonic() - self._since
        if n >= 2 * self.limit and seconds >= _LEAST:
            self._learn((n * self._counted) ** 0.5 / seconds)
            self._begin()

    def refused(self) -> None:
        """Take note that the server asked for fewer requests: halve them."""
        now = time.monotonic()
        if self._refused is not None and now - self._refused < CALM:
            return
        self._refused, self.limit = now, max(self.limit // 2, 1)
        self._before, self._rests = None, AGAIN
        self._begin()

    def _begin(self) -> None:
        self._requests = self._counted = 0
        self._since = time.monotonic()

    def _learn(self, pace: float) -> None:
        """Double the requests, or go back, by the pace that was measured."""
        if self._rests:
            self._rests -= 1
            return
        if self._before is not None and pace < HELPS * self._before:
            self.limit //= 2
            self._before, self._rests = None, AGAIN
        elif self.limit < self.most:
            self._before = pace
            self.limit = min(2 * self.limit, self.most)
        else:
            self._before = None


class Flight:
    """Runs requests concurrently, as many as its pace allows. A thread takes the next request when it has finished one."""

    def __init__(self, most: int, name: str = "") -> None:
        self._pace = Pace(most)
        self._pool = ThreadPoolExecutor(most, thread_name_prefix=name)
        self._waiting: deque[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]] = deque()
        self._busy = 0
        self._begun = False
        self._lock = threading.Lock()

    @property
    def limit(self) -> int:
        """How many are under way at once."""
        return self._pace.limit

    def begin(self, trip: float) -> None:
        """Begin with as many as are right where an answer comes after ``trip`` seconds, unless some have begun."""
        with self._lock:
            if not self._begun:
                self._begun = True
                self._pace.begin(trip)

    def submit(self, work: Callable[..., Made], *given: Any) -> Future[Made]:
        """Queue ``work``, a request and the processing of its answer; it starts when the pace allows."""
        future: Future[Made] = Future()
        with self._lock:
            self._waiting.append((future, work, given))
            self._start(1)
        return future

    def landed(self, nbytes: int) -> None:
        """Count a request whose ``nbytes`` have all arrived; its answer is still to be processed."""
        with self._lock:
            self._begun = True
            self._pace.landed(nbytes, self._busy + len(self._waiting))
            self._start(len(self._waiting))

    def refused(self) -> None:
        """Reduce the requests because the server answered that it has too many."""
        with self._lock:
            self._pace.refused()

    def close(self) -> None:
        """Wait until all submitted requests have finished."""
        self._pool.shutdown(wait=True)

    def _start(self, most: int) -> None:
        for _ in range(min(self.limit - self._busy, most)):
            self._busy += 1
            self._pool.submit(self._work)

    def _work(self) -> None:
        """Run queued requests, one after the other."""
        while True:
            with self._lock:
                if not self._waiting or self._busy > self.limit:
                    self._busy -= 1
                    return
                future, work, given = self._waiting.popleft()
            if future.set_running_or_notify_cancel():
                try:
                    made = work(*given)
                except BaseException as error:
                    future.set_exception(error)
                else:
                    future.set_result(made)
                    del made
            del future, work, given  # or they would be in memory until the next is done
