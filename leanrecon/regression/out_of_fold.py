"""Out-of-fold predictions of train rows: each row is predicted by a regressor that was fitted on other folds.

They are as far from their targets as predictions of test rows are, so a decoder may be calibrated on them.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from leanrecon.context import Context
from leanrecon.errors import InputError, SettingsError
from leanrecon.memory import buffer
from leanrecon.regression.regressor import Output, RegressionData, RegressionPlan, RegressionShapes, Regressor
from leanrecon.stores.layout import plan_chunks, store_nbytes

if TYPE_CHECKING:
    from leanrecon.places import Location
    from leanrecon.stores.store import Store

Array = np.ndarray[Any, Any]

FOLDER = "out_of_fold"
"""The folder of the folds' predictions and networks, beside the store of them all, until that is complete."""

_FOLDS = 20  # stream of random numbers

_OVERHEAD = 10_000_000  # bytes for what grows with no shape


def assign_folds(groups: Sequence[Any], folds: int, seed: int) -> Array:
    """The fold of each row, int64 [n]: rows of one group share a fold, and folds have about as many rows.

    Groups are drawn in random order from the seed, larger ones first; each goes to the fold with the fewest rows.
    """
    if folds < 2:
        raise SettingsError(f"{folds} fold for out-of-fold predictions", expected="2 or more")
    group = np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1]
    sizes = np.bincount(group)
    if len(sizes) < folds:
        raise InputError(
            f"{len(sizes)} groups of train rows for {folds} folds of out-of-fold predictions",
            expected="at least one group for each fold",
        )
    order = np.random.default_rng([seed, _FOLDS]).permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    rows, fold = np.zeros(folds, np.int64), np.empty(len(sizes), np.int64)
    for k in order:
        fold[k] = np.argmin(rows)
        rows[fold[k]] += sizes[k]
    result: Array = fold[group]
    return result


def fold_data(data: RegressionData, fold: Array, k: int) -> RegressionData:
    """The data of one fold: its rows are the test rows, all others the train rows.

    Train rows that show an image which the fold shows too are left out, as when runs are the groups.
    """
    from leanrecon.stores.matrix import RowSubset

    held = fold == k
    images = np.arange(len(fold)) if data.stimulus is None else np.asarray(data.stimulus)
    train = np.flatnonzero(~held & ~np.isin(images, images[held]))
    if not len(train):
        raise InputError(
            f"no train rows are left for fold {k + 1}: it shows every image of the others",
            todo="group train rows by stimulus",
        )
    shown, stimulus = np.unique(images[train], return_inverse=True)
    plain = np.array_equal(stimulus, np.arange(len(train)))
    return RegressionData(
        betas=RowSubset(data.betas, train),
        targets=RowSubset(data.targets, shown),
        test=RowSubset(data.betas, np.flatnonzero(held)),
        groups=[data.groups[int(i)] for i in train],
        stimulus=None if plain else stimulus,
        reliability=data.reliability,
    )


def out_of_fold(
    regressor: Regressor, data: RegressionData, store: "Store", folds: int, context: Context
) -> dict[str, Any]:
    """Predict every train row by a regressor that has not seen its image, and finish the store; returns its record.

    ``store`` is float32 [n, t]; its ``made_of`` must name the regressor, its data, the seed and ``folds``. The folds'
    predictions and networks lie beside it until it is complete, so a run that is killed continues where it was.
    """
    if store.shape != (data.betas.shape[0], data.targets.shape[1]):
        raise InputError(f"a store of {store.shape} can't take predictions of {data.betas.shape[0]} train rows")
    fold = assign_folds(data.groups, folds, context.seed)
    folder = store.path.parent / FOLDER
    if store.missing():
        parts = [_predict_fold(regressor, data, fold, k, store, folder, context) for k in range(folds)]
        context.require(f"{context.label}, out of fold", _merging_nbytes(store.shape, store.chunks, folds))
        _merge(parts, fold, store)
    folder.delete_tree()
    store.finish()
    return {"folds": folds, "rows": np.bincount(fold).tolist()}


