"""How well each voxel follows the images: leave-one-out R² of an encoding ridge from targets to betas, in closed form.

With centred targets Z [n, k] and z-scored betas B [n, p] the encoding ridge minimises ‖B − ZW‖² + α‖W‖². The error of an
image that is predicted from all others is its residual over 1 − S_ii, S being the hat matrix with the intercept (Allen
1974, as in ``ridge.loo``). An image that is shown in r rows stands once for them, with their mean and weight r: that
leaves all of its rows out together. One eigendecomposition of the smaller Gram matrix, ZᵀZ or ZZᵀ, serves every α.
Betas in float32 are multiplied in float32, a block of voxels at a time, unless k > s / 2; all else is float64.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from leanrecon.errors import InputError
from leanrecon.memory import MemoryBudget, buffer
from leanrecon.regression.image_rows import ImageRows, column_squares, voxels_at_once
from leanrecon.regression.normalise import Centred, Moments, moments
from leanrecon.regression.ridge import blas
from leanrecon.regression.ridge.loo import default_alphas, project
from leanrecon.regression.ridge.pairing import Pairing
from leanrecon.regression.ridge.plan_form import plan_encoding
from leanrecon.stores.matrix import Matrix, as_matrix, panels

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Encoding:
    """How well the voxels follow the targets."""

    r2: Array
    """Leave-one-out R² of each voxel, float64 [p]: 1 − squared errors over squares about the mean; NaN where it does not vary."""
    alpha: float
    """The penalty, for z-scored betas."""
    alphas: Array
    """What it was chosen from."""
    errors: Array
    """Mean squared leave-one-out error of z-scored betas for each of them, over all rows and voxels."""


def encoding(
    targets: Any,
    betas: Any,
    *,
    stimulus: Any = None,
    alpha: float | Literal["loo"] = "loo",
    alphas: Sequence[float] | None = None,
    train: Moments | None = None,
    budget: str | int | MemoryBudget | None = None,
    seed: int = 0,
) -> Encoding:
    """Leave-one-out R² of every voxel, from ``targets`` [s, t] (rows of a feature space) to ``betas`` [n, p].

    ``stimulus`` [n] says which row of the targets each row of betas shows; all rows of an image are left out together.
    ``alpha`` "loo" is the one of least error over all voxels. More than 512 targets are replaced by 512 random ±1
    projections of them, drawn from ``seed``. ``train`` are the moments of the betas, where they are known. Raises
    InputError for NaN, for fewer than two images, and where no voxel varies; BudgetError before any work is done.
    """
    z, b = as_matrix(targets), as_matrix(betas)
    pairing = Pairing.of(stimulus, b.shape[0], z.shape[0])
    nbytes = plan_encoding(
        b.shape[0], b.shape[1], z.shape[0], z.shape[1], block=z.block, x_tile=b.tile_nbytes,
        y_tile=z.tile_nbytes, scratch=b.scratch_nbytes + z.scratch_nbytes,
    )  # fmt: skip
    MemoryBudget.of(budget).require("the encoding ridge", nbytes)
    train = moments(b) if train is None else train
    if not train.usable.any():
        raise InputError(
            f"none of the {b.shape[1]} voxels varies over the {b.shape[0]} rows", expected="betas that vary"
        )
    return _Images.of(z, pairing, seed).encode(Centred(b, train, scale=True), train.usable, alpha, alphas)


@dataclass(frozen=True)
class _Images:
    """The images of some rows of betas, and their targets in the basis of the eigenvectors."""

    rows: ImageRows
    values: Array
    """Eigenvalues λ of the Gram matrix of the targets, float64 [r]."""
    scores: Array
    """Weighted centred targets times the eigenvectors, float64 [s, r]: S(α) = scores · diag(1/(λ + α)) · scoresᵀ."""

    @classmethod
    def of(cls, targets: Matrix, pairing: Pairing, seed: int) -> "_Images":
        rows = ImageRows.of(pairing)
        if len(rows.images) < 2:
            raise InputError(
                f"the {pairing.n} rows of betas show {len(rows.images)} image",
                expected="two images or more, as each is predicted from the others",
            )
        z = project(targets, seed, np.float64, pairing.weights)
        if len(rows.images) < len(z):
            z = z[rows.images]
        z *= rows.root[:, None]
        return cls(rows, *_eigenvectors(z))

    def encode(self, betas: Centred, usable: Array, alpha: float | str, alphas: Sequence[float] | None) -> Encoding:
        p = betas.shape[1]
        default = alphas is None
        grid = default_alphas(float(self.values.mean()) or 1.0) if default else np.sort(np.asarray(alphas, float))
        if alpha != "loo":
            grid = np.array([float(alpha)])
        errors = self._errors(betas, grid)
        chosen = float(grid[np.argmin(errors)])
        squared, total = self._squared_errors(betas, chosen)
        r2 = np.full(p, np.nan)
        np.divide(squared, total, out=r2, where=usable)
        return Encoding(1 - r2, chosen, grid, errors / (betas.shape[0] * int(usable.sum())))

    def _errors(self, betas: Centred, alphas: Array) -> Array:
        """Sums over rows and voxels of squared leave-one-out errors, for each alpha.

        The squared norms of an image's residuals over all voxels follow from C = scoresᵀB and CCᵀ, which are summed
        over blocks of voxels.
        """
        (s, r), dtype = self.scores.shape, self._products(betas)
        product, cross, norms, within = buffer((r, r), np.float64), buffer((s, r), np.float64), np.zeros(s), 0.0
        scores, loadings = self.scores.astype(dtype, copy=False), buffer((r, voxels_at_once(dtype)), dtype)
        squared, crossed = buffer((r, r), dtype), buffer((s, r), dtype)
        for _, means, inside, _ in self.rows.blocks(betas, dtype):
            c = loadings[:, : means.shape[1]]
            blas.gemm(scores, means, c, beta=0, ta=True)
            blas.syrk(c, squared, beta=0)
            blas.gemm(means, c, crossed, beta=0, tb=True)
            product += squared
            cross += crossed
            norms += np.einsum("ij,ij->i", means, means, dtype=np.float64)
            within += float(inside.sum())
        del scores, loadings, squared, crossed
        cross *= self.scores
        np.fill_diagonal(product, product.diagonal() / 2)  # x CCᵀ xᵀ is twice x L xᵀ of this lower half L
        errors = np.full(len(alphas), within)
        for rows in panels(s):
            part = slice(rows.start, rows.stop)
            for a, alpha in enumerate(alphas):
                shrink = self._shrink(alpha)
                fitted = self.scores[part] * shrink
                halves = fitted.copy()
                blas.trmm(product, halves)
                squares = norms[part] - 2 * (cross[part] @ shrink - np.einsum("ij,ij->i", halves, fitted))
                errors[a] += float((np.maximum(squares, 0) / self._kept(alpha, part) ** 2).sum())
        return errors

    def _squared_errors(self, betas: Centred, alpha: float) -> tuple[Array, Array]:
        """Sums over rows of squared leave-one-out errors and of squares about the mean, for each voxel."""
        (s, r), dtype = self.scores.shape, self._products(betas)
        squared, total = np.zeros(betas.shape[1]), np.zeros(betas.shape[1])
        kept, shrink = self._kept(alpha, slice(0, s))[:, None].astype(dtype), self._shrink(alpha)[:, None].astype(dtype)
        scores, loadings = self.scores.astype(dtype, copy=False), buffer((r, voxels_at_once(dtype)), dtype)
        for voxels, means, inside, about in self.rows.blocks(betas, dtype):
            c = loadings[:, : means.shape[1]]
            blas.gemm(scores, means, c, beta=0, ta=True)
            c *= shrink
            blas.gemm(scores, c, means, alpha=-1)
            means /= kept
            part = slice(voxels.start, voxels.stop)
            squared[part] = inside + column_squares(means)
            total[part] = about
        return squared, total

    def _products(self, betas: Centred) -> np.dtype[Any]:
        """The precision in which blocks of betas are multiplied: that of the betas, where they are float32.

        Where the targets may fit most images exactly, residuals and 1 − S_ii are both small: their ratio needs float64.
        """
        s, r = self.scores.shape
        return np.dtype(np.float32 if betas.matrix.dtype == np.float32 and 2 * r <= s else np.float64)

    def _shrink(self, alpha: float) -> Array:
        return 1 / np.maximum(self.values + alpha, np.finfo(np.float64).tiny)

    def _kept(self, alpha: float, part: slice) -> Array:
        """1 − S_ii of some images, the intercept included."""
        leverage = np.square(self.scores[part]) @ self._shrink(alpha) + self.rows.counts[part] / self.rows.counts.sum()
        result: Array = np.maximum(1 - leverage, np.finfo(np.float64).eps)
        return result


def _eigenvectors(z: Array) -> tuple[Array, Array]:
    """Eigenvalues [r] of the Gram matrix of targets [s, k], and the targets in the basis of its eigenvectors [s, r]."""
    s, k = z.shape
    gram = buffer((min(s, k), min(s, k)), np.float64)
    blas.syrk(z, gram, ta=k <= s)
    values = np.maximum(blas.syevd(gram), 0)
    scores = buffer((s, min(s, k)), np.float64)
    if k > s:
        np.multiply(gram.T, np.sqrt(values), out=scores)
    else:
        blas.gemm(z, gram, scores, beta=0, tb=True)
    return values, scores
