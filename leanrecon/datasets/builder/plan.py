"""Memory and disk that building a study takes: arithmetic on shapes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from leanrecon.datasets.arrays.repeats import Averaged, Repeats
from leanrecon.datasets.builder.materials import Materials
from leanrecon.datasets.builder.noise import FEWEST
from leanrecon.datasets.builder.settings import BuilderSettings
from leanrecon.datasets.builder.splits import repeats_of, split_trials
from leanrecon.datasets.files.asked import Asked, known_by_content, read_once, scattered, volumes
from leanrecon.datasets.files.rows import BLOCK
from leanrecon.datasets.ingest import StorePlan, plan_store
from leanrecon.datasets.nearby import plan_copy, read_nbytes
from leanrecon.datasets.plan import DatasetPlan
from leanrecon.datasets.reliability import SAMPLE
from leanrecon.datasets.voxel_reliability import select_nbytes
from leanrecon.stores.layout import plan_chunks
from leanrecon.study.costs import Cost, inputs_read, store_made, store_read, total

ROWS = 64
"""Rows that are read together for sums over trials."""

OVERHEAD = 40 * 10**6
"""Bytes that nibabel, h5py, Pillow and Zarr take when they are loaded."""


@dataclass(frozen=True)
class Sizes:
    """The shapes of a study that is built."""

    voxels: int
    n: dict[str, int]
    """Rows of betas of each split."""
    images: dict[str, int]
    """Different images of each split."""


def is_staged(materials: Materials) -> bool:
    """Whether responses are copied to ``trials.zarr`` first, where reading some rows means reading through the file.

    So it is where a file can only be read from its start, or where the trials of a voxel lie together.
    """
    return bool(materials.responses.sequential or materials.responses.together > ROWS)


def is_copied(materials: Materials, repeats: Iterable[Repeats]) -> bool:
    """Whether responses in a bucket are copied to this machine first, because rows of the same image lie apart."""
    return materials.responses.away and not is_staged(materials) and any(of.repeated for of in repeats)


def plan_trials(materials: Materials, voxels: int, chunk: int, free: int) -> StorePlan:
    """The filling of ``trials.zarr``."""
    rows = materials.responses
    return plan_store(
        (len(rows), voxels),
        np.float32,
        chunk,
        free=free,
        together=1 if rows.sequential else rows.together,
        held=rows.held,
        scratch=rows.scratch + OVERHEAD,
    )


def plan_betas(materials: Materials, n: int, voxels: int, chunk: int, free: int, *, averaged: bool) -> StorePlan:
    """The filling of the betas of one split."""
    rows = materials.responses
    staged = is_staged(materials)
    group = plan_chunks((len(rows), voxels), np.float32, chunk)[0]
    return plan_store(
        (n, voxels),
        np.float32,
        chunk,
        free=free,
        together=1 if staged else n if averaged and rows.away else rows.together,  # a band goes through the file
        held=0 if staged else rows.held,
        scratch=(4 * chunk + 4 * group * voxels if staged else read_nbytes(rows, chunk)) + OVERHEAD + 40 * voxels,
        working=Averaged.working if averaged else 1,
    )


def plan_images(materials: Materials, n: int, chunk: int, free: int) -> StorePlan:
    """The filling of the images of one split."""
    assert materials.images is not None
    rows = materials.images.rows
    return plan_store(
        (n, *materials.images.shape),
        np.uint8,
        chunk,
        free=free,
        together=rows.together,
        held=rows.held,
        scratch=rows.scratch + 3 * max(BLOCK, rows.row_nbytes) + OVERHEAD,
    )


def plan_build(
    materials: Materials, settings: BuilderSettings, seed: int, base_dir: Path | None, chunk: int, free: int
) -> DatasetPlan:
    """The plan of a study whose files are known: all their trials, and the voxels of the chosen areas.

    How many of them ``min_reliability`` leaves out is not known before the betas are read.
    """
    parts = split_trials(materials.trials, settings, seed, base_dir)
    repeats = repeats_of(materials.trials, parts, settings, materials.images)
    voxels = len(materials.voxels.chosen(settings.chosen_areas))
    n = {split: len(of.trials) for split, of in repeats.items()}
    shown = {split: len(of.images) for split, of in repeats.items()}
    plans = [
        plan_betas(materials, n[split], voxels, chunk, free, averaged=of.averaged) for split, of in repeats.items()
    ]
    if is_staged(materials):
        plans.append(plan_trials(materials, voxels, chunk, free))
    copied, scratch = is_copied(materials, repeats.values()), 0
    if copied:
        copy = plan_copy(materials.responses, chunk, free - OVERHEAD)
        plans.append(replace(copy, work=copy.work + OVERHEAD, disk=0))
        scratch = copy.disk
    if materials.images is not None:
        plans += [plan_images(materials, shown[split], chunk, free) for split in repeats]
    most = max((len(of) for each in repeats.values() for of in each.rows.values()), default=1)
    sample = (most > 1) * (len(materials.trials) * min(voxels, SAMPLE) * 3 * 4 + 3 * materials.responses.scratch)
    groups = 0
    if settings.zscore != "none":
        groups = 1 if settings.zscore == "train" else int(materials.trials.groups(settings.zscore).max()) + 1
    levels = 40 * groups * voxels + materials.held + ROWS * 12 * voxels
    levels += 0 if settings.min_reliability is None else select_nbytes(voxels)
    at_once = {
        split: plan.at_once * plan_chunks((n[split], voxels), np.float32, chunk)[0]
        for split, plan in zip(repeats, plans, strict=False)
    }
    asked = _asked(materials, settings, repeats, at_once)
    return DatasetPlan(
        n_train=n["train"],
        n_test=n.get("test", 0),
        train_images=shown["train"],
        test_images=shown.get("test", 0),
        max_repeats=most,
        voxels=voxels,
        image_shape=materials.images.shape if materials.images else None,
        folds=settings.folds,
        work=max(*(plan.work for plan in plans), sample + OVERHEAD) + levels,
        disk=sum(plan.disk for plan in plans),
        scratch=scratch,
        beside=inputs_read(asked.requests, asked.nbytes) + _reread(materials, settings, most, shown, chunk),
    )


def _reread(materials: Materials, settings: BuilderSettings, most: int, shown: Mapping[str, int], chunk: int) -> Cost:
    """The cost of the store of single trials, and of comparing the stored images."""
    cost = Cost()
    if is_staged(materials):
        cells = ((len(materials.trials), len(materials.voxels.chosen(settings.chosen_areas))), np.float32, chunk)
        times = 1 + (settings.zscore != "none") + 3 * (most > 1)  # how alike repeats are, and twice their noise
        cost = store_made(*cells) + store_read(*cells, times)
    if materials.images is not None and not settings.allow_shared_stimuli:
        shape = materials.images.shape
        cost += total(store_read((images, *shape), np.uint8, chunk) for images in shown.values())
    return cost


def _asked(
    materials: Materials, settings: BuilderSettings, repeats: Mapping[str, Repeats], at_once: Mapping[str, int]
) -> Asked:
    """What reading the materials asks of buckets: for their content, and for responses and images.

    ``at_once`` is how many rows of the betas of each split are read together.
    """
    responses, images = materials.responses, materials.images
    staged = is_staged(materials)
    once = staged or is_copied(materials, repeats.values())
    looks = 1 + staged + (0 if images is None else 2 - bool(settings.folds))
    asked = known_by_content([responses, *([images.rows] if images else [])], looks)
    single = any(not of.averaged for of in repeats.values())
    again = {split: [len(rows) for rows in of.rows.values() if len(rows) > 1] for split, of in repeats.items()}
    # The z-scores; how alike repeats are; and rows that are stored as they are.
    for _ in range(1 if once else (settings.zscore != "none") + any(again.values()) + single):
        asked += read_once(responses, ROWS)
    if not once:
        every = [rows for of in again.values() for rows in of]
        for shown in (every, [] if settings.folds else again["train"]):  # the noise of each voxel
            if len(shown) >= FEWEST:
                asked += read_once(responses, ROWS).part(sum(shown) / len(responses))
                asked += scattered(responses, sum(shown), -(-len(shown) // ROWS))
        for split, of in repeats.items():
            if of.averaged:
                asked += scattered(responses, len(of.index), -(-len(of.images) // max(at_once[split], 1)))
    if images is not None:
        asked += read_once(images.rows, len(images.rows))
    known = {str(one.path) for one in responses.sources()}
    return asked + volumes([file for file in materials.files if str(file) not in known], looks)
