"""Stores and folders of images that workers fill: each writes whole chunks or images, one process begins and ends."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from leanrecon.context import Executor
from leanrecon.errors import StoreError
from leanrecon.places import Location, LocationLike
from leanrecon.stores import metadata
from leanrecon.stores.fingerprint import fingerprint
from leanrecon.stores.pictures import Pictures
from leanrecon.stores.store import Store

VISIBLE_WITHIN = 60.0
"""Seconds after which a file that another machine wrote has to be seen: shared drives may hold names back for a while."""

_LOOK_EVERY = 0.05  # seconds

ALIGNED = 8
"""Images that tasks don't divide where there are many: a GPU draws four together, a small network on a CPU eight."""

MOST_IMAGES = 32
"""Images of a task at most, so that a worker that dies costs little."""

_TASKS_EACH = 4  # tasks a worker at least, so that none waits long for the last one

Receipts = Sequence[tuple[int, int, str]]
"""Row group, column group and checksum of chunks that were written."""

Array = np.ndarray[Any, Any]

Advance = Callable[[int], None]


def identity(made_of: Mapping[str, Any]) -> str:
    """What a store or folder of images is made of, as one string that a task carries."""
    return fingerprint(dict(made_of))


@contextlib.contextmanager
def while_begun(check: Callable[[], None], undo: Callable[[], None]) -> Iterator[None]:
    """Look before and after a write whether the run that it is made for goes on: ``check`` raises StoreError where not.

    A worker may stop at any point for long, and write for a run that is over. ``undo`` then deletes what it wrote.
    """
    check()
    yield
    try:
        check()
    except StoreError:
        undo()
        raise


class StorePart(Store):
    """A store that another process began and will finish; one that another run began since is left as it is."""

    @classmethod
    def begun(cls, path: LocationLike, made_of: str) -> "StorePart":
        """Open it; raises StoreError for one that is made of something else."""
        whole = Store.open(path, incomplete=True)
        _check(path, identity(whole.made_of), made_of)
        return cls(whole.path, whole._metadata)

    def write_chunk(self, i: int, j: int, block: Array) -> None:
        """As that of a store; raises StoreError, and leaves no chunk, where another run began the store anew."""
        with while_begun(self._check_begun, lambda: self.chunk_path(i, j).unlink(missing_ok=True)):
            super().write_chunk(i, j, block)

    def _check_begun(self) -> None:
        there = metadata.read(self.path)
        found = "" if there is None else identity(there.record.get("made_of", {}))
        _check(self.path, found, identity(self.made_of))

    def finish(self) -> None:
        """Whoever began the store finishes it."""


def receipts_of(store: Store, chunks: Iterable[tuple[int, int]]) -> list[tuple[int, int, str]]:
    """The checksums of chunks that were written."""
    return [(i, j, store.checksum(i, j).hex()) for i, j in chunks]


def confirm(store: Store, receipts: Receipts) -> None:
    """Wait until the chunks that a worker wrote are seen here; raises StoreError where they stay away or differ."""
    for i, j, checksum in receipts:
        wait_until_seen(partial(store.has, i, j), store.path, f"chunk {store.name_of(i, j)} of {store.path}")
        if store.checksum(i, j).hex() != checksum:
            raise StoreError(
                f"chunk {store.name_of(i, j)} of {store.path} is not what a worker wrote",
                todo="check that no other run writes to this study, and run the same command again",
            )


def share_rows(store: Store, executor: Executor, given: Mapping[str, Any], advance: Advance) -> None:
    """Have workers write the row groups that are missing; ``advance`` is told of rows."""

    def arrived(groups: Sequence[int], receipts: Any, worker: str) -> None:
        confirm(store, receipts)
        advance(sum(len(store.group_rows(i)) for i in groups))

    executor.share([[i] for i in store.missing_row_groups()], {**given, "of": identity(store.made_of)}, arrived)


def share_columns(store: Store, executor: Executor, given: Mapping[str, Any], advance: Advance) -> None:
    """Have workers write the blocks of columns that are missing; ``advance`` is told of blocks."""

    def arrived(blocks: Sequence[int], receipts: Any, worker: str) -> None:
        confirm(store, receipts)
        advance(len(blocks))

    executor.share([[j] for j in store.missing_column_groups()], {**given, "of": identity(store.made_of)}, arrived)


