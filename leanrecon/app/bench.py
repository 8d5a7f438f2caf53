"""``leanrecon doctor --bench``: how fast this machine multiplies matrices, and reads and writes where a study lies."""

import contextlib
import datetime
import os
import statistics
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from leanrecon.app.rates import Rates, keep, place_of
from leanrecon.app.terminal import say
from leanrecon.memory import MemoryBudget, buffer, format_bytes
from leanrecon.places import Location, LocationLike, as_location
from leanrecon.places.disk import explained_disk_errors
from leanrecon.places.local import PARTIAL

SIDE = 1536
"""Rows and columns of the matrices that are multiplied: 7.2·10⁹ operations a product."""

BLOCK = 8_388_608
"""Bytes that are written and read at once, as of a chunk: whole pages."""

MOST = 128 * 2**20
"""Bytes that are written at most."""

_SYNCED = 2 * BLOCK  # bytes after which a disk is waited for

EACH = 1.0
"""Seconds that each rate is measured for at most, once it was measured at all."""

REQUESTS = 8
"""Small requests whose median is the latency."""

WORK = 3 * SIDE * SIDE * 4 + 4 * BLOCK + 10_000_000
"""Bytes of memory that the measurements take: three matrices or a few blocks, and zarr."""


def bench(study: LocationLike, memory: str | None = None) -> Rates:
    """Measure, print and keep the rates of this process and of the place of a study, in a few seconds.

    The folder need not be there; what is written is removed again. Raises BudgetError, and StoreError for a place that
    can't be written.
    """
    where = as_location(study)
    MemoryBudget.of(memory, where.place.held_nbytes).require("doctor --bench", WORK)
    multiplied = gemm_rate()
    say(f"matrix product: {multiplied / 1e9:.1f} GFLOP/s in float32")
    with _room(where) as room:
        written, read = file_rates(room / f"bench{PARTIAL}")
        stored, loaded = store_rates(room / "bench.zarr")
        latency = 0.0 if room.place.local_path(room.key) is not None else latency_of(room / "small")
    about = "" if latency else ", synced and past the page cache"
    say(f"files in {where}: {_per_second(written)} written, {_per_second(read)} read{about}")
    say(f"chunks of stores: {_per_second(stored)} written, {_per_second(loaded)} read, checked")
    if latency:
        say(f"a small request takes {latency * 1000:.1f} ms")
    today = datetime.date.today().isoformat()
    rates = Rates(multiplied, written, read, stored, loaded, latency, today)
    say(f"kept for plans in {keep(where, rates)}, for {place_of(where)}")
    return rates


def gemm_rate() -> float:
    """Floating-point operations a second of a float32 product, the best of a few."""
    a, b, out = (buffer((SIDE, SIDE), np.float32) for _ in range(3))
    rng = np.random.default_rng(0)
    rng.random(out=a, dtype=np.float32)
    rng.random(out=b, dtype=np.float32)
    times = [_timed(lambda: np.matmul(a, b, out=out))]  # the first one starts the threads
    until = time.monotonic() + EACH
    while len(times) < 2 or time.monotonic() < until:
        times.append(_timed(lambda: np.matmul(a, b, out=out)))
    return 2 * SIDE**3 / min(times)


def file_rates(file: Location) -> tuple[float, float]:
    """Bytes a second of a file that is written, and read again; a disk is waited for until it has them."""
    path = file.place.local_path(file.key)
    return _of_bucket(file, _random_block()) if path is None else _of_disk(path, file, _random_block())


def _of_disk(path: Path, file: Location, block: Any) -> tuple[float, float]:
    began, size = time.monotonic(), 0
    with explained_disk_errors(path), path.open("wb", buffering=0) as out:
        while size < MOST and (size == 0 or time.monotonic() - began < EACH):
            size += out.write(block)
            if size % _SYNCED == 0 or size == MOST:
                os.fsync(out.fileno())
        written = time.monotonic() - began
    began, read = time.monotonic(), 0
    while read < size and (read == 0 or time.monotonic() - began < EACH):
        read += file.place.read_into(file.key, block, read, cached=False)
    return size / written, read / (time.monotonic() - began)


def _of_bucket(file: Location, block: Any) -> tuple[float, float]:
    """One request after another, of a block each."""
    written = _repeated(lambda: file.write_bytes(block))
    read = _repeated(lambda: file.place.read_into(file.key, block))
    return BLOCK / written, BLOCK / read


def store_rates(path: Location) -> tuple[float, float]:
    """Bytes a second of chunks of a store that are written, and read again past the page cache."""
    from leanrecon.stores.store import Store

    columns, groups = BLOCK // 256 // 4, MOST // BLOCK // 2
    store = Store.create(path, (256 * groups, columns), np.float32, made_of={"bench": 1}, chunk=BLOCK)
    block = _random_block().view(np.float32).reshape(256, columns)
    began, n = time.monotonic(), 0
    while n < groups and (n == 0 or time.monotonic() - began < EACH):
        store.write_rows(n, block)
        n += 1
    written = time.monotonic() - began
    memory = buffer((store.buffer_nbytes(),), np.uint8)
    began, read = time.monotonic(), 0
    while read < n and (read == 0 or time.monotonic() - began < EACH):
        store.read_chunk(read, 0, memory, cached=False)
        read += 1
    return n * BLOCK / written, read * BLOCK / (time.monotonic() - began)


def latency_of(file: Location) -> float:
    """Seconds that a small file takes to be written and read, the median of both."""
    memory = np.zeros(4, np.uint8)
    times = [_timed(lambda: file.write_bytes(memory)) for _ in range(REQUESTS)]
    times += [_timed(lambda: file.place.read_into(file.key, memory)) for _ in range(REQUESTS)]
    return statistics.median(times)


def _random_block() -> Any:
    block = buffer((BLOCK,), np.uint8)
    block[:] = np.frombuffer(np.random.default_rng(1).bytes(BLOCK), np.uint8)  # no disk compresses it
    return block


def _timed(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _repeated(work: Callable[[], Any]) -> float:
    """Seconds that some work takes, the median of what fits into a second."""
    times, until = [_timed(work)], time.monotonic() + EACH
    while time.monotonic() < until:
        times.append(_timed(work))
    return statistics.median(times)


@contextlib.contextmanager
def _room(where: Location) -> Iterator[Location]:
    """A folder of its own in that of a study, removed at the end; and what was not there before."""
    room = where / f"bench-{uuid.uuid4().hex}"
    path = room.place.local_path(room.key)
    made: list[Path] = []
    if path is not None:
        made = [folder for folder in path.absolute().parents if not folder.exists()]
        with explained_disk_errors(path):
            path.mkdir(parents=True)
    try:
        yield room
    finally:
        room.delete_tree()
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _per_second(rate: float) -> str:
    return f"{format_bytes(rate)}/s"
