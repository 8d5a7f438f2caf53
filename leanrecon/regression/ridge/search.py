"""The alpha of least leave-one-out error by a few Cholesky factors, where the eigenvectors of a large kernel cost more.

Some rows tell where the best alpha lies, by the eigenvectors of their part of the kernel. From there the errors of all rows
go down the grid. With K + αI = L Lᵀ and G = (L Lᵀ)⁻¹ the residuals are αG Y, and the entries of I − S for the rows of an
image are those of αG = α L⁻ᵀ L⁻¹, less their part along the ones (see ``loo``). The slope of the errors along log α says
which way to go, and ends the search where the least error lies between two alphas:

    dR / d log α = R − αG R   of residuals R,   d αG / d log α = αG (I − αG)

The latter's entries are those of w (z − w)ᵀ on average, with w = αG z of random signs z (Hutchinson 1990, "A stochastic
estimator of the trace of the influence matrix").

Where every image is shown once, an alpha beside the best so far is tried on random rows first. Their entries of I − S are
exact, and those of the other rows lie on the line through the entries under the best alpha. That is the regression estimator
of a total (Cochran 1977, "Sampling techniques", chapter 7). L⁻¹ is formed unless the errors are surely larger.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leanrecon.errors import InputError
from leanrecon.memory import buffer, give_back
from leanrecon.regression.normalise import Centred
from leanrecon.regression.ridge.arithmetic import ON_CPU, Arithmetic
from leanrecon.regression.ridge.descent import descend
from leanrecon.regression.ridge.group_errors import dual_group_errors, left_out_squares
from leanrecon.regression.ridge.kernel import (
    Panels,
    cholesky,
    copied,
    deflation,
    inverse_rows,
    part_of,
    solve,
    solve_half,
)
from leanrecon.regression.ridge.limits import PROBES, SEARCH_PROJECTIONS, SEARCH_ROWS
from leanrecon.regression.ridge.loo import DualErrors, dual_errors, loo_errors, random_signs
from leanrecon.regression.ridge.pairing import Groups, Pairing
from leanrecon.regression.ridge.restandardise import group_rows
from leanrecon.regression.ridge.spectrum import Spectrum, eigenvectors
from leanrecon.stores.matrix import panels

Array = np.ndarray[Any, Any]

STEP = 0.01
"""Share of alpha over which a slope is told, to first order."""

DRIFT = 1 / 3
"""Most decades by which the best alpha is taken to grow with twice as many rows."""

PARTS = 4
"""Parts that the random vectors of a slope are cut into, to tell how sure it is."""

SAMPLED = 256
"""Random rows that tell first whether an alpha is surely worse."""

SURE = 3.0
"""Standard errors by which a slope differs from none, and an estimate from the least error."""

FEW, MANY_ROWS = 8, 512
"""Alphas that are all tried where their errors come from eigenvectors, and rows below which all others are too."""

_STREAM = 43  # of random numbers, and the next two


@dataclass(frozen=True)
class Search:
    """Where a search began and what it found."""

    rows: list[int]
    """Rows of the parts that told where to begin, the smallest first."""
    first: int
    """Where it began, by its place in the grid."""
    errors: Array
    """Sums of squared leave-one-out errors, float64 [alphas]: estimates where they are surely larger than the least, and
    infinite for alphas that were passed by."""

    def as_dict(self) -> dict[str, Any]:
        """What run.json keeps of it."""
        return {"by": "Cholesky factors", "tried": int(np.isfinite(self.errors).sum()), "begun_with_rows": self.rows}


def search(
    kernel: Panels,
    targets: Array,
    alphas: Array,
    pairing: Pairing,
    *,
    seed: int,
    arithmetic: Arithmetic = ON_CPU,
    scratch: Path | None = None,
) -> tuple[Search, Panels | None]:
    """Look for the alpha of least leave-one-out error; ``kernel`` K [n, n] of centred rows stays as it is.

    ``targets`` are centred [s, k] and used up; ``alphas`` ascend. Returns also the factor for the best alpha, where it was
    made last, or put aside in the folder ``scratch`` while others were tried. Where no alpha leaves K + αI regular all
    errors are infinite.
    """
    targets = pairing.expanded(targets)
    rows, first = _begin(kernel, targets, alphas, pairing, seed, arithmetic)
    give_back()  # the heap would keep 20 MB of what the parts took at NSD size
    left_out = _LeftOut(kernel, targets, pairing, seed, arithmetic, scratch)
    del targets  # a copy is kept
    errors = left_out.descend(alphas, first)
    found = np.isfinite(errors).any()
    return Search(rows, first, errors), left_out.factor_for(float(alphas[np.argmin(errors)])) if found else None


def errors_by_eigenvectors(
    train: Centred,
    spectrum: Spectrum,
    targets: Array,
    alphas: Array,
    pairing: Pairing,
    *,
    seed: int,
    arithmetic: Arithmetic = ON_CPU,
) -> Array:
    """Sums of squared leave-one-out errors, float64 [alphas], of centred targets [s, k]; infinite where they are not needed."""
    if train.dual and not pairing.repeats:
        return search_by_eigenvectors(spectrum, pairing.expanded(targets), alphas, seed=seed, arithmetic=arithmetic)
    errors: Array = loo_errors(train, spectrum, targets, alphas, pairing, arithmetic).sum(axis=1)
    return errors


def search_by_eigenvectors(
    spectrum: Spectrum, targets: Array, alphas: Array, *, seed: int, arithmetic: Arithmetic = ON_CPU
) -> Array:
    """Sums of squared leave-one-out errors, float64 [alphas], from the eigenvectors of a kernel whose rows are left out alone.

    ``targets`` are centred [n, k]; ``alphas`` ascend. Where there are many of all, a few projections of the targets tell
    which alpha comes first. From there it goes to neighbours until both are worse; the others have infinite errors.
    """
    n, k = targets.shape
    if n < MANY_ROWS or k <= 2 * SEARCH_PROJECTIONS or len(alphas) <= FEW:
        every: Array = dual_errors(spectrum, targets, alphas, arithmetic).sum(axis=1)
        return every
    few = targets @ _signs(targets, seed)
    first = int(np.argmin(dual_errors(spectrum, few, alphas, arithmetic).sum(axis=1)))
    del few
    errors = DualErrors(spectrum, targets, alphas, arithmetic)
    return descend(lambda a: float(errors.of(a).sum()), lambda: 0.0, len(alphas), first)


def _signs(targets: Array, seed: int) -> Array:
    """Random ±1 that turn targets [n, k] into a few projections."""
    signs: Array = random_signs(range(targets.shape[1]), SEARCH_PROJECTIONS, [seed, _STREAM]).astype(targets.dtype)
    return signs


def _begin(
    kernel: Panels, targets: Array, alphas: Array, pairing: Pairing, seed: int, arithmetic: Arithmetic
) -> tuple[list[int], int]:
    """The numbers of rows of halves of halves, and the place in the grid that they tell, on a few projections of targets [n, k].

    The best alpha grows with the rows, so the next place is a step beyond the last one, the way that that went.
    """
    if len(alphas) == 1:
        return [], 0
    signs = _signs(targets, seed)
    sizes = [kernel.order]
    while sizes[0] > SEARCH_ROWS:
        sizes.insert(0, -(-sizes[0] // 2))
    counts, first, before = [], 0, None
    for size in sizes[:-1]:
        rows = group_rows(pairing, size)
        some = targets[rows] @ signs
        some -= some.mean(axis=0, dtype=np.float64).astype(some.dtype)
        small = part_of(kernel, rows)
        index = None if pairing.index is None else np.unique(pairing.index[rows], return_inverse=True)[1]
        paired = Pairing.of(index, len(rows), len(rows) if index is None else int(index.max()) + 1)
        if before is None:
            spectrum = eigenvectors(small, deflate=True, arithmetic=arithmetic)
            if paired.repeats:
                errors = dual_group_errors(spectrum, some, alphas, paired, arithmetic)
            else:
                errors = dual_errors(spectrum, some, alphas, arithmetic)
            best = int(np.argmin(errors.sum(axis=1)))
            first = best
        else:
            best = int(np.argmin(_LeftOut(small, some, paired, seed, arithmetic).descend(alphas, first)))
            drift = np.clip(np.log10(alphas[best] / alphas[before]), -DRIFT, DRIFT)
            first = int(np.argmin(np.abs(np.log10(alphas / alphas[best]) - drift)))
        before = best
        counts.append(len(rows))
    return counts, first


class _LeftOut:
    """Leave-one-out errors of all rows under one alpha after the other, and their slopes."""

    def __init__(
        self,
        kernel: Panels,
        targets: Array,
        pairing: Pairing,
        seed: int,
        arithmetic: Arithmetic = ON_CPU,
        scratch: Path | None = None,
    ) -> None:
        n = kernel.order
        self.kernel, self.seed, self.arithmetic = kernel, seed, arithmetic
        self.groups = Groups.of(np.arange(n) if pairing.index is None or not pairing.repeats else pairing.index)
        (memory,) = kernel.memories(1)
        self.constant = float(kernel.dtype.type(deflation(kernel.load(0, memory))))
        self.factor: Panels | None = None
        self.aside = None if scratch is None else Panels(n, kernel.dtype, directory=scratch)
        self.alpha_aside, self.best = np.nan, (np.inf, np.nan)
        self.targets = buffer((targets.shape[1], n), kernel.dtype)
        self.targets[:] = targets.T
        self.residual = buffer(self.targets.shape, kernel.dtype)
        self.alpha, self.kept, self.found = np.nan, np.empty(0), np.inf
        self.least: tuple[float, Array] | None = None

    def descend(self, alphas: Array, first: int) -> Array:
        """Errors of alphas on the way from the ``first`` to the best; infinite for those that were passed by."""
        return descend(lambda i: self.error(float(alphas[i])), self.slope, len(alphas), first)

    def error(self, alpha: float) -> float:
        """The sum of squared errors, or an estimate where that is surely larger than where the slope was told last.

        Infinite where K + αI is singular in the kernel's precision.
        """
        if self.aside is not None and self.factor is not None and self.alpha == self.best[1] != self.alpha_aside:
            copied(self.factor, self.aside)  # another takes its place
            self.alpha_aside = self.alpha
        self.alpha = alpha
        self.found = self._error()
        self.best = min(self.best, (self.found, alpha))
        return self.found

    def factor_for(self, alpha: float) -> Panels | None:
        """The factor for an alpha, where it was made last or put aside."""
        if alpha == self.alpha:
            return self.factor
        return copied(self.aside, self.factor) if self.aside is not None and alpha == self.alpha_aside else None

    def _error(self) -> float:
        self.factor = copied(self.kernel, self.factor)
        try:
            cholesky(self.factor, self.alpha, deflate=True, arithmetic=self.arithmetic)
        except InputError:  # the search goes on with a larger alpha
            return np.inf
        self.residual[:] = self.targets
        self._shrink(self.residual, self.factor)
        if self.least is not None and len(self.groups.pairs[0]) == self.kernel.order:
            least, before = self.least
            found, off = self._estimate(self.factor, before)
            if found - SURE * off > least:
                return found
        self.kept = self._kept(self.factor)
        return self._squares(self.residual, self.kept)

    def _estimate(self, factor: Panels, before: Array) -> tuple[float, float]:
        """The sum of squared errors of rows that are left out alone, and its standard error.

        ``before`` is the diagonal of I − S under another alpha.
        """
        n = factor.order
        rng = np.random.default_rng([self.seed, _STREAM + 2])
        rows = np.sort(rng.choice(n, min(SAMPLED, n), replace=False))
        known = self._kept_of(rows, factor)
        line = _line(before[rows], known)
        kept = line(before)
        if min(kept.min(), known.min()) <= 0:
            return np.inf, np.inf
        squares = np.square(self.residual, out=buffer(self.residual.shape, factor.dtype)).sum(axis=0, dtype=np.float64)
        missed = squares[rows] / np.square(known) - squares[rows] / np.square(kept[rows])
        off = float(np.std(missed, ddof=1)) * n * np.sqrt((1 - len(rows) / n) / len(rows))
        return float((squares / np.square(kept)).sum() + n * missed.mean()), off

    def slope(self) -> float:
        """How the sum of squared errors changes along log α where it was told last; 0 where random signs disagree on it."""
        assert self.factor is not None
        n, dtype = self.kernel.order, self.kernel.dtype
        moved = buffer(self.residual.shape, dtype)
        moved[:] = self.residual
        self._shrink(moved, self.factor)
        moved *= dtype.type(-STEP)
        for row, residual in zip(moved, self.residual, strict=True):
            row += residual * dtype.type(1 + STEP)
        z, w = buffer((PROBES, n), dtype), buffer((PROBES, n), dtype)
        z[:] = random_signs(range(n), PROBES, [self.seed, _STREAM + 1]).T
        z -= z.mean(axis=1, dtype=np.float64)[:, None].astype(dtype)
        w[:] = z
        self._shrink(w, self.factor)
        z -= w
        self.least = self.found, self.kept
        left, right = self.groups.pairs
        slopes = []
        for some in panels(PROBES, PROBES // PARTS):
            a, b = w[some.start : some.stop], z[some.start : some.stop]
            changes = (ON_CPU.products(a, b, left, right) + ON_CPU.products(b, a, left, right)) / (2 * len(some))
            slopes.append((self._squares(moved, self.kept + STEP * changes) - self.found) / STEP)
        mean, error = float(np.mean(slopes)), float(np.std(slopes, ddof=1)) / np.sqrt(PARTS)
        return mean if abs(mean) > SURE * error else 0.0

    def _kept(self, factor: Panels) -> Array:
        """The entries of I − S for the pairs of all groups."""
        left, right = self.groups.pairs
        kept = np.zeros(len(left))
        for rows, part in inverse_rows(factor, self.arithmetic):
            at = np.flatnonzero(np.maximum(left, right) < rows.stop)
            kept[at] += self.arithmetic.products(part, part, left[at], right[at])
        return self._less_ones(kept)

    def _kept_of(self, rows: Array, factor: Panels) -> Array:
        """The diagonal of I − S at some rows."""
        columns = buffer((len(rows), factor.order), factor.dtype)  # of L⁻¹
        columns[np.arange(len(rows)), rows] = 1
        solve_half(factor, columns, self.arithmetic)
        return self._less_ones(np.square(columns).sum(axis=1, dtype=np.float64))

    def _less_ones(self, inverse: Array) -> Array:
        """Entries of I − S from those of (L Lᵀ)⁻¹: α times those, less their part along the ones."""
        n = self.kernel.order
        kept: Array = inverse * self.alpha - self.alpha / (n * (self.alpha + n * self.constant))
        return kept

    def _shrink(self, rows: Array, factor: Panels) -> None:
        """αG b in the place of each row b, [m, n]."""
        solve(factor, rows, self.arithmetic)
        rows *= rows.dtype.type(self.alpha)

    def _squares(self, residual: Array, kept: Array) -> float:
        """The sum of squared errors of some residuals [k, n] of the fit to all rows."""
        parts = (residual[some.start : some.stop].copy() for some in panels(len(residual), SEARCH_PROJECTIONS))
        return float(np.concatenate([left_out_squares(part.T, kept, self.groups) for part in parts]).sum())


def _line(x: Array, y: Array) -> Callable[[Array], Array]:
    """The line of least squares through points, a level one where all have the same ``x``."""
    spread = float(np.var(x))
    slope = float(np.mean((x - x.mean()) * (y - y.mean()))) / spread if spread > 0 else 0.0
    return lambda at: slope * (at - x.mean()) + y.mean()
