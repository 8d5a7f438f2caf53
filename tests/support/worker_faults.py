"""What goes wrong in a worker of a test: `dask worker --preload` runs this module, and variables tell it what to do.

``STOPS_BEFORE`` and ``STOPS_WHILE``: a pattern of keys; the worker stops (SIGSTOP) once, before it writes such a file,
or when the file is whole and has yet to get its name. ``DIES_OF`` and ``DEATHS``: a number; workers that are given a task
with it die, so many times in all. ``MARKS``: the folder where the workers of a test note down what they did.
``TIMEOUT``: seconds of a request to a bucket.
"""

import os
import re
import signal
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def dask_setup(worker: Any) -> None:
    """Called by Dask in each process of a worker."""
    given = os.environ
    if "DIES_OF" in given:
        _die_of(int(given["DIES_OF"]), int(given["DEATHS"]))
    for when in ("BEFORE", "WHILE"):
        if pattern := given.get(f"STOPS_{when}"):
            _stop(pattern, when)
    if "TIMEOUT" in given:
        from leanrecon.places import bucket

        bucket.TIMEOUT = float(given["TIMEOUT"])


def _marks() -> Path:
    return Path(os.environ["MARKS"])


def _die_of(number: int, times: int) -> None:
    from leanrecon.execution import tasks

    do = tasks._do

    def deadly(task: Any, worker: Any) -> Any:
        if number in task.numbers and len(list(_marks().glob("died-*"))) < times:
            (_marks() / f"died-{uuid.uuid4().hex}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return do(task, worker)

    tasks._do = deadly


def _stop(pattern: str, when: str) -> None:
    from leanrecon.places.bucket import Bucket
    from leanrecon.places.local import LocalPlace

    replacing, put = LocalPlace._replacing, Bucket.put

    def reached(key: str, here: str) -> None:
        if here == when and re.search(pattern, key) and not (_marks() / "stopped").exists():
            (_marks() / "stopped").write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(0.1)  # the signal comes a little later

    @contextmanager
    def slow(self: LocalPlace, key: str) -> Iterator[Path]:
        reached(key, "BEFORE")
        with replacing(self, key) as partial:
            yield partial
            reached(key, "WHILE")

    def slow_put(self: Bucket, key: str, *given: Any, **options: Any) -> Any:
        reached(key, "BEFORE")
        return put(self, key, *given, **options)

    LocalPlace._replacing, Bucket.put = slow, slow_put  # type: ignore[method-assign]
