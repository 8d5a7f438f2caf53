"""The mathematics of the ridge: Gram matrix, hat matrix, streamed predictions.

With centred betas X [n, p], centred targets Y [n, t] and centred test betas T [m, p], ridge minimises
‖Y − XW‖² + α‖W‖². Its predictions are

    T W = H Y   with   H = T Xᵀ (X Xᵀ + αI)⁻¹ = T (Xᵀ X + αI)⁻¹ Xᵀ      (m×n)

so neither the p×t weights (5.7 GB for the VDVAE latents of one NSD subject) nor Y are ever held. The smaller of the two
Gram matrices is formed over panels of the betas and factored once. H serves every target, and Y streams through it
(Saunders, Gammerman & Vovk 1998, "Ridge regression learning algorithm in dual variables").
Where images are shown several times, H is folded so that Y holds each image once (see ``ridge.pairing``).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leanrecon.errors import InputError
from leanrecon.memory import buffer
from leanrecon.regression.normalise import Centred
from leanrecon.regression.ridge.arithmetic import ON_CPU, Arithmetic
from leanrecon.regression.ridge.kernel import Panels, add_product, solve
from leanrecon.regression.ridge.pairing import Pairing
from leanrecon.regression.ridge.rbf import Rbf, squared_norms
from leanrecon.regression.ridge.triangle import DEPTH, ROWS, WIDTH, pass_groups
from leanrecon.stores.matrix import Matrix, column_blocks, panels, read_ahead, tile_memories

Array = np.ndarray[Any, Any]

FAR_FROM_ZERO = 8.0
"""A block of targets whose mean exceeds this many standard deviations is shifted before the product."""


def gram(
    betas: Centred,
    dtype: Any,
    *,
    test: Centred | None = None,
    directory: Path | None = None,
    pass_nbytes: int | None = None,
    arithmetic: Arithmetic = ON_CPU,
) -> tuple[Panels, Array | None]:
    """K = X Xᵀ (dual: n ≤ p) or Xᵀ X, summed over panels of voxels or rows in a fixed order, and T Xᵀ of test betas beside X Xᵀ.

    With ``directory`` K lies on disk there, and ``pass_nbytes`` of it are formed in one pass over the betas: all of it on
    another device than the CPU.
    """
    n, dual, order = betas.shape[0], betas.dual, betas.order
    result = Panels(order, dtype, directory=directory)
    cross = arithmetic.zeros((test.shape[0], n), dtype) if test is not None and dual else None
    at_once = pass_nbytes if directory and arithmetic is ON_CPU else None
    for group in pass_groups(order, np.dtype(dtype).itemsize, at_once):
        held = {j: arithmetic.zeros((order - j * WIDTH, len(result.columns[j])), dtype) for j in group}
        if not dual:
            for _, slab in row_slabs(betas, dtype, arithmetic):
                add_product(held, slab, result.columns, transpose=True, arithmetic=arithmetic)
        else:
            beside = test if group[0] == 0 and test is not None else None
            for slab, test_slab in voxel_slabs(betas, dtype, test=beside, arithmetic=arithmetic):
                add_product(held, slab, result.columns, transpose=False, arithmetic=arithmetic)
                if test_slab is not None and cross is not None:
                    add_cross(cross, test_slab, slab, arithmetic)
        for j in group:
            result.save(j, arithmetic.host(held.pop(j)))
    return result, None if cross is None else arithmetic.host(cross)


def cross_kernel(betas: Centred, test: Centred, rows: range, dtype: Any, arithmetic: Arithmetic) -> Array:
    """T Xᵀ [len(rows), n] of some test rows, over panels of voxels."""
    result = arithmetic.zeros((len(rows), betas.shape[0]), dtype)
    for slab, test_slab in voxel_slabs(betas, dtype, test=test, rows=rows, arithmetic=arithmetic):
        add_cross(result, test_slab, slab, arithmetic)
    return arithmetic.host(result)


def add_cross(cross: Any, test_slab: Any, slab: Any, arithmetic: Arithmetic) -> None:
    """Add products of test betas with train betas, both of some voxels: as many train rows at once as a worker forms."""
    for rows in panels(len(slab), ROWS):
        some = slice(rows.start, rows.stop)
        arithmetic.gemm(test_slab, slab[some], cross[:, some], tb=True)


def hat_matrix(
    betas: Centred,
    test: Centred,
    rows: range,
    factor: Panels,
    *,
    cross: Array | None = None,
    fold: Pairing | None = None,
    rbf: Rbf | None = None,
    arithmetic: Arithmetic = ON_CPU,
) -> Array:
    """H [len(rows), n] such that H Y are the predictions of some test rows, the intercept included.

    Its rows sum to one: H Y = ȳ + T W whatever the mean ȳ of the targets. ``cross`` is T Xᵀ where it is there
    already; it becomes H. With ``fold`` the result is H' [len(rows), s] for targets that hold each image once. With
    ``rbf`` the factor is that of its kernel.
    """
    n, p = betas.shape
    dtype = factor.dtype
    if betas.dual:
        hat = cross_kernel(betas, test, rows, dtype, arithmetic) if cross is None else cross
        if rbf is not None:
            rbf.of_test(hat, squared_norms(test, rows, dtype))
        solve(factor, hat, arithmetic)
        sums = refuse_nan_rows(hat, rows)
        hat += ((1 - sums) / n)[:, None].astype(dtype)
        return by_image(hat, fold)
    inner = test.read(rows, range(p), buffer((len(rows) * p * dtype.itemsize,), np.uint8), dtype)
    solve(factor, inner, arithmetic)
    hat = buffer((len(rows), n if fold is None else fold.s), dtype)
    product = None if fold is None else buffer((len(rows), min(DEPTH, n)), dtype)
    left = arithmetic.put(inner)
    for part, train_part in row_slabs(betas, dtype, arithmetic):
        out = hat[:, part.start : part.stop] if product is None else product[:, : len(part)]
        found = arithmetic.like(out)
        arithmetic.gemm(left, train_part, found, beta=0, tb=True)
        arithmetic.take(found, out)
        if fold is not None:
            fold.fold(hat, out, part)
    sums = refuse_nan_rows(hat, rows)
    intercept = ((1 - sums) / n)[:, None].astype(dtype)
    if fold is None:
        hat += intercept
    else:
        counts = fold.counts.astype(dtype)
        for row, constant in zip(hat, intercept, strict=True):
            row += constant * counts
    return hat


def train_hat_matrix(rows: Array, factor: Panels, alpha: float, arithmetic: Arithmetic = ON_CPU) -> Array:
    """H [len(rows), n] such that H Y are the predictions of some train rows, the intercept included; reads no betas.

    ``factor`` is that of K + αI for a kernel K of the rows, as ``cholesky`` deflates it: K (K + αI)⁻¹ = I − α (K + αI)⁻¹.
    """
    n, dtype = factor.order, factor.dtype
    hat, own = buffer((len(rows), n), dtype), (np.arange(len(rows)), rows)
    hat[own] = 1
    solve(factor, hat, arithmetic)
    hat *= dtype.type(-alpha)
    hat[own] += 1
    hat += ((1 - refuse_nan_rows(hat, range(len(rows)))) / n)[:, None].astype(dtype)  # the part along the ones, too
    return hat


def refuse_nan_rows(products: Array, rows: range) -> Array:
    """The row sums of products with test betas, in float64; raises InputError where the betas made them NaN."""
    with np.errstate(invalid="ignore"):  # of infinities
        sums: Array = products.sum(axis=1, dtype=np.float64)
    if not np.isfinite(sums).all():
        row = rows[int(np.argmin(np.isfinite(sums)))]
        raise InputError(f"test betas hold NaN or infinite values in row {row}", expected="finite betas")
    return sums


def row_slabs(betas: Centred, dtype: Any, arithmetic: Arithmetic = ON_CPU) -> Iterator[tuple[range, Any]]:
    """Panels of rows over all voxels, the next one being read meanwhile."""
    n, p = betas.shape
    memories = [buffer((min(DEPTH, n) * p * np.dtype(dtype).itemsize,), np.uint8) for _ in range(2)]

    def read(rows: range, memory: Array) -> Array:
        return betas.read(rows, range(p), memory, dtype)

    with arithmetic.feeding(memories) as feed:
        for rows, slab in read_ahead(panels(n, DEPTH), read, memories):
            yield rows, feed(slab)[0]


def voxel_slabs(
    betas: Centred,
    dtype: Any,
    *,
    test: Centred | None = None,
    rows: range | None = None,
    arithmetic: Arithmetic = ON_CPU,
) -> Iterator[tuple[Any, Any]]:
    """Panels of voxels over all rows of the betas, and over some rows (or all) of the test betas, the next being read meanwhile."""
    n, p = betas.shape
    itemsize = np.dtype(dtype).itemsize
    rows = range(0) if test is None else range(test.shape[0]) if rows is None else rows
    train_nbytes, test_nbytes = (count * min(DEPTH, p) * itemsize for count in (n, len(rows)))

    def read(voxels: range, memory: Array) -> Array:
        betas.read(range(n), voxels, memory[:train_nbytes], dtype)
        if test is not None:
            test.read(rows, voxels, memory[train_nbytes:], dtype)
        return memory

    memories = [buffer((train_nbytes + test_nbytes,), np.uint8) for _ in range(2)]
    with arithmetic.feeding(memories) as feed:
        for voxels, memory in read_ahead(panels(p, DEPTH), read, memories):
            k = len(voxels)
            train_part = memory[: n * k * itemsize].view(dtype).reshape(n, k)
            test_part = memory[train_nbytes : train_nbytes + len(rows) * k * itemsize].view(dtype).reshape(len(rows), k)
            train_slab, test_slab = feed(train_part, test_part)
            yield train_slab, test_slab if test is not None else None


def converted(a: Array, dtype: np.dtype[Any], index: Array | None = None, *, targets: int | None = None) -> Array:
    """A hat matrix in another dtype, for other rows of targets; in pages of its own, unless nothing changes.

    H Y[index] = H' Y, where column j of H' is the sum of the columns i of H with index[i] == j. ``targets`` is the
    number of rows of Y; None where ``index`` is a permutation of them.
    """
    if a.dtype == dtype and index is None:
        return a
    result = buffer((len(a), targets or a.shape[1]), dtype)
    if index is None:
        result[:] = a
        return result
    for row, new in zip(a, result, strict=True):
        if targets is None:
            new[index] = row
        else:
            new[:] = np.bincount(index, row, targets)
    return result


def by_image(hat: Array, fold: Pairing | None) -> Array:
    """A hat matrix with a column for each image; the same one where ``fold`` is None, as no image is repeated."""
    return hat if fold is None else converted(hat, hat.dtype, fold.index, targets=fold.s)


@dataclass
class Block:
    """Products of a hat matrix with one column block of the targets; ``mean`` and ``std`` (ddof = 0) are the targets'."""

    columns: range
    values: Array
    mean: Array
    std: Array


