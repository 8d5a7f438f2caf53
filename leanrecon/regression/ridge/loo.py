"""Leave-one-out errors of every alpha from one eigendecomposition, and the choice of alpha.

S(α) is the hat matrix of the train rows, intercept included. The error of a row predicted from all others is its residual
over 1 − S_ii (Allen 1974, "The relationship between variable selection and data augmentation"). Where an image is shown in
several rows G, all of them are left out together: their errors are (I − S_GG)⁻¹ (y_G − ŷ_G).
"""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from leanrecon.errors import LeanreconWarning
from leanrecon.memory import buffer
from leanrecon.regression.normalise import Centred
from leanrecon.regression.ridge import blas
from leanrecon.regression.ridge.arithmetic import ON_CPU, Arithmetic
from leanrecon.regression.ridge.group_errors import dual_group_errors, primal_group_errors, sums_of_squares
from leanrecon.regression.ridge.hat import column_means, far_means, refuse_nan_columns, row_slabs
from leanrecon.regression.ridge.kernel import Panels
from leanrecon.regression.ridge.limits import PROJECTIONS
from leanrecon.regression.ridge.pairing import Pairing
from leanrecon.regression.ridge.spectrum import Spectrum
from leanrecon.regression.ridge.triangle import DEPTH
from leanrecon.stores.matrix import PANEL, Matrix, column_blocks, panels, read_ahead, tile_memories

Array = np.ndarray[Any, Any]

ALPHAS_PER_DECADE = 3
ALPHA_DECADES = (-3, 4)
"""The default grid of alphas spans these powers of ten, times the mean eigenvalue of the Gram matrix."""


def default_alphas(mean_eigenvalue: float) -> Array:
    """Alphas from 10⁻³ to 10⁴ times the mean eigenvalue of the Gram matrix, three a decade."""
    low, high = ALPHA_DECADES
    return mean_eigenvalue * np.logspace(low, high, (high - low) * ALPHAS_PER_DECADE + 1)


def mean_eigenvalue(gram: Panels) -> float:
    """The trace of a Gram matrix over its order."""
    (memory,) = gram.memories(1)
    diagonals = (np.diagonal(gram.load(j, memory)).sum(dtype=np.float64) for j in range(len(gram.columns)))
    return float(sum(diagonals)) / gram.order


def project(targets: Matrix, seed: int, dtype: Any, weights: Array | None = None) -> Array:
    """Centred targets [n, t], or 512 random sums of them, which keep sums of squares on average.

    Each of more targets counts with a random sign in one sum: t operations for each row. Products with 512 vectors of
    random signs would take 1024 t, and their sums of squares vary as much (Charikar, Chen & Farach-Colton 2004, "Finding
    frequent items in data streams"). Of 512 neighbours each is in a sum of its own.

    Each row counts in the means as often as ``weights`` [n] say. NaN or infinite targets raise InputError with their
    column.
    """
    return centre(projected_rows(targets, range(targets.shape[0]), seed, dtype), targets, weights)


def centre(projections: Array, targets: Matrix, weights: Array | None) -> Array:
    """Projections of targets less their means, in place; InputError where the targets are NaN."""
    mean = column_means(projections, weights)
    if not np.isfinite(mean).all():
        _refuse_nan(targets)
    projections -= mean.astype(projections.dtype)
    return projections


def first_means(targets: Matrix) -> Array:
    """The rough mean of each target, by its first rows, where ``projected_rows`` takes it off; else 0. Float64 [t]."""
    found, (memory,) = np.zeros(targets.shape[1]), tile_memories(targets, count=1)
    for j, columns in enumerate(column_blocks(targets)):
        tile = targets.read_tile(panels(targets.shape[0])[0], j, memory)
        found[columns.start : columns.stop] = far_means(tile[:, : len(columns)])
    return found


