"""The stage features: every image, or its captions, as rows of numbers of each feature space."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from leanrecon import kinds
from leanrecon.features.extract import extract
from leanrecon.features.extract_captions import extract_captions, read_captions
from leanrecon.features.plan import plan_captions, plan_extract
from leanrecon.features.unconditional import keep_unconditional
from leanrecon.stages.stage import LIBRARY_NBYTES, PlannedStage, Planning, Run
from leanrecon.stores.images import image_shape
from leanrecon.stores.layout import plan_chunks, store_nbytes
from leanrecon.stores.store import Store
from leanrecon.study.settings import Settings
from leanrecon.study.variants import Variant, variants, whole_brain

_FLOAT = 4  # bytes


class FeaturesStage:
    """Encodes each image once, for every feature space and, where a space learns, for every fold."""

    name = "features"

    def check(self, run: Run) -> None:
        """Refuse weights that don't fit their settings; missing ones are refused for all stages together."""
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
        planning.hold(held)

    @staticmethod
    def _before(planning: Planning, space: Any) -> list[Any]:
        every = list(planning.spaces.values())
        return every[: every.index(space)]

    def _plan_space(self, planning: Planning, space: Any) -> PlannedStage:
        shape, (train, test), chunk = planning.image_shape, planning.images, planning.chunk
        total = train + test
        image_rows = plan_chunks((total, *shape), np.uint8, chunk)[0]
        dims, free = space.dims(shape), planning.budget.free
        height, width = plan_chunks((total, dims), np.float32, chunk)
        cost, chunks = space.cost(shape), (height, width)
        if space.inputs == "captions":
            batch = plan_captions(total, chunks, dims, cost, free=free - planning.data.captions)
            batch = replace(batch, work=batch.work + planning.data.captions)
        else:
            batch = plan_extract((total, *shape), image_rows, chunks, dims, cost, free=free)
        work = max(batch.work, space.fit_nbytes((train, *shape), image_rows))
        times = planning.folds if space.learns else 1
        disk = times * sum(store_nbytes((n, dims), np.float32, chunk) for n in (train, test) if n)
        if space.name in unconditional_spaces(planning.settings):
            disk += store_nbytes((1, dims), np.float32, chunk)
        summary = f"{dims} dims, {batch.batch} rows a batch"
        return PlannedStage(f"features {space.name}", summary, planning.budget.reserved + work, disk)

    # Running

    def run(self, run: Run) -> None:
        every = whole_brain(variants(run.study, run.settings))
        for space in run.spaces.values():
            for variant in every if space.learns else every[:1]:
                self._encode(run, space, variant)
            space.release()

    def _encode(self, run: Run, space: Any, variant: Variant) -> None:
        """Fit and encode for one variant: for every fold of a space that learns, else once."""
        study, name = variant.features(space.learns), space.name
        splits = ("train",) if run.settings.dataset.folds else ("train", "test")
        stores = [study.features(name, split) for split in splits]
        unconditional = study.unconditional(name)
        with run.recorded(f"features {name}", study, [*stores, unconditional]) as (record, context):
            images = Store.open(run.study.stimuli("train"))
            space.fit(images, study.fitted(name), context, rows=variant.train_images)
            for split, path in zip(splits, stores, strict=True):
                images = Store.open(run.study.stimuli(split))
                if space.inputs == "captions":
                    captions = read_captions(run.study.captions(split), images.rows)
                    extract_captions(space, captions, path, context, record=record)
                else:
                    extract(space, images, path, context)
            if name in unconditional_spaces(run.settings):
                keep_unconditional(space, image_shape(images), unconditional, context)
            record["settings"] = run.settings.features[name].model_dump(exclude_none=True)


def check_weights(space: Any) -> None:
    """Raise InputError where the weights of a feature space don't fit its settings; reads headers and configs only."""
    if (check := getattr(space, "check", None)) is not None:
        check()


def unconditional_spaces(settings: Settings) -> set[str]:
    """The feature spaces whose unconditional embedding the generator needs."""
    generator = kinds.kind_of("generators", settings.refine)
    return set(generator.unconditional_roles(settings.refine).values())


def staying_nbytes(spaces: list[Any], shape: Any) -> int:
    """Bytes that stay in the process once these spaces were used: libraries, and what they learned."""
    libraries = {space.library for space in spaces if space.library}
    networks = max((LIBRARY_NBYTES[name] for name in libraries if name != "sklearn"), default=0)
    learning = LIBRARY_NBYTES["sklearn"] if "sklearn" in libraries else 0
    return networks + learning + sum(int(space.cost(shape).held) for space in spaces if space.learns)
