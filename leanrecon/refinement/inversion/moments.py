"""What is known of features from train rows: their mean and spread, and how well they are predicted."""

import numpy as np

from leanrecon.errors import InputError
from leanrecon.images import Array
from leanrecon.memory import scratch
from leanrecon.refinement.inversion.plan import PANEL_NBYTES
from leanrecon.stores.gather import gathered
from leanrecon.stores.matrix import Matrix, panels


def _panels(rows: int, columns: int) -> list[range]:
    """Rows that are read together: arithmetic on the shape alone."""
    return panels(rows, max(PANEL_NBYTES // (4 * columns), 1))


def moments(features: Matrix) -> tuple[Array, Array]:
    """Mean and standard deviation of each column, float32 [t] each; a column that does not vary has a deviation of 0."""
    n, t = features.shape
    total, squares, shift = np.zeros(t), np.zeros(t), np.zeros(t)
    for rows in _panels(n, t):
        block = scratch((len(rows), t), np.float32)
        features.read(rows, range(t), block)
        if rows.start == 0:
            shift = block[0].astype(np.float64)
        less = block - shift
        total += less.sum(0)
        squares += np.square(less).sum(0)
    mean = total / n
    variance = np.maximum(squares / n - mean**2, 0)
    variance[variance <= 1e-12 * np.maximum((mean + shift) ** 2, 1e-30)] = 0
    return (mean + shift).astype(np.float32), np.sqrt(variance).astype(np.float32)


def carried(features: Matrix, predicted: Matrix, stimulus: Array) -> Array:
    """Squared correlation [t] of features with what was predicted of them, where positive: how much the brain carries.

    Row i of ``predicted`` [n, t] shows image ``stimulus[i]`` of ``features`` [s, t]. Raises InputError where no feature
    is predicted at all.
    """
    n, t = predicted.shape
    true, a0, b0 = gathered(features, stimulus), np.zeros(t), np.zeros(t)
    sums = np.zeros((5, t))
    for rows in _panels(n, t):
        seen, guess = (scratch((len(rows), t), np.float32) for _ in range(2))
        true.read(rows, range(t), seen)
        predicted.read(rows, range(t), guess)
        if rows.start == 0:
            a0, b0 = seen[0].astype(np.float64), guess[0].astype(np.float64)
        a, b = seen - a0, guess - b0
        for place, value in zip(sums, (a, b, a * a, b * b, a * b), strict=True):
            place += value.sum(0)
    a, b, aa, bb, ab = sums / n
    variances = np.maximum(aa - a * a, 0), np.maximum(bb - b * b, 0)
    product = np.sqrt(variances[0] * variances[1])
    r = np.divide(ab - a * b, product, out=np.zeros(t), where=product > 0)
    found: Array = (np.clip(r, 0, 1) ** 2).astype(np.float32)
    if not found.any() or not np.isfinite(found).all():
        raise InputError(
            "no feature is predicted better than by chance for train rows without their images",
            todo="match another feature space, or look at the betas",
        )
    return found
