"""The fit of a generator to train rows before it draws, and the predictions of train rows that it needs."""

from typing import Any

import numpy as np

from leanrecon import kinds
from leanrecon.context import Context
from leanrecon.errors import StoreError
from leanrecon.evaluation.metrics import compare, pair_metrics, prepare
from leanrecon.features.extract import decode_rows
from leanrecon.features.first_images import picture_shape
from leanrecon.features.plan import plan_decode
from leanrecon.images import Array, ImageShape, resize, with_channels
from leanrecon.refinement.learning import LearningShapes, TrainRows
from leanrecon.stages.calibrate import learned_calibration, made_of_calibration
from leanrecon.stages.stage import Planning, Run
from leanrecon.stores.fingerprint import fingerprint
from leanrecon.stores.images import ImageReader
from leanrecon.stores.images import image_shape as shape_of
from leanrecon.stores.layout import plan_chunks
from leanrecon.stores.matrix import PANEL, as_matrix
from leanrecon.stores.store import Store
from leanrecon.study.layout import GENERATOR
from leanrecon.study.network_copies import brought
from leanrecon.study.settings import Settings
from leanrecon.study.variants import Variant

_FLOAT = 4  # bytes


def learns(settings: Settings) -> bool:
    """Whether the generator learns from train rows."""
    return bool(getattr(kinds.kind_of("generators", settings.refine), "learns", False))


# Planning


def plan_learning(planning: Planning, generator: Any) -> int:
    """Bytes of memory of the fit, beyond what the process holds."""
    settings, (n, _), shape, chunk = planning.settings, planning.split, planning.image_shape, planning.chunk
    first = planning.first_space
    images = min(n, planning.images[0])
    dims = {name: planning.spaces[name].dims(shape) for name in generator.spaces(settings.refine).values()}
    widest = max(*dims.values(), planning.data.voxels)
    block = plan_chunks((n, widest), np.float32, chunk)
    shapes = LearningShapes(
        rows=n,
        images=images,
        voxels=planning.data.voxels,
        dims=dims,
        first=picture_shape(first, settings.stage1.size, shape),
        tile=3 * max(chunk, PANEL * block[1] * _FLOAT) + 3 * chunk,
    )
    learning = int(generator.plan_learning(shapes, planning.budget.free).work)
    if not generator.first_images(settings.refine):
        return learning
    width = first.dims(shape)
    chunks = plan_chunks((n, width), np.float32, chunk)
    decoded = first.decoded_shape(shape)
    decoding = plan_decode(
        (chunks[0], chunks[1]), n, width, decoded, first.decode_cost(shape), free=planning.budget.free
    )
    return learning + decoding.work


# Running


def learn_generator(run: Run, variant: Variant, generator: Any, context: Context) -> str:
    """Fit the generator to a variant's train rows, or load an earlier fit; returns a fingerprint of it."""
    made_of = _made_of(run, variant, generator)
    folder = brought(variant.study.network(GENERATOR))
    labelled = context.named(f"{variant.label}refine, train rows")
    if not generator.find(folder, made_of, labelled):
        train = _train_rows(run, variant, generator, labelled)
        fresh = labelled.refreshed()
        fresh.require(labelled.label, generator.plan_learning(_shapes(train), fresh.budget.free).work)
        generator.learn(train, folder, made_of, labelled)
    return fingerprint(made_of)


def find_generator(run: Run, variant: Variant, generator: Any, context: Context) -> None:
    """Load an earlier fit of the generator to a variant's train rows; raises StoreError if there is none."""
    folder = variant.study.network(GENERATOR)
    if not generator.find(folder.local_path(), _made_of(run, variant, generator), context):
        raise StoreError(f"{folder} lacks what the generator learned", todo="run the same command again")