def stream(
    hats: list[Array],
    targets: Matrix,
    wanted: Iterable[int],
    *,
    moments: bool = False,
    weights: Array | None = None,
    out: Array | None = None,
    arithmetic: Arithmetic = ON_CPU,
) -> Iterator[Block]:
    """Yield H Y for the wanted column blocks of the targets, [rows of all hats, columns of the block].

    ``hats`` are panels of one hat matrix; each tile of targets is read once for all of them, the next one being
    read meanwhile. A block is valid until the next one is asked for, or until ``out``, its memory, is used again.
    The targets' moments are taken on request; each row of the targets counts as often as ``weights`` [n] say.
    """
    n = targets.shape[0]
    total = n if weights is None else float(weights.sum())
    blocks = column_blocks(targets)
    starts = np.cumsum([0] + [len(hat) for hat in hats])
    dtype = hats[0].dtype
    out = buffer((int(starts[-1]), targets.block), dtype) if out is None else out[: int(starts[-1])]
    shift, sums, squares = (np.zeros(targets.block) for _ in range(3))

    def read(item: tuple[int, range], memory: Array) -> Array:
        return targets.read_tile(item[1], item[0], memory)

    items = [(j, rows) for j in wanted for rows in panels(n)]
    memories = tile_memories(targets)
    found, placed = arithmetic.like(out), [arithmetic.put(hat) for hat in hats]
    with arithmetic.feeding([*memories, out.reshape(-1).view(np.uint8)]) as feed:
        for (j, rows), tile in read_ahead(items, read, memories):
            width = len(blocks[j])
            if tile.dtype != dtype:
                tile = tile.astype(dtype)
            if rows.start == 0:
                shift[:] = sums[:] = squares[:] = 0
                shift[:width] = far_means(tile[:, :width])
            if shift.any():
                tile -= shift[: tile.shape[1]].astype(dtype)
            (fed,) = feed(tile)
            for hat, start in zip(placed, starts, strict=False):
                part = found[start : start + len(hat), : tile.shape[1]]
                arithmetic.gemm(hat[:, rows.start : rows.stop], fed, part, beta=0.0 if rows.start == 0 else 1.0)
            if moments:
                some = None if weights is None else weights[rows.start : rows.stop]
                sums[:width] += column_sums(tile[:, :width], some)
                squares[:width] += column_sums(np.square(tile[:, :width], out=tile[:, :width]), some)
            if rows.stop == n:
                values = arithmetic.take(found, out)[:, :width]
                if shift.any():
                    values += shift[:width].astype(dtype)
                with np.errstate(invalid="ignore"):  # of infinities
                    refuse_nan_columns(values.sum(axis=0, dtype=np.float64), blocks[j])
                mean = sums[:width] / total
                std = np.sqrt(np.maximum(squares[:width] / total - mean**2, 0))
                yield Block(blocks[j], values, mean + shift[:width], std)


