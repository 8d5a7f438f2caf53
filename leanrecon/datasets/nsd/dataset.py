"""The Natural Scenes Dataset on a small disk: of its files only the bytes that matter, straight into a study's stores.

Allen et al. (2022), Nature Neuroscience 25, 116-126. boto3 and nibabel are imported when they are first used.
"""

import math
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import BaseModel

from leanrecon.context import Context
from leanrecon.datasets.nsd.layout import SHARED, STIMULI, TRIALS
from leanrecon.datasets.nsd.settings import NSDSettings as NSDSettings
from leanrecon.datasets.plan import DatasetPlan
from leanrecon.datasets.reliability import SAMPLE
from leanrecon.errors import NetworkError
from leanrecon.places.paths import find
from leanrecon.study.costs import Cost, files_made, store_made, store_read, total
from leanrecon.study.layout import Study
from leanrecon.study.rows import refuse_earlier_format
from leanrecon.weights.published import FILES

if TYPE_CHECKING:
    from leanrecon.datasets.nsd.files import Prepared
    from leanrecon.datasets.nsd.hdf5_index import Layout
    from leanrecon.datasets.nsd.requests import Moved

FORMAT = 2
"""Of the order of rows and of the arithmetic that leads from files to stores: raised whenever it changes."""

OVERHEAD = 110 * 10**6
"""Bytes that boto3, nibabel, SciPy's reader and Zarr take when they are loaded, with lists of trials and ids."""

TOGETHER = 2
"""Sessions that come at once while images do, so that requests for one fill the pauses of the other."""

CAPTION_NBYTES = 1600
"""Bytes that the five or six captions of an image take while they are read and written."""

SPLITS = ("train", "test")
_LISTED = 8
"""Requests that list and delete the rows which wait for the rest of their chunk of trials."""

INDEX_SHARE = 0.25
"""Of the voxels' bytes, what their index and the gaps between them add where no mask is known: 0.20 in subject 1's volume."""


class NSD:
    """The Natural Scenes Dataset as a dataset."""

    Settings: ClassVar[type[BaseModel]] = NSDSettings

    def __init__(self, settings: NSDSettings) -> None:
        self.settings = settings

    @classmethod
    def notes(cls, settings: NSDSettings) -> Iterable[str]:
        """Sentences that a reader of the report must know."""
        if settings.shared_train:
            yield (
                f"{settings.shared_train} of the {SHARED:,} images that all subjects saw are train images "
                "(dataset.shared_train): the test images are fewer than in published results."
            )
        if settings.allow_shared_stimuli:
            yield "Test images may be among the train images (dataset.allow_shared_stimuli)."
        if settings.zscore_sessions:
            yield "Voxels were z-scored by all trials of a session, tested ones among them (dataset.zscore_sessions)."

    def plan(self, *, base_dir: Path | None, chunk: int, free: int) -> DatasetPlan:
        """Say what fetching would move, write and take, from headers, the masks and the design; with more ``free`` bytes,
        images come while sessions do.

        Without the network it counts what NSD publishes, and warns. Raises InputError for sessions that are missing and
        for files that don't fit together, NetworkError where nothing is published.
        """
        from leanrecon.datasets.nsd.files import Files, open_source, prepare
        from leanrecon.datasets.nsd.requests import planned_traffic
        from leanrecon.datasets.nsd.stimuli import stimuli_layout
        from leanrecon.net.retry import TO_PLAN

        try:
            with open_source(self.settings.root, self.settings.endpoint_url, base_dir, TO_PLAN) as source:
                files = Files(source)
                prepared = prepare(_without_missing(self.settings, base_dir), files, base_dir)
                with files.need(STIMULI) as file:
                    images = stimuli_layout(file)
                    moved = planned_traffic(self.settings, prepared, images, files, chunk)
                    return plan_fetch(self.settings, prepared, images, chunk, moved, free)
        except NetworkError as error:
            from leanrecon.datasets.nsd.published import published_plan

            return published_plan(self.settings, chunk, free, error)

    def ingest(self, study: Study, *, base_dir: Path | None, context: Context) -> None:
        """Fetch a subject's betas, images and captions into a study's stores, continuing where an earlier run stopped.

        Neither the memory budget nor the seed decides anything. Images are in order of their number among NSD's
        73,000, and so are averaged rows; single trials are in order of presentation. ``ids.json`` holds the numbers of
        images and ``rows.json`` those of trials, both from 0; ``trials.json`` tells of every row of ``trials.zarr``.
        Where all is there already, nothing is asked of the network.
        Raises InputError for files that are missing, damaged, don't fit together or have changed, for trials that
        don't match the images, and where the terms of use are not accepted; NetworkError, BudgetError, StoreError.
        """
        from leanrecon.datasets.nsd.fetch import Fetch

        if not context.overwrite:
            refuse_earlier_format(study)
        Fetch(self.settings, study, base_dir, context).run()

    def piece(self, study: Study, named: Mapping[str, Any], *, base_dir: Path | None, context: Context) -> Any:
        """What does tasks of a fetch on a worker: sessions of betas, or row groups of images."""
        from leanrecon.datasets.nsd.pieces import PIECES

        return PIECES[named["what"]](self.settings, study, named, base_dir, context)