class PicturesPart(Pictures):
    """Some rows of a folder of images that another process began and will finish."""

    def __init__(self, path: LocationLike, made_of: str, rows: Sequence[int]) -> None:
        whole = Pictures.open(path, incomplete=True)
        _check(path, identity(whole.made_of), made_of)
        super().__init__(whole.path, whole._record)
        self._part = frozenset(rows)
        self._of = made_of

    def write(self, row: int, image: Array) -> None:
        """As that of a folder; raises StoreError, and leaves no image, where another run began the folder anew."""
        with while_begun(self._check_begun, lambda: self.file(row).unlink(missing_ok=True)):
            super().write(row, image)

    def _check_begun(self) -> None:
        found = identity(Pictures.open(self.path, incomplete=True).made_of)
        _check(self.path, found, self._of)

    def missing(self) -> list[int]:
        return [row for row in sorted(self._part) if not self._has(row)]

    def finish(self) -> None:
        """Whoever began the folder finishes it."""

    def receipts(self) -> list[tuple[int, str, str]]:
        """Row and checksums, of the file and of its pixels, of every image of the part."""
        return [(row, *(self._digests.get(row) or self._digests_of(row))) for row in sorted(self._part)]


def share_pictures(pictures: Pictures, executor: Executor, given: Mapping[str, Any], advance: Advance) -> list[Any]:
    """Have workers draw the images that are missing; returns what each worker told last of its work.

    A task returns the receipts of its images (``PicturesPart.receipts``) and what it tells. ``advance`` is told of images.
    """
    told: dict[str, Any] = {}

    def arrived(rows: Sequence[int], returned: Any, worker: str) -> None:
        receipts, about = returned
        for row, file, pixels in receipts:
            wait_until_seen(partial(pictures.is_as, row, file), pictures.path, f"image {pictures.file(row)}")
            pictures.believe(row, file, pixels)
        told[worker] = about
        advance(len(rows))

    tasks = tasks_of_images(pictures.missing(), executor.workers)
    executor.share(tasks, {**given, "of": identity(pictures.made_of)}, arrived)
    return [told[name] for name in sorted(told)]


def tasks_of_images(missing: Sequence[int], workers: int) -> list[list[int]]:
    """Images of each task: neighbours, and ever fewer of them, so that all workers end at about the same time.

    A task takes half of the share that each worker has of what is left (Polychronopoulos & Kuck 1987), in groups of
    ``ALIGNED`` images, up to ``MOST_IMAGES``. Groups of few images are smaller, so that every worker has several tasks.
    """
    workers = max(workers, 1)
    size = max(min(-(-len(missing) // (_TASKS_EACH * workers)), ALIGNED), 1)
    groups: dict[int, list[int]] = {}
    for row in missing:
        groups.setdefault(row // size, []).append(row)
    left = list(groups.values())
    tasks = []
    while left:
        count = max(min(len(left) // (2 * workers), MOST_IMAGES // ALIGNED), 1)
        tasks.append([row for group in left[:count] for row in group])
        del left[:count]
    return tasks


def _check(path: LocationLike, found: str, expected: str) -> None:
    if found != expected:
        raise StoreError(
            f"{path} is not what this task was made for: another run began it since",
            todo="wait for the other run, or choose another --study",
        )


def wait_until_seen(seen: Callable[[], bool], folder: Location, what: str) -> None:
    """Wait until a file of a folder is seen as a worker wrote it; raises StoreError after ``VISIBLE_WITHIN``."""
    until = time.monotonic() + VISIBLE_WITHIN
    while not seen():
        folder.place.refresh(folder.key)  # a bucket was listed before the worker wrote
        if seen():
            return
        if time.monotonic() > until:
            raise StoreError(
                f"{what} was written by a worker and is not seen here after {VISIBLE_WITHIN:.0f} s",
                expected="one folder that all machines see",
                todo="check the shared drive and run the same command again",
            )
        time.sleep(_LOOK_EVERY)
