"""The stage features: one row of each feature space for every image, from the image or its captions."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from leanrecon import kinds
from leanrecon.context import Context
from leanrecon.features.extract import encode_groups, extract
from leanrecon.features.extract_captions import (
    NO_IMAGE,
    check_captions,
    encode_captions,
    extract_captions,
    read_captions,
)
from leanrecon.features.plan import plan_captions, plan_extract
from leanrecon.features.unconditional import keep_unconditional
from leanrecon.places import Location
from leanrecon.progress import counted
from leanrecon.stages.costs_of_stages import begun, encoding_cost
from leanrecon.stages.precomputed import extract_precomputed
from leanrecon.stages.stage import LIBRARY_NBYTES, Piece, PlannedStage, Planning, Run, variant_named
from leanrecon.stores.layout import plan_chunks, store_nbytes
from leanrecon.stores.shared import StorePart, receipts_of
from leanrecon.stores.store import Store
from leanrecon.study.settings import Settings
from leanrecon.study.variants import Variant, variants, whole_brain
from leanrecon.weights.libraries import count_held

_FLOAT = 4  # bytes


class FeaturesStage:
    """Encodes each image once for every feature space, and once for every fold if the space is fitted."""

    name = "features"

    def check(self, run: Run) -> None:
        """Raise InputError for weights that don't match their settings; missing ones are reported elsewhere."""
        for space in run.spaces.values():
            check_weights(space)

    # Planning

    def plan(self, planning: Planning) -> Iterator[PlannedStage]:
        shape = planning.image_shape
        for space in planning.spaces.values():
            space.expect(min(planning.split[0], planning.images[0]))
        held = 0
        for space in planning.spaces.values():
            check_weights(space)
            start = planning.budget
            planning.hold(held)
            yield self._plan_space(planning, space)
            planning.budget = start
            held = staying_nbytes([*self._before(planning, space), space], shape)
            count_held(space.library)
        planning.hold(held)

    @staticmethod
    def _before(planning: Planning, space: Any) -> list[Any]:
        every = list(planning.spaces.values())
        return every[: every.index(space)]

    def _plan_space(self, planning: Planning, space: Any) -> PlannedStage:
        work, disk, summary = _PLANS[space.inputs](planning, space)
        if space.name in unconditional_spaces(planning.settings):
            disk += store_nbytes((1, space.dims(planning.image_shape)), np.float32, planning.chunk)
        alone, shared = encoding_cost(space, planning)
        if not self._before(planning, space):
            alone += begun(planning)
        memory = planning.budget.reserved + work
        return PlannedStage(f"features {space.name}", summary, memory, disk, cost=alone, shared=shared)

    # Running

    def run(self, run: Run) -> None:
        every = whole_brain(variants(run.study, run.settings))
        for space in run.spaces.values():
            for variant in every if space.learns else every[:1]:
                self._encode(run, space, variant)
            space.release()

    def _encode(self, run: Run, space: Any, variant: Variant) -> None:
        """Fit and encode one variant: every fold of a space that is fitted, else once."""
        study, name = variant.features(space.learns), space.name
        splits = ("train",) if run.settings.dataset.folds else ("train", "test")
        stores = [study.features(name, split) for split in splits]
        unconditional = study.unconditional(name)
        with run.recorded(f"features {name}", study, [*stores, unconditional]) as (record, context):
            if space.learns:
                images = Store.open(run.study.stimuli("train"))
                space.fit(images, study.fitted(name), context, rows=variant.train_images)
            for split, path in zip(splits, stores, strict=True):
                named = {"variant": variant.name, "space": name, "split": split}
                shared = run.shared(context, self.name, named, shares=space.inputs in _PIECES)
                _ENCODERS[space.inputs](run, variant, space, Split(split, path), shared, record)
            if name in unconditional_spaces(run.settings):
                keep_unconditional(space, run.image_shape, unconditional, context)
            record["settings"] = run.settings.features[name].model_dump(exclude_none=True)

    def piece(self, run: Run, named: Mapping[str, Any], context: Context) -> Piece:
        """Encodes groups of rows of one split in one feature space, on a worker."""
        variant, space = variant_named(run, named["variant"]), run.spaces[named["space"]]
        study, split = variant.features(space.learns), named["split"]
        if space.learns:
            space.load(study.fitted(space.name))
        store = StorePart.begun(study.features(space.name, split), named["of"])
        encode = _PIECES[space.inputs](run, variant, space, Split(split, store.path), store, named["batch"], context)

        def work(groups: Sequence[int]) -> Any:
            encode(groups)
            return receipts_of(store, [(i, j) for i in groups for j in range(store.column_groups)])

        return work


@dataclass(frozen=True)
class Split:
    """The images of a split, and the store of their features."""

    name: str
    path: Location


def _encode_images(run: Run, variant: Variant, space: Any, split: Split, context: Context, record: Any) -> None:
    extract(space, Store.open(run.study.stimuli(split.name)), split.path, context)


