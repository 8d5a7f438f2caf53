"""What the alignments have in common: linear maps of several subjects, fitted by their Gram matrices one by one."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from leanrecon.alignment.alignment import SCIPY, AlignmentPlan, AlignmentShapes
from leanrecon.alignment.grams import Gram, gram_nbytes, reading_nbytes, scores, weights_of
from leanrecon.alignment.users import as_betas, scores_of
from leanrecon.arguments import Parameters, check_flag, check_whole
from leanrecon.errors import InputError, shown

if TYPE_CHECKING:
    from leanrecon.context import Context
    from leanrecon.memory import MemoryBudget
    from leanrecon.stores.matrix import Matrix

Array = np.ndarray[Any, Any]

FOLDS = 5
"""Parts of the common images that are left out in turn for held-out scores, where no exact formula leaves out one."""


@dataclass
class Solution:
    """Maps of all subjects by their dual weights: W_i = X_i'·B_i."""

    duals: list[Array]
    """B of each subject, float64 [n, k]."""
    held_out: list[Array]
    """Scores of the common images by maps that they were left out of, float64 [n, k], a subject each."""
    shared: Array
    """The shared scores of the common images, float64 [n, k]."""
    objective: list[float] = field(default_factory=list)
    noise: list[float] = field(default_factory=list)
    left_out: list[Array] = field(default_factory=list)
    """What leaving out changes: held-out scores less fitted ones, [n, k] of each subject."""


class Method:
    """How maps are found: settings in, dual weights out."""

    name: ClassVar[str]

    def dims(self, rows: int) -> int:
        """Dimensions of the shared space; raises InputError where so many rows can't carry them."""
        raise NotImplementedError

    def check_voxels(self, voxels: Sequence[int]) -> None:
        """Raise InputError where a subject has too few voxels; by default any number will do."""

    def work(self, rows: int, subjects: int, grams: int) -> int:
        """Most bytes of ``solve`` beside ``grams`` bytes of Gram matrices that are held already."""
        raise NotImplementedError

    def solve(self, grams: Sequence[Gram], seed: int) -> Solution:
        """The maps."""
        raise NotImplementedError


def checked_dims(k: int, rows: int, name: str) -> int:
    """``k``, or InputError where the common images can't carry so many dimensions: centred, they span one less."""
    if k > rows - 1:
        raise InputError(
            f"{name} of {k} dimensions needs more than the {rows} common images there are",
            expected=f"k of {rows - 1} or less",
            todo=f"set k = {max(rows - 1, 1)} or less, or take members that share more images",
        )
    return k


def folds_of_rows(rows: int, seed: int) -> list[Array]:
    """Rows in ``FOLDS`` parts, drawn from the seed; fewer where there are few rows."""
    order = np.random.default_rng([rows, seed]).permutation(rows)
    return [np.sort(part) for part in np.array_split(order, min(FOLDS, rows))]


def fit_nbytes(method: Method, rows: int, voxels: Sequence[int], free: int, itemsize: int = 4) -> tuple[int, bool]:
    """Most bytes of a fit, and whether the Gram matrices are kept in memory: where they fit into ``free``."""
    dims, n = method.dims(rows), len(voxels)
    method.check_voxels(voxels)
    most, weights = max(voxels), sum(voxels) * dims * itemsize
    reading = reading_nbytes(rows, most, itemsize)
    solved = (3 * n + 3) * rows * dims * 8

    def total(kept: bool) -> int:
        grams = n * gram_nbytes(rows, kept=True) if kept else gram_nbytes(rows, kept=False)
        finding = max(reading, method.work(rows, n, grams) + solved)
        mapping = solved + reading + weights + most * dims * 8
        return max(grams + finding, mapping)

    kept = total(True) <= free
    return total(kept), kept