def _without_missing(settings: NSDSettings, base_dir: Path | None) -> NSDSettings:
    """The settings, without captions if `leanrecon fetch-weights` has yet to download them: plans don't read captions."""
    lacking = settings.captions in FILES and find(str(settings.captions), base_dir) is None
    return settings.model_copy(update={"captions": None}) if lacking else settings


def plan_fetch(
    settings: NSDSettings,
    prepared: "Prepared",
    images: "Layout",
    chunk: int,
    moved: "Moved | None" = None,
    free: int = 0,
) -> DatasetPlan:
    """The plan of a study whose files are known: arithmetic only. ``moved`` is what is fetched; None: not known.

    ``free`` bytes of memory decide whether images come while sessions do.
    """
    from leanrecon.datasets.nsd.stimuli import lie_apart, stored_shape
    from leanrecon.stores.layout import store_nbytes

    voxels, design = len(prepared.voxels.index), prepared.design
    trials = (len(design.trial), voxels)
    shape = stored_shape(images.shape, settings.image_size)
    shown = {split: design.shown(split) for split in SPLITS}
    n = {split: len(shown[split]) if settings.averages(split) else len(design.trials(split)) for split in SPLITS}
    n_images = sum(map(len, shown.values()))
    disk = store_nbytes(trials, np.int16, chunk)
    for split in SPLITS:
        disk += store_nbytes((n[split], voxels), np.float32, chunk)
        disk += store_nbytes((len(shown[split]), *shape), np.uint8, chunk)
    sizes = {name: prepared.found[name].size for name in prepared.betas.values()}
    surgical = int(voxels * TRIALS * 2 * (1 + INDEX_SHARE))
    download = sum(min(size, surgical) if name.endswith(".hdf5") else size for name, size in sizes.items())
    of_images = n_images * int(np.prod(images.shape[1:]))
    apart, by_workers = lie_apart(images), download / (download + of_images)
    download += of_images
    if moved is not None:
        download = moved.nbytes
    scratch = max([size for name, size in sizes.items() if name.endswith(".nii.gz")], default=0)
    far = settings.root.startswith("s3://")
    captions = CAPTION_NBYTES * n_images if settings.captions else 0
    return DatasetPlan(
        n_train=n["train"],
        n_test=n["test"],
        train_images=len(shown["train"]),
        test_images=len(shown["test"]),
        max_repeats=max((len(of) for split in SPLITS for of in shown[split].values()), default=1),
        voxels=voxels,
        image_shape=shape,
        folds=None,
        work=OVERHEAD + captions + fetch_nbytes(settings, prepared, images, chunk, free=free - OVERHEAD - captions),
        disk=disk,
        captions=captions,
        download=download if far else 0,
        requests=moved.requests if far and moved is not None else 0,
        scratch=scratch if far else 0,
        beside=_beside(settings, prepared, n, shape, chunk),
        shared=_by_sessions(prepared, chunk),
        shares_images=apart,
        shared_download=(1.0 if apart else by_workers) if far else 0.0,
    )


def _beside(
    settings: NSDSettings, prepared: "Prepared", n: Mapping[str, int], shape: tuple[int, ...], chunk: int
) -> Cost:
    """The cost of reading the store of single trials, and of the check of images."""
    design = prepared.design
    trials = (len(design.trial), len(prepared.voxels.index))
    costs = [store_read(trials, np.int16, chunk, _times_read(settings, n, trials, chunk))]
    if not settings.allow_shared_stimuli:
        costs += [store_read((len(design.shown(split)), *shape), np.uint8, chunk) for split in SPLITS if n[split]]
    return total(costs)


def _by_sessions(prepared: "Prepared", chunk: int) -> Cost:
    """The cost of writing single trials: their store, and files of rows that wait for the rest of their chunk."""
    design = prepared.design
    costs = [store_made((len(design.trial), len(prepared.voxels.index)), np.int16, chunk)]
    if waiting := 2 * len(design.sessions) - 2:
        costs += [files_made(2), Cost(puts=_LISTED + waiting, gets=waiting)]
    return total(costs)


