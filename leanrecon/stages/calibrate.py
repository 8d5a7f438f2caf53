"""Calibration of first images: which spaces need predictions of train rows, and the fit of the calibration."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from leanrecon import kinds
from leanrecon.calibration.calibration import CalibrationData, CalibrationShapes
from leanrecon.context import Context
from leanrecon.errors import SettingsError, StoreError
from leanrecon.features.extract import decode_rows
from leanrecon.features.plan import plan_decode
from leanrecon.images import resize, with_channels
from leanrecon.stages.stage import PlannedStage, Planning, Run
from leanrecon.stores.fingerprint import fingerprint
from leanrecon.stores.images import ImageReader, image_shape
from leanrecon.stores.layout import plan_chunks, store_nbytes
from leanrecon.stores.store import Store
from leanrecon.study.network_copies import brought
from leanrecon.study.settings import Settings
from leanrecon.study.variants import Variant

NETWORK = "calibration"
"""The folder of a fitted calibration, below ``networks``."""


def make_calibration(settings: Settings) -> Any:
    """The calibration that settings name; nothing is loaded."""
    general, chosen = settings.general, settings.stage1.calibrate
    return kinds.kind_of("calibrations", chosen)(chosen, seed=general.seed, device=general.device)


def check_calibration(run: Run | Planning) -> None:
    """Raise SettingsError if both the feature space and ``stage1.calibrate`` learn from the same train rows."""
    if make_calibration(run.settings).calibrates and run.first_space.calibrates:
        raise SettingsError(
            f"stage1.calibrate is set, but {run.first_space.name} learns from predictions of the same train rows itself",
            todo='set stage1.calibrate = "none"',
        )


def too_few(settings: Settings, images: int) -> str:
    """Why first images are not calibrated although settings name a calibration; empty otherwise."""
    calibration = make_calibration(settings)
    if not calibration.calibrates or images >= calibration.least:
        return ""
    return (
        f"First images were not calibrated: {images} train images are fewer than the {calibration.least} that "
        f'calibrate = "{settings.stage1.calibrate.model_dump()["kind"]}" needs.'
    )


def needs_train_rows(settings: Settings, space: Any, first: str | None, images: int) -> bool:
    """Whether out-of-fold predictions of train rows of a space are needed; ``images`` counts distinct train images."""
    calibrated = space.name == first and make_calibration(settings).calibrates and not too_few(settings, images)
    decoded = space.name == settings.decoded_space
    return bool(space.calibrates or calibrated or decoded or generator_needs(settings, space.name, first))


def generator_needs(settings: Settings, space: str, first: str | None) -> bool:
    """Whether a generator learns from a space's predictions of train rows, or from first images made of them."""
    kind: Any = kinds.kind_of("generators", settings.refine)
    if not getattr(kind, "learns", False):
        return False
    return bool(space in kind.predicted(settings.refine) or (space == first and kind.first_images(settings.refine)))


# Planning


def plan_calibration(planning: Planning, space: Any) -> Iterator[PlannedStage]:
    """The line of the plan for the calibration of first images, if they are calibrated."""
    settings, (n, _), shape = planning.settings, planning.split, planning.image_shape
    images = min(n, planning.images[0])
    calibration = make_calibration(settings)
    if not calibration.calibrates or too_few(settings, images):
        return
    dims, decoded = space.dims(shape), space.decoded_shape(shape)
    chunks = plan_chunks((n, dims), np.float32, planning.chunk)
    free = planning.budget.free
    decoding = plan_decode((chunks[0], chunks[1]), n, dims, decoded, space.decode_cost(shape), free=free)
    pair = store_nbytes((n, *decoded), np.uint8, planning.chunk)
    plan = calibration.plan(CalibrationShapes(n, images, decoded))
    work = max(decoding.work + _group_nbytes(n, decoded, planning.chunk), plan.work) + _reading_nbytes(planning)
    disk = planning.variants * plan.disk
    memory = planning.budget.reserved + work
    yield PlannedStage("stage1 calibration", plan.summary, memory, disk, 2 * pair + plan.scratch)
    planning.hold(plan.held + plan.applying)


def _group_nbytes(n: int, shape: tuple[int, ...], chunk: int) -> int:
    """Bytes of a group of decoded images, and of the chunk that is written from it."""
    rows = min(plan_chunks((n, *shape), np.uint8, chunk)[0], n)
    return 3 * rows * int(np.prod(shape))


def _reading_nbytes(planning: Planning) -> int:
    """Bytes of chunks of stimuli, and of the pairs of images."""
    (train, _), shape = planning.images, planning.image_shape
    return 3 * plan_chunks((train, *shape), np.uint8, planning.chunk)[0] * int(np.prod(shape))


# Running


