"""Work in a thread of its own that reports how far it is: images that come while sessions do."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from types import TracebackType

from leanrecon.progress import Advance

_LOOK_EVERY = 0.2  # seconds


class Aside:
    """Work that goes on beside the block of a ``with``; it is stopped where the block fails.

    ``work`` is given what to tell of its progress by; ``interrupt`` ends what it waits for.
    """

    def __init__(self, work: Callable[[Advance], None], interrupt: Callable[[], None], missing: int = 0) -> None:
        self.missing = missing
        """The count when all work is done."""
        self.count = 0
        """What the work has told so far."""
        self._stopped = threading.Event()
        self._interrupt = interrupt
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="images")
        self._future = self._pool.submit(work, self._advance)

    def _advance(self, n: int) -> None:
        if self._stopped.is_set():
            raise _StoppedError
        self.count += n

    def __enter__(self) -> "Aside":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is not None:
            self._stopped.set()
            self._interrupt()
        self._pool.shutdown(wait=True)
        if kind is None:
            self._future.result()

    def look(self) -> None:
        """Raise what the work ended in, if it has."""
        if self._future.done():
            self._future.result()

    def wait(self, advance: Advance, told: int) -> None:
        """Wait for the end of the work. ``advance`` is given the progress beyond the count that was ``told`` before."""
        ended = False
        while not ended:
            wait([self._future], timeout=_LOOK_EVERY)
            ended = self._future.done()  # before the count is read, which grows until then
            now = self.count
            advance(now - told)
            told = now
        self._future.result()


class _StoppedError(Exception):
    """Ends the work of a thread whose result nobody wants any more."""
