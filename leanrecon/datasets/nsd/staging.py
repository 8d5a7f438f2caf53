"""Sessions on their way into a store: whole groups of rows go into it at once, the ends of a session wait for the next.

A session ends within a group of rows. The rows at its ends lie in files of their own beside the store until the rest of
the group has come, whoever fetched it. So what has arrived survives a kill, and no session is fetched twice.
"""

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from leanrecon.errors import StoreError
from leanrecon.memory import buffer
from leanrecon.places import Location
from leanrecon.stores.fingerprint import fingerprint
from leanrecon.stores.shared import confirm, wait_until_seen
from leanrecon.stores.store import Store

Array = np.ndarray[Any, Any]

_CRC = 4  # bytes of the checksum behind the rows of a part


@dataclass(frozen=True)
class Receipts:
    """What holds some rows, in plain values."""

    chunks: list[tuple[int, int, str]]
    """Row group, column group and checksum of chunks in the store."""
    parts: list[tuple[int, int, str]]
    """First row, the row after the last one, and checksum of parts of a row group."""


class Staging:
    """The rows of one store on their way into it.

    Several processes may ``put`` rows of the same store, each its own; one of them begins, seals and ends. ``folder``
    holds what waits; what was put there for a store made of something else is removed by ``begin``.
    """

    def __init__(self, store: Store, folder: Location) -> None:
        self.store = store
        self.folder, self.own = folder, folder / fingerprint(store.made_of)[:16]
        self.row_nbytes = store.columns * store.dtype.itemsize

    def begin(self) -> None:
        """Remove what waits for other stores, and write the groups whose rows have all come: what a kill left."""
        for other in self.folder.iterdir():
            if other.name != self.own.name:
                other.delete_tree()
        self.own.sweep()
        self.seal(sorted({start // self.store.chunk_rows for start, _ in self._parts()}))

    def missing(self) -> Array:
        """Numbers of the rows that are neither in the store nor wait beside it."""
        missing = np.zeros(self.store.rows, bool)
        parts = self._parts()  # before the store is looked at: what is sealed meanwhile is in either
        for i in self.store.missing_row_groups():
            rows = self.store.group_rows(i)
            missing[rows.start : rows.stop] = True
        for start, stop in parts:
            missing[start:stop] = False
        return np.flatnonzero(missing)

    def put(self, first: int, block: Array) -> None:
        """Take the rows from ``first`` on, [rows, columns]: whole groups into the store, the others beside it."""
        for i, rows in self._runs(range(first, first + len(block))):
            if self._in_store(i):
                continue
            values = block[rows.start - first : rows.stop - first]
            if len(rows) == len(self.store.group_rows(i)):
                self.store.write_rows(i, values)
            else:
                data = np.ascontiguousarray(values, self.store.dtype).reshape(-1).view(np.uint8)
                self._part(rows.start, rows.stop).write_bytes(data, _checksum(data))

    def receipts(self, rows: range) -> Receipts:
        """What holds these rows, which were put."""
        found = Receipts([], [])
        for i, own in self._runs(rows):
            path = self._part(own.start, own.stop)
            try:
                checksum = None if self._in_store(i) else _end(path, len(own) * self.row_nbytes)
            except FileNotFoundError:  # it was sealed since
                checksum = None
            if checksum is not None:
                found.parts.append((own.start, own.stop, checksum.hex()))
            else:
                found.chunks.extend((i, j, self.store.checksum(i, j).hex()) for j in range(self.store.column_groups))
        return found

    def ends(self, rows: range) -> list[int]:
        """The row groups that these rows are only a part of."""
        return [i for i, own in self._runs(rows) if len(own) < len(self.store.group_rows(i))]

    def take(self, receipts: Receipts) -> None:
        """Wait until what another process put is seen here, and write the groups whose rows have all come.

        Raises StoreError for what stays away or differs.
        """
        confirm(self.store, receipts.chunks)
        for start, stop, checksum in receipts.parts:
            if self._in_store(start // self.store.chunk_rows):
                continue
            path, nbytes = self._part(start, stop), (stop - start) * self.row_nbytes
            wait_until_seen(partial(_is_whole, path, nbytes), self.own, str(path))
            if _end(path, nbytes).hex() != checksum:
                raise StoreError(
                    f"{path} is not what a worker wrote",
                    todo="check that no other run writes to this study, and run the same command again",
                )
        self.seal(dict.fromkeys(start // self.store.chunk_rows for start, _, _ in receipts.parts))

    def seal(self, groups: Iterable[int]) -> None:
        """Write those of the row groups to the store whose rows have all arrived, and arrived undamaged."""
        parts = self._parts()
        for i in groups:
            group = self.store.group_rows(i)
            own = [(start, stop) for start, stop in parts if start in group]
            if not self._in_store(i):
                whole = self._assembled(group, own)
                if whole is None:
                    continue
                self.store.write_rows(i, whole)
            for start, stop in own:
                self._part(start, stop).unlink(missing_ok=True)

    def finish(self) -> None:
        """Remove what is left; the store has all."""
        self.folder.delete_tree()

    def _assembled(self, group: range, parts: Iterable[tuple[int, int]]) -> Array | None:
        """The rows of a group from its parts; None where some are not there. Damaged parts are removed."""
        parts = list(parts)
        if len({row for start, stop in parts for row in range(start, stop)}) < len(group):
            return None
        whole = buffer((len(group), self.row_nbytes), np.uint8)
        for start, stop in parts:
            nbytes, path = (stop - start) * self.row_nbytes, self._part(start, stop)
            memory = buffer((nbytes + _CRC,), np.uint8)
            n = path.place.read_into(path.key, memory)
            if n < len(memory) or _checksum(memory[:nbytes]) != memory[nbytes:].tobytes():
                path.unlink(missing_ok=True)
                return None
            whole[start - group.start : stop - group.start] = memory[:nbytes].reshape(-1, self.row_nbytes)
        return whole.view(self.store.dtype)

    def _runs(self, rows: range) -> Iterator[tuple[int, range]]:
        """Rows by the row groups that they lie in."""
        size = self.store.chunk_rows
        for i in range(rows.start // size, -(-rows.stop // size)):
            group = self.store.group_rows(i)
            own = range(max(rows.start, group.start), min(rows.stop, group.stop))
            if own:
                yield i, own

    def _in_store(self, i: int) -> bool:
        return all(self.store.has(i, j) for j in range(self.store.column_groups))

    def _part(self, start: int, stop: int) -> Location:
        return self.own / f"{start}-{stop}.rows"

    def _parts(self) -> list[tuple[int, int]]:
        """The rows of every whole part, the first and the one after the last."""
        self.own.place.refresh(self.own.key)
        found = []
        for path in self.own.glob("*-*.rows"):
            start, _, stop = path.stem.partition("-")
            if start.isdecimal() and stop.isdecimal() and _is_whole(path, (int(stop) - int(start)) * self.row_nbytes):
                found.append((int(start), int(stop)))
        return sorted(found)


def _is_whole(path: Location, nbytes: int) -> bool:
    return path.size() == nbytes + _CRC


def _end(path: Location, nbytes: int) -> bytes:
    """The checksum behind so many bytes."""
    memory = np.empty(_CRC, np.uint8)
    return memory[: path.place.read_into(path.key, memory, nbytes)].tobytes()


def _checksum(data: Any) -> bytes:
    return zlib.crc32(data).to_bytes(_CRC, "little")
