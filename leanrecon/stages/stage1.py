"""The stage stage1: first images, decoded from predicted features by their space."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from leanrecon.context import Context
from leanrecon.features.first_images import draw, picture_shape
from leanrecon.features.plan import plan_decode
from leanrecon.images import ImageShape
from leanrecon.places import Location
from leanrecon.progress import counted
from leanrecon.stages.calibrate import (
    NETWORK,
    check_calibration,
    found_calibration,
    learned_calibration,
    made_of_calibration,
    make_calibration,
    notes_of,
    plan_calibration,
)
from leanrecon.stages.costs_of_stages import first_images_cost
from leanrecon.stages.joined import join_pictures
from leanrecon.stages.stage import Piece, PlannedStage, Planning, Run, variant_named
from leanrecon.stores.fingerprint import fingerprint
from leanrecon.stores.images import image_shape
from leanrecon.stores.layout import plan_chunks
from leanrecon.stores.matrix import as_matrix
from leanrecon.stores.pictures import Pictures
from leanrecon.stores.shared import PicturesPart, share_pictures
from leanrecon.stores.store import Store
from leanrecon.study.variants import ORACLE, Variant, variants

ORACLE_NAME = "upper bound"


class StageOneStage:
    """Draws first images of every variant, of its random pairings, and of true features as an upper bound."""

    name = "stage1"

    def check(self, run: Run) -> None:
        check_calibration(run)

    # Planning

    def plan(self, planning: Planning) -> Iterator[PlannedStage]:
        settings, (_, m), shape = planning.settings, planning.split, planning.image_shape
        space = planning.first_space
        check_calibration(planning)
        yield from plan_calibration(planning, space)
        dims, decoded = space.dims(shape), space.decoded_shape(shape)
        drawn = picture_shape(space, settings.stage1.size, shape)
        chunks = plan_chunks((m, dims), np.float32, planning.chunk)
        cost = space.decode_cost(shape)
        batch = plan_decode((chunks[0], chunks[1]), m, dims, decoded, cost, free=planning.budget.free)
        # A PNG is seldom larger than its pixels. Baselines keep the size of the decoder.
        baselines = planning.folds * (settings.evaluate.permutations + 1)
        disk = m * (planning.variants * int(np.prod(drawn)) + baselines * int(np.prod(decoded)))
        summary = f"{space.name}, {counted(batch.batch, 'images')} a batch, {drawn[0]} × {drawn[1]}"
        memory = planning.budget.reserved + batch.work
        alone, shared = first_images_cost(space, planning, drawn)
        yield PlannedStage(self.name, summary, memory, disk, cost=alone, shared=shared)

    # Running

    def run(self, run: Run) -> None:
        space = run.first_space
        predicted = variants(run.study, run.settings)
        for variant in predicted:
            space.load(variant.features(space.learns).fitted(space.name))
            pairings = 0 if variant.area else run.settings.evaluate.permutations
            every = [variant, *variant.shuffled(pairings)]
            if not variant.area:
                every.append(variant.made_from(ORACLE))
            folders = [one.study.reconstructions("stage1") for one in every]
            learned = [variant.study.network(NETWORK)] if make_calibration(run.settings).calibrates else []
            with run.recorded(self.name, variant.study, folders, networks=learned) as (record, context):
                if space.calibrates:
                    self._calibrate(run, variant, space, context)
                    record |= space.learned()
                calibration = learned_calibration(run, variant, space, context)
                for one, folder in zip(every, folders, strict=True):
                    self._draw(run, one, space, calibration, folder, context)
                record["settings"] = {"space": space.name, "size": run.settings.stage1.size}
                if calibration is not None:
                    record["calibration"] = calibration.record()
                if notes := notes_of(calibration, run.settings, len(variant.train_images)):
                    record["notes"] = notes
        space.release()
        join_pictures(run, predicted, "stage1", self.name)

    @staticmethod
    def _calibrate(run: Run, variant: Variant, space: Any, context: Context) -> None:
        """Fit the space's decoding to out-of-fold predictions of train rows."""
        predictions = Store.open(variant.study.predictions(space.name, "train"))
        images = Store.open(run.study.stimuli("train"))
        path = variant.study.calibration(space.name)
        space.calibrate(as_matrix(predictions), images, variant.images_of_train_rows, path, context)

    def _draw(
        self, run: Run, variant: Variant, space: Any, calibration: Any, folder: Location, context: Context
    ) -> None:
        drawing = _Drawing.of(run, variant, space, calibration)
        pictures = Pictures.create(
            folder, drawing.count, drawing.shape, made_of=drawing.made_of, overwrite=context.overwrite
        )
        named: dict[str, Any] = {"variant": replace(variant, pairing=None, baseline="").name}
        named |= {"pairing": variant.pairing, "baseline": variant.baseline}
        context = run.shared(context.named(f"{variant.parent_label}{drawing.name}"), self.name, named)
        if context.executor is None:
            drawing.draw(space, pictures, context)
            return
        done = pictures.rows - len(pictures.missing())
        with context.task(total=pictures.rows, unit="images", done=done) as advance:
            share_pictures(pictures, context.executor, {}, advance)
        pictures.finish()

    def piece(self, run: Run, named: Mapping[str, Any], context: Context) -> Piece:
        """Draws first images of one variant, on a worker."""
        whole = variant_named(run, named["variant"])
        variant = replace(whole, pairing=named["pairing"], baseline=named["baseline"])
        space = run.first_space
        space.load(variant.features(space.learns).fitted(space.name))
        if space.calibrates:
            space.load_calibration(whole.study.calibration(space.name))
        drawing = _Drawing.of(run, variant, space, found_calibration(run, whole, space, context))

        def work(rows: Sequence[int]) -> Any:
            part = PicturesPart(variant.study.reconstructions("stage1"), named["of"], rows)
            drawing.draw(space, part, context)
            return part.receipts(), None

        return work