def fit_maps(
    method: Method,
    matrices: Sequence["Matrix"],
    seed: int,
    *,
    scale: bool,
    standardize: bool,
    kept: bool,
    scratch: Path | None = None,
) -> tuple[Solution, list[Gram], list[Array]]:
    """The maps of all subjects: solution, Gram matrices (for means and scales), weights [voxels, k].

    Gram matrices that are not ``kept`` in memory lie in the folder ``scratch`` meanwhile; None: that of the system.
    """
    with TemporaryDirectory(prefix="leanrecon-", dir=scratch) as folder:
        grams = [
            Gram.of(matrix, None if kept else Path(folder, f"gram{k}.float64"), standardize=standardize)
            for k, matrix in enumerate(matrices)
        ]
        for gram in grams:
            if gram.trace == 0:
                raise InputError("a subject's betas do not vary over the common images", expected="betas that vary")
            if scale:
                gram.scale = float(np.sqrt(gram.trace / gram.rows))
        solution = method.solve(grams, seed)
        for gram, dual, held_out in zip(grams, solution.duals, solution.held_out, strict=True):
            solution.left_out.append(held_out - gram.times(dual.T).T)
            gram.forget()
    weights = [weights_of(m, gram, dual) for m, gram, dual in zip(matrices, grams, solution.duals, strict=True)]
    return solution, grams, weights


# For users' own arrays


class Estimator(Parameters):
    """A method as an estimator in the manner of scikit-learn: ``fit`` takes a list of matrices, one a subject."""

    def __init__(self, seed: int, scale: bool, standardize: bool, budget: "str | int | MemoryBudget | None") -> None:
        self.seed = seed
        self.scale = scale
        self.standardize = standardize
        self.budget = budget

    def _method(self) -> Method:
        raise NotImplementedError

    def fit(self, matrices: Sequence[Any]) -> Self:
        """Learn from betas [rows, voxels_i] of each subject, rows of the same images in one order.

        Raises InputError for one subject, unequal rows, values that are not finite and k above what rows carry, and
        BudgetError before any work.
        """
        from leanrecon.memory import MemoryBudget

        check_whole("seed", self.seed)
        for name in ("scale", "standardize"):
            check_flag(name, getattr(self, name))
        method = self._method()
        if isinstance(matrices, str | bytes | Mapping) or not isinstance(matrices, Iterable):
            raise InputError(
                f"{shown(matrices)} is not a list of matrices", expected="one [rows, voxels] for each subject"
            )
        subjects = [as_betas(matrix) for matrix in matrices]
        check_subjects([matrix.shape for matrix in subjects])
        rows, voxels = subjects[0].shape[0], [matrix.shape[1] for matrix in subjects]
        budget = MemoryBudget.of(self.budget)
        itemsize = max(4 if m.dtype != np.float64 else 8 for m in subjects)
        work, kept = fit_nbytes(method, rows, voxels, budget.free, itemsize)
        budget.require(f"{method.name} of {len(subjects)} subjects", work + max(m.scratch_nbytes for m in subjects))
        solution, grams, self.weights_ = fit_maps(
            method, subjects, self.seed, scale=self.scale, standardize=self.standardize, kept=kept
        )
        self.mean_ = [gram.mean for gram in grams]
        self.scale_ = [gram.scale for gram in grams]
        self.shared_, self.objective_, self.noise_ = solution.shared, solution.objective, solution.noise
        self.held_out_ = solution.held_out
        return self

    def transform(self, matrices: Sequence[Any]) -> list[Array]:
        """Scores [rows_i, k] of betas [rows_i, voxels_i], a matrix for every subject of ``fit``; None is passed over.

        Betas are read panel by panel. Raises InputError for NaN in voxels that ``fit`` used, BudgetError.
        """
        if not hasattr(self, "weights_"):
            from sklearn.exceptions import NotFittedError

            raise NotFittedError(f"this {type(self).__name__} is not fitted yet; call fit first")
        if len(matrices) != len(self.weights_):
            raise InputError(
                f"{len(matrices)} matrices for {len(self.weights_)} subjects", expected="a matrix, or None, for each"
            )
        every = zip(matrices, self.mean_, self.weights_, strict=True)
        return [scores_of(as_betas(x), mean, weights, self.budget) for x, mean, weights in every if x is not None]

    def fit_transform(self, matrices: Sequence[Any]) -> list[Array]:
        """``fit`` and ``transform`` of the same matrices."""
        return self.fit(matrices).transform(matrices)


def check_subjects(shapes: Sequence[tuple[int, int]]) -> None:
    """Raise InputError unless there are two or more subjects with the same rows."""
    if len(shapes) < 2:
        raise InputError(f"{len(shapes)} subject can't be aligned", expected="two subjects or more")
    if len({rows for rows, _ in shapes}) > 1:
        raise InputError(
            f"subjects have different numbers of rows: {', '.join(str(rows) for rows, _ in shapes)}",
            expected="rows of the same images in one order for every subject",
        )


