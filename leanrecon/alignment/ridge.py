"""Ridge from one subject's voxels to a shared space: how a subject joins it from the rows that it shares."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from leanrecon.alignment.banded import Banded, banded_nbytes
from leanrecon.alignment.grams import Gram, gram_nbytes, reading_nbytes, weights_of
from leanrecon.alignment.users import as_betas, scores_of
from leanrecon.arguments import Parameters
from leanrecon.errors import InputError, SettingsError

if TYPE_CHECKING:
    from leanrecon.memory import MemoryBudget

Array = np.ndarray[Any, Any]

ALPHAS = tuple(10.0**power for power in np.arange(-3, 3.25, 0.25))
"""Penalties that are tried, as shares of the mean squared norm of a row of betas."""


PROJECTED = 48
"""Random directions of the targets, which stand for all of them where a penalty is chosen."""


@dataclass(frozen=True)
class Dual:
    """A ridge by its dual weights B [n, k]: the map is W = X'·B."""

    weights: Array
    held_out: Array
    """Scores of every row by the ridge that was fitted on all other rows, float64 [n, k], less the targets' mean."""
    alpha: float
    """The chosen penalty."""
    error: float
    """Mean squared error of the held-out scores, as a share of the targets' variance."""


def solve(gram: Gram, targets: Array, alphas: tuple[float, ...] = ALPHAS) -> Dual:
    """The ridge min ‖Y − X·W‖² + α‖W‖² to centred targets Y [n, k], α chosen by leave-one-out errors.

    The held-out scores are exact: each row is left out of the map and of both means (Allen 1974, the PRESS statistic).
    """
    n, unit = gram.rows, gram.norm / gram.rows
    banded = Banded(gram.dense())
    turned = banded.turn @ targets
    best: tuple[float, float, Array, Array] | None = None
    for share in alphas:
        try:
            dual, diagonal = banded.solve(share * unit, turned)
        except np.linalg.LinAlgError:  # a penalty below the rounding errors of G
            continue
        residual = dual / np.maximum(diagonal - 1 / (n * share * unit), 1e-9 / (share * unit))[:, None]
        error = float(np.square(residual).sum())
        if best is None or error < best[0]:
            best = error, share * unit, dual, residual
    if best is None:
        raise InputError(f"the betas are too imprecise for penalties of {alphas}", expected="larger ones")
    error, alpha, dual, residual = best
    total = float(np.square(targets).sum())
    # A row that is left out shifts the means: what is held out is told less the mean of all targets.
    return Dual(dual, targets - residual, alpha, error / total if total else 0.0)


def solve_nbytes(rows: int, dims: int) -> int:
    """Most bytes of ``solve`` beside the targets and what it returns."""
    return banded_nbytes(rows) + 6 * rows * dims * 8


def eigen(gram: Gram) -> tuple[Array, Array]:
    """Eigenvalues (ascending, none below 0) and eigenvectors of a Gram matrix."""
    from scipy.linalg import eigh

    values, vectors = eigh(gram.dense().T, overwrite_a=True, check_finite=False)
    return np.maximum(values, 0), vectors


def eigen_nbytes(rows: int) -> int:
    """Most bytes that ``eigen`` takes: the matrix, its eigenvectors, and what LAPACK's ``syevr`` works in."""
    return 2 * rows * (rows + 64) * 8


def left_out(values: Array, vectors: Array, turned: Array, targets: Array, alpha: float) -> Array:
    """Targets less their leave-one-out predictions, [n, k], from eigenvalues [r] and eigenvectors [n, r] of X·X'."""
    shrink = values / (values + alpha)
    fitted = vectors @ (shrink[:, None] * turned)
    leverage = np.square(vectors) @ shrink + 1 / len(vectors)
    residual: Array = (targets - fitted) / np.maximum(1 - leverage, 1e-9)[:, None]
    return residual


def least_error(
    values: Array, vectors: Array, turned: Array, targets: Array, alphas: Sequence[float]
) -> tuple[float, float]:
    """The penalty whose squared leave-one-out errors sum to the least, the first of equals, and that sum."""
    errors = [float(np.square(left_out(values, vectors, turned, targets, alpha)).sum()) for alpha in alphas]
    best = int(np.argmin(errors))
    return alphas[best], errors[best]


def left_out_predictions(gram: Array, targets: Array, folds: Array, seed: int) -> Array:
    """Predictions of targets [n, d], each fold by the ridge of the other rows; ``gram`` [n, n] of all rows."""
    predicted = np.zeros(targets.shape)
    for fold in np.unique(folds):
        new, known = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        predicted[new] = by_gram(gram, known, new, targets[known], seed)
    return predicted


