"""The shapes of a ridge, from its matrices, for its plan."""

from typing import Any

import numpy as np

from leanrecon.regression.ridge.pairing import Pairing
from leanrecon.regression.ridge.plan import Shapes
from leanrecon.regression.ridge.restandardise import Kind
from leanrecon.stores.matrix import Matrix, StoreMatrix


def shapes_of(
    betas: Matrix,
    targets: Matrix,
    m: int,
    pairing: Pairing,
    restandardize: Kind,
    *,
    shuffled: bool,
    rbf: bool = False,
) -> Shapes:
    """The shapes of a ridge from betas [n, p] to targets [s, t] that predicts ``m`` rows."""
    (n, p), t = betas.shape, targets.shape[1]
    wide = np.result_type(targets.dtype, np.float32) == np.float64
    dtype = np.dtype(np.float64 if wide else np.float32)
    scratch = betas.scratch_nbytes + (2 * betas.tile_nbytes if restandardize == "inductive" else 0)
    return Shapes(
        n, p, m, t, targets.block, betas.tile_nbytes, targets.tile_nbytes, scratch, targets_scratch_nbytes(targets, dtype),
        y_itemsize=dtype.itemsize, restandardized=restandardize != "none", shuffled=shuffled,
        s=pairing.s if pairing.repeats else None, largest=pairing.largest, rbf=rbf,
    )  # fmt: skip


def targets_scratch_nbytes(targets: Matrix, dtype: np.dtype[Any]) -> int:
    """Bytes that reading targets takes for a while, and a tile of them that was converted to ``dtype``."""
    reading = 0 if isinstance(targets, StoreMatrix) else targets.scratch_nbytes
    return reading + (targets.tile_nbytes * 4 // targets.dtype.itemsize if targets.dtype != dtype else 0)
