"""The shapes of a ridge, from its matrices, for its plan."""

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
    y_scratch = 0 if isinstance(targets, StoreMatrix) else targets.scratch_nbytes
    if targets.dtype != np.dtype(np.float64 if wide else np.float32):
        y_scratch += targets.tile_nbytes * 4 // targets.dtype.itemsize  # a tile that was converted
    scratch = betas.scratch_nbytes + (2 * betas.tile_nbytes if restandardize == "inductive" else 0)
    return Shapes(
        n, p, m, t, targets.block, betas.tile_nbytes, targets.tile_nbytes, scratch, y_scratch,
        y_itemsize=8 if wide else 4, restandardized=restandardize != "none", shuffled=shuffled,
        s=pairing.s if pairing.repeats else None, largest=pairing.largest, rbf=rbf,
    )  # fmt: skip
