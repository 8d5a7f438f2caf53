"""Encoding a store of images into feature rows, and decoding rows into images, batch by batch in planned memory."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from leanrecon.context import Context
from leanrecon.errors import InputError, SettingsError
from leanrecon.features.plan import AHEAD, BatchPlan, plan_decode, plan_extract
from leanrecon.features.space import Array, FeatureSpace, ImageShape, Rows
from leanrecon.memory import buffer
from leanrecon.places import Location, LocationLike, as_location
from leanrecon.progress import Advance
from leanrecon.stores import Store, read_ahead
from leanrecon.stores.images import ImageReader, row_numbers
from leanrecon.stores.images import image_shape as shape_of
from leanrecon.stores.layout import plan_chunks
from leanrecon.stores.shared import share_rows


def extract(
    space: FeatureSpace,
    images: Store,
    target: LocationLike,
    context: Context | None = None,
    *,
    batch: int | None = None,
) -> Store:
    """Encode all images of a store into a store of float32 rows, and return it complete.

    Continues where an earlier run stopped, group of rows by group of rows, with the batch size of the run that
    began the store. Raises BudgetError before any work if one image at a time does not fit, and InputError if
    the space returns anything but finite numbers.
    """
    if space.inputs != "images":
        raise SettingsError(f"the feature space {space.name} describes captions, not images")
    context = context or Context.of()
    shape = shape_of(images)
    dims = space.dims(shape)
    rows, columns = plan_chunks((images.rows, dims), np.float32, context.chunk)

    def plan(free: int, batch: int | None) -> BatchPlan:
        return plan_extract(
            images.shape, images.chunk_rows, (rows, columns), dims, space.cost(shape), free=free, batch=batch
        )

    def encode(store: Store, plan: BatchPlan, groups: Sequence[int], advance: Advance) -> None:
        encode_groups(space, images, store, plan.batch, groups, advance)

    work = Extraction(space, (images.rows, dims), {"images": images.content}, plan, encode, "images")
    return run_extraction(work, as_location(target), context, batch)


@dataclass(frozen=True)
class Extraction:
    """The encoding of images or captions into a store."""

    space: FeatureSpace
    shape: tuple[int, int]
    """Rows and dims of the store."""
    made_of: Mapping[str, Any]
    """The content of what is encoded."""
    plan: Callable[[int, int | None], BatchPlan]
    """Plans the encoding into free bytes, with a batch size or None for the best one."""
    encode: Callable[[Store, BatchPlan, Sequence[int], Advance], None]
    """Writes groups of rows."""
    unit: str
    """What a row is encoded from, as progress calls it."""
    examine: Callable[[Store], None] = lambda store: None
    """Looks at all that is encoded before the first group."""


def run_extraction(work: Extraction, target: Location, context: Context, batch: int | None) -> Store:
    """Begin or continue a store of feature rows, and return it complete.

    A store that was begun keeps its batch size. Raises BudgetError before any work.
    """

    def create(batch: int | None) -> Store:
        return Store.create(
            target,
            work.shape,
            np.float32,
            made_of={**work.made_of, "space": work.space.made_of()},
            chunk=context.chunk,
            overwrite=context.overwrite,
            notes={"batch": batch},
        )

    store = None
    if (target / "zarr.json").exists() and not context.overwrite:
        store = create(None)
        if store.complete:
            return store
        batch = store.notes.get("batch", batch)
    context = context.refreshed()
    planned = work.plan(context.free, batch)
    if context.executor is None:  # else every worker requires it
        context.require(f"features {work.space.name}", planned.work)
    store = store or create(planned.batch)
    if store.notes.get("batch") is None:  # its record was damaged, and is proven by this run
        store.note(batch=planned.batch)
    work.examine(store)
    missing = store.missing_row_groups()
    done = store.rows - sum(len(store.group_rows(i)) for i in missing)
    name = f"{work.space.name}, {store.path.stem}"
    with context.progress.task(name, total=store.rows, unit=work.unit, done=done) as advance:
        if context.executor is None:
            work.encode(store, planned, missing, advance)
        else:
            share_rows(store, context.executor, {"batch": planned.batch}, advance)
    store.finish()
    return store


def encode_groups(
    space: FeatureSpace, images: Store, store: Store, batch: int, groups: Sequence[int], advance: Advance
) -> None:
    """Encode the images of some groups of rows into their store; the next batch is read while one is encoded."""
    batches = [(i, rows) for i in groups for rows in cut(store.group_rows(i), batch)]
    reader = ImageReader(images)
    memories = [buffer((batch * images.columns,), np.uint8) for _ in range(AHEAD)]
    gathered = buffer((min(store.chunk_rows, store.rows), store.columns), np.float32)

    def read(item: tuple[int, range], memory: Array) -> Array:
        return reader.read(item[1], memory)

    for (i, rows), block in read_ahead(batches, read, memories):
        group = store.group_rows(i)
        features = space.encode(block, rows)
        check_rows(features, (len(rows), store.columns), rows, f"the feature space {space.name} gave")
        gathered[rows.start - group.start : rows.stop - group.start] = features
        if rows.stop == group.stop:
            store.write_rows(i, gathered[: len(group)])
        advance(len(rows))


def decode_rows(
    space: FeatureSpace,
    features: Store,
    image_shape: ImageShape,
    context: Context | None = None,
    *,
    rows: Rows | None = None,
    batch: int | None = None,
) -> Iterator[tuple[int, Array]]:
    """Yield ``(row, image)`` for the rows of a store of features or predictions: all, or those of ``rows``, ascending.

    ``image_shape`` is that of the encoded images; the decoded uint8 images have ``space.decoded_shape(image_shape)``.
    Batches have the same boundaries as when all rows are decoded, so that leaving out rows changes no image.
    Raises SettingsError if the space has no decoder, BudgetError before any work.
    """
    if not space.decodes:
        raise SettingsError(
            f"the feature space {space.name} can't be decoded into images", expected="one with a decoder, such as pca"
        )
    context = (context or Context.of()).refreshed()
    dims = space.dims(image_shape)
    if len(features.shape) != 2 or features.columns != dims or features.dtype != np.float32:
        raise InputError(
            f"{features.path} holds {features.dtype} of shape {features.shape}",
            expected=f"float32 rows of {dims} numbers for the feature space {space.name}",
        )
    wanted = row_numbers(rows, features)
    plan = plan_decode(
        (features.chunk_rows, features.chunk_columns),
        features.rows,
        dims,
        space.decoded_shape(image_shape),
        space.decode_cost(image_shape),
        free=context.budget.free,
        batch=batch,
    )
    context.require(f"stage1 {space.name}", plan.work)
    return _decode(space, features, image_shape, wanted, plan.batch)


def _decode(
    space: FeatureSpace, store: Store, image_shape: ImageShape, wanted: Array, batch: int
) -> Iterator[tuple[int, Array]]:
    for i in np.unique(wanted // store.chunk_rows).tolist():
        group = store.group_rows(i)
        block = store[group.start : group.stop]
        for rows in cut(group, batch):
            a, b = np.searchsorted(wanted, (rows.start, rows.stop))
            if a == b:
                continue
            features = block[rows.start - group.start : rows.stop - group.start]
            check_rows(features, (len(rows), store.columns), rows, f"{store.path} holds")
            images = space.decode(features, rows, image_shape)
            for row in wanted[a:b].tolist():
                yield row, images[row - rows.start]
        del block, features  # before the next one is read


def cut(rows: range, size: int) -> list[range]:
    """Cut a range into pieces of ``size``, the last one shorter."""
    return [range(start, min(start + size, rows.stop)) for start in range(rows.start, rows.stop, size)]


def check_rows(features: Array, shape: tuple[int, int], rows: range, whose: str) -> None:
    """Raise InputError for feature rows of another shape or type, or that are not finite.

    ``whose`` begins the message, as in "the feature space pca gave".
    """
    if features.shape != shape or features.dtype != np.float32:
        raise InputError(
            f"{whose} {features.dtype} of shape {features.shape} for rows {rows.start} to {rows.stop - 1}",
            expected=f"float32 of shape {shape}",
        )
    bad = [rows[k] for k in np.nonzero(~np.isfinite(features).all(axis=1))[0].tolist()]
    if bad:
        names = ", ".join(map(str, bad[:8])) + (", …" if len(bad) > 8 else "")
        raise InputError(
            f"{whose} features that are NaN or infinite in {len(bad)} of {len(rows)} rows ({names})",
            expected="finite numbers",
            todo="look at these rows; on a GPU, try float32. Finished rows are kept",
        )