# For groups


class LinearSettings(BaseModel):
    """What the settings of these alignments have in common."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    standardize: bool = True
    """Whether each voxel is divided by its standard deviation over the common images first, as the ridge does."""
    scale: bool = True
    """Whether each subject's betas are divided by the root of their total variance, so that subjects count alike."""
    held_out: bool = True
    """Whether scores of common train images come from maps that these images were left out of, as with test rows."""


Dims = Field(default=50, ge=1, le=20_000)
"""The setting of the number of shared dimensions."""


class LinearAlignment:
    """A method as a kind of alignment for groups."""

    Settings: ClassVar[type[BaseModel]]
    learns: ClassVar[bool] = True
    libraries: ClassVar[int] = SCIPY
    """Bytes of libraries that the fit loads."""

    def __init__(self, settings: Any) -> None:
        self.settings = settings
        self._state: dict[str, Array] = {}

    def method(self) -> Method:
        """The method with these settings."""
        raise NotImplementedError

    @classmethod
    def notes(cls, settings: Any) -> Iterable[str]:
        """Sentences that a reader of the report must know."""
        if settings.held_out:
            yield (
                "Train rows of images that all subjects saw are in the shared space by maps that these images were "
                "left out of; the centre of each subject's betas is that of all of them."
            )

    def plan(self, shapes: AlignmentShapes, free: int) -> AlignmentPlan:
        """Plan the fit; raises InputError for one subject and for k above what the common images carry."""
        voxels = list(shapes.voxels.values())
        check_subjects([(shapes.shared, n) for n in voxels])
        method = self.method()
        work, kept = fit_nbytes(method, shapes.shared, voxels, free)
        grams = 0 if kept else len(voxels) * gram_nbytes(shapes.shared, kept=True)
        dims = method.dims(shapes.shared)
        held = sum(voxels) * (4 * dims + 8) + self.settings.held_out * len(voxels) * shapes.shared * dims * 4
        return AlignmentPlan(work, dims, scratch=grams, held=held, libraries=self.libraries)

    def fit(self, matrices: "Mapping[str, Matrix]", context: "Context") -> None:
        """Learn from the train betas of each subject for the common images."""
        method, names = self.method(), list(matrices)
        subjects = [matrices[name] for name in names]
        rows, voxels = subjects[0].shape[0], [matrix.shape[1] for matrix in subjects]
        _, kept = fit_nbytes(method, rows, voxels, context.budget.free)
        solution, grams, weights = fit_maps(
            method,
            subjects,
            context.seed,
            scale=self.settings.scale,
            standardize=self.settings.standardize,
            kept=kept,
            scratch=None if context.scratch == Path() else context.scratch,
        )
        state: dict[str, Array] = {"objective": np.array(solution.objective), "noise": np.array(solution.noise)}
        for k, name in enumerate(names):
            state |= {f"mean {name}": grams[k].mean, f"weights {name}": weights[k]}
            if self.settings.held_out:
                state[f"left out {name}"] = solution.left_out[k].astype(np.float32)
        self._state = state

    def transform(self, subject: str, betas: Array) -> Array:
        """Betas [rows, voxels] of a subject in the shared space, float32 [rows, k]."""
        weights = self._state[f"weights {subject}"]
        return scores(np.asarray(betas, np.float32), self._state[f"mean {subject}"], weights).astype(np.float32)

    def left_out(self, subject: str) -> Array | None:
        """What leaving each common image out of the maps changes in its scores; None where that was not asked for."""
        return self._state.get(f"left out {subject}")

    def state(self) -> dict[str, Array]:
        """What was learned, as arrays by name."""
        return dict(self._state)

    def load(self, state: Mapping[str, Array], subjects: Sequence[str]) -> None:
        """Take up what an earlier ``fit`` learned; raises InputError where it lacks a subject."""
        lacking = [name for name in subjects if f"weights {name}" not in state or f"mean {name}" not in state]
        if lacking:
            raise InputError(
                f"the alignment that is kept was learned without subject {lacking[0]}",
                todo="run the stage dataset again with --overwrite",
            )
        self._state = dict(state)
