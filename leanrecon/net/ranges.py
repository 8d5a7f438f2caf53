"""Files read by byte ranges, local or remote: near ranges are merged, fetched concurrently, and counted."""

import hashlib
import io
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from leanrecon.errors import InputError, LeanreconError
from leanrecon.net.flight import Flight
from leanrecon.places.seekable import Seekable

Array = np.ndarray[Any, Any]
Bytes = bytes | bytearray
Made = TypeVar("Made")
Item = TypeVar("Item")

BLOCK = 64 * 1024
"""Bytes of a block in the cache of sequential reads."""
BLOCKS = 32
"""Most cached blocks of a file: 2 MB."""

GAP = 32 * 1024
"""Largest gap in bytes between ranges that are fetched as one: 10 ms at 25 Mbit/s, less than a request takes."""
SPAN = 2**20
"""Most bytes of ranges that are fetched as one."""
HELD = 24 * 2**20
"""Most bytes of ranges that are under way or wait for their turn: twice what 500 Mbit/s carry in 200 ms."""
AHEAD = 8
"""Fetched ranges that wait for their turn, beside twice those in flight."""

_SAMPLES = 64  # blocks of a large local file that its print hashes


class Traffic:
    """Counts requests and received bytes."""

    def __init__(self) -> None:
        self.requests = 0
        self.nbytes = 0
        self._lock = threading.Lock()

    def add(self, requests: int, nbytes: int) -> None:
        with self._lock:
            self.requests += requests
            self.nbytes += nbytes


