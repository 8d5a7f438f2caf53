"""What a piece of work is given beside its data: budget, seed, device, and where to write and report."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from leanrecon.memory import MemoryBudget
from leanrecon.progress import Advance, Note, Progress

DEFAULT_CHUNK_BYTES = 8_000_000
"""Bytes of a chunk file where the setting ``stores.chunk`` says nothing."""


@dataclass
class Peaks:
    """The projected peaks in bytes that were asked for while a stage ran."""

    projected: list[int] = field(default_factory=list)

    @property
    def largest(self) -> int:
        return max(self.projected, default=0)


class Executor(Protocol):
    """Workers that do the tasks of one piece of work; each opens its stores by their paths and writes whole chunks."""

    workers: int
    """How many there are now."""
    free: int
    """Bytes that work may take on the smallest of them, beside what it holds."""

    def share(self, tasks: Sequence[Sequence[int]], given: Mapping[str, Any], arrived: "Arrived") -> None:
        """Have every task done by one of them: the numbers of the chunks, rows or blocks that it makes.

        ``given`` holds plain values that the piece needs; ``arrived`` is called in this thread. Raises what a task
        raises, and BudgetError where it is too big for every worker.
        """


Arrived = Callable[[Sequence[int], Any, str], None]
"""Takes the numbers of a task that was done, what it returned, and the name of its worker."""


@dataclass(frozen=True)
class Context:
    """How a piece of work runs. Nothing in it decides a result but ``seed``, ``device`` and ``chunk``."""

    budget: MemoryBudget
    """What the process may hold."""
    seed: int = 0
    device: str = "cpu"
    """Where networks run: auto, cuda, mps or cpu."""
    chunk: int = DEFAULT_CHUNK_BYTES
    """Bytes of a chunk file of new stores."""
    scratch: Path = Path()
    """Folder for files that are needed for a while only."""
    overwrite: bool = False
    """Whether stores made with other settings are replaced."""
    progress: Progress = field(default_factory=Progress)
    label: str = ""
    """What the work is called in progress and messages."""
    executor: Executor | None = None
    """Where the tasks of this piece run; None: in this process, one after the other."""
    keeps: bool = False
    """Whether networks stay loaded for the next call, as on a worker."""
    small: Callable[[Any, bytes], None] | None = None
    """Takes the location and bytes of a small file of a study, which a worker leaves to the driver; None: it is written."""
    peaks: Peaks = field(default_factory=Peaks, compare=False)
    """The projected peaks of this stage, for its record."""

    @classmethod
    def of(cls, memory: "str | int | MemoryBudget | None" = None, **options: Any) -> "Context":
        """A context with a budget from its size, as in ``"4GB"``; None: 80 % of the free memory."""
        return cls(MemoryBudget.of(memory), **options)

    @property
    def free(self) -> int:
        """Bytes that work may take where it is done, beside what is held there."""
        return self.budget.free if self.executor is None else self.executor.free

    def require(self, work: str, nbytes: int) -> int:
        """The projected peak of ``nbytes`` of work beside what the process holds; raises BudgetError if it is too much."""
        projected = self.budget.require(work, nbytes)
        self.peaks.projected.append(projected)
        return projected

    def named(self, label: str) -> "Context":
        """The same context under another label."""
        return replace(self, label=label)

    def refreshed(self) -> "Context":
        """The same context with what the process holds now counted as reserved."""
        return replace(self, budget=MemoryBudget.of(self.budget))

    @contextmanager
    def task(self, *, total: int, unit: str, done: int = 0, note: Note | None = None) -> Iterator[Advance]:
        """Report progress under this context's label."""
        with self.progress.task(self.label, total=total, unit=unit, done=done, note=note) as advance:
            yield advance
