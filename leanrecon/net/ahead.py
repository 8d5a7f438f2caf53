"""Work that is done in a pool of threads before it is needed, or at once."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

from leanrecon.errors import LeanreconError

Made = TypeVar("Made")
Item = TypeVar("Item")


def done_ahead(
    pool: Executor | None, work: Callable[[Item], Made], items: Iterable[Item], most: int = 1
) -> Iterator[Made]:
    """Yield ``work`` of every item in order; that of the next ``most`` is done in ``pool`` while one is used.

    Without a pool each is done in its turn. An item that can't be had ends it only after what was begun before.
    """
    if pool is None:
        yield from map(work, items)
        return
    coming: deque[Future[Made]] = deque()
    try:
        for item in items:
            if len(coming) == most:
                made = coming.popleft().result()
                coming.append(pool.submit(work, item))
                yield made
                del made  # or it would be in memory until the next is there
            else:
                coming.append(pool.submit(work, item))
    except LeanreconError:
        while coming:
            yield coming.popleft().result()
        raise
    while coming:
        yield coming.popleft().result()


def done_together(pool: Executor | None, works: Sequence[Callable[[], Any]]) -> list[Any]:
    """What each work gives, all done in ``pool`` at once (None: one after the other); the first error is raised."""
    if pool is None:
        return [work() for work in works]
    return [future.result() for future in [pool.submit(work) for work in works]]
