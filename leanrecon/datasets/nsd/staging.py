"""Rows of a store that arrive in any order, kept on disk until their row group is whole.

What has arrived survives a kill: each row is written to its place in a file a row group, then noted with its
checksum. The files of a row group go as soon as the store has it, so no row lies on disk twice for long.
"""

import math
import os
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from leanrecon.places.disk import explained_disk_errors
from leanrecon.stores.fingerprint import fingerprint
from leanrecon.stores.store import Store

Array = np.ndarray[Any, Any]

_NOTE = np.dtype("<u4")
_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)


class Staging:
    """The rows of one store on their way into it; used by one thread at a time.

    ``folder`` is emptied of what was staged for a store made of something else, and removed when all is done.
    """

    def __init__(self, store: Store, folder: Path) -> None:
        self.store = store
        self.row_nbytes = store.columns * store.dtype.itemsize
        own = folder / fingerprint(store.made_of)[:16]
        self.folder, self.own = folder, own
        missing = store.missing_row_groups()
        self.present = np.ones(store.rows, bool)
        """Whether each row is in the store or staged."""
        self._notes = np.zeros(store.rows, _NOTE)
        with explained_disk_errors(folder):
            for other in folder.iterdir() if folder.is_dir() else ():
                if other != own:
                    shutil.rmtree(other)
            if not missing:
                self.finish()
                return
            own.mkdir(parents=True, exist_ok=True)
            notes = np.fromfile(own / "notes", _NOTE) if (own / "notes").exists() else self._notes
        self._notes[: len(notes)] = notes[: store.rows]
        for i in range(store.row_groups):
            rows = store.group_rows(i)
            of = slice(rows.start, rows.stop)
            if i not in missing:
                self._file(i).unlink(missing_ok=True)
            else:
                self.present[of] = (self._notes[of] != 0) & self._file(i).exists()
        for i in missing:  # killed between the last row and the store
            self._seal_if_whole(i)

    def missing(self) -> Array:
        """Numbers of the rows that are still to come."""
        return np.flatnonzero(~self.present)

    def put(self, first: int, block: Array) -> None:
        """Take the rows from ``first`` on, [rows, …]; those that are there already are passed over."""
        size = self.store.chunk_rows
        stop = first + len(block)
        for i in range(first // size, math.ceil(stop / size)):
            group = self.store.group_rows(i)
            rows = np.arange(max(first, group.start), min(stop, group.stop))
            rows = rows[~self.present[rows]]
            if len(rows):
                self._write(i, rows, block, first)
                self._seal_if_whole(i)

    def finish(self) -> None:
        """Remove what is left of the staging; the store has all."""
        with explained_disk_errors(self.folder):
            if self.folder.exists():
                shutil.rmtree(self.folder)

    def _file(self, i: int) -> Path:
        return self.own / f"{i}.rows"

    def _write(self, i: int, rows: Array, block: Array, first: int) -> None:
        start = self.store.group_rows(i).start
        with explained_disk_errors(self._file(i)):
            data = os.open(self._file(i), _FLAGS, 0o666)
            notes = os.open(self.own / "notes", _FLAGS, 0o666)
            try:
                for row in rows.tolist():
                    values = np.ascontiguousarray(block[row - first], self.store.dtype).reshape(-1).view(np.uint8)
                    _write_at(data, values.data, (row - start) * self.row_nbytes)
                    note = _note(values.data)
                    _write_at(notes, np.array(note, _NOTE).tobytes(), row * _NOTE.itemsize)
                    self._notes[row] = note
                    self.present[row] = True
            finally:
                os.close(data)
                os.close(notes)

    def _seal_if_whole(self, i: int) -> None:
        """Write row group ``i`` to the store if all of it has arrived, and arrived undamaged."""
        group = self.store.group_rows(i)
        of = slice(group.start, group.stop)
        if not self.present[of].all():
            return
        with explained_disk_errors(self._file(i)):
            data = np.fromfile(self._file(i), np.uint8)
            rows = data[: len(data) // self.row_nbytes * self.row_nbytes].reshape(-1, self.row_nbytes)
            sound = [k < len(rows) and _note(rows[k].data) == self._notes[row] for k, row in enumerate(group)]
            self.present[of] = sound
            if all(sound):
                self.store.write_rows(i, rows.view(self.store.dtype))
                self._file(i).unlink()


def _note(data: Any) -> int:
    """A row's checksum, never 0, which stands for a row that is not there."""
    return zlib.crc32(data) or 1


def _write_at(descriptor: int, data: Any, offset: int) -> None:
    view = memoryview(data)
    os.lseek(descriptor, offset, os.SEEK_SET)
    while view:
        view = view[os.write(descriptor, view) :]
