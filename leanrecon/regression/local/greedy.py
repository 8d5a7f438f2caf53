"""Orthogonal matching pursuit for a block of targets at once: as scikit-learn's, target by target.

Pati, Rezaiifar & Krishnaprasad (1993). Each step takes the voxel of the largest product with the residual, and fits all
voxels taken so far by least squares.
"""

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

DEPENDENT = 1e-10
"""A voxel of which the voxels taken before leave less than this share of its squares adds nothing: the target stops."""


def pursue(X: Array, Y: Array, T: Array, nonzero: int, allowed: Array | None) -> Array:
    """Predictions [m, b] for ``T`` [m, p] from at most ``nonzero`` voxels a target, of centred ``X`` [n, p].

    ``Y`` [n, b] are the targets; the intercept is their mean. ``allowed`` [p, b] says which voxels may be taken.
    """
    mean = Y.mean(axis=0)
    targets = np.ascontiguousarray((Y - mean).T)  # [b, n]
    residual = targets.copy()
    b, p = len(targets), X.shape[1]
    taken = np.zeros((b, nonzero), np.int64)
    weights = np.zeros((b, nonzero))
    free = np.ones((p, b), bool) if allowed is None else allowed.copy()
    going = np.flatnonzero(np.einsum("ij,ij->i", residual, residual) > 0)
    columns = np.ascontiguousarray(X.T)
    for k in range(min(nonzero, p, len(X))):
        if not len(going):
            break
        products = np.abs(columns @ residual[going].T)
        products[~free[:, going]] = -1
        best = products.argmax(axis=0)
        usable = products[best, np.arange(len(going))] > 0
        going, best = going[usable], best[usable]
        taken[going, k] = best
        free[best, going] = False
        chosen = columns[taken[going, : k + 1]]  # [g, k + 1, n]
        gram = chosen @ chosen.transpose(0, 2, 1)
        independent = _independent(gram)
        taken[going[~independent], k] = 0
        going, chosen, gram = going[independent], chosen[independent], gram[independent]
        solved = np.linalg.solve(gram, np.einsum("gkn,gn->gk", chosen, targets[going])[..., None])[..., 0]
        weights[going, : k + 1] = solved
        residual[going] = targets[going] - np.einsum("gkn,gk->gn", chosen, solved)
    predicted = np.empty((len(T), b))
    for j in range(b):
        predicted[:, j] = mean[j] + T[:, taken[j]] @ weights[j]
    return predicted


def _independent(gram: Array) -> Array:
    """Whether the last voxel of each Gram matrix [g, k, k] is more than a sum of those before it: bool [g]."""
    own = gram[:, -1, -1]
    if gram.shape[1] == 1:
        return np.asarray(own > 0)
    before, cross = gram[:, :-1, :-1], gram[:, :-1, -1]
    left = own - np.einsum("gk,gk->g", cross, np.linalg.solve(before, cross[..., None])[..., 0])
    return np.asarray(left > DEPENDENT * own)