def plan_out_of_fold(
    regressor: Regressor, shapes: RegressionShapes, folds: int, free: int, *, chunk: int, largest: int = 1
) -> RegressionPlan:
    """Plan the predictions of all folds into ``free`` bytes; ``largest`` is the number of rows of the largest group.

    ``scratch`` counts what lies beside the store until it is complete.
    """
    spare = largest - 1  # rows by which folds may differ from equal ones
    m = min(-(-shapes.n // folds) + spare, shapes.n - 1)
    n = shapes.n - max(shapes.n // folds - spare, 1)
    s = n if shapes.s == shapes.n else min(n, shapes.s - shapes.s // folds + spare)
    one = regressor.plan(replace(shapes, n=n, m=m, s=s, subset=True, pairings=0), free)
    whole = (shapes.n, shapes.t)
    merging = _merging_nbytes(whole, plan_chunks(whole, np.float32, chunk), folds)
    return RegressionPlan(
        max(one.work, merging),
        f"out of fold, {folds} folds, each {one.summary}",
        scratch=one.scratch + folds * (one.disk + store_nbytes((m, shapes.t), np.float32, chunk)),
        held=one.held,
    )


def _predict_fold(
    regressor: Regressor,
    data: RegressionData,
    fold: Array,
    k: int,
    store: "Store",
    folder: "Location",
    context: Context,
) -> "Store":
    """The complete store of one fold's predictions [rows of the fold, t]; what is there of it is kept."""
    from leanrecon.stores.store import Store

    part = Store.create(
        folder / f"{k:02d}.zarr",
        (int((fold == k).sum()), store.columns),
        np.float32,
        made_of={"all folds": store.made_of, "fold": k},
        chunk=context.chunk,
        overwrite=True,  # of other settings, nothing is worth keeping
    )
    if not part.complete:
        label = f"{context.label}, fold {k + 1} of {int(fold.max()) + 1}"
        inner = replace(context.refreshed(), label=label, overwrite=True)
        regressor.predict(fold_data(data, fold, k), [Output(part, (folder / f"{k:02d}").workplace())], inner, {})
    return part


def _merging_nbytes(shape: tuple[int, ...], chunks: tuple[int, ...], folds: int) -> int:
    """Bytes of work of merging: a chunk of each fold and one of all."""
    numbers = min(chunks[0], shape[0]) * chunks[1]
    return _OVERHEAD + 4 * (2 * numbers + folds * (chunks[0] * chunks[1] + 2048))


def _merge(parts: Sequence["Store"], fold: Array, store: "Store") -> None:
    """Write the chunks that the store lacks, each from the rows of all folds; every chunk of a fold is read once."""
    assert all(part.chunk_columns == store.chunk_columns for part in parts)
    positions = [np.flatnonzero(fold == k) for k in range(len(parts))]
    memories = [buffer((part.buffer_nbytes(),), np.uint8) for part in parts]
    block = buffer((store.chunk_rows, store.chunk_columns), np.float32)
    for j in store.missing_column_groups():
        columns = len(store.group_columns(j))
        held: list[tuple[int, Array] | None] = [None] * len(parts)
        for i in range(store.row_groups):
            if store.has(i, j):
                continue
            rows = store.group_rows(i)
            for k, (part, places) in enumerate(zip(parts, positions, strict=True)):
                first, last = np.searchsorted(places, [rows.start, rows.stop])
                for group in range(first // part.chunk_rows, -(-last // part.chunk_rows) if last > first else 0):
                    known = held[k]
                    if known is None or known[0] != group:
                        known = held[k] = group, part.read_chunk(group, j, memories[k])
                    own = part.group_rows(group)
                    a, b = max(first, own.start), min(last, own.stop)
                    block[places[a:b] - rows.start] = known[1][a - own.start : b - own.start]
            store.write_chunk(i, j, block[: len(rows), :columns])