class RangeFile(Seekable):
    """A file of ``size`` bytes whose ranges ``fetch`` reads.

    Sequential reads (of h5py) use a cache of a few blocks; ``fetch`` and ``in_order`` do not. ``print`` identifies its
    content; ``name`` is for messages.
    """

    def __init__(self, name: str, size: int, print_: str) -> None:
        super().__init__(size)
        self.name = name
        self.print = print_
        self.flight: Callable[[int], Flight] | None = None
        """What fetches ranges of about so many bytes concurrently; None: one after the other, as is best for a disk."""
        self.held = 0
        """Most bytes of ranges that are in memory at once, or one range."""
        self._blocks: OrderedDict[int, Bytes] = OrderedDict()
        self._lock = threading.Lock()

    def fetch(self, start: int, stop: int) -> Bytes:
        """The bytes ``start:stop``, all of them or an error."""
        raise NotImplementedError

    def in_order(
        self, spans: Sequence[tuple[int, int]], work: Callable[[int, Bytes], Made], held: int | None = None
    ) -> Iterator[Made]:
        """Yield ``work(k, bytes of span k)`` for every span in order; spans are fetched and processed concurrently.

        At most ``held`` bytes of them are in memory (the file's, where none are given), or one span.
        """
        if self.flight is None or not spans:
            yield from (work(k, self.fetch(*span)) for k, span in enumerate(spans))
            return
        flight = self.flight(sum(stop - start for start, stop in spans) // len(spans))
        most = self.held if held is None else held

        def one(k: int) -> Made:
            data = self.fetch(*spans[k])
            flight.landed(len(data))
            return work(k, data)

        ahead: deque[tuple[Future[Made], int]] = deque()
        waiting = 0
        try:
            for k, (start, stop) in enumerate(spans):
                while ahead and (
                    waiting + stop - start > most or len(ahead) >= 2 * flight.limit + AHEAD or ahead[0][0].done()
                ):
                    future, nbytes = ahead.popleft()
                    waiting -= nbytes
                    yield future.result()
                    del future
                ahead.append((flight.submit(one, k), stop - start))
                waiting += stop - start
            while ahead:
                yield ahead.popleft()[0].result()
        finally:
            for future, _ in ahead:
                future.cancel()

    def readinto(self, memory: Any) -> int:
        view = memoryview(memory).cast("B")
        stop = min(self._at + len(view), self.size)
        done = 0
        while self._at < stop:
            number, inside = divmod(self._at, BLOCK)
            piece = memoryview(self._block(number))[inside : inside + stop - self._at]
            view[done : done + len(piece)] = piece
            done += len(piece)
            self._at += len(piece)
        return done

    def _block(self, number: int) -> Bytes:
        with self._lock:
            block = self._blocks.get(number)
            if block is None:
                block = self.fetch(number * BLOCK, min((number + 1) * BLOCK, self.size))
                self._blocks[number] = block
                if len(self._blocks) > BLOCKS:
                    self._blocks.popitem(last=False)
            else:
                self._blocks.move_to_end(number)
            return block


class LocalFile(RangeFile):
    """A file on disk. Its print is a hash of its size and its bytes; for a large file, of evenly spaced blocks."""

    def __init__(self, path: Path, name: str, traffic: Traffic) -> None:
        self._file = path.open("rb", buffering=0)
        self._reading = threading.Lock()
        self._traffic = traffic
        self.name = name
        size = self._file.seek(0, io.SEEK_END)
        starts = np.unique(np.linspace(0, max(size - BLOCK, 0), _SAMPLES).astype(np.int64)).tolist()
        if size <= _SAMPLES * BLOCK:
            starts = list(range(0, size, BLOCK))
        digest = hashlib.sha256(str(size).encode())
        for start in starts:
            digest.update(self._read(start, min(start + BLOCK, size)))
        super().__init__(name, size, digest.hexdigest())

    def fetch(self, start: int, stop: int) -> bytearray:
        data = self._read(start, stop)
        self._traffic.add(1, len(data))
        if len(data) != stop - start:
            raise InputError(
                f"{self.name} is truncated: it ends at byte {start + len(data)}",
                expected=f"at least {stop} bytes",
                todo="copy it again",
            )
        return data

    def _read(self, start: int, stop: int) -> bytearray:
        """The bytes ``start:stop``, fewer if the file ends earlier; a drive may return them in pieces."""
        data = bytearray(stop - start)
        done = 0
        try:
            with self._reading, memoryview(data) as view:
                self._file.seek(start)
                while done < len(view) and (n := self._file.readinto(view[done:])):
                    done += n
        except OSError as error:
            raise InputError(f"{self.name} can't be read: {error.strerror}", todo="check the drive it is on") from error
        del data[done:]
        return data

    def close(self) -> None:
        self._file.close()
        super().close()


@dataclass(frozen=True)
class Found:
    """A file that was found at a source."""

    size: int
    """In bytes."""
    print: str
    """A hash or version that identifies its content."""


class Source(AbstractContextManager["Source"], Protocol):
    """Files by name below a folder, or below a prefix of a bucket."""

    traffic: Traffic
    aside: Executor | None = None
    """Where a file is read while another one's contents are used; None: nowhere, as is best for a disk."""

    def find(self, name: str) -> Found | None:
        """The file of this name; None if it does not exist or can't be read."""

    def find_all(self, names: Sequence[str]) -> list[Found | None]:
        """The file of each of these names, or None."""
        return list(map(self.find, names))

    def open(self, name: str, found: Found) -> RangeFile:
        """Open a file that was found; raises InputError if it has changed."""

    def where(self, name: str) -> str:
        """The full name, for messages."""

    def local(self, name: str) -> Path | None:
        """The file's path on this machine; None for a remote one."""
        return None

    def stop(self) -> None:
        """Let requests that wait end in an error."""
        return None


class Folder(Source):
    """Files below a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.traffic = Traffic()

    def where(self, name: str) -> str:
        return str(self.root / name)

    def local(self, name: str) -> Path:
        return self.root / name

    def find(self, name: str) -> Found | None:
        if not (self.root / name).is_file():
            return None
        try:
            with LocalFile(self.root / name, self.where(name), self.traffic) as file:
                return Found(file.size, file.print)
        except PermissionError:
            return None

    def open(self, name: str, found: Found) -> RangeFile:
        try:
            file = LocalFile(self.root / name, self.where(name), self.traffic)
        except OSError as error:
            raise InputError(f"{self.where(name)} can't be read: {error.strerror}", todo="put it back") from error
        if (file.size, file.print) != (found.size, found.print):
            file.close()
            raise changed(self.where(name))
        return file

    def __exit__(self, *_: object) -> None:
        return None


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


def changed(name: str) -> InputError:
    """The error for a file that has changed since it was found."""
    return InputError(
        f"{name} has changed since its first bytes were read",
        expected="the same content throughout the download",
        todo="run again with --overwrite to start over with the present file",
    )


def coalesce(starts: Array, stops: Array, *, gap: int = GAP, most: int | None = None) -> tuple[Array, Array, Array]:
    """Merge ascending ranges into spans: the start and stop of each span, and the number of its first range.

    Ranges at most ``gap`` bytes apart share a span of at most ``most`` bytes (``SPAN``); a longer range is a span of its
    own. Ranges may overlap.
    """
    most = SPAN if most is None else most
    if len(starts) == 0:
        none = np.zeros(0, np.int64)
        return none, none, none
    first = [0]
    start, stop = int(starts[0]), int(stops[0])
    ends = []
    for k, (a, b) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True)):
        if a - stop <= gap and max(b, stop) - start <= most:
            stop = max(stop, b)
        elif k:
            ends.append(stop)
            first.append(k)
            start, stop = a, b
    ends.append(stop)
    return np.asarray(starts, np.int64)[first], np.array(ends, np.int64), np.array(first, np.int64)