def learned_calibration(run: Run, variant: Variant, space: Any, context: Context) -> Any:
    """The calibration of a variant, fitted now or loaded; None if first images are not calibrated."""
    calibration = make_calibration(run.settings)
    if not calibration.calibrates or too_few(run.settings, len(variant.train_images)):
        return None
    made_of = made_of_calibration(run, variant, space)
    folder = brought(variant.study.network(NETWORK))
    labelled = context.named(f"{variant.label}calibration")
    if not calibration.find(folder, made_of, labelled):
        data = _decoded(run, variant, space, made_of, labelled)
        calibration.learn(data, folder, made_of, labelled)
        record = calibration.record()
        before, after = (record["held_out_mse"][key] for key in ("before", "after"))
        effect = "is used" if record["used"] else "is left out"
        context.progress.say(
            f"{labelled.label}: squared error of {record['held_out_images']} held-out train images {before:.4g}, "
            f"calibrated {after:.4g}: it {effect}"
        )
    variant.study.first_images.delete_tree()
    return calibration


def found_calibration(run: Run, variant: Variant, space: Any, context: Context) -> Any:
    """The calibration of a variant, fitted before; None if first images are not calibrated."""
    calibration = make_calibration(run.settings)
    if not calibration.calibrates or too_few(run.settings, len(variant.train_images)):
        return None
    folder = variant.study.network(NETWORK)
    if not calibration.find(folder.local_path(), made_of_calibration(run, variant, space), context):
        raise StoreError(f"there is no calibration at {folder}", todo="run the same command again to learn it")
    return calibration


def made_of_calibration(run: Run, variant: Variant, space: Any) -> dict[str, Any]:
    """All that decides the fit, besides the settings: no test rows."""
    return {
        "predictions": Store.open(variant.study.predictions(space.name, "train")).content,
        "space": space.made_of() | space.decode_made_of(),
        "stimuli": Store.open(run.study.stimuli("train")).content,
        "images of rows": fingerprint({"index": variant.images_of_train_rows.tolist()}),
    }


def notes_of(calibration: Any, settings: Settings, images: int) -> list[str]:
    """Sentences for the report: how first images were calibrated, or why they were not although settings say so."""
    if calibration is None:
        return [sentence] if (sentence := too_few(settings, images)) else []
    if not calibration.record()["used"]:
        return ["First images were not calibrated: it was no better for held-out train images."]
    return kinds.optional(calibration, "notes", settings.stage1.calibrate)


def _decoded(run: Run, variant: Variant, space: Any, made_of: dict[str, Any], context: Context) -> CalibrationData:
    """First images of train rows and their true images, in stores that exist while the calibration is fitted."""
    predictions = Store.open(variant.study.predictions(space.name, "train"))
    stimuli = Store.open(run.study.stimuli("train"))
    shape = space.decoded_shape(image_shape(stimuli))
    stores = [
        Store.create(
            variant.study.first_images / f"{name}.zarr", (predictions.rows, *shape), np.uint8,
            made_of=made_of | {"holds": name}, chunk=context.chunk, overwrite=True,
        )
        for name in ("first", "true")
    ]  # fmt: skip
    first, true = stores
    if rows := _rows_of(first, first.missing_row_groups()):
        decoded = decode_rows(space, predictions, image_shape(stimuli), context, rows=rows)
        with context.task(total=first.rows, unit="images", done=first.rows - len(rows)) as advance:
            _fill(first, ((row, image) for row, image in decoded), advance)
    first.finish()
    for i in true.missing_row_groups():
        true.write_rows(i, _shown(stimuli, variant.images_of_train_rows, true.group_rows(i), shape))
    true.finish()
    return CalibrationData(first, true, variant.images_of_train_rows)


def _rows_of(store: Store, groups: list[int]) -> list[int]:
    return [row for i in groups for row in store.group_rows(i)]


def _shown(stimuli: Store, shown: Any, rows: range, shape: Any) -> Any:
    """The stimuli of some rows at the size and with the channels of first images, uint8 [rows, …]."""
    different, places = np.unique(shown[rows.start : rows.stop], return_inverse=True)
    block = np.empty((len(rows), *shape), np.uint8)
    for place, images in ImageReader(stimuli).runs(different):
        for k, image in zip(range(place.start, place.stop), images, strict=True):
            block[places == k] = resize(with_channels(image, shape[2]), shape)
    return block


def _fill(store: Store, images: Iterator[tuple[int, Any]], advance: Any) -> None:
    """Write whole groups of rows from images in the order of their rows."""
    block = np.empty((min(store.chunk_rows, store.rows), *store.shape[1:]), np.uint8)
    for row, image in images:
        group = store.group_rows(row // store.chunk_rows)
        block[row - group.start] = image
        if row == group.stop - 1:
            store.write_rows(row // store.chunk_rows, block[: len(group)].reshape(len(group), -1))
        advance(1)
