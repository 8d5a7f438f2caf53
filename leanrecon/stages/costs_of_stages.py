"""Operations, bytes and requests of each stage, from planned shapes: in the driver, and shared by workers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from leanrecon.datasets.plan import DatasetPlan
from leanrecon.images import ImageShape
from leanrecon.regression.regressor import RegressionPlan, RegressionShapes
from leanrecon.stores.layout import plan_chunks
from leanrecon.study.costs import (
    AREAS,
    OWN_RECORD,
    RUN,
    STAGE,
    Cost,
    chunks_of,
    drawn_rows,
    files_made,
    images_made,
    images_read,
    inputs_read,
    piece,
    rows_read,
    store_made,
    store_read,
    total,
)

if TYPE_CHECKING:
    from leanrecon.stages.stage import Planning


def dataset_cost(data: DatasetPlan, chunk: int, areas: int) -> tuple[Cost, Cost]:
    """The cost of the stage dataset: stores, small files for a number of ``areas``, and the work of its kind.

    The second cost is the work that workers share.
    """
    n = {"train": (data.n_train, data.train_images), "test": (data.n_test, data.test_images)}
    costs = [RUN, piece(1), files_made(5), AREAS * (2 if areas else 0), data.beside]
    shared = [data.shared]
    for rows, images in n.values():
        if rows:
            costs.append(store_made((rows, data.voxels), np.float32, chunk))
        if images and data.image_shape is not None:
            of_images = shared if data.shares_images else costs
            of_images.append(store_made((images, *data.image_shape), np.uint8, chunk))
    return total(costs), total(shared)


def pieces(products: int, planning: "Planning", variants: int) -> Cost:
    """The cost of the records of a piece in a number of ``variants``, and of joined folds."""
    apart = variants if planning.data.folds else variants - 1
    return piece(products) * variants + OWN_RECORD * apart + piece(products) * planning.joins


def begun(planning: "Planning") -> Cost:
    """The cost of a stage that predicts or draws, before its first piece."""
    return STAGE + (AREAS if planning.settings.areas else Cost())


def encoding_cost(space: Any, planning: "Planning") -> tuple[Cost, Cost]:
    """The cost of one feature space: the driver's part, and the part that workers share."""
    shape, chunk = planning.image_shape, planning.chunk
    times = planning.folds if space.learns else 1
    dims, operations = space.dims(shape), _counted(space.cost(shape).operations, space.name)
    alone, shared = [piece(2)], []
    for k, images in enumerate(planning.images):
        if not images:
            continue
        stimuli, features = (images, *shape), (images, dims)
        seen = store_read(stimuli, np.uint8, chunk) if space.inputs == "images" else Cost(gets=2)
        if space.learns and k == 0:
            alone += [files_made() + Cost(written=space.fitted_nbytes(shape)), seen]
        shared += [operations * images, seen, store_made(features, np.float32, chunk)]
    records = OWN_RECORD * times if planning.data.folds and space.learns else Cost()
    both = total(alone) * times + records, total(shared) * times
    if space.inputs != "ids":
        return both
    asked = space.asked(folds=bool(planning.data.folds), chunk=chunk)
    return both[0] + both[1] + inputs_read(asked.requests, asked.nbytes), Cost()


def prediction_cost(
    plan: RegressionPlan,
    shapes: RegressionShapes,
    planning: "Planning",
    *,
    name: str,
    fitted: bool,
    shares: bool,
) -> tuple[Cost, Cost]:
    """The cost of the predictions of one feature space; ``fitted`` says whether an earlier space kept its factor."""
    chunk, pairings = planning.chunk, shapes.pairings
    folds, rows = planning.data.folds, sum(planning.split)  # with folds, the rows of a fold are scattered in one store
    targets = (planning.images[0] if folds else shapes.s, shapes.t)
    betas = [(n, (rows if folds else n, shapes.p)) for n in (shapes.n, shapes.m)]
    of_fit = (
        Cost()
        if fitted
        else (
            _counted(plan.operations, name)
            + rows_read(*betas[0], np.float32, chunk, plan.passes)
            + rows_read(*betas[1], np.float32, chunk, 2)
            + rows_read(shapes.s, targets, np.float32, chunk, plan.target_passes)
        )
    )
    streamed = (
        Cost(operations=2.0 * shapes.m * shapes.s * shapes.t)
        + rows_read(shapes.s, targets, np.float32, chunk)
        + store_made((shapes.m, shapes.t), np.float32, chunk)
        + Cost(puts=2)
    )
    alone = pieces(1 + pairings, planning, planning.variants) + (Cost(gets=2) + of_fit) * planning.variants
    alone += _joined_predictions(shapes, planning) * planning.joins
    shared = streamed * (planning.variants + pairings * planning.folds)
    if not fitted:
        parts = Cost(operations=plan.shared_operations) * planning.variants
        alone, shared = replace(alone, operations=alone.operations - parts.operations), shared + parts
    return (alone, shared) if shares else (alone + shared, Cost())


def _joined_predictions(shapes: RegressionShapes, planning: "Planning") -> Cost:
    """The cost of joining the predictions of all folds in one store: a chunk reads the folds of its rows."""
    whole, chunk, folds = (sum(planning.split), shapes.t), planning.chunk, planning.folds
    found = folds * (1 - (1 - 1 / folds) ** plan_chunks(whole, np.float32, chunk)[0])  # folds with rows in a chunk
    return store_made(whole, np.float32, chunk) + store_read(whole, np.float32, chunk, found) + Cost(gets=folds)