def projected_rows(targets: Matrix, rows: range, seed: int, dtype: Any, means: Array | None = None) -> Array:
    """Some rows of the targets, whole panels of them, or random sums of them [rows, 512], before they are centred.

    ``means`` are the ``first_means``, which rows that don't begin with the first one need.
    """
    t = targets.shape[1]
    k, dtype = min(t, PROJECTIONS), np.dtype(dtype)
    result = buffer((len(rows), k), dtype)
    blocks = column_blocks(targets)
    parts = [range(rows.start + part.start, rows.start + part.stop) for part in panels(len(rows))]
    items = [(j, part) for j in range(len(blocks)) for part in parts]
    shift = np.empty(0, dtype)

    def read(item: tuple[int, range], memory: Array) -> Array:
        return targets.read_tile(item[1], item[0], memory)

    for (j, some), tile in read_ahead(items, read, tile_memories(targets)):
        columns = blocks[j]
        part, out = tile[:, : len(columns)], result[some.start - rows.start : some.stop - rows.start]
        if t <= PROJECTIONS:
            out[:, columns.start : columns.stop] = part
            continue
        if some.start == rows.start:
            far = far_means(part) if means is None else means[columns.start : columns.stop]
            shift = far.astype(dtype)
        _add_signed(part, columns, shift if shift.any() else None, out, seed)
    return result


@np.errstate(invalid="ignore")  # of infinities, which are refused in the end
def _add_signed(tile: Array, columns: range, shift: Array | None, out: Array, seed: int) -> None:
    """Add some targets [rows, columns] to random sums of them, ``out`` [rows, k], each with a random sign.

    Runs of k targets are turned by a random number of places and added as they are. ``shift`` is a rough mean of each,
    taken off where it is large, so that it costs no precision; the exact one goes in the end.
    """
    k, first = out.shape[1], columns.start
    while first < columns.stop:
        run, place = divmod(first, k)
        some = slice(first - columns.start, min(first - place + k, columns.stop) - columns.start)
        rng = np.random.default_rng([seed, run])
        turn, signs = int(rng.integers(k)), rng.integers(2, size=k).astype(out.dtype) * 2 - 1
        less = tile[:, some] if shift is None else tile[:, some] - shift[some]
        signed = less.astype(out.dtype, copy=False) * signs[place : place + less.shape[1]]
        to = (place + turn) % k
        before_end = min(k - to, signed.shape[1])
        out[:, to : to + before_end] += signed[:, :before_end]
        out[:, : signed.shape[1] - before_end] += signed[:, before_end:]
        first += signed.shape[1]


def _refuse_nan(targets: Matrix) -> None:
    """Find the first target column that holds NaN or infinite values, and raise InputError with its number."""
    for columns in column_blocks(targets):
        sums = np.zeros(len(columns))
        for rows in panels(targets.shape[0]):
            block = np.empty((len(rows), len(columns)), targets.dtype)
            targets.read(rows, columns, block)
            sums += block.sum(axis=0, dtype=np.float64)
        refuse_nan_columns(sums, columns)


def random_signs(columns: range, k: int, seed: int | Sequence[int]) -> Array:
    """±1 [columns, k], the same for a column whatever block it is read in; ``k`` a multiple of 64."""
    words = k // 64
    generator = np.random.PCG64(seed).advance(columns.start * words)
    bits = np.unpackbits(generator.random_raw(len(columns) * words).astype("<u8").view(np.uint8))
    return bits.reshape(len(columns), k).astype(np.int8) * 2 - 1


def loo_errors(
    betas: Centred,
    spectrum: Spectrum,
    targets: Array,
    alphas: Array,
    pairing: Pairing | None = None,
    arithmetic: Arithmetic = ON_CPU,
) -> Array:
    """Sums over the rows of squared leave-one-out errors, float64 [alphas, targets].

    ``targets`` are centred [s, k] and used up; ``pairing`` says which of them each row of betas shows, None: its own.
    """
    alphas = np.asarray(alphas, np.float64)
    if pairing is None or not pairing.repeats:
        targets = targets if pairing is None else pairing.expanded(targets)
        if betas.dual:
            return dual_errors(spectrum, targets, alphas, arithmetic)
        return _primal_errors(betas, spectrum, targets, alphas, arithmetic)
    if betas.dual:
        return dual_group_errors(spectrum, pairing.expanded(targets), alphas, pairing, arithmetic)
    return primal_group_errors(betas, spectrum, targets, alphas, pairing, arithmetic)


def dual_errors(spectrum: Spectrum, targets: Array, alphas: Array, arithmetic: Arithmetic) -> Array:
    """Sums of squared leave-one-out errors, float64 [alphas, k], of targets [n, k] that are centred, from a kernel's eigenvectors."""
    errors = DualErrors(spectrum, targets, alphas, arithmetic)
    return np.array([errors.of(a) for a in range(len(alphas))])