@dataclass(frozen=True)
class _Drawing:
    """The first images of one variant: their inputs and their decoder."""

    name: str
    features: Store
    rows: list[int] | None
    calibrated: Any
    images: ImageShape
    """The shape of the stimuli."""
    shape: ImageShape
    made_of: dict[str, Any]

    @classmethod
    def of(cls, run: Run, variant: Variant, space: Any, calibration: Any) -> "_Drawing":
        images = image_shape(Store.open(run.study.stimuli("train")))
        size = run.settings.stage1.size if variant.pairing is None and not variant.baseline else "decoded"
        made_of: dict[str, Any] = {"space": space.made_of() | space.decode_made_of()}
        rows: list[int] | None = None
        calibrated = None
        if variant.baseline:
            features = Store.open(variant.features(space.learns).features(space.name, variant.test_split))
            rows = variant.test_images.tolist()
            made_of |= {"features": features.content, "rows": fingerprint({"rows": rows})}
            name = ORACLE_NAME
        else:
            features = Store.open(variant.study.predictions(space.name))
            made_of["predictions"] = features.content
            if calibration is not None:
                calibrated = calibration.apply
                made_of["calibration"] = calibration.made_of() | made_of_calibration(
                    run, replace(variant, pairing=None), space
                )
            name = "stage 1" if variant.pairing is None else f"stage 1, shuffled betas {variant.pairing + 1}"
        return cls(name, features, rows, calibrated, images, picture_shape(space, size, images), made_of)

    @property
    def count(self) -> int:
        return self.features.rows if self.rows is None else len(self.rows)

    def draw(self, space: Any, pictures: Pictures, context: Context) -> None:
        """Draw the missing ``pictures``, and mark them complete."""
        draw(space, self.features, pictures, self.images, context, rows=self.rows, calibrated=self.calibrated)
