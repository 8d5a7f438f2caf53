"""Predictions and images of all folds as one array or folder, in the order of the rows.

Each fold keeps its own below ``variants/``. The study, and each area, also holds all rows: row i of
``betas/train.zarr`` is row i here, because every row is tested in exactly one fold.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from leanrecon.context import Context
from leanrecon.images import ImageShape
from leanrecon.places import Location
from leanrecon.stages.stage import Run
from leanrecon.stores.fingerprint import fingerprint
from leanrecon.stores.layout import plan_chunks
from leanrecon.stores.matrix import Matrix, as_matrix
from leanrecon.stores.pictures import Pictures
from leanrecon.stores.store import Store
from leanrecon.study.variants import Variant

Array = np.ndarray[Any, Any]

LINKING_NBYTES = 8_000_000
"""Memory of checking and linking, or copying, images one by one."""

_FLOAT = 4  # bytes


def joined(every: Sequence[Variant]) -> list[tuple[Variant, list[Variant]]]:
    """The variants that join folds, with all voxels and by area, each with its folds; empty without folds."""
    folds: dict[str, list[Variant]] = {}
    for variant in every:
        if variant.fold is not None:
            folds.setdefault(variant.area, []).append(variant)
    return [(replace(of[0], fold=None, train=None, test=None), of) for of in folds.values()]


def join_nbytes(rows: int, dims: int, chunk: int) -> int:
    """Bytes of joining predictions [rows, dims]: a chunk, a fold's part of it, and reading that part."""
    height, width = plan_chunks((rows, dims), np.float32, chunk)
    return 5 * height * width * _FLOAT + chunk + 2_000_000


def join_predictions(run: Run, every: Sequence[Variant], space: str) -> None:
    """Write the predictions of all folds as one store [rows, dims].

    A space that is fitted has different features in each fold: row i has those of the fold that tested it, and NaN
    where that fold has fewer features than another.
    """
    for whole, folds in joined(every):
        path = whole.study.predictions(space)
        label = f"{whole.label}regression {space}, all folds"
        with run.recorded(f"regression {space}, all folds", whole.study, [path], label) as (record, context):
            stores = [Store.open(fold.study.predictions(space)) for fold in folds]
            shape = (sum(store.rows for store in stores), max(store.columns for store in stores))
            store = Store.create(
                path,
                shape,
                np.float32,
                made_of=_made_of(stores, folds),
                chunk=context.chunk,
                overwrite=context.overwrite,
            )
            if not store.complete:
                _fill(store, [as_matrix(of) for of in stores], [fold.test_rows for fold in folds], context)
                record["folds"] = len(folds)


def join_pictures(run: Run, every: Sequence[Variant], stage: str, name: str) -> None:
    """Link, or copy, the images of all folds into one folder; ``name`` is the stage's name in the record."""
    for whole, folds in joined(every):
        path = whole.study.reconstructions(stage)
        label = f"{whole.label}{name}, all folds"
        with run.recorded(f"{name}, all folds", whole.study, [path], label) as (record, context):
            of_folds = [Pictures.open(fold.study.reconstructions(stage)) for fold in folds]
            rows, shape = sum(of.rows for of in of_folds), of_folds[0].shape
            pictures = _pictures(path, rows, shape, _made_of(of_folds, folds), context)
            if not pictures.complete:
                context.require(context.label, LINKING_NBYTES)
                for of, fold in zip(of_folds, folds, strict=True):
                    pictures.link(of, fold.test_rows.tolist())
                pictures.finish()
                record["folds"] = len(folds)


def _pictures(path: Location, rows: int, shape: ImageShape, made_of: dict[str, Any], context: Context) -> Pictures:
    return Pictures.create(path, rows, shape, made_of=made_of, overwrite=context.overwrite)


def _made_of(parts: Sequence[Store] | Sequence[Pictures], folds: Sequence[Variant]) -> dict[str, Any]:
    rows = fingerprint({"folds": [fold.test_rows.tolist() for fold in folds]})
    return {"folds": [part.content for part in parts], "rows": rows}


def _fill(store: Store, folds: Sequence[Matrix], rows: Sequence[Array], context: Context) -> None:
    """Write the missing chunks; ``rows`` holds, for each fold, the store's row of each of its rows, ascending."""
    context.require(context.label, join_nbytes(store.rows, store.columns, context.chunk))
    missing = store.missing()
    total = store.row_groups * store.column_groups
    with context.task(total=total, unit="chunks", done=total - len(missing)) as advance:
        for i, j in missing:
            group, columns = store.group_rows(i), store.group_columns(j)
            block = np.full((len(group), len(columns)), np.nan, np.float32)
            for fold, own in zip(folds, rows, strict=True):
                a, b = (int(at) for at in np.searchsorted(own, (group.start, group.stop)))
                wanted = range(columns.start, min(columns.stop, fold.shape[1]))
                if a < b and len(wanted):
                    part = np.empty((b - a, len(wanted)), np.float32)
                    fold.read(range(a, b), wanted, part)
                    block[own[a:b] - group.start, : len(wanted)] = part
            store.write_chunk(i, j, block)
            advance(1)
    store.finish()
