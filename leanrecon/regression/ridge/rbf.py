"""The Gaussian (radial basis function) kernel, from the panels of a Gram matrix and in their place.

    k(x, y) = exp(−γ ‖x − y‖² / m),   m the median of ‖x_i − x_j‖² over pairs of train rows

Distances come from products: ‖x − y‖² = x·x + y·y − 2 x·y. The kernel is then centred in its feature space (Schölkopf,
Smola & Müller 1998, "Nonlinear component analysis as a kernel eigenvalue problem"), which fits an intercept without a
penalty. So its rows sum to zero, as those of X Xᵀ do, and everything that serves the linear kernel serves this one.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from leanrecon.errors import InputError
from leanrecon.memory import buffer
from leanrecon.regression.normalise import Centred
from leanrecon.regression.ridge.kernel import Panels
from leanrecon.regression.ridge.limits import MEDIAN_ROWS
from leanrecon.regression.ridge.triangle import DEPTH
from leanrecon.stores.matrix import PANEL, panels

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Rbf:
    """A centred Gaussian kernel of some train rows."""

    scale: float
    """γ / m."""
    squares: Array
    """‖x_i‖² of the train rows, [n] in the kernel's type."""
    means: Array
    """Mean of every row of the kernel before it was centred, float64 [n]."""

    def of_test(self, products: Array, squares: Array) -> None:
        """Turn products T Xᵀ [m, n] with train rows into the centred kernel, in place; ``squares`` [m] are the ‖t_i‖²."""
        centre = (self.means - self.means.mean()).astype(products.dtype)
        for rows in panels(len(products)):
            part = products[rows.start : rows.stop]
            _exponential(part, squares[rows.start : rows.stop], self.squares, self.scale)
            part -= part.mean(axis=1, dtype=np.float64)[:, None].astype(part.dtype)
            part -= centre


def median_distance(gram: Panels) -> float:
    """The median of ‖x_i − x_j‖² over all pairs of up to 1,024 rows that are evenly spread, by their products.

    Raises InputError where it is zero: most rows are equal, so that no kernel can tell them apart.
    """
    n = gram.order
    rows = np.unique(np.linspace(0, n - 1, min(n, MEDIAN_ROWS)).round().astype(np.int64))
    products = np.zeros((len(rows), len(rows)))
    (memory,) = gram.memories(1)
    for j, columns in enumerate(gram.columns):
        first, last = np.searchsorted(rows, [columns.start, columns.stop])
        if first < last:
            panel = gram.load(j, memory)
            products[first:, first:last] = panel[np.ix_(rows[first:] - columns.start, rows[first:last] - columns.start)]
    squares = np.diagonal(products).copy()
    products *= -2
    products += squares
    products += squares[:, None]
    median = float(np.median(products[np.tril_indices(len(rows), -1)])) if n > 1 else 0.0
    if not median > float(np.finfo(gram.dtype).eps) * 16 * float(squares.mean()):
        raise InputError(
            "the rbf kernel has no width: at least half of the train rows are equal in the voxels that are used",
            expected="train rows that differ",
            todo='set kernel = "linear", or look at these betas',
        )
    return median


def into_rbf(gram: Panels, gamma: float, median: float) -> Rbf:
    """Turn K = X Xᵀ into the centred Gaussian kernel, in place, in two passes over its panels."""
    n, dtype = gram.order, gram.dtype
    (memory,) = gram.memories(1)
    squares = np.concatenate([np.diagonal(gram.load(j, memory)).copy() for j in range(len(gram.columns))])
    scale, sums = gamma / median, np.zeros(n)
    for j, columns in enumerate(gram.columns):
        panel, width = gram.load(j, memory), len(columns)
        for part in panels(len(panel)):
            some = panel[part.start : part.stop]
            rows = slice(columns.start + part.start, columns.start + part.stop)
            _exponential(some, squares[rows], squares[columns.start : columns.stop], scale)
            if part.start >= width:
                sums[rows] += some.sum(axis=1, dtype=np.float64)
                sums[columns.start : columns.stop] += some.sum(axis=0, dtype=np.float64)
                continue
            for row, values in zip(range(part.start, part.stop), some, strict=True):  # of the lower triangle
                left = min(row, width)
                sums[columns.start + row] += values[:left].sum(dtype=np.float64)
                sums[columns.start : columns.start + left] += values[:left]
                if row < width:
                    sums[columns.start + row] += float(values[row])
        gram.save(j, panel)
    means = sums / n
    centre = (means - means.mean() / 2).astype(dtype)
    for j, columns in enumerate(gram.columns):
        panel = gram.load(j, memory)
        for part in panels(len(panel)):
            some = panel[part.start : part.stop]
            some -= centre[columns.start + part.start : columns.start + part.stop, None]
            some -= centre[columns.start : columns.stop]
        gram.save(j, panel)
    return Rbf(scale, squares, means)


def squared_norms(betas: Centred, rows: range, dtype: Any) -> Array:
    """‖t_i‖² of some rows, [len(rows)] in float64, over panels of voxels."""
    p = betas.shape[1]
    memory = buffer((len(rows) * min(DEPTH, p) * np.dtype(dtype).itemsize,), np.uint8)
    result = np.zeros(len(rows))
    for voxels in panels(p, DEPTH):
        block = betas.read(rows, voxels, memory, dtype)
        for part in panels(len(rows), PANEL):
            some = block[part.start : part.stop].astype(np.float64)
            result[part.start : part.stop] += np.einsum("ij,ij->i", some, some)
    return result


def _exponential(products: Array, of_rows: Array, of_columns: Array, scale: float) -> None:
    """exp(−scale · distance) of products x·y, in place."""
    dtype = products.dtype
    products *= dtype.type(-2)
    products += of_rows[:, None].astype(dtype)
    products += of_columns.astype(dtype)
    np.maximum(products, 0, out=products)
    products *= dtype.type(-scale)
    with np.errstate(under="ignore"):
        np.exp(products, out=products)
