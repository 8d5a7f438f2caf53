"""The alpha of a ridge with the least leave-one-out error: searched with few factors, or found by eigenvectors."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leanrecon.regression.normalise import Centred
from leanrecon.regression.ridge.arithmetic import ON_CPU, Arithmetic
from leanrecon.regression.ridge.kernel import Panels
from leanrecon.regression.ridge.loo import best_alpha
from leanrecon.regression.ridge.pairing import Pairing
from leanrecon.regression.ridge.search import Search, errors_by_eigenvectors, search
from leanrecon.regression.ridge.spectrum import Spectrum

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Chosen:
    """An alpha, and what finding it left."""

    alpha: Any
    """float, or an array of float [targets]"""
    errors: Array | None = None
    """Mean squared errors of the grid, NaN where a search gave up; None with an alpha for every target."""
    search: Search | None = None
    factor: Panels | None = None
    """The Cholesky factor for it, where a search still has that one."""


def choose_by_eigenvectors(
    train: Centred, spectrum: Spectrum, projected: Callable[[], Array], grid: Array, pairing: Pairing,
    *, targets: int, seed: int, arithmetic: Arithmetic,
) -> Chosen:  # fmt: skip
    """One alpha of ``grid`` for all of a number of ``targets``, of which ``projected`` gives the random projections."""
    errors = errors_by_eigenvectors(train, spectrum, projected(), grid, pairing, seed=seed, arithmetic=arithmetic)
    return Chosen(float(best_alpha(errors, grid)), _means(errors, pairing.n * targets))


def choose_by_search(
    kernel: Panels, projected: Callable[[], Array], grid: Array, pairing: Pairing,
    *, targets: int, seed: int, arithmetic: Arithmetic, scratch: str | Path | None,
) -> Chosen:  # fmt: skip
    """The same by few Cholesky factors; the best one is kept in ``scratch``, or where the kernel lies on disk."""
    aside = kernel.directory or (None if scratch is None else Path(scratch))
    # Nothing here holds the projections, a name no more than a tuple of arguments: they go once they are copied.
    found, factor = search(
        kernel, projected(), grid, pairing,
        seed=seed, arithmetic=arithmetic, scratch=aside if arithmetic is ON_CPU else None,
    )  # fmt: skip
    return Chosen(float(best_alpha(found.errors, grid)), _means(found.errors, pairing.n * targets), found, factor)


def _means(errors: Array, count: int) -> Array:
    means: Array = np.where(np.isinf(errors), np.nan, errors) / count
    return means
