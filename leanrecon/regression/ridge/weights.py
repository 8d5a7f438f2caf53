"""The p×t weights of a ridge, a block of targets at a time: for many test rows, and for maps."""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from leanrecon.memory import buffer
from leanrecon.regression.normalise import Centred
from leanrecon.regression.ridge import blas
from leanrecon.regression.ridge.hat import refuse_nan_rows, row_slabs, target_columns, voxel_slabs
from leanrecon.regression.ridge.kernel import Panels, solve
from leanrecon.regression.ridge.limits import TEST_ROWS, WEIGHT_BLOCK
from leanrecon.regression.ridge.pairing import Pairing
from leanrecon.regression.ridge.triangle import DEPTH
from leanrecon.stores.matrix import (
    BLOCK,
    ColumnSubset,
    Matrix,
    Reblocked,
    RowSubset,
    StoreMatrix,
    column_blocks,
    panels,
)
from leanrecon.stores.store import Store

Array = np.ndarray[Any, Any]


def weights(betas: Centred, factor: Panels, targets: Matrix, columns: range, pairing: Pairing) -> tuple[Array, Array]:
    """The weights of some targets, [len(columns), p] for centred (and scaled) betas, and the targets' means."""
    n, p = betas.shape
    dtype = factor.dtype
    block, mean = target_columns(targets, columns, dtype, pairing.weights)
    result = buffer((len(columns), p), dtype)
    if betas.dual:
        dual = buffer((len(columns), n), dtype)
        for rows in panels(n):
            dual[:, rows.start : rows.stop] = pairing.rows_of(block, rows).T
        del block
        solve(factor, dual)
        for voxels, (slab, _) in zip(panels(p, DEPTH), voxel_slabs(betas, dtype), strict=True):
            blas.gemm(dual, slab, result[:, voxels.start : voxels.stop], beta=0)
    else:
        for rows, slab in row_slabs(betas, dtype):
            blas.gemm(pairing.rows_of(block, rows), slab, result, ta=True)
        solve(factor, result)
    return result, mean


def for_measured_betas(w: Array, mean: Array, betas: Centred) -> tuple[Array, Array]:
    """Weights for betas as they were measured, and intercepts, from weights for centred betas and the targets' means."""
    w *= betas.factor.astype(w.dtype)
    return w, mean - np.einsum("ij,j->i", w, betas.mean, dtype=np.float64)


def through_weights(
    betas: Centred,
    test: Centred,
    factor: Panels,
    targets: Matrix,
    wanted: Iterable[int],
    pairing: Pairing,
) -> Iterator[tuple[range, range, Array]]:
    """Yield ``(rows, columns, predictions)`` for the wanted column blocks of the targets, by way of their weights.

    Cheaper than H Y for many test rows. Predictions are valid until the next ones are asked for.
    """
    p, dtype = betas.shape[1], factor.dtype
    at_once = min(TEST_ROWS, test.shape[0])
    w, mean = buffer((targets.block, p), dtype), np.zeros(targets.block)
    memory, out = buffer((at_once * p * dtype.itemsize,), np.uint8), buffer((at_once, targets.block), dtype)
    for j in wanted:
        columns = column_blocks(targets)[j]
        for part in panels(len(columns), WEIGHT_BLOCK):
            at = slice(part.start, part.stop)
            some = range(columns.start + part.start, columns.start + part.stop)
            w[at], mean[at] = weights(betas, factor, targets, some, pairing)
        for rows in panels(test.shape[0], TEST_ROWS):
            values = out[: len(rows), : len(columns)]
            blas.gemm(test.read(rows, range(p), memory, dtype), w[: len(columns)], values, beta=0, tb=True)
            refuse_nan_rows(values, rows)
            values += mean[: len(columns)].astype(dtype)
            yield rows, columns, values


def lacking_targets(store: Store) -> list[range]:
    """The blocks of targets of which a store of weights lacks something."""
    rows = {row for i in store.missing_row_groups() for row in store.group_rows(i)}
    return [columns for columns in panels(store.rows, WEIGHT_BLOCK) if not rows.isdisjoint(columns)]


def write_weights(store: Store, columns: range, coef: Array, intercept: Array) -> None:
    """Write the weights [len(columns), p] of some targets and their intercepts into a store [targets, p + 1]."""
    block = np.empty((len(columns), store.columns), np.float32)
    block[:, :-1], block[:, -1] = coef, intercept
    for part in panels(len(columns), store.chunk_rows):
        store.write_rows((columns.start + part.start) // store.chunk_rows, block[part.start : part.stop])


def contents(matrix: Matrix) -> str:
    """SHA-256 of the content of a matrix: kept with a store, else computed in one pass."""
    if isinstance(matrix, StoreMatrix):
        return matrix.store.content
    if isinstance(matrix, Reblocked):
        return contents(matrix.base)
    if isinstance(matrix, RowSubset):
        return hashlib.sha256(contents(matrix.base).encode() + matrix.index.tobytes()).hexdigest()
    if isinstance(matrix, ColumnSubset):
        return hashlib.sha256(contents(matrix.base).encode() + b"columns" + matrix.index.tobytes()).hexdigest()
    n, p = matrix.shape
    digest = hashlib.sha256(repr((n, p, matrix.dtype.str)).encode())
    for columns in panels(p, BLOCK):
        for rows in panels(n):
            block = np.empty((len(rows), len(columns)), matrix.dtype)
            matrix.read(rows, columns, block)
            digest.update(block.data)
    return digest.hexdigest()
