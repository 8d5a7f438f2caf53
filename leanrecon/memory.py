"""Memory: sizes in words, the budget, the plan's refusal, and the peak that was really reached."""

import contextlib
import ctypes
import math
import mmap
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import psutil

from leanrecon.errors import BudgetError, SettingsError, shown

_UNITS = {"": 1, "B": 1} | {
    f"{letter}{suffix}": base**power
    for power, letter in enumerate("KMGT", start=1)
    for suffix, base in (("", 1000), ("B", 1000), ("IB", 1024))
}

_LARGEST = 2**62  # bytes; no memory or disk is larger

LEAST_BUDGET = 1_000_000
"""Bytes below which a budget was given without its unit: Python alone takes more."""

DEFAULT_SHARE = 0.8
"""The share of the free memory that a budget takes when none is given."""

_HUGE_PAGE = 2**21

_LARGE_BLOCK = 2**18
"""Bytes from which a block is worth pages of its own."""

_UNLIMITED = 2**60  # cgroups of version 1 write "no limit" as the largest whole number of pages

KEPT_IN_HEAP = 2**25
"""Bytes that ``keep_freed`` leaves in the heap, and the most that one of its blocks may take."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt, in glibc's malloc.h

SPARE = 5_000_000
"""Bytes by which a process may hold more from one start to the next: 3 MB were seen."""

SAMPLES_PER_SECOND = 50
"""How often the process's memory is looked at while a stage runs."""


def parse_bytes(text: str | int) -> int:
    """Read a size such as ``"4GB"`` (10⁹ bytes), ``"512 MiB"`` (2²⁰ bytes) or a plain number of bytes."""
    written = str(text) if isinstance(text, str) or (type(text) is int and -1 < text < _LARGEST) else ""
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-zA-Z]*)\s*", written, re.ASCII) if len(written) < 100 else None
    nbytes = float(match[1]) * _UNITS.get(match[2].upper(), 0) if match else 0.0
    if match is None or match[2].upper() not in _UNITS or nbytes >= _LARGEST:
        raise SettingsError(
            f"{shown(text)} is not a size in bytes", expected='a number and a unit, as in "4GB" or "512MiB"'
        )
    return int(nbytes)


def parse_budget(text: str | int) -> int:
    """Read a memory budget; raises SettingsError below ``LEAST_BUDGET``, as for "4" where "4GB" is meant."""
    nbytes = parse_bytes(text)
    if nbytes < LEAST_BUDGET:
        unit = f', as in "{str(text).strip()}GB"' if str(text).strip().isdecimal() else ""
        raise SettingsError(
            f"a memory of {shown(text)} is {format_bytes(nbytes)}, too little for any study",
            expected=f"{format_bytes(LEAST_BUDGET)} or more, with a unit{unit}",
        )
    return nbytes


def format_bytes(n: float) -> str:
    """Write a number of bytes with three digits and a decimal unit, as in ``1.24 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(n) < 999.5:
            return f"{n:.3g} {unit}" if unit != "B" else f"{n:.0f} B"
        n /= 1000
    return f"{n:.3g} TB"


def available_memory() -> int:
    """Bytes that this process could still take: what the machine and its memory cgroups leave free."""
    return min([int(psutil.virtual_memory().available), *cgroup_free()])


def cgroup_free(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> Iterator[int]:
    """Bytes left by each memory cgroup that holds this process: its own, those above it, or the container's.

    File pages that the kernel would drop first do not count as used. Empty where nothing is limited.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for _, controllers, own in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if controllers == "":
            top, limit_file, usage_file, cache = root, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            top, limit_file, usage_file = root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cache = "total_inactive_file"
        else:
            continue
        below = top / own.strip("/")
        for folder in (below, *(parent for parent in below.parents if parent.is_relative_to(top))):
            try:
                limit, usage = ((folder / name).read_text().strip() for name in (limit_file, usage_file))
                stat = (folder / "memory.stat").read_text()
            except OSError:
                continue
            if limit != "max" and int(limit) < _UNLIMITED:
                droppable = re.search(rf"^{cache} (\d+)$", stat, re.MULTILINE)
                yield max(int(limit) - int(usage) + (int(droppable[1]) if droppable else 0), 0)


def process_memory(process: int | None = None) -> int:
    """Bytes of anonymous memory resident in a process (RssAnon; the whole resident set where there is no /proc).

    ``process`` is its number, None this one. Raises psutil.NoSuchProcess for one that has ended.
    """
    try:
        resident, shared = Path(f"/proc/{process or 'self'}/statm").read_text().split()[1:3]
    except OSError:
        return int(psutil.Process(process).memory_info().rss)
    return (int(resident) - int(shared)) * mmap.PAGESIZE


