"""Intermediate results that ridges of one study share: moments, Gram matrices, eigenvectors, kernels, projections.

All feature spaces are predicted from the same betas, and all areas predict the same targets. A shared result has the
bytes that would be computed, because an earlier fit made it by the same calls.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leanrecon.regression.kept import KERNELS, Kept, KeptArray
from leanrecon.regression.normalise import Centred, Moments
from leanrecon.regression.ridge.kernel import Panels
from leanrecon.regression.ridge.rbf import Rbf
from leanrecon.regression.ridge.spectrum import Spectrum
from leanrecon.regression.ridge.tridiagonal import Tridiagonal, Turned
from leanrecon.stores.matrix import Matrix, same_matrix

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Look:
    """Moments and warnings of betas (see ``estimator.Regressor``)."""

    betas: Matrix
    test: Matrix | None
    moments: Moments
    left_out: int
    unreasonable: Sequence[str]


@dataclass(frozen=True)
class _Gram:
    """A Gram matrix of centred betas, and products with test betas beside it."""

    betas: Centred
    panels: Panels
    test: Matrix | None
    cross: KeptArray | None


@dataclass(frozen=True)
class _Vectors:
    """The eigenvectors of a kernel of centred betas."""

    betas: Centred
    dtype: np.dtype[Any]
    scale: float | None
    """Of an rbf kernel."""
    values: Array
    vectors: KeptArray
    constant: float


@dataclass(frozen=True)
class _Projections:
    """Centred targets, or random projections of them."""

    targets: Matrix
    seed: int
    weights: Array | None
    values: KeptArray


@dataclass(frozen=True)
class _Kernels:
    """Kernels of some rows of betas in tridiagonal form, each with what it tells of other rows."""

    betas: Matrix
    rows: Sequence[Array]
    made_by: Sequence[Any]
    """What else decides them."""
    arrays: Sequence[Sequence[KeptArray]]
    """Reflectors and scores of each."""
    small: Sequence[tuple[Array, Array, Array, float]]
    """Both diagonals, factors of reflectors, and the mean eigenvalue of each."""


def look_found(kept: Kept, betas: Matrix, test: Matrix | None) -> Look | None:
    """The moments and warnings of the same betas from an earlier fit, if any."""
    found: Look | None = kept.find(
        "moments", lambda one: same_matrix(one.betas, betas) and (test is None or _same_test(one.test, test))
    )
    return found


def gram_matrix(
    kept: Kept | None,
    betas: Centred,
    dtype: np.dtype[Any],
    test: Centred | None,
    directory: Path | None,
    make: Callable[[], tuple[Panels, Array | None]],
    *,
    alike: bool,
) -> tuple[Panels, Array | None]:
    """The Gram matrix that ``make`` would form, and its products with test betas: a copy of one that was kept, or made.

    ``alike`` says whether fits that are still to come may have the same one, as far as their settings tell.
    """
    if kept is None:
        return make()
    beside = None if test is None or not betas.dual else test.matrix

    def same(one: _Gram) -> bool:
        return one.panels.dtype == dtype and _alike(one.betas, betas) and (not beside or _same_test(one.test, beside))

    found: _Gram | None = kept.find("gram matrix", same)
    if found is not None:
        return placed(found.panels, directory), found.cross.load() if beside and found.cross else None
    panels, cross = make()
    if alike and kept.to_come:
        kept.forget("gram matrix", "eigenvectors")  # one at a time
        copy = None if cross is None else KeptArray(cross, kept.folder)
        kept.add("gram matrix", _Gram(betas, placed(panels, kept.folder), beside, copy))
    return panels, cross


def spectrum_of(
    kept: Kept | None, betas: Centred, kernel: Panels, rbf: Rbf | None, make: Callable[[], Spectrum], *, alike: bool
) -> Spectrum:
    """The eigenvectors that ``make`` would find in the kernel of these betas: as they were kept, or made."""
    if kept is None:
        return make()
    scale = None if rbf is None else rbf.scale

    def same(one: _Vectors) -> bool:
        return one.dtype == kernel.dtype and one.scale == scale and _alike(one.betas, betas)

    found: _Vectors | None = kept.find("eigenvectors", same)
    if found is not None:
        return Spectrum(found.values.copy(), found.vectors.load(), found.constant)
    made = make()
    if alike and kept.to_come:
        vectors = KeptArray(made.vectors, kept.folder)
        kept.add("eigenvectors", _Vectors(betas, kernel.dtype, scale, made.values.copy(), vectors, made.constant))
    return made


def kernels_of(
    kept: Kept, betas: Matrix, rows: Sequence[Array], made_by: Sequence[Any], make: Callable[[], list[Turned]]
) -> list[Turned]:
    """The kernels that ``make`` would form of some ``rows`` of betas: as they were kept, or made.

    ``made_by`` is all else that decides them.
    """

    def same(one: _Kernels) -> bool:
        alike = one.made_by == made_by and same_matrix(one.betas, betas)
        return alike and all(np.array_equal(*pair) for pair in zip(one.rows, rows, strict=True))

    found: _Kernels | None = kept.find(KERNELS, same)
    if found is not None:
        return [
            Turned(Tridiagonal(diagonal, other, reflectors.load(), tau), scores.load(), mean)
            for (reflectors, scores), (diagonal, other, tau, mean) in zip(found.arrays, found.small, strict=True)
        ]
    made = make()
    if kept.to_come:
        arrays = [[KeptArray(array, kept.folder) for array in (one.kernel.reflectors, one.scores)] for one in made]
        small = [(one.kernel.diagonal, one.kernel.other, one.kernel.tau, one.mean_eigenvalue) for one in made]
        kept.add(KERNELS, _Kernels(betas, rows, made_by, arrays, small))
    return made


def projections(
    kept: Kept | None, targets: Matrix, seed: int, dtype: Any, weights: Array | None, make: Callable[[], Array]
) -> Array:
    """The result of ``make``, or projections of the same targets from another fit, in memory that may be changed."""
    if kept is None:
        return make()

    def same(one: _Projections) -> bool:
        here = one.values.dtype == np.dtype(dtype) and one.seed == seed and same_matrix(one.targets, targets)
        if weights is None or one.weights is None:
            return here and weights is one.weights
        return here and np.array_equal(one.weights, weights)

    found: _Projections | None = kept.find("projections", same)
    if found is not None:
        return found.values.load()
    values = make()
    kept.add("projections", _Projections(targets, seed, weights, KeptArray(values, kept.folder)))
    return values


def placed(panels: Panels, directory: Path | None) -> Panels:
    """A copy of a symmetric matrix in memory, or in a file in ``directory``."""
    result = Panels(panels.order, panels.dtype, directory=directory)
    (memory,) = panels.memories(1)
    for j in range(len(panels.columns)):
        if directory is None:
            result.replace(j, panels.load(j, memory))
        else:
            result.save(j, panels.load(j, memory))
    return result


def _alike(a: Centred, b: Centred) -> bool:
    """Whether two views of betas read the same numbers, for products of the same form."""
    same = a.dual == b.dual and same_matrix(a.matrix, b.matrix)
    return same and np.array_equal(a.mean, b.mean) and np.array_equal(a.factor, b.factor)


def _same_test(kept: Matrix | None, test: Matrix) -> bool:
    return kept is not None and same_matrix(kept, test)
