"""The files of a bucket below a prefix, listed once and kept up to date by the one process that writes there."""

import threading
from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Entry:
    """Size and version of a file."""

    size: int
    stamp: str
    version: str | None = field(default=None, compare=False)
    """The number of a version of the file in Google Cloud Storage; other servers identify versions by the stamp."""


class Listing:
    """Files by their keys, sorted; for any number of threads."""

    def __init__(self, found: Iterable[tuple[str, Entry]]) -> None:
        self._entries = dict(found)
        self._keys = sorted(self._entries)
        self._lock = threading.Lock()

    def get(self, key: str) -> Entry | None:
        return self._entries.get(key)

    def put(self, key: str, entry: Entry) -> None:
        with self._lock:
            if key not in self._entries:
                insort(self._keys, key)
            self._entries[key] = entry

    def discard(self, key: str) -> None:
        with self._lock:
            if self._entries.pop(key, None) is not None:
                del self._keys[bisect_left(self._keys, key)]

    def below(self, start: str) -> list[str]:
        """The keys that begin with ``start``, sorted."""
        with self._lock:
            return self._keys[bisect_left(self._keys, start) : bisect_left(self._keys, _behind(start))]

    def children(self, start: str) -> list[str]:
        """The next part of each key that begins with ``start``, once each; names of folders end in ``/``."""
        names = []
        with self._lock:
            at, end = bisect_left(self._keys, start), bisect_left(self._keys, _behind(start))
            while at < end:
                name, slash, _ = self._keys[at][len(start) :].partition("/")
                names.append(name + slash)
                at = bisect_left(self._keys, _behind(start + name + slash), at) if slash else at + 1
        return names


def _behind(start: str) -> str:
    """The first text that sorts after all texts that begin with ``start``."""
    return start[:-1] + chr(ord(start[-1]) + 1) if start else chr(0x10FFFF)
