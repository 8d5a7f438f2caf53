"""Leave-one-out errors of every alpha where images are shown several times: all rows of an image are left out together.

S(α) is the hat matrix of the train rows, intercept included. The errors of the rows G of an image, predicted from all
other rows, are (I − S_GG)⁻¹ (y_G − ŷ_G): the ridge fitted to the others is the one fitted to all rows
with y_G replaced by their predictions.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from leanrecon.memory import buffer
from leanrecon.regression.normalise import Centred
from leanrecon.regression.ridge import blas
from leanrecon.regression.ridge.arithmetic import Arithmetic
from leanrecon.regression.ridge.hat import row_slabs
from leanrecon.regression.ridge.pairing import Groups, Pairing
from leanrecon.regression.ridge.plan import group_rows_held
from leanrecon.regression.ridge.spectrum import Spectrum
from leanrecon.regression.ridge.triangle import DEPTH, PAIRS
from leanrecon.stores.matrix import PANEL, panels

Array = np.ndarray[Any, Any]


def dual_group_errors(
    spectrum: Spectrum, targets: Array, alphas: Array, pairing: Pairing, arithmetic: Arithmetic
) -> Array:
    """Sums of squared errors, float64 [alphas, k], of targets [n, k] that are centred; residuals are αG Y with G = (K + αI)⁻¹."""
    assert pairing.index is not None
    vectors, dtype = spectrum.vectors, spectrum.vectors.dtype
    n, k = targets.shape
    groups = Groups.of(pairing.index)
    shrink = (alphas / (spectrum.values[:, None] + alphas)).astype(dtype)
    loadings, weighted = (arithmetic.zeros((n, k), dtype) for _ in range(2))
    residual = buffer((n, k), dtype)
    placed, by, found = spectrum.placed(arithmetic), arithmetic.put(shrink), arithmetic.like(residual)
    arithmetic.gemm(placed, arithmetic.put(targets), loadings, beta=0)
    left, right = groups.pairs
    kept = buffer((len(left), len(alphas)), dtype)
    for some in panels(len(left), PAIRS):
        pair = slice(some.start, some.stop)
        for part in panels(n, PANEL):
            rows = vectors[part.start : part.stop]
            products = np.take(rows, left[pair], axis=1)
            products *= np.take(rows, right[pair], axis=1)
            blas.gemm(products, shrink[part.start : part.stop], kept[pair], ta=True)
    kept -= (alphas / (n * (alphas + n * spectrum.constant))).astype(dtype)
    errors = np.zeros((len(alphas), k))
    for a in range(len(alphas)):
        arithmetic.multiply(loadings, by[:, a : a + 1], weighted)
        arithmetic.gemm(placed, weighted, found, beta=0, ta=True)
        arithmetic.take(found, residual)
        errors[a] = left_out_squares(residual, kept[:, a], groups)
    return errors


def primal_group_errors(
    betas: Centred,
    spectrum: Spectrum,
    targets: Array,
    alphas: Array,
    pairing: Pairing,
    arithmetic: Arithmetic,
) -> Array:
    """The same of targets [s, k], which rows of betas are paired with; residuals are Y − X (XᵀX + αI)⁻¹ XᵀY."""
    assert pairing.index is not None
    (n, p), k = betas.shape, targets.shape[1]
    vectors, dtype = spectrum.placed(arithmetic), spectrum.vectors.dtype
    shrink = (1 / np.maximum(spectrum.values[:, None] + alphas, np.finfo(dtype).tiny)).astype(dtype)
    products, loadings = arithmetic.zeros((p, k), dtype), arithmetic.zeros((p, k), dtype)
    for part, slab in row_slabs(betas, dtype, arithmetic):
        arithmetic.gemm(slab, arithmetic.put(pairing.rows_of(targets, part)), products, ta=True)
    arithmetic.gemm(vectors, products, loadings, beta=0)
    errors = np.zeros((len(alphas), k))
    by = arithmetic.put(shrink)
    scores = arithmetic.zeros((max(DEPTH, pairing.largest), p), dtype)
    for rows, slab in group_slabs(betas, pairing, dtype):
        arithmetic.gemm(arithmetic.put(slab), vectors, scores[: len(rows)], beta=0, tb=True)
        here = scores[: len(rows)]
        groups = Groups.of(pairing.index[rows])
        kept = _kept(arithmetic.host(here), shrink, groups, n)
        for a in range(len(alphas)):
            residual = targets[pairing.index[rows]]
            found = arithmetic.put(residual)
            arithmetic.multiply(loadings, by[:, a : a + 1], products)
            arithmetic.gemm(here, products, found, alpha=-1)
            arithmetic.take(found, residual)
            errors[a] += left_out_squares(residual, kept[:, a], groups)
    return errors


def _kept(scores: Array, shrink: Array, groups: Groups, n: int) -> Array:
    """The entries of I − S for the pairs of some groups, [pairs, alphas], from their betas in the basis of the eigenvectors."""
    left, right = groups.pairs
    kept = np.empty((len(left), shrink.shape[1]), scores.dtype)
    for some in panels(len(left), DEPTH):
        pair = slice(some.start, some.stop)
        products = scores[left[pair]]
        products *= scores[right[pair]]
        blas.gemm(products, shrink, kept[pair], alpha=-1, beta=0)
    kept += ((left == right) - 1 / n)[:, None].astype(scores.dtype)
    return kept


def group_slabs(betas: Centred, pairing: Pairing, dtype: Any) -> Iterator[tuple[Array, Array]]:
    """Yield ``(rows, betas [len(rows), p])``: whole groups, about 512 rows at a time, in as few passes as the plan holds."""
    n, p = betas.shape
    slabs = _slabs(pairing)
    most = group_rows_held(p, pairing.largest)
    memory = buffer((most, p), dtype)
    while slabs:
        taken, held = [], 0
        while slabs and held + len(slabs[0]) <= most:
            held += len(slabs[0])
            taken.append(slabs.pop(0))
        place = np.full(n, -1)
        place[np.concatenate(taken)] = np.arange(held)
        for part, slab in row_slabs(betas, dtype):
            to = place[part.start : part.stop]
            memory[to[to >= 0]] = slab[to >= 0]
        start = 0
        for rows in taken:
            yield rows, memory[start : start + len(rows)]
            start += len(rows)


def _slabs(pairing: Pairing) -> list[Array]:
    """Rows of whole groups: up to 512 rows, or one larger group; groups in the order of their first rows."""
    assert pairing.index is not None
    by_group = sorted((rows for size in Groups.of(pairing.index).sizes for rows in size), key=lambda rows: int(rows[0]))
    slabs: list[list[Array]] = []
    held = 0
    for rows in by_group:
        if not slabs or held + len(rows) > DEPTH:
            slabs.append([])
            held = 0
        slabs[-1].append(rows)
        held += len(rows)
    return [np.concatenate(slab) for slab in slabs]


def left_out_squares(residual: Array, kept: Array, groups: Groups) -> Array:
    """Column sums of squared errors in float64 of some groups that are left out; infinite where that can't be told."""
    try:
        groups.leave_out(residual, kept)
    except np.linalg.LinAlgError:
        return np.full(residual.shape[1], np.inf)
    return sums_of_squares(residual)


def sums_of_squares(a: Array) -> Array:
    """Column sums of squares in float64, without a copy of ``a``; overwrites it."""
    sums: Array = np.square(a, out=a).sum(axis=0, dtype=np.float64)
    return sums