class DualErrors:
    """Leave-one-out errors of targets [n, k] that are centred, from a kernel's eigenvectors, under one of ``alphas`` at a time."""

    # Residuals are αG Y with G = (K + αI)⁻¹, and 1 − S_ii = αG_ii less its part along the ones.

    def __init__(self, spectrum: Spectrum, targets: Array, alphas: Array, arithmetic: Arithmetic) -> None:
        vectors, dtype = spectrum.vectors, spectrum.vectors.dtype
        n, k = targets.shape
        shrink = (alphas / (spectrum.values[:, None] + alphas)).astype(dtype)
        self._loadings, self._weighted = (arithmetic.zeros((n, k), dtype) for _ in range(2))
        self._residual, self._arithmetic = buffer((n, k), dtype), arithmetic
        self._vectors, self._shrink = spectrum.placed(arithmetic), arithmetic.put(shrink)
        self._found = arithmetic.like(self._residual)
        arithmetic.gemm(self._vectors, arithmetic.put(targets), self._loadings, beta=0)
        self._kept = np.zeros((n, len(alphas)), dtype)
        for part in panels(n, PANEL):
            blas.gemm(np.square(vectors[part.start : part.stop]), shrink[part.start : part.stop], self._kept, ta=True)
        self._kept -= (alphas / (n * (alphas + n * spectrum.constant))).astype(dtype)

    def of(self, a: int) -> Array:
        """Sums of squared errors under the alpha of this number, float64 [k]."""
        on, by = self._arithmetic, slice(a, a + 1)
        on.multiply(self._loadings, self._shrink[:, by], self._weighted)
        on.gemm(self._vectors, self._weighted, self._found, beta=0, ta=True)
        on.take(self._found, self._residual)
        self._residual /= self._kept[:, by]
        return sums_of_squares(self._residual)


def _primal_errors(betas: Centred, spectrum: Spectrum, targets: Array, alphas: Array, arithmetic: Arithmetic) -> Array:
    n, p = betas.shape
    dtype = spectrum.vectors.dtype
    shrink = (1 / np.maximum(spectrum.values[:, None] + alphas, np.finfo(dtype).tiny)).astype(dtype)
    loadings, weighted = (arithmetic.zeros((p, targets.shape[1]), dtype) for _ in range(2))
    by = arithmetic.put(shrink)
    for rows, scores in _scores(betas, spectrum, arithmetic):
        arithmetic.gemm(scores, arithmetic.put(targets[rows.start : rows.stop]), loadings, ta=True)
    errors = np.zeros((len(alphas), targets.shape[1]))
    for rows, scores in _scores(betas, spectrum, arithmetic):
        leverage = np.square(arithmetic.host(scores)) @ shrink + 1 / n
        for a in range(len(alphas)):
            residual = targets[rows.start : rows.stop].copy()
            found = arithmetic.put(residual)
            arithmetic.multiply(loadings, by[:, a : a + 1], weighted)
            arithmetic.gemm(scores, weighted, found, alpha=-1)
            arithmetic.take(found, residual)
            residual /= 1 - leverage[:, a : a + 1]
            errors[a] += sums_of_squares(residual)
    return errors


def _scores(betas: Centred, spectrum: Spectrum, arithmetic: Arithmetic) -> Iterator[tuple[range, Any]]:
    """Panels of centred betas in the basis of the eigenvectors."""
    n, p = betas.shape
    dtype = spectrum.vectors.dtype
    scores = arithmetic.zeros((min(DEPTH, n), p), dtype)
    for rows, slab in row_slabs(betas, dtype, arithmetic):
        arithmetic.gemm(slab, spectrum.placed(arithmetic), scores[: len(rows)], beta=0, tb=True)
        yield rows, scores[: len(rows)]


def best_alpha(errors: Array, alphas: Array) -> Array:
    """The alpha of least error for each column of errors; warns where that is an end of the grid."""
    best = np.argmin(errors, axis=0)
    low, high = (float((best == end).mean()) for end in (0, len(alphas) - 1))
    if len(alphas) > 1 and low + high > 0.5:
        end, name = (len(alphas) - 1, "largest") if high >= low else (0, "smallest")
        of = "" if best.size == 1 else f" for {max(low, high):.0%} of the targets"
        advice = "the betas predict next to nothing, or a larger" if end else "a smaller"
        warnings.warn(
            f"leave-one-out chose the {name} of its alphas, {alphas[end]:.3g}{of}: {advice} alpha may do better "
            "(setting `alphas`)",
            LeanreconWarning,
            stacklevel=3,
        )
    chosen: Array = np.asarray(alphas, np.float64)[best]
    return chosen
