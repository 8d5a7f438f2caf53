"""A Dask cluster within the process of a test."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


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
