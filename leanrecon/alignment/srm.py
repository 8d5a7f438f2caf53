"""The shared response model (Chen et al. 2015): orthonormal maps to k dimensions in which subjects respond alike.

Betas are centred by their train means before anything else, and the noise follows from the norm of centred betas.
brainiak takes the norm of uncentred ones, which overstates the noise of data with means.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, Field

from leanrecon.alignment.grams import Gram
from leanrecon.alignment.linear import (
    Dims,
    Estimator,
    LinearAlignment,
    LinearSettings,
    Method,
    Solution,
    checked_dims,
    folds_of_rows,
)
from leanrecon.alignment.shared_response import GramTurn, deterministic, inverse_root, probabilistic
from leanrecon.arguments import check_whole
from leanrecon.errors import InputError, SettingsError, shown

if TYPE_CHECKING:
    from leanrecon.memory import MemoryBudget

Array = np.ndarray[Any, Any]

Model = Literal["probabilistic", "deterministic"]

ITERATIONS = 20
"""Iterations where nothing is said."""

_SOLVERS = {"probabilistic": probabilistic, "deterministic": deterministic}


class SharedResponseModel(Method):
    """The maps of a shared response model."""

    name = "a shared response model"

    def __init__(self, k: int, model: Model, n_iter: int) -> None:
        self.k, self.model, self.n_iter = k, model, n_iter

    def dims(self, rows: int) -> int:
        return checked_dims(self.k, rows, self.name)

    def check_voxels(self, voxels: Sequence[int]) -> None:
        """Raise InputError for fewer voxels than dimensions: no map from them is orthonormal, as the model has it."""
        if (fewest := min(voxels)) < self.k:
            raise InputError(
                f"{self.name} of {self.k} dimensions has no orthonormal map from {fewest} voxels",
                expected=f"{self.k} voxels or more in every subject",
                todo=f"set k = {max(fewest, 1)} or less, or take more voxels",
            )

    def work(self, rows: int, subjects: int, grams: int) -> int:
        return (subjects + 5) * self.k * rows * 8 + 8 * self.k * self.k * 8

    def solve(self, grams: Sequence[Gram], seed: int) -> Solution:
        """Start from a response drawn from the seed, iterate, and turn every subject to what was found."""
        self.check_voxels([gram.usable for gram in grams])
        rows = grams[0].rows
        subjects = [GramTurn(gram) for gram in grams]
        start = np.random.default_rng(seed).standard_normal((self.dims(rows), rows))
        found = _SOLVERS[self.model](subjects, [subject.turn(start)[0] for subject in subjects], self.n_iter)
        shared = found.shared
        folds = folds_of_rows(rows, seed)
        duals, held_out = [], []
        for gram in grams:
            root, _ = inverse_root(gram.times(shared) @ shared.T)
            duals.append(shared.T @ root)
            held_out.append(_held_out_scores(gram, shared, folds))
        return Solution(duals, held_out, shared.T, found.objective, found.noise)


def _held_out_scores(gram: Gram, shared: Array, folds: Sequence[Array]) -> Array:
    """Scores [n, k] of every row by the map that is turned to the shared response of all rows but its fold's."""
    result = np.empty(shared.T.shape)
    for fold in folds:
        known = shared.copy()
        known[:, fold] = 0
        through = gram.times(known)
        root, _ = inverse_root(through @ known.T)
        result[fold] = (root @ through[:, fold]).T
    return result


class SRM(Estimator):
    """A shared response model of several subjects (Chen et al. 2015).

    ``fit`` takes a list of betas [rows, voxels_i] of the same images. ``transform`` gives a list of scores [rows, k].
    ``kind`` is "probabilistic" or "deterministic"; ``seed`` draws the start. ``standardize`` divides each voxel by its
    standard deviation. ``scale`` divides each subject's betas by the root of their total variance.

    After ``fit``, ``weights_`` are maps [voxels_i, k], orthonormal unless betas are scaled, and ``shared_`` is the response
    [rows, k]. Every subject needs k voxels or more. ``noise_`` is the noise variance of a voxel, by subject. ``objective_`` has a number for each iteration. ``held_out_`` are scores of
    the rows of ``fit``, by maps that were learned without them.
    """

    def __init__(
        self,
        k: int = 50,
        kind: Model = "probabilistic",
        n_iter: int = ITERATIONS,
        seed: int = 0,
        scale: bool = False,
        standardize: bool = False,
        budget: "str | int | MemoryBudget | None" = None,
    ) -> None:
        self.k = k
        self.kind = kind
        self.n_iter = n_iter
        super().__init__(seed, scale, standardize, budget)

    def _method(self) -> Method:
        if self.kind not in tuple(_SOLVERS):
            raise SettingsError(f"SRM of kind {shown(self.kind)}", expected=" or ".join(_SOLVERS))
        check_whole("k", self.k, 1)
        check_whole("n_iter", self.n_iter, 1)
        return SharedResponseModel(self.k, self.kind, self.n_iter)


class SRMSettings(LinearSettings):
    """``alignment = "srm"``: a shared response model (Chen et al. 2015)."""

    kind: Literal["srm"] = "srm"
    """Orthonormal maps to a response that subjects share."""
    k: int = Dims
    """Number of shared dimensions, less than the images that all members saw."""
    model: Model = "probabilistic"
    """Whether noise is modelled, by subject, or the squared residual is minimised."""
    n_iter: int = Field(default=ITERATIONS, ge=1, le=10_000)
    """Number of iterations."""


class SRMAlignment(LinearAlignment):
    """A shared response model: orthonormal maps to dimensions in which subjects respond alike."""

    Settings: ClassVar[type[BaseModel]] = SRMSettings
    libraries: ClassVar[int] = 0

    def method(self) -> Method:
        return SharedResponseModel(self.settings.k, self.settings.model, self.settings.n_iter)
