"""The long pieces of a fetch, sessions and images: done in this process, or as tasks that workers do.

A task is numbers of sessions, or of row groups of images. A worker opens the files itself, as they were when the driver
found them; what the driver knows (voxels, design, sizes and versions of files) it reads beside the betas. No range is
fetched twice, whoever fetches it: tasks end where requests end.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leanrecon.context import Context, Executor
from leanrecon.datasets.nsd.betas import locate_trials, read_hdf5, session_trials
from leanrecon.datasets.nsd.chunks import Located
from leanrecon.datasets.nsd.dataset import OVERHEAD, images_step, sessions_step
from leanrecon.datasets.nsd.files import Files, Prepared, open_source, recall
from leanrecon.datasets.nsd.hdf5_index import Layout
from leanrecon.datasets.nsd.layout import STIMULI, TRIALS
from leanrecon.datasets.nsd.staging import Receipts, Staging
from leanrecon.datasets.nsd.stimuli import Place, locate_images, read_apart, read_images
from leanrecon.errors import StoreError
from leanrecon.images import ImageShape
from leanrecon.memory import buffer
from leanrecon.net.ahead import done_ahead
from leanrecon.net.ranges import Source, Traffic
from leanrecon.places import Location
from leanrecon.progress import Advance
from leanrecon.stores.shared import StorePart, confirm, identity, receipts_of
from leanrecon.stores.store import Store
from leanrecon.study.layout import Study

if TYPE_CHECKING:
    from leanrecon.datasets.nsd.dataset import NSDSettings

Array = np.ndarray[Any, Any]
Read = Callable[[Array, Array, Array, Place], Iterator[list[int]]]
"""Reads images by their numbers, of these rows and row groups, into their places; yields which of them are there."""

SESSIONS, IMAGES = "sessions", "images"
"""What workers share."""

TASKS_EACH = 4
"""Tasks a worker at least, so that none waits long for the last one."""

MOST_IMAGES = 128
"""Images of a task at most: 70 MB as NSD has them, three times what is under way at once."""


def trials_path(study: Study) -> Location:
    """The store of the trials of all sessions."""
    return study.root / "betas" / "trials.zarr"


def fetched(path: Location) -> Location:
    """The folder of what has come of a store and waits for its neighbours."""
    return path.with_name(f"{path.stem}.fetched")


# Sessions


def rows_of_session(k: int) -> range:
    """The trials of the session that is the ``k``-th of a study."""
    return range(k * TRIALS, (k + 1) * TRIALS)


def fetch_sessions(
    files: Files, prepared: Prepared, staging: Staging, sessions: Sequence[int], ahead: int = 1
) -> Iterator[int]:
    """Fetch sessions, by their numbers within the study, so many ``ahead``; yield each once all of it is put."""
    names = [prepared.betas[prepared.design.sessions[k]] for k in sessions]
    scratch = (staging.own / "download").workplace()
    for k, name, session in zip(sessions, names, _early(prepared, files, names, ahead), strict=True):
        if session is not None:
            staging.put(k * TRIALS, session)
        else:
            here = files.source.local(name)
            with files.need(name) as file, session_trials(file, here, prepared.voxels, scratch) as block:
                staging.put(k * TRIALS, block)
        yield k


def _early(prepared: Prepared, files: Files, names: Sequence[str], ahead: int) -> Iterator[Array | None]:
    """The trials of every .hdf5 file, so many ahead; None for a .nii.gz, which needs the disk and is read in its turn."""

    def locate(name: str) -> Located | None:
        return locate_trials(files.need(name), prepared.voxels) if name.endswith(".hdf5") else None

    def read(located: Located | None) -> Array | None:
        if located is None:
            return None
        with located.layout.file as file:
            return read_hdf5(located, file.held // ahead)

    aside = files.source.aside
    yield from done_ahead(aside, read, done_ahead(aside, locate, names), ahead)


def share_sessions(
    staging: Staging, sessions: Sequence[int], executor: Executor, traffic: Traffic, advance: Advance
) -> None:
    """Have workers fetch sessions; what they wait for is sealed here. ``advance`` is told of sessions."""

    def arrived(numbers: Sequence[int], returned: Any, worker: str) -> None:
        chunks, parts, moved = returned
        staging.take(Receipts(chunks, parts))
        traffic.add(*moved)
        advance(len(numbers))

    given = {"what": SESSIONS, "of": identity(staging.store.made_of)}
    executor.share(_tasks(sessions, len(sessions), executor.workers), given, arrived)


# Images


def fill_images(store: Store, numbers: Sequence[int], groups: Sequence[int], read: Read, advance: Advance) -> None:
    """Write some row groups of images, ``numbers`` ascending, each as soon as all of it has come out of the file."""
    rows = np.array([row for i in groups for row in store.group_rows(i)], np.int64)
    of = rows // store.chunk_rows
    memory: dict[int, Array] = {}
    left = {i: len(store.group_rows(i)) for i in groups}

    def place(k: int) -> Array:
        i = int(of[k])
        if i not in memory:
            memory[i] = buffer((left[i], *store.shape[1:]), np.uint8)
        image: Array = memory[i][int(rows[k]) - store.group_rows(i).start]
        return image

    for there in read(np.array(numbers, np.int64)[rows], rows, of, place):
        for i in of[there].tolist():
            left[i] -= 1
            if not left[i]:
                store.write_rows(i, memory.pop(i))
        advance(len(there))


def images_in(layout: Layout, shape: ImageShape) -> Read:
    """Reads images of ``shape`` from the file, whose index it looks up."""
    return lambda images, rows, groups, place: read_images(layout, images, shape, place, groups)


def share_images(
    layout: Layout,
    store: Store,
    split: str,
    numbers: Sequence[int],
    executor: Executor,
    traffic: Traffic,
    advance: Advance,
) -> None:
    """Have workers fetch the images that are missing; their places in the file are looked up here, once for all."""
    groups = store.missing_row_groups()
    rows = np.array([row for i in groups for row in store.group_rows(i)], np.int64)
    starts = np.full(store.rows, -1, np.int64)
    starts[rows] = locate_images(layout, np.array(numbers, np.int64)[rows])

    def arrived(groups: Sequence[int], returned: Any, worker: str) -> None:
        chunks, moved = returned
        confirm(store, chunks)
        traffic.add(*moved)
        advance(sum(len(store.group_rows(i)) for i in groups))

    given = {"what": IMAGES, "split": split, "starts": starts.tolist(), "of": identity(store.made_of)}
    most = max(MOST_IMAGES // store.chunk_rows, 1)
    executor.share(_tasks(groups, most, executor.workers), given, arrived)


def _tasks(numbers: Sequence[int], most: int, workers: int) -> list[Sequence[int]]:
    """Cut numbers into runs, such that every worker has several, of at most so many numbers."""
    each = max(min(-(-len(numbers) // (TASKS_EACH * max(workers, 1))), most), 1)
    return [numbers[k : k + each] for k in range(0, len(numbers), each)]


# What workers do


class Fetching:
    """A piece of a fetch in the process of a worker: it keeps its connections until it is closed."""

    def __init__(
        self, settings: "NSDSettings", study: Study, named: Mapping[str, Any], base_dir: Path | None, context: Context
    ) -> None:
        prepared = recall(study)
        if prepared is None:
            raise StoreError(
                f"{study.root} does not tell which files it is made from", todo="run the same command again"
            )
        self.settings, self.study, self.named, self.prepared = settings, study, named, prepared
        work = OVERHEAD + self.step(context.chunk)
        context.require(f"fetching {named['what']}", work)
        opened: AbstractContextManager[Source] = open_source(settings.root, settings.endpoint_url, base_dir)
        self.source = opened.__enter__()
        self.files = Files(self.source, dict(prepared.found))

    def __call__(self, numbers: Sequence[int]) -> Any:
        before = self.source.traffic.requests, self.source.traffic.nbytes
        receipts = self.fetch(numbers)
        after = self.source.traffic.requests, self.source.traffic.nbytes
        return *receipts, [after[0] - before[0], after[1] - before[1]]

    def close(self) -> None:
        """Let the connections go."""
        self.source.__exit__(None, None, None)

    @property
    def held(self) -> int:
        """Bytes of ranges that are in memory at once."""
        from leanrecon.net import ranges

        return ranges.HELD if self.settings.remote else 0

    def step(self, chunk: int) -> int:
        """Bytes of memory that it takes at most."""
        raise NotImplementedError

    def fetch(self, numbers: Sequence[int]) -> tuple[Any, ...]:
        """Fetch what has these numbers, and return the receipts."""
        raise NotImplementedError


class Sessions(Fetching):
    """Fetches sessions, by their numbers within the study."""

    def step(self, chunk: int) -> int:
        return sessions_step(self.prepared, self.held, chunk)

    def fetch(self, numbers: Sequence[int]) -> tuple[Any, ...]:
        store = StorePart.begun(trials_path(self.study), self.named["of"])
        staging = Staging(store, fetched(store.path))
        missing = set((staging.missing() // TRIALS).tolist())
        for _ in fetch_sessions(self.files, self.prepared, staging, [k for k in numbers if k in missing]):
            pass
        found = [staging.receipts(rows_of_session(k)) for k in numbers]
        return [one for of in found for one in of.chunks], [one for of in found for one in of.parts]


class ImageGroups(Fetching):
    """Fetches row groups of the images of one split."""

    def step(self, chunk: int) -> int:
        return images_step(self.settings, self.prepared, self.held, chunk)

    def fetch(self, numbers: Sequence[int]) -> tuple[Any, ...]:
        store = StorePart.begun(self.study.stimuli(self.named["split"]), self.named["of"])
        shape = (store.shape[1], store.shape[2], store.shape[3])
        starts = np.array(self.named["starts"], np.int64)
        with self.files.need(STIMULI) as file:

            def read(images: Array, rows: Array, groups: Array, place: Place) -> Iterator[list[int]]:
                return read_apart(file, self.prepared.stimuli, starts[rows], shape, place, groups)

            missing = [i for i in numbers if not all(store.has(i, j) for j in range(store.column_groups))]
            shown = list(self.prepared.design.shown(self.named["split"]))
            fill_images(store, shown, missing, read, lambda rows: None)
        return (receipts_of(store, [(i, j) for i in numbers for j in range(store.column_groups)]),)


PIECES: dict[str, type[Fetching]] = {SESSIONS: Sessions, IMAGES: ImageGroups}
"""What workers do, by its name in a task."""
