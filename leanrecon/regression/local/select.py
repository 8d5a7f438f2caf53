"""Voxels picked for each target, from train rows alone."""

from typing import Any

import numpy as np

from leanrecon.errors import InputError

Array = np.ndarray[Any, Any]

MOST_LEVELS = 32
"""Values that a target may have to be taken as classes."""


def correlations(X: Array, Y: Array) -> Array:
    """|r| of every voxel with every target, float64 [p, b], of centred ``X`` [n, p] and targets ``Y`` [n, b].

    0 where a target is constant.
    """
    centred = Y - Y.mean(axis=0)
    products: Array = np.abs(X.T @ centred)
    lengths = np.sqrt(np.einsum("ij,ij->j", X, X))[:, None] * np.sqrt(np.einsum("ij,ij->j", centred, centred))
    r: Array = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
    return r


def f_values(X: Array, labels: Array) -> Array:
    """The F-statistic of every voxel over the levels of one target, float64 [p]; 0 where it is undefined."""
    from sklearn.feature_selection import f_classif

    with np.errstate(divide="ignore", invalid="ignore"):
        scores: Array = f_classif(X, labels)[0]
    return np.where(np.isnan(scores), 0, scores)


def picked(scores: Array, count: int) -> Array:
    """The voxels with the highest scores [p], ascending; of equal ones those that come first."""
    order = np.argsort(-scores, kind="stable")[:count]
    return np.sort(order)


def levels_of(y: Array, target: int) -> tuple[Array, Array]:
    """The different values of a target, and which of them each row has; raises InputError where they are not classes."""
    levels, labels = np.unique(y, return_inverse=True)
    if len(levels) > MOST_LEVELS:
        raise InputError(
            f"target {target} has {len(levels)} different values over {len(y)} train rows, too many to be classes",
            expected=f"at most {MOST_LEVELS} levels, as patches of black and white images have",
            todo='use a regression such as estimator = "omp", and select = "correlation"',
        )
    return levels, labels
