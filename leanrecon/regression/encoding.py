"""How well each voxel follows the images: leave-one-out R² of an encoding ridge from targets to betas, in closed form.

With centred targets Z [n, k] and z-scored betas B [n, p] the encoding ridge minimises ‖B − ZW‖² + α‖W‖². The error of an
image that is predicted from all others is its residual over 1 − S_ii, S being the hat matrix with the intercept (Allen
1974, as in ``ridge.loo``). An image that is shown in r rows stands once for them, with their mean and weight r: that
leaves all of its rows out together. One eigendecomposition of the smaller Gram matrix, ZᵀZ or ZZᵀ, serves every α.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from leanrecon.errors import InputError
from leanrecon.memory import MemoryBudget, buffer
from leanrecon.regression.normalise import Centred, Moments, moments
from leanrecon.regression.ridge import blas
from leanrecon.regression.ridge.loo import default_alphas, project
from leanrecon.regression.ridge.pairing import Pairing
from leanrecon.regression.ridge.plan import MOMENTS, PROJECTIONS, WORKSPACE
from leanrecon.stores.matrix import PANEL, Matrix, as_matrix, panels, read_ahead

Array = np.ndarray[Any, Any]

VOXELS = 128
"""Voxels that are predicted at once."""


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


def plan_encoding(
    n: int, p: int, s: int, t: int, *, block: int, x_tile: int = 0, y_tile: int = 0, scratch: int = 0
) -> int:
    """Bytes of work of ``encoding``, from the shapes of betas [n, p] and targets [s, t] that are read ``block`` at a time."""
    k = min(t, PROJECTIONS)
    r = min(k, s)
    reading = 2 * y_tile + (block * k * 20 + PANEL * block * 8 if t > k else 0)
    scores = s * k * 8 + max(reading, s * r * 8 + 3 * r * r * 8 + r * r * 8)
    images = (2 * n + n + 3 * s) * VOXELS * 8
    fitting = 2 * s * r * 8 + 2 * r * r * 8 + (2 * PANEL + VOXELS) * r * 8 + images
    return WORKSPACE + scratch + max(2 * x_tile + MOMENTS * p * 8, scores, fitting) + 4 * p * 8


@dataclass(frozen=True)
class _Images:
    """The images of some rows of betas, and their targets in the basis of the eigenvectors."""

    order: Array | None
    """Rows of betas by image, int [n]; None where row i shows image i."""
    starts: Array
    """Where the rows of each image begin in that order, int [s]."""
    root: Array
    """Square roots of the numbers of rows, float64 [s]."""
    values: Array
    """Eigenvalues λ of the Gram matrix of the targets, float64 [r]."""
    scores: Array
    """Weighted centred targets times the eigenvectors, float64 [s, r]: S(α) = scores · diag(1/(λ + α)) · scoresᵀ."""

    @classmethod
    def of(cls, targets: Matrix, pairing: Pairing, seed: int) -> "_Images":
        n, shown = pairing.n, np.flatnonzero(pairing.counts)
        if len(shown) < 2:
            raise InputError(
                f"the {n} rows of betas show {len(shown)} image",
                expected="two images or more, as each is predicted from the others",
            )
        z = project(targets, seed, np.float64, pairing.weights)
        if len(shown) < len(z):
            z = z[shown]
        index = np.arange(n) if pairing.index is None else pairing.index
        plain = np.array_equal(index, np.arange(n))
        order = None if plain else np.argsort(index, kind="stable")
        root = np.sqrt(pairing.counts[shown])
        z *= root[:, None]
        starts = np.concatenate([[0], np.cumsum(pairing.counts[shown])[:-1]]).astype(np.int64)
        return cls(order, starts, root, *_eigenvectors(z))

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
        s, r = self.scores.shape
        product, cross, norms, within = buffer((r, r), np.float64), buffer((s, r), np.float64), np.zeros(s), 0.0
        loadings = buffer((r, VOXELS), np.float64)
        for _, means, inside, _ in self._blocks(betas):
            c = loadings[:, : means.shape[1]]
            blas.gemm(self.scores, means, c, beta=0, ta=True)
            blas.gemm(c, c, product, tb=True)
            blas.gemm(means, c, cross, tb=True)
            norms += np.einsum("ij,ij->i", means, means)
            within += float(inside.sum())
        cross *= self.scores
        errors = np.full(len(alphas), within)
        for rows in panels(s):
            part = slice(rows.start, rows.stop)
            for a, alpha in enumerate(alphas):
                shrink = self._shrink(alpha)
                fitted = self.scores[part] * shrink
                squares = norms[part] - 2 * (cross[part] @ shrink) + np.einsum("ij,ij->i", fitted @ product, fitted)
                errors[a] += float((np.maximum(squares, 0) / self._kept(alpha, part) ** 2).sum())
        return errors

    def _squared_errors(self, betas: Centred, alpha: float) -> tuple[Array, Array]:
        """Sums over rows of squared leave-one-out errors and of squares about the mean, for each voxel."""
        s, r = self.scores.shape
        squared, total = np.zeros(betas.shape[1]), np.zeros(betas.shape[1])
        kept, shrink = self._kept(alpha, slice(0, s)), self._shrink(alpha)
        loadings = buffer((r, VOXELS), np.float64)
        for voxels, means, inside, about in self._blocks(betas):
            c = loadings[:, : means.shape[1]]
            blas.gemm(self.scores, means, c, beta=0, ta=True)
            c *= shrink[:, None]
            blas.gemm(self.scores, c, means, alpha=-1)
            means /= kept[:, None]
            part = slice(voxels.start, voxels.stop)
            squared[part] = inside + np.einsum("ij,ij->j", means, means)
            total[part] = about
        return squared, total

    def _shrink(self, alpha: float) -> Array:
        return 1 / np.maximum(self.values + alpha, np.finfo(np.float64).tiny)

    def _kept(self, alpha: float, part: slice) -> Array:
        """1 − S_ii of some images, the intercept included."""
        leverage = np.square(self.scores[part]) @ self._shrink(alpha) + self.root[part] ** 2 / (self.root**2).sum()
        result: Array = np.maximum(1 - leverage, np.finfo(np.float64).eps)
        return result

    def _blocks(self, betas: Centred) -> Iterator[tuple[range, Array, Array, Array]]:
        """Yield ``(voxels, means [s, v], within [v], squares [v])``: an image's mean betas times √rows, and sums of squares.

        ``within`` are those of rows about the mean of their image. The next block is read meanwhile.
        """
        n, p = betas.shape
        memories = [buffer((n * min(VOXELS, p) * 8,), np.uint8) for _ in range(2)]

        def read(voxels: range, memory: Array) -> Array:
            return betas.read(range(n), voxels, memory, np.float64)

        for voxels, block in read_ahead(panels(p, VOXELS), read, memories):
            squares = np.einsum("ij,ij->j", block, block)
            if self.order is None:
                yield voxels, block, np.zeros(len(voxels)), squares
                continue
            means = np.add.reduceat(block[self.order], self.starts, axis=0)
            means /= self.root[:, None]
            within = np.maximum(squares - np.einsum("ij,ij->j", means, means), 0)
            yield voxels, means, within, squares


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
