"""Weights of a stack: non-negative least squares on out-of-fold predictions, from normal equations that add up.

With predictions P₁ … P_K [n, t] and targets Y [n, t], both less the train mean of each target, the weights w ≥ 0 are
those of least ‖Y − Σ wₖ Pₖ‖². They follow from the K × K matrix of products ⟨Pₖ, Pₗ⟩ and the vector ⟨Pₖ, Y⟩.
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

Array = np.ndarray[Any, Any]

_RANK = 1e-12  # eigenvalues below this share of the largest are rounding


@dataclass
class NormalEquations:
    """Sums of products of predictions and targets, one set for each block of targets, in float64."""

    products: Array
    """[blocks, K, K]"""
    with_targets: Array
    """[blocks, K]"""

    @classmethod
    def zeros(cls, blocks: int, members: int) -> Self:
        return cls(np.zeros((blocks, members, members)), np.zeros((blocks, members)))

    def add(self, block: int, predicted: Array, targets: Array) -> None:
        """Add predictions [K, rows, columns] and targets [rows, columns] of a block, less the mean of each target."""
        flat = predicted.reshape(len(predicted), -1).astype(np.float64)
        self.products[block] += flat @ flat.T
        self.with_targets[block] += flat @ targets.reshape(-1).astype(np.float64)

    def weights(self) -> Array:
        """Non-negative weights of least squares, float64 [blocks, K]."""
        return np.stack([nnls(a, b) for a, b in zip(self.products, self.with_targets, strict=True)])


def nnls(products: Array, with_targets: Array) -> Array:
    """The w ≥ 0 of least wᵀAw − 2bᵀw: non-negative least squares by its normal equations (Lawson & Hanson 1974).

    The matrix A may be of any rank: w then solves √Λ Vᵀ w ≈ Λ^-½ Vᵀ b over its eigenvectors V.
    """
    from scipy.optimize import nnls as solve

    values, vectors = np.linalg.eigh(products)
    kept = values > _RANK * max(float(values.max()), np.finfo(np.float64).tiny)
    if not kept.any():
        return np.zeros(len(with_targets))
    root = np.sqrt(values[kept])
    found: Array = solve(root[:, None] * vectors[:, kept].T, vectors[:, kept].T @ with_targets / root)[0]
    return found
