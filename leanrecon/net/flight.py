"""How many requests are under way at once: as many as raise what arrives, and no more."""

import threading
import time
from types import TracebackType

FIRST = 32
"""Requests under way at the beginning."""

HELPS = 1.2
"""What twice the requests must bring, as a factor, to be kept: 2 where latency decides, 1 where the link is full."""

AGAIN = 16
"""Measurements after which more requests are tried again: networks change."""

_LEAST = 0.1  # seconds of a measurement


class Flight:
    """Lets so many requests be under way at once; ``with`` it, a thread waits for its turn.

    Their number doubles as long as that raises the pace, up to ``most``. The pace is the geometric mean of requests and
    bytes a second: one is steady where latency decides, the other where the link's rate does.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.limit = min(FIRST, most)
        self._busy = 0
        self._asked = 0
        """Those that are under way and those that wait."""
        self._free = threading.Condition()
        self._before: float | None = None
        """The pace with half as many requests; None where it is not known."""
        self._rests = 0
        self._requests = self._counted = 0
        self._since = time.monotonic()

    @classmethod
    def alone(cls, nbytes: int) -> "Flight":
        """One request after the other, of any size."""
        return cls(1)

    def __enter__(self) -> "Flight":
        with self._free:
            self._asked += 1
            while self._busy >= self.limit:
                self._free.wait()
            self._busy += 1
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._free:
            self._asked -= 1
            self._busy -= 1
            self._free.notify()

    def landed(self, nbytes: int) -> None:
        """Take note of a request, still under way, whose ``nbytes`` have all come."""
        with self._free:
            now = time.monotonic()
            if self._asked < self.limit:  # too little was asked for to learn from it
                self._begin(now)
                return
            self._requests += 1
            if self._requests == self.limit:  # those before may have opened their connections
                self._since, self._counted = now, 0
            if self._requests <= self.limit:
                return
            self._counted += nbytes
            n, seconds = self._requests - self.limit, now - self._since
            if n >= 2 * self.limit and seconds >= _LEAST:
                self._learn((n * self._counted) ** 0.5 / seconds)
                self._begin(now)

    def _begin(self, now: float) -> None:
        self._requests = self._counted = 0
        self._since = now

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
            self._free.notify_all()
        else:
            self._before = None
