"""A kernel as Q T Qᵀ with tridiagonal T, in float64: all that errors of known rows under many alphas need.

T + αI is solved in time that is linear in its order, whatever α. LAPACK's syevd finds T on its way to eigenvectors, in
about a quarter of its time.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from leanrecon.memory import buffer
from leanrecon.regression.ridge import blas
from leanrecon.regression.ridge.kernel import Panels
from leanrecon.regression.ridge.loo import mean_eigenvalue

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Tridiagonal:
    """K = Q T Qᵀ of a kernel of ``order`` rows."""

    diagonal: Array
    """Of T, [order]."""
    other: Array
    """The diagonal beside it, [order - 1]."""
    reflectors: Array
    """What Q is a product of, [order, order], and its factors [order] (see ``blas.sytrd``)."""
    tau: Array

    def turned(self, rows: Array) -> Array:
        """A copy of ``rows`` [m, order], times Q."""
        result = buffer(rows.shape, self.reflectors.dtype)
        result[:] = rows
        blas.ormtr(self.reflectors, self.tau, result)
        return result


@dataclass(frozen=True)
class Turned:
    """A kernel of train rows in tridiagonal form, and what test rows have in common with them."""

    kernel: Tridiagonal
    scores: Array
    """Products T Xᵀ of test rows, times Q: [m, order], in the precision of the products."""
    mean_eigenvalue: float

    @classmethod
    def of(cls, kernel: Panels, cross: Array) -> "Turned":
        """Of a kernel and the products ``cross`` [m, order] of test rows with its rows."""
        found = tridiagonal(kernel)
        return cls(found, found.turned(cross).astype(cross.dtype, copy=False), mean_eigenvalue(kernel))

    def errors(self, targets: Array, expected: Array, alphas: Array) -> Array:
        """Sums of squared errors of T Xᵀ (K + αI)⁻¹ Y, float64 [alphas]; infinite where K + αI is singular.

        ``targets`` are Y [order, k], ``expected`` [m, k].
        """
        loadings = self.kernel.turned(targets.T)
        solved, predicted = buffer(loadings.shape, loadings.dtype), buffer(expected.shape, self.scores.dtype)
        errors = np.full(len(alphas), np.inf)
        for a, alpha in enumerate(alphas):
            solved[:] = loadings
            if blas.ptsv(self.kernel.diagonal + alpha, self.kernel.other.copy(), solved) == 0:
                blas.gemm(self.scores, solved.astype(self.scores.dtype, copy=False), predicted, beta=0, tb=True)
                errors[a] = np.square(expected - predicted).sum()
        return errors


def tridiagonal(kernel: Panels) -> Tridiagonal:
    """The tridiagonal form of a kernel in float64, over one square copy of its lower triangle."""
    square = buffer((kernel.order, kernel.order), np.float64)
    (memory,) = kernel.memories(1)
    for j, columns in enumerate(kernel.columns):
        square[columns.start :, columns.start : columns.stop] = kernel.load(j, memory)
    del memory
    diagonal, other, tau = blas.sytrd(square)
    return Tridiagonal(diagonal, other, square, tau)