def first_images_cost(space: Any, planning: "Planning", drawn: ImageShape) -> tuple[Cost, Cost]:
    """The cost of first images, those of random pairings, and those of true features."""
    shape, chunk, (_, m) = planning.image_shape, planning.chunk, planning.split
    folders = planning.variants + planning.folds * (planning.settings.evaluate.permutations + 1)
    each = (
        _counted(space.decode_cost(shape).operations, space.name) * m
        + store_read((m, space.dims(shape)), np.float32, chunk)
        + images_made(m, drawn)
    )
    learned = Cost(read=2 * space.fitted_nbytes(shape), gets=5 if space.learns else 0)
    alone = begun(planning) + pieces(0, planning, planning.variants) + learned * planning.variants
    return alone + Cost(gets=2 * folders) + _joined_images(drawn, planning), each * folders


def _joined_images(drawn: ImageShape, planning: "Planning") -> Cost:
    """The cost of joining the images of all folds in one folder."""
    return images_made(sum(planning.split), drawn, linked=True) * planning.joins


def final_images_cost(planning: "Planning", generator: Any, drawn: ImageShape) -> tuple[Cost, Cost]:
    """The cost of final images and those of the generator's baselines; without a generator, of copies."""
    (_, m), baselines = planning.split, len(planning.settings.refine.baselines)
    folders = planning.variants + planning.folds * baselines
    alone = begun(planning) + pieces(1, planning, planning.variants) + Cost(gets=folders)
    alone += _joined_images(drawn, planning)
    if not generator.refines:
        return alone + images_made(m, drawn, linked=True) * folders, Cost()
    roles = generator.roles(planning.settings.refine).values()
    seen = [
        store_read((m, planning.spaces[name].dims(planning.image_shape)), np.float32, planning.chunk) for name in roles
    ]
    each = _counted(None, planning.settings.refine.kind) + images_read(m, planning.first_shape) + total(seen)
    return alone, (each + images_made(m, drawn)) * folders


@dataclass(frozen=True)
class Compared:
    """The images and features that the stage evaluate compares in one fold."""

    drawn: Sequence[ImageShape]
    """The shapes of all folders of images; the study's own first and final images come first."""
    own: int
    """The number of the study's own folders, which the report shows too."""
    features: Sequence[tuple[int, int]]
    """Dims of every space that is compared, and how often: with all voxels, by area, and by random pairings."""
    nearest: int
    """Dims of the space in which nearest train images are searched; 0: none."""
    shifts: int
    """Test images that are read twice, for the chance level."""
    judges: Sequence[Any]
    page: int
    """Bytes of the report's images, about."""
    scores: int
    """Bytes of a row of the table of scores."""


def comparison_cost(planning: "Planning", of: Compared) -> tuple[Cost, Cost]:
    """The cost of the scores of all folds: the driver's comparisons, and the embeddings that workers share."""
    from leanrecon.evaluation.plan import panel_rows

    shape, chunk, (_, m) = planning.image_shape, planning.chunk, planning.split
    train = (planning.images[0] if not planning.data.folds else sum(planning.split), *shape)
    held = train[0] if planning.data.folds else m  # the store with the scattered test rows of a fold
    test = (held, *shape)
    seen = [images_read(m, drawn) for drawn in of.drawn]
    drawn_train = drawn_rows(m, train, chunk) * (2 if of.nearest else 1)
    per_image = min(chunks_of(test, np.uint8, chunk) / m, 1)
    costs = [
        store_read(train, np.uint8, chunk),
        drawn_train,
        rows_read(m, test, np.uint8, chunk, 2),
        store_read(test, np.uint8, chunk, round(of.shifts * per_image) / chunks_of(test, np.uint8, chunk)),
        total(seen) + total(seen[: of.own]),
        Cost(gets=10 + 4 * len(of.drawn)),
    ]
    for dims, times in of.features:
        panels = -(-m // panel_rows(m, dims))
        reads = 2 + panels + (panels if m >= 300 else 0)
        predicted = 3 + (1 if m >= 300 else 0)
        costs.append(rows_read(m, (held, dims), np.float32, chunk, times * reads))
        costs.append(store_read((m, dims), np.float32, chunk, times * predicted))
        costs.append(Cost(operations=times * 2.0 * m * m * dims))
    if of.nearest:
        features = (train[0], of.nearest)
        costs += [store_read(features, np.float32, chunk, 2), store_read((m, of.nearest), np.float32, chunk, 2)]
        costs.append(Cost(operations=4.0 * m * train[0] * of.nearest))
    shared = []
    for judge in of.judges:
        kept = store_made((m, judge.dims), np.float32, 32 * judge.dims * 4)
        read = store_read((m, judge.dims), np.float32, 32 * judge.dims * 4, 3)
        baselines = 2 + (1 if of.nearest else 0)  # mean, random and nearest train image
        every = len(of.drawn) + baselines
        costs.append(read * every + Cost(operations=2.0 * m * m * judge.dims * every))
        shared.append(kept * (every + 1) + total(seen) + drawn_train + store_read(test, np.uint8, chunk))
        shared.append(Cost(uncounted=(judge.name,)))
    rows = m * planning.folds
    page = Cost(written=of.page + rows * of.scores, read=of.page + 4 * rows * of.scores)
    made = (
        files_made(4 + len(planning.spaces))
        + Cost(gets=14)
        + (files_made() * planning.folds if planning.data.folds else Cost())
    )
    return STAGE + piece(1) + made + page + total(costs) * planning.folds, total(shared) * planning.folds


def _counted(operations: float | None, name: str) -> Cost:
    return Cost(uncounted=(name,)) if operations is None else Cost(operations=operations)