def _encode_captions(run: Run, variant: Variant, space: Any, split: Split, context: Context, record: Any) -> None:
    captions = read_captions(run.study.captions(split.name), len(variant.rows.ids[split.name]))
    extract_captions(space, captions, split.path, context, record=record)


def _read_rows(run: Run, variant: Variant, space: Any, split: Split, context: Context, record: Any) -> None:
    folds = bool(run.settings.dataset.folds)
    extract_precomputed(space, run.study, split.name, split.path, context, folds=folds)


def _image_piece(
    run: Run, variant: Variant, space: Any, split: Split, store: Store, batch: int, context: Context
) -> Callable[[Sequence[int]], None]:
    images = Store.open(run.study.stimuli(split.name))
    chunks, shape = (store.chunk_rows, store.chunk_columns), run.image_shape
    cost, free = space.cost(shape), context.budget.free
    plan = plan_extract(images.shape, images.chunk_rows, chunks, store.columns, cost, free=free, batch=batch)
    context.require(f"features {space.name}", plan.work)
    return lambda groups: encode_groups(space, images, store, batch, groups, lambda rows: None)


def _caption_piece(
    run: Run, variant: Variant, space: Any, split: Split, store: Store, batch: int, context: Context
) -> Callable[[Sequence[int]], None]:
    captions = check_captions(read_captions(run.study.captions(split.name), len(variant.rows.ids[split.name])))
    chunks, free = (store.chunk_rows, store.chunk_columns), context.budget.free
    plan = plan_captions(store.rows, chunks, store.columns, space.cost(NO_IMAGE), free=free, batch=batch)
    context.require(f"features {space.name}", plan.work)
    return lambda groups: encode_captions(space, captions, store, batch, groups, lambda rows: None)


_PIECES = {"images": _image_piece, "captions": _caption_piece}
"""The functions that workers run; rows from files are read by the driver."""

_ENCODERS = {"images": _encode_images, "captions": _encode_captions, "ids": _read_rows}
"""How the features of a split are made, by the input of a space."""


def _plan_images(planning: Planning, space: Any) -> tuple[int, int, str]:
    shape, (train, test), chunk = planning.image_shape, planning.images, planning.chunk
    image_rows = plan_chunks((train + test, *shape), np.uint8, chunk)[0]
    dims, free = space.dims(shape), planning.budget.free
    height, width = plan_chunks((train + test, dims), np.float32, chunk)
    batch = plan_extract((train + test, *shape), image_rows, (height, width), dims, space.cost(shape), free=free)
    work = max(batch.work, space.fit_nbytes((train, *shape), image_rows))
    return work, _stores_nbytes(planning, space), f"{dims} dims, {counted(batch.batch, 'rows')} a batch"


def _plan_captions(planning: Planning, space: Any) -> tuple[int, int, str]:
    shape, total, held = planning.image_shape, sum(planning.images), planning.data.captions
    dims = space.dims(shape)
    height, width = plan_chunks((total, dims), np.float32, planning.chunk)
    batch = plan_captions(total, (height, width), dims, space.cost(shape), free=planning.budget.free - held)
    return batch.work + held, _stores_nbytes(planning, space), f"{dims} dims, {counted(batch.batch, 'rows')} a batch"


def _plan_rows(planning: Planning, space: Any) -> tuple[int, int, str]:
    folds = bool(planning.data.folds)
    splits = zip(("train", "test"), planning.images, strict=True)
    plans = [
        space.plan_rows(split, n, folds=folds, chunk=planning.chunk, free=planning.budget.free)
        for split, n in splits
        if n
    ]
    summary = f"{space.dims(planning.image_shape)} dims, read from files"
    return max(plan.work for plan in plans), sum(plan.disk for plan in plans), summary


_PLANS = {"images": _plan_images, "captions": _plan_captions, "ids": _plan_rows}
"""Bytes of memory and of disk, and a summary."""


def _stores_nbytes(planning: Planning, space: Any) -> int:
    """Bytes of the stores of a space, one for each fold if the space is fitted."""
    times, dims = planning.folds if space.learns else 1, space.dims(planning.image_shape)
    return times * sum(store_nbytes((n, dims), np.float32, planning.chunk) for n in planning.images if n)


def check_weights(space: Any) -> None:
    """Raise InputError if the weights of a feature space don't match its settings; reads only headers and configs."""
    if (check := getattr(space, "check", None)) is not None:
        check()


def unconditional_spaces(settings: Settings) -> set[str]:
    """The feature spaces whose unconditional embedding the generator needs."""
    generator = kinds.kind_of("generators", settings.refine)
    return set(generator.unconditional_roles(settings.refine).values())


def staying_nbytes(spaces: list[Any], shape: Any) -> int:
    """Bytes that stay in the process after these spaces were used: libraries, and fitted parameters."""
    libraries = {space.library for space in spaces if space.library}
    networks = max((LIBRARY_NBYTES[name] for name in libraries if name != "sklearn"), default=0)
    learning = LIBRARY_NBYTES["sklearn"] if "sklearn" in libraries else 0
    return networks + learning + sum(int(space.cost(shape).held) for space in spaces if space.learns)