def by_gram(gram: Array, known: Array, new: Array, targets: Array, seed: int) -> Array:
    """Predictions of new rows by a ridge on known ones, from a Gram matrix of all."""
    inner, cross = gram[np.ix_(known, known)], gram[np.ix_(new, known)]
    mean = inner.mean(axis=0)  # centred anew by the known rows
    cross = cross - cross.mean(axis=1, keepdims=True) - mean + mean.mean()
    values, vectors = np.linalg.eigh(inner - mean - mean[:, None] + mean.mean())
    return predict(np.maximum(values, 0), vectors, cross @ vectors, targets, seed)


def predict(values: Array, vectors: Array, through: Array, targets: Array, seed: int) -> Array:
    """The ridge of the best penalty, from eigenvalues [r] and eigenvectors [n, r] of a Gram matrix."""
    centre = targets.mean(axis=0, dtype=np.float64)
    centred = targets - centre
    drawn = np.random.default_rng(seed).standard_normal((centred.shape[1], PROJECTED))
    some = centred @ drawn
    turned, unit = vectors.T @ some, float(values.sum()) / len(vectors)
    alpha, _ = least_error(values, vectors, turned, some, [share * unit for share in ALPHAS])
    predicted: Array = (through / (values + alpha)) @ (vectors.T @ centred) + centre
    return predicted


class RidgeMap(Parameters):
    """Ridge from voxels to a shared space, with a penalty chosen by leave-one-out errors on the given rows.

    ``standardize`` divides each voxel by its standard deviation first; ``alphas`` are shares of the mean squared norm of
    a row. ``fit(X, S)`` takes betas [rows, voxels] and scores [rows, k] of the same images; ``transform`` gives scores.
    ``held_out_`` are the scores of the rows of ``fit``, each by the map of all others: decoders should be trained on
    them, since those of test rows are not fitted either.
    """

    def __init__(
        self,
        alphas: tuple[float, ...] = ALPHAS,
        standardize: bool = True,
        budget: "str | int | MemoryBudget | None" = None,
    ) -> None:
        self.alphas = alphas
        self.standardize = standardize
        self.budget = budget

    def fit(self, X: Any, S: Any) -> Self:
        """Learn from betas and scores of the same images. Raises InputError where rows differ, BudgetError."""
        from leanrecon.memory import MemoryBudget

        matrix, targets = as_betas(X), np.asarray(S, np.float64)
        n, p = matrix.shape
        if targets.ndim != 2 or len(targets) != n:
            raise InputError(f"betas have {n} rows and scores have shape {targets.shape}", expected="[rows, k]")
        if n < 3:
            raise InputError(f"{n} common rows are too few for a ridge", expected="3 or more")
        if min(self.alphas, default=0) <= 0:
            raise SettingsError(f"penalties {self.alphas}", expected="one or more, each above 0")
        if not np.isfinite(targets).all():
            raise InputError("scores hold NaN or infinite values", expected="finite scores")
        work = map_nbytes(n, p, targets.shape[1], matrix.dtype.itemsize) + matrix.scratch_nbytes
        MemoryBudget.of(self.budget).require("a ridge to the shared space", work)
        gram = Gram.of(matrix, standardize=self.standardize)
        self.offset_ = targets.mean(axis=0)
        dual = solve(gram, targets - self.offset_, self.alphas)
        self.alpha_, self.error_ = dual.alpha, dual.error
        self.held_out_ = dual.held_out + self.offset_
        self.mean_, self.weights_ = gram.mean, weights_of(matrix, gram, dual.weights)
        return self

    def transform(self, X: Any) -> Array:
        """Scores [rows, k] of betas [rows, voxels], read panel by panel.

        Raises InputError for other voxels than those of ``fit`` and for betas that are not finite, BudgetError.
        """
        if not hasattr(self, "weights_"):
            from sklearn.exceptions import NotFittedError

            raise NotFittedError("this RidgeMap is not fitted yet; call fit first")
        found = scores_of(as_betas(X), self.mean_, self.weights_, self.budget)
        found += self.offset_.astype(found.dtype)
        return found


def map_nbytes(rows: int, voxels: int, dims: int, itemsize: int = 4) -> int:
    """Most bytes that fitting a ``RidgeMap`` takes."""
    solving = gram_nbytes(rows, kept=True) + solve_nbytes(rows, dims)
    return max(solving, 2 * rows * dims * 8 + voxels * dims * 12) + reading_nbytes(rows, voxels, itemsize)
