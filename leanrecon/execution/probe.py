"""The check of a worker before work: its versions, its memory, and whether it can read and write the study."""

import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from leanrecon.errors import LeanreconError
from leanrecon.execution.tasks import budget_of, threads_of, versions
from leanrecon.memory import process_memory
from leanrecon.places import Location, as_location
from leanrecon.places.local import PARTIAL

SEEN_WITHIN = 5.0
"""Seconds within which a worker must see a file that the driver wrote: shared drives are delayed."""


@dataclass(frozen=True)
class Answer:
    """What a worker reports of itself."""

    versions: dict[str, str]
    allowed: int
    """Bytes that it may hold."""
    held: int
    """Bytes that it holds now."""
    threads: int
    host: str
    sees: bool
    """Whether it reads the file that the driver wrote."""
    writes: str
    """Why it can't write to the folder; empty if it can."""


def answer(study: str, probe: str, content: str, packages: Sequence[str], dask_worker: Any = None) -> Answer:
    """Check the folder of a study from this process; the driver wrote a file ``probe`` there with this content.

    ``packages`` are those whose kinds the driver has loaded. Dask passes ``dask_worker``.
    """
    folder, held, host = as_location(study), process_memory(), platform.node()
    sees, until = _reads(folder / probe, content), time.monotonic() + SEEN_WITHIN
    while not sees and time.monotonic() < until:
        time.sleep(0.1)
        sees = _reads(folder / probe, content)
    problem = ""
    if sees:
        own = folder / f"{probe.removesuffix(PARTIAL)}-{host}-{os.getpid()}{PARTIAL}"
        try:
            own.write_text(content)
            own.unlink()
        except (OSError, LeanreconError) as error:
            problem = str(error)
    mine, allowed = versions(packages), budget_of(dask_worker, held).allowed
    return Answer(mine, allowed, held, threads_of(dask_worker), host, sees, problem)


def _reads(file: Location, content: str) -> bool:
    try:
        return file.read_text() == content
    except (OSError, LeanreconError):
        return False
