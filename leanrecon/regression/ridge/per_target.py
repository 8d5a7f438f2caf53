"""An alpha of its own for every target: leave-one-out errors and predictions in the eigenvectors of the Gram matrix.

It costs 4n² flop a target where one alpha for all costs 2mn, and keeps the eigenvectors: for small studies, or
few targets.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from leanrecon.memory import buffer
from leanrecon.regression.normalise import Centred
from leanrecon.regression.ridge.arithmetic import ON_CPU, Arithmetic
from leanrecon.regression.ridge.hat import cross_kernel, refuse_nan_rows, row_slabs, target_columns
from leanrecon.regression.ridge.limits import WEIGHT_BLOCK
from leanrecon.regression.ridge.loo import best_alpha, loo_errors
from leanrecon.regression.ridge.pairing import Pairing
from leanrecon.regression.ridge.rbf import Rbf, squared_norms
from leanrecon.regression.ridge.restandardise import Kind, restandardise, spread
from leanrecon.regression.ridge.spectrum import Spectrum
from leanrecon.stores.matrix import Matrix, column_blocks, panels

Array = np.ndarray[Any, Any]


def choose(
    betas: Centred,
    spectrum: Spectrum,
    targets: Matrix,
    alphas: Array,
    pairing: Pairing,
    arithmetic: Arithmetic = ON_CPU,
) -> Array:
    """The alpha of least leave-one-out error for every target, float64 [targets]."""
    errors = np.empty((len(alphas), targets.shape[1]))
    for columns in panels(targets.shape[1], WEIGHT_BLOCK):
        block, _ = target_columns(targets, columns, spectrum.vectors.dtype, pairing.weights)
        errors[:, columns.start : columns.stop] = loo_errors(betas, spectrum, block, alphas, pairing, arithmetic)
    return best_alpha(errors, alphas)


def predict_blocks(
    betas: Centred,
    test: Centred,
    spectrum: Spectrum,
    targets: Matrix,
    alphas: Array,
    wanted: Sequence[int],
    kind: Kind,
    pairing: Pairing,
    rbf: Rbf | None = None,
    arithmetic: Arithmetic = ON_CPU,
) -> Iterator[tuple[range, range, Array]]:
    """Yield ``(rows, columns, predictions)`` of all test rows for the wanted column blocks of the targets."""
    p = betas.shape[1]
    m, dtype = test.shape[0], spectrum.vectors.dtype
    scores = buffer((m, spectrum.vectors.shape[0]), dtype)
    if betas.dual:
        test_betas = cross_kernel(betas, test, range(m), dtype, arithmetic)
        if rbf is not None:
            rbf.of_test(test_betas, squared_norms(test, range(m), dtype))
    else:
        test_betas = test.read(range(m), range(p), buffer((m * p * dtype.itemsize,), np.uint8), dtype)
    placed = arithmetic.like(scores)
    arithmetic.gemm(arithmetic.put(test_betas), spectrum.placed(arithmetic), placed, beta=0, tb=True)
    refuse_nan_rows(arithmetic.take(placed, scores), range(m))
    del test_betas
    out = buffer((m, targets.block), dtype)
    for j in wanted:
        columns = column_blocks(targets)[j]
        values = out[:, : len(columns)]
        for part in panels(len(columns), WEIGHT_BLOCK):
            some = range(columns.start + part.start, columns.start + part.stop)
            block, mean = target_columns(targets, some, dtype, pairing.weights)
            block = pairing.expanded(block)
            loadings = _loadings(betas, spectrum, block, arithmetic)
            for row, value in zip(loadings, spectrum.values, strict=True):
                row /= (value + alphas[some.start : some.stop]).astype(dtype)
            predicted = np.empty((m, len(some)), dtype)
            found = arithmetic.like(predicted)
            arithmetic.gemm(placed, arithmetic.put(loadings), found, beta=0)
            arithmetic.take(found, predicted)
            predicted += mean.astype(dtype)
            if kind == "transductive":
                restandardise(predicted, predicted, mean, spread(block, np.zeros(len(some))))
            values[:, part.start : part.stop] = predicted
        yield range(m), columns, values


def _loadings(betas: Centred, spectrum: Spectrum, block: Array, arithmetic: Arithmetic) -> Array:
    """Centred targets (dual), or their products with the betas (primal), in the basis of the eigenvectors."""
    loadings = np.empty((len(spectrum.values), block.shape[1]), block.dtype)
    if betas.dual:
        products = arithmetic.put(block)
    else:
        products = arithmetic.zeros((betas.shape[1], block.shape[1]), block.dtype)
        for rows, slab in row_slabs(betas, block.dtype, arithmetic):
            arithmetic.gemm(slab, arithmetic.put(block[rows.start : rows.stop]), products, ta=True)
    found = arithmetic.like(loadings)
    arithmetic.gemm(spectrum.placed(arithmetic), products, found, beta=0)
    return arithmetic.take(found, loadings)