def _times_read(settings: NSDSettings, n: Mapping[str, int], trials: tuple[int, int], chunk: int) -> float:
    """How often trials are read through: to check them, for the levels of sessions, and for the betas of each split."""
    from leanrecon.stores.layout import plan_chunks

    tall = plan_chunks(trials, np.int16, chunk)[0]
    groups, times = -(-trials[0] // tall), 1.0
    averaged = [split for split in SPLITS if settings.averages(split)]
    times += (1 + settings.zscore_sessions) * bool(averaged)
    for split in set(SPLITS) - set(averaged):
        # A group of rows reads each group of trials that it begins or goes on in.
        own = -(-n[split] // plan_chunks((n[split], trials[1]), np.float32, chunk)[0])
        times += settings.zscore_sessions + (groups + own - 1) / groups
    return times


def fetch_nbytes(
    settings: NSDSettings,
    prepared: "Prepared",
    images: "Layout",
    chunk: int,
    *,
    without: Container[str] = (),
    free: int = 0,
) -> int:
    """Most bytes of memory that a step of the fetch takes, with ``free`` bytes; ``without`` the steps that workers do."""
    steps = [3 * _group_nbytes(prepared, chunk), _check_step(prepared, chunk), _betas_step(settings, prepared, chunk)]
    if "sessions" not in without:
        steps.append(sessions_step(prepared, images.file.held, chunk))
    if "images" not in without:
        steps.append(images_step(settings, prepared, images.file.held, chunk, images))
    if not without and come_together(settings, prepared, images, chunk, free):
        steps.append(together_nbytes(settings, prepared, images, chunk))
    return max(steps)


def come_together(settings: NSDSettings, prepared: "Prepared", images: "Layout", chunk: int, free: int) -> bool:
    """Whether images are fetched while sessions are, two sessions at once, and while betas are made of these.

    That needs a bucket, enough memory, and a file where each image is one run of bytes.
    """
    from leanrecon.datasets.nsd.stimuli import lie_apart

    if images.file.held == 0 or not lie_apart(images):
        return False
    return together_nbytes(settings, prepared, images, chunk) <= free


def together_nbytes(settings: NSDSettings, prepared: "Prepared", images: "Layout", chunk: int) -> int:
    """Most bytes of memory that sessions, their check or betas take while images come."""
    from leanrecon.net.s3 import CONNECTION_NBYTES, CONNECTIONS

    held = images.file.held
    check, betas = _check_step(prepared, chunk), _betas_step(settings, prepared, chunk)
    beside = max(sessions_step(prepared, held, chunk, TOGETHER), check, betas)
    connections = CONNECTIONS * CONNECTION_NBYTES
    return beside + images_step(settings, prepared, held, chunk, images) + connections


def _check_step(prepared: "Prepared", chunk: int) -> int:
    """Most bytes of memory that telling takes how alike repeats are."""
    trials, voxels = len(prepared.design.trial), len(prepared.voxels.index)
    return trials * min(voxels, SAMPLE) * (2 + 4) + 3 * TRIALS * SAMPLE * 4 + 2 * chunk


def _betas_step(settings: NSDSettings, prepared: "Prepared", chunk: int) -> int:
    """Most bytes of memory that making betas of all trials takes."""
    from leanrecon.datasets.nsd.average import average_nbytes, single_nbytes

    design, steps = prepared.design, [0]
    trials = (len(design.trial), len(prepared.voxels.index))
    averaged = sum(len(design.shown(split)) for split in SPLITS if settings.averages(split))
    sessions = len(design.sessions) * settings.zscore_sessions
    if averaged:
        steps.append(average_nbytes(trials, averaged, chunk, sessions=sessions))
    for split in SPLITS:
        if not settings.averages(split):
            steps.append(single_nbytes(trials, len(design.trials(split)), chunk, sessions=sessions))
    return max(steps)


def sessions_step(prepared: "Prepared", held: int, chunk: int, ahead: int = 1) -> int:
    """The most bytes of memory for fetching sessions, ``ahead`` of them at once; ``held``: of ranges, 0 from a disk."""
    from leanrecon.datasets.nsd.betas import session_nbytes

    return session_nbytes(prepared.voxels, prepared.betas.values(), held, ahead) + 3 * _group_nbytes(prepared, chunk)


def images_step(
    settings: NSDSettings, prepared: "Prepared", held: int, chunk: int, layout: "Layout | None" = None
) -> int:
    """Most bytes of memory that fetching images takes; without a layout, where each of them is one run of bytes."""
    from leanrecon.datasets.nsd.stimuli import apart_nbytes, lie_apart, stored_shape, together_nbytes
    from leanrecon.stores.layout import plan_chunks

    shape, shown = stored_shape(prepared.stimuli, settings.image_size), len(np.unique(prepared.design.stimulus))
    rows = plan_chunks((shown, *shape), np.uint8, chunk)[0]
    group = rows * math.prod(shape)
    if layout is not None and not lie_apart(layout):
        return together_nbytes(layout, shape) + 3 * group
    return apart_nbytes(prepared.stimuli, shape, held, rows) + 2 * group


def _group_nbytes(prepared: "Prepared", chunk: int) -> int:
    """Bytes of a row group of the trials."""
    from leanrecon.stores.layout import plan_chunks

    trials = (len(prepared.design.trial), len(prepared.voxels.index))
    return plan_chunks(trials, np.int16, chunk)[0] * trials[1] * 2
