"""Procrustes alignment: every subject is rotated onto a template of all, or onto one subject.

The template is that of hyperalignment (Haxby et al. 2011): subjects one after the other to a running mean, then each to
the mean of the others, then each to the mean of all. Rotations are found in the rows' spaces, where they are exact:
subjects may have any number of voxels.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, Field

from leanrecon.alignment.grams import Gram
from leanrecon.alignment.linear import (
    Estimator,
    LinearAlignment,
    LinearSettings,
    Method,
    Solution,
    checked_dims,
    folds_of_rows,
)
from leanrecon.alignment.ridge import eigen, eigen_nbytes
from leanrecon.arguments import check_whole
from leanrecon.errors import InputError

if TYPE_CHECKING:
    from leanrecon.memory import MemoryBudget

Array = np.ndarray[Any, Any]

RANK = 1e-12
"""Eigenvalues of a Gram matrix below this share of the largest are rounding errors."""

SPANNED = 1e-10
"""Singular values of a product of rows below this share of the largest belong to directions that the rows don't span."""


def rotation(source: Array, target: Array, *, reached: bool = False) -> Array:
    """The Q with orthonormal columns or rows that makes ``source``·Q [n, r] nearest to ``target`` [n, s]: [r, s].

    With ``reached``, directions that these rows don't span are left out of Q: nothing says how they turn.
    """
    left, values, right = np.linalg.svd(source.T @ target, full_matrices=False)
    kept = values > (SPANNED * values[0] if reached else -1)
    found: Array = left[:, kept] @ right[kept]
    return found


def template_of(subjects: Sequence[Array]) -> Array:
    """The template of three levels of subjects [n, r], the first of which gives its axes."""
    template = subjects[0].copy()
    aligned = [template]
    for subject in subjects[1:]:  # level 1: one after the other, to the running mean
        turned = subject @ rotation(subject, template)
        aligned.append(turned)
        template = (template + turned) / 2
    total = sum(aligned[1:], start=aligned[0].copy())
    again = []
    for subject, before in zip(subjects, aligned, strict=True):  # level 2: each to the mean of the others
        others = (total - before) / (len(subjects) - 1)
        again.append(subject @ rotation(subject, others))
    mean: Array = np.mean(again, axis=0)  # level 3 turns each to it
    return mean


class Rotations(Method):
    """Rotations of all subjects onto a template, or onto one of them."""

    name = "Procrustes"

    def __init__(self, k: int | None, onto: int | None) -> None:
        self.k, self.onto = k, onto

    def dims(self, rows: int) -> int:
        return rows - 1 if self.k is None else checked_dims(self.k, rows, self.name)

    def work(self, rows: int, subjects: int, grams: int) -> int:
        square = rows * rows * 8
        return max(eigen_nbytes(rows) + subjects * square, (3 * subjects + 6) * square)

    def solve(self, grams: Sequence[Gram], seed: int) -> Solution:
        rows = grams[0].rows
        if self.onto is not None and self.onto >= len(grams):
            raise InputError(
                f"there is no subject {self.onto} of {len(grams)} to align onto",
                expected=f"onto from 0 to {len(grams) - 1}",
            )
        own = [_own_space(gram) for gram in grams]
        first = 0 if self.onto is None else self.onto
        order = [first, *(k for k in range(len(grams)) if k != first)]
        template = own[first] if self.onto is not None else template_of([own[k] for k in order])
        axes = _main_axes(template, self.dims(rows))
        folds, template = folds_of_rows(rows, seed), template @ axes
        duals, held_out, distances = [], [], []
        for subject in own:
            onto = rotation(subject, template)
            distances.append(float(np.square(subject @ onto - template).sum()))
            norms = np.square(subject).sum(axis=0)
            inverse = np.where(norms > RANK * norms.max(), 1 / np.maximum(norms, np.finfo(float).tiny), 0)
            duals.append((subject * inverse) @ onto)
            scores = np.empty(template.shape)
            for fold in folds:
                known = np.delete(np.arange(rows), fold)
                scores[fold] = subject[fold] @ rotation(subject[known], template[known], reached=True)
            held_out.append(scores)
        total = float(np.square(template).sum())
        return Solution(duals, held_out, template, [distance / total for distance in distances])


def _own_space(gram: Gram) -> Array:
    """A subject's rows in coordinates of their own space, float64 [n, n − 1]: X up to a rotation of its voxels."""
    values, vectors = eigen(gram)
    values = np.where(values > RANK * values[-1], values, 0)
    coordinates: Array = (vectors * np.sqrt(values))[:, :0:-1]
    return coordinates


def _main_axes(template: Array, k: int) -> Array:
    """The main axes of a template [n, r] over its rows: [r, k]."""
    axes: Array = np.linalg.svd(template, full_matrices=False)[2][:k].T
    return axes


class Procrustes(Estimator):
    """Rotations of several subjects onto a template of all (three levels), or onto the subject number ``onto``.

    ``k`` keeps the main dimensions of the template; None: all that the rows span. ``objective_`` holds each subject's
    squared distance from the template, as a share of its norm; see ``SRM`` for what else there is after ``fit``.
    """

    def __init__(
        self,
        k: int | None = None,
        onto: int | None = None,
        seed: int = 0,
        scale: bool = False,
        standardize: bool = False,
        budget: "str | int | MemoryBudget | None" = None,
    ) -> None:
        self.k = k
        self.onto = onto
        super().__init__(seed, scale, standardize, budget)

    def _method(self) -> Method:
        for name, value, least in (("k", self.k, 1), ("onto", self.onto, 0)):
            if value is not None:
                check_whole(name, value, least)
        return Rotations(self.k, self.onto)


class ProcrustesSettings(LinearSettings):
    """``alignment = "procrustes"``: rotations onto a template of all subjects (Haxby et al. 2011)."""

    kind: Literal["procrustes"] = "procrustes"
    """Rotations onto a template of all subjects, or onto one of them."""
    k: int | None = Field(default=None, ge=1, le=20_000)
    """Number of main dimensions of the template that are kept; absent: all that the common images span."""
    onto: int | None = Field(default=None, ge=0)
    """Number of the member, from 0, that the others are rotated onto; absent: a template of all members."""


class ProcrustesAlignment(LinearAlignment):
    """Rotations of every subject onto a template of all."""

    Settings: ClassVar[type[BaseModel]] = ProcrustesSettings

    def method(self) -> Method:
        return Rotations(self.settings.k, self.settings.onto)