def peak_resident() -> int | None:
    """VmHWM, the highest resident set of the process so far in bytes, mapped files included; None without /proc."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(match[1]) * 1024 if match else None


def buffer(shape: Sequence[int], dtype: Any) -> np.ndarray[Any, Any]:
    """An array of zeros in pages of its own: page-aligned, and given back to the system as soon as it is dropped.

    Blocks from malloc below its growing threshold stay in the heap after they are freed, which breaks plans.
    """
    dtype = np.dtype(dtype)
    count = int(np.prod(shape, dtype=np.int64))
    flags = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_ANONYMOUS") else {}
    pages = mmap.mmap(-1, max(count * dtype.itemsize, 1), **flags)
    if len(pages) >= _HUGE_PAGE and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            pages.madvise(mmap.MADV_HUGEPAGE)  # a tenth of the time of products over panels goes into page look-ups
    return np.frombuffer(pages, dtype, count).reshape(shape)


def scratch(shape: Sequence[int], dtype: Any) -> np.ndarray[Any, Any]:
    """An array that is dropped soon, its values undefined: large ones lie in pages of their own, as of ``buffer``.

    Each thread has a heap of its own, and every one keeps the largest blocks that were ever freed in it.
    """
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    return buffer(shape, dtype) if nbytes >= _LARGE_BLOCK else np.empty(shape, dtype)


def give_back() -> None:
    """Give the system what was freed but stays in the heap, so that it does not count as held (glibc; nothing elsewhere).

    A dataset of many small images left 23 MB.
    """
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


def keep_freed() -> None:
    """Let the heap keep up to 32 MB of freed memory for reuse, until ``give_back`` (glibc; nothing elsewhere).

    Networks allocate and free the same states again and again. New pages for each of them took a tenth of a network's time.
    """
    if sys.platform == "linux" and (option := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        option(_MMAP_THRESHOLD, KEPT_IN_HEAP)
        option(_TRIM_THRESHOLD, KEPT_IN_HEAP)


@dataclass(frozen=True)
class MemoryBudget:
    """How much memory the process may hold.

    ``allowed`` is the limit for the whole process in bytes, ``reserved`` what it held when the budget
    was taken; a stage may add ``free`` = ``allowed - reserved``.
    """

    allowed: int
    reserved: int = field(default_factory=process_memory)
    requests: int = 0
    """Of ``reserved``, what requests to a bucket will hold beside the work."""

    @classmethod
    def of(cls, budget: "str | int | MemoryBudget | None", requests: int = 0) -> "MemoryBudget":
        """A budget from its size (``"4GB"``), with what the process holds now, and requests will, as reserved.

        None stands for 80 % of the free memory on top of what is held already.
        """
        if isinstance(budget, MemoryBudget):
            return replace(budget, reserved=process_memory() + budget.requests)
        held = process_memory()
        allowed = held + int(DEFAULT_SHARE * available_memory()) if budget is None else parse_bytes(budget)
        return cls(allowed, held + requests, requests)

    @property
    def free(self) -> int:
        return max(self.allowed - self.reserved, 0)

    def require(self, stage: str, work: int) -> int:
        """The projected peak ``reserved + work`` in bytes; raises BudgetError when it exceeds what is allowed."""
        projected = self.reserved + work
        if projected > self.allowed:
            enough = -(-(projected + SPARE) // 1_000_000)
            raise BudgetError(
                f"{stage} needs at least {format_bytes(projected)} ({format_bytes(self.reserved)} held already and "
                f"{format_bytes(work)} of work), more than the {format_bytes(self.allowed)} allowed",
                todo=f'raise the budget to "{enough}MB" or more (setting `memory`, option --memory)',
            )
        return projected


class PeakMemory:
    """Measures the highest anonymous memory of the process while a block runs.

    Afterwards ``peak`` holds it in bytes, and ``resident`` VmHWM, which counts mapped files too and
    never falls during a process's life.
    """

    def __init__(self) -> None:
        self.peak = 0
        self.resident: int | None = None
        self._done = threading.Event()
        self._sampler = threading.Thread(target=self._sample, name="peak-memory", daemon=True)

    def _sample(self) -> None:
        while True:
            self.peak = max(self.peak, process_memory())
            if self._done.wait(1 / SAMPLES_PER_SECOND):
                return

    def __enter__(self) -> Self:
        self.peak = process_memory()
        self._sampler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.peak = max(self.peak, process_memory())
        self._done.set()
        self._sampler.join()
        self.resident = peak_resident()
