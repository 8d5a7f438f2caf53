"""Users' own matrices in alignments: what is taken as betas, and their scores panel by panel."""

from typing import TYPE_CHECKING, Any

import numpy as np

from leanrecon.alignment.grams import ROWS, scores
from leanrecon.errors import InputError

if TYPE_CHECKING:
    from leanrecon.memory import MemoryBudget
    from leanrecon.stores.matrix import Matrix

Array = np.ndarray[Any, Any]


def as_betas(source: Any) -> "Matrix":
    """Betas [rows, voxels] as a matrix: arrays, stores and their paths are read from where they lie, lists and tables here."""
    from leanrecon.stores.matrix import as_matrix

    if isinstance(source, list | tuple) or hasattr(source, "to_numpy"):
        try:
            source = np.asarray(source)
        except ValueError:
            raise InputError("rows of unequal length are not a matrix", expected="[rows, voxels]") from None
    return as_matrix(source)


def scores_of(betas: "Matrix", mean: Array, weights: Array, budget: "str | int | MemoryBudget | None") -> Array:
    """Scores [rows, k] of betas less the train ``mean`` through a map [voxels, k], over fixed panels of rows.

    Raises InputError for other voxels than those of ``fit`` and for betas that are not finite, BudgetError.
    """
    from leanrecon.memory import MemoryBudget, buffer
    from leanrecon.stores.matrix import panels

    (n, p), k = betas.shape, weights.shape[1]
    if p != len(mean):
        raise InputError(f"betas of shape {(n, p)}", expected=f"[rows, {len(mean)}], as in fit")
    dtype = np.result_type(betas.dtype, weights.dtype)
    panel = min(n, ROWS) * p * (betas.dtype.itemsize + dtype.itemsize)
    work = n * k * dtype.itemsize + panel + betas.scratch_nbytes
    MemoryBudget.of(budget).require("bringing betas into the shared space", work)
    result, memory = np.empty((n, k), dtype), buffer((min(n, ROWS), p), betas.dtype)
    for rows in panels(n, ROWS):
        part = memory[: len(rows)]
        betas.read(rows, range(p), part)
        found = scores(part, mean, weights)
        if len(wrong := np.flatnonzero(~np.isfinite(found).all(axis=1))):
            raise InputError(f"betas are NaN or infinite in row {rows[wrong[0]]}", expected="finite betas")
        result[rows.start : rows.stop] = found
    return result