def _made_of(run: Run, variant: Variant, generator: Any) -> dict[str, Any]:
    """All that decides the fit: no test rows."""
    settings = run.settings.refine
    made_of: dict[str, Any] = {
        "refine": generator.made_of(),
        "betas": Store.open(run.study.betas("train")).content,
        "rows": fingerprint({"train": variant.train_rows.tolist(), "images": variant.images_of_train_rows.tolist()}),
        "voxels": None if variant.voxels is None else fingerprint({"voxels": list(variant.voxels)}),
    }
    for name in generator.spaces(settings).values():
        store = Store.open(variant.features(run.spaces[name].learns).features(name, "train"))
        made_of[f"features {name}"] = store.content
    for name in generator.predicted(settings):
        made_of[f"predictions {name}"] = Store.open(variant.study.predictions(name, "train")).content
    if generator.first_images(settings):
        made_of["first"] = made_of_calibration(run, variant, run.first_space)
        made_of["size"] = list(_first_shape(run))
    return made_of


def _first_shape(run: Run) -> ImageShape:
    return picture_shape(run.first_space, run.settings.stage1.size, run.image_shape)


def _train_rows(run: Run, variant: Variant, generator: Any, context: Context) -> TrainRows:
    settings, shape = run.settings.refine, _first_shape(run)

    def first(rows: list[int]) -> Array:
        return _first(run, variant, rows, shape, context)

    def shown(rows: list[int]) -> Array:
        return _shown(run, variant, rows, shape)

    spaces = dict.fromkeys(generator.spaces(settings).values())
    return TrainRows(
        features={name: variant.train_features(name, run.spaces[name].learns) for name in spaces},
        predicted={
            name: as_matrix(Store.open(variant.study.predictions(name, "train")))
            for name in generator.predicted(settings)
        },
        betas=variant.train_betas(),
        stimulus=np.searchsorted(variant.train_images, variant.images_of_train_rows),
        first=first,
        shown=shown,
        first_shape=shape,
        likeness=likeness,
    )


def _shapes(train: TrainRows) -> LearningShapes:
    every = [*train.features.values(), *train.predicted.values(), train.betas]
    return LearningShapes(
        rows=train.betas.shape[0],
        images=next(iter(train.features.values())).shape[0],
        voxels=train.betas.shape[1],
        dims={name: matrix.shape[1] for name, matrix in train.features.items()},
        first=train.first_shape,
        tile=max(matrix.scratch_nbytes + matrix.tile_nbytes for matrix in every),
    )


def _first(run: Run, variant: Variant, rows: list[int], shape: ImageShape, context: Context) -> Array:
    """First images of train rows, from predictions without their images, calibrated like those of test rows."""
    space = run.first_space
    space.load(variant.features(space.learns).fitted(space.name))
    if space.calibrates:
        space.load_calibration(variant.study.calibration(space.name))
    calibration = learned_calibration(run, variant, space, context)
    predictions = Store.open(variant.study.predictions(space.name, "train"))
    out = np.empty((len(rows), *shape), np.uint8)
    decoded = decode_rows(space, predictions, run.image_shape, context, rows=rows)
    for place, (_, image) in zip(out, decoded, strict=True):
        mended = image if calibration is None else calibration.apply(image)
        place[...] = resize(mended, shape, bicubic=True)
    space.release()
    return out


def _shown(run: Run, variant: Variant, rows: list[int], shape: ImageShape) -> Array:
    stimuli = Store.open(run.study.stimuli("train"))
    shape_of(stimuli)  # raises if there are no images, or not all
    images = variant.images_of_train_rows[rows]
    order = np.argsort(images, kind="stable")
    out = np.empty((len(rows), *shape), np.uint8)
    for place, block in ImageReader(stimuli).runs(images[order]):
        out[order[place]] = [resize(with_channels(image, shape[2]), shape) for image in block]
    return out


def likeness(image: Array, true: Array) -> float:
    """The mean of pixel correlation and SSIM of two images of one shape; pixel correlation alone for tiny ones."""
    height, width, _ = true.shape
    names = [name for name in ("pixcorr", "ssim") if name in pair_metrics(height, width)]
    found = compare(prepare(image, names), prepare(true, names), names)
    return float(np.mean([found[name] for name in names]))