def column_sums(a: Array, weights: Array | None) -> Array:
    """Column sums in float64, each row as often as its weight says."""
    sums: Array = a.sum(axis=0, dtype=np.float64) if weights is None else np.einsum("i,ij->j", weights, a)
    return sums


def column_means(a: Array, weights: Array | None) -> Array:
    """Column means in float64, each row as often as its weight says."""
    mean: Array = a.mean(axis=0, dtype=np.float64) if weights is None else column_sums(a, weights) / weights.sum()
    return mean


def far_means(tile: Array) -> Array:
    """Column means of a first tile if any is far from zero for its spread, else zeros.

    A large mean would cost the product its last digits; near zero, a shift of every tile would cost time.
    """
    mean: Array = tile.mean(axis=0, dtype=np.float64)
    mean_square = np.einsum("ij,ij->j", tile, tile).astype(np.float64) / len(tile)
    return mean if np.any(mean**2 * (1 + FAR_FROM_ZERO**-2) > mean_square) else np.zeros_like(mean)


def refuse_nan_columns(sums: Array, columns: range) -> None:
    """Raise InputError where the sum of a target column is NaN or infinite, by the number of the first."""
    finite = np.isfinite(sums)
    if not finite.all():
        first = columns[int(np.argmin(finite))]
        raise InputError(f"target column {first} holds NaN or infinite values", expected="finite targets")


def target_columns(targets: Matrix, columns: range, dtype: Any, weights: Array | None) -> tuple[Array, Array]:
    """Some targets less their means, [n, len(columns)], and the means in float64; InputError where they are NaN.

    Each row counts as often as ``weights`` [n] say.
    """
    n = targets.shape[0]
    block = buffer((n, len(columns)), dtype)
    for rows in panels(n):
        targets.read(rows, columns, block[rows.start : rows.stop])
    mean = column_means(block, weights)
    refuse_nan_columns(mean, columns)
    block -= mean.astype(dtype)
    return block, mean
