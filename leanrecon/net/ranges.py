"""Files read by byte ranges, local or remote: near ranges are merged, fetched concurrently, and counted."""

import hashlib
import io
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

import numpy as np

from leanrecon.errors import InputError
from leanrecon.net.flight import Flight
from leanrecon.places.seekable import Seekable

Array = np.ndarray[Any, Any]
Bytes = bytes | bytearray | memoryview
Made = TypeVar("Made")

BLOCK = 8 * 1024
"""Bytes of a block in the cache of sequential reads: what a new TCP connection carries in its first round trip."""
BLOCKS = 32
"""Most cached blocks of a file: 256 KB."""

GAP = 32 * 1024
"""Largest gap in bytes between ranges that are fetched as one: 10 ms at 25 Mbit/s, less than a request takes."""
SPAN = 2**20
"""Most bytes of ranges that are fetched as one."""
HELD = 24 * 2**20
"""Most bytes of ranges that are under way or wait for their turn: twice what 500 Mbit/s carry in 200 ms."""
AHEAD = 8
"""Fetched ranges that wait for their turn, beside twice those in flight."""

_WHOLE = 40 * 1024  # bytes of a piece of a small file
_SAMPLE, _SAMPLES = 64 * 1024, 64  # bytes of a block of a large local file that its print hashes, and their number


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


class Cache:
    """Blocks of a file by their numbers, the last used last."""

    def __init__(self) -> None:
        self.blocks: OrderedDict[int, Bytes] = OrderedDict()
        self.lock = threading.Lock()


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
        self.cache = Cache()
        """Blocks of sequential reads; a file that is opened again may be given those of before."""

    def fetch(self, start: int, stop: int, into: memoryview | None = None) -> Bytes:
        """The bytes ``start:stop``, all of them or an error; in the memory ``into``, where that is given."""
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

    def as_they_come(
        self,
        spans: Sequence[tuple[int, int]],
        work: Callable[[int, Bytes], Made],
        held: int | None = None,
        *,
        into: Callable[[int], memoryview | None] = lambda k: None,
        group: Callable[[int], int] = lambda k: 0,
        groups: int = 1,
    ) -> Iterator[Made]:
        """Yield ``work(k, bytes of span k)`` for every span, the first to come first: a slow one keeps no other waiting.

        At most ``held`` bytes are under way (the file's, where none are given), or one span. ``into`` gives the memory
        of a span just before it is asked for. Spans belong to groups, numbered from 0 and in order. At most ``groups``
        of them are open at once: the first that is incomplete, and those that follow it.
        """
        if self.flight is None or not spans:
            for k, span in enumerate(spans):
                yield work(k, self.fetch(*span, into(k)))
            return
        flight = self.flight(sum(stop - start for start, stop in spans) // len(spans))
        most = self.held if held is None else held
        left = Counter(map(group, range(len(spans))))
        came: SimpleQueue[int] = SimpleQueue()
        coming: dict[int, Future[Made]] = {}
        asked = waiting = oldest = 0

        def one(k: int, memory: memoryview | None) -> Made:
            data = self.fetch(*spans[k], memory)
            flight.landed(len(data))
            return work(k, data)

        def ask() -> bool:
            """Ask for the next span, if it may be asked for by now."""
            nonlocal asked, waiting
            k, nbytes = asked, spans[asked][1] - spans[asked][0]
            full = waiting + nbytes > most or len(coming) >= 2 * flight.limit + AHEAD
            if coming and (full or group(k) >= oldest + groups):
                return False
            coming[k] = flight.submit(one, k, into(k))
            coming[k].add_done_callback(lambda _: came.put(k))
            asked, waiting = asked + 1, waiting + nbytes
            return True

        try:
            while asked < len(spans) or coming:
                while asked < len(spans) and ask():
                    pass
                k = came.get()
                waiting -= spans[k][1] - spans[k][0]
                left[group(k)] -= 1
                while oldest in left and not left[oldest]:
                    oldest += 1
                yield coming.pop(k).result()
        finally:
            for future in coming.values():
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
        blocks = self.cache.blocks
        with self.cache.lock:
            block = blocks.get(number)
            if block is None:
                block = self.fetch(number * BLOCK, min((number + 1) * BLOCK, self.size))
                blocks[number] = block
                if len(blocks) > BLOCKS:
                    blocks.popitem(last=False)
            else:
                blocks.move_to_end(number)
            return block


class LocalFile(RangeFile):
    """A file on disk. Its print is a hash of its size and its bytes; for a large file, of evenly spaced blocks."""

    def __init__(self, path: Path, name: str, traffic: Traffic) -> None:
        self._file = path.open("rb", buffering=0)
        self._reading = threading.Lock()
        self._traffic = traffic
        self.name = name
        size = self._file.seek(0, io.SEEK_END)
        starts = np.unique(np.linspace(0, max(size - _SAMPLE, 0), _SAMPLES).astype(np.int64)).tolist()
        if size <= _SAMPLES * _SAMPLE:
            starts = list(range(0, size, _SAMPLE))
        digest = hashlib.sha256(str(size).encode())
        for start in starts:
            block = memoryview(bytearray(min(_SAMPLE, size - start)))
            digest.update(block[: self._read(start, block)])
        super().__init__(name, size, digest.hexdigest())

    def fetch(self, start: int, stop: int, into: memoryview | None = None) -> Bytes:
        data = memoryview(bytearray(stop - start)) if into is None else into
        n = self._read(start, data)
        self._traffic.add(1, n)
        if n != len(data):
            raise InputError(
                f"{self.name} is truncated: it ends at byte {start + n}",
                expected=f"at least {stop} bytes",
                todo="copy it again",
            )
        return data

    def _read(self, start: int, data: memoryview) -> int:
        """Read bytes from ``start`` on; returns their number, fewer if the file ends earlier."""
        done = 0
        try:
            with self._reading:
                self._file.seek(start)
                while done < len(data) and (n := self._file.readinto(data[done:])):  # a drive may return them in pieces
                    done += n
        except OSError as error:
            raise InputError(f"{self.name} can't be read: {error.strerror}", todo="check the drive it is on") from error
        return done

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


def read_whole(files: Sequence[RangeFile]) -> list[bytes]:
    """All bytes of small files of one source: fetched at once, in pieces that new connections carry in two round trips."""
    found = [bytearray(file.size) for file in files]
    pieces: list[Future[Bytes]] = []
    for file, data in zip(files, found, strict=True):
        for start in range(0, file.size, _WHOLE):
            stop = min(start + _WHOLE, file.size)
            given = (start, stop, memoryview(data)[start:stop])
            if file.flight is None:
                file.fetch(*given)
            else:
                pieces.append(file.flight(_WHOLE).submit(file.fetch, *given))
    for piece in pieces:
        piece.result()
    return list(map(bytes, found))


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
