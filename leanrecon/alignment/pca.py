"""Principal components over subjects: of their voxels side by side, or of each subject alone.

Side by side, components are time courses that all subjects share; each subject's map to them is a ridge from its own
voxels, as projections onto its part of the axes fit its noise. Components of each subject alone align nothing: axes and
signs differ. They are there to be compared with.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel

from leanrecon.alignment.grams import Gram
from leanrecon.alignment.leading import leading, leading_nbytes
from leanrecon.alignment.linear import Dims, Estimator, LinearAlignment, LinearSettings, Method, Solution, checked_dims
from leanrecon.alignment.ridge import solve, solve_nbytes
from leanrecon.arguments import check_whole
from leanrecon.errors import SettingsError, shown

if TYPE_CHECKING:
    from leanrecon.memory import MemoryBudget

Array = np.ndarray[Any, Any]

Of = Literal["group", "subject"]


class Components(Method):
    """Principal components of all subjects, or of each."""

    name = "a group PCA"

    def __init__(self, k: int, of: Of) -> None:
        self.k, self.of = k, of

    def dims(self, rows: int) -> int:
        return checked_dims(self.k, rows, self.name)

    def work(self, rows: int, subjects: int, grams: int) -> int:
        return max(leading_nbytes(rows, self.k), solve_nbytes(rows, self.k))

    def solve(self, grams: Sequence[Gram], seed: int) -> Solution:
        if self.of == "subject":
            return self._alone(grams)
        shared = top_scores(grams, self.dims(grams[0].rows))
        maps = [solve(gram, shared) for gram in grams]
        return Solution(
            [found.weights for found in maps], [found.held_out for found in maps], shared, [f.error for f in maps]
        )

    def _alone(self, grams: Sequence[Gram]) -> Solution:
        """Each subject's own components: nothing of another subject is learned, so fitted scores stand as they are."""
        duals, own = [], []
        for gram in grams:
            values, vectors = leading(gram.dense(), self.k)
            root = np.sqrt(np.maximum(values, 1e-12 * values[0]))
            duals.append(vectors / root)
            own.append(vectors * root)
        return Solution(duals, own, np.mean(own, axis=0))


def top_scores(grams: Sequence[Gram], k: int) -> Array:
    """Scores [n, k] of the first components of all voxels side by side, each sign such that its largest entry is +."""
    total = grams[0].dense()
    for gram in grams[1:]:
        for rows, panel in gram.panels():
            total[rows.start : rows.stop] += panel / gram.scale**2
    values, vectors = leading(total, k)
    scores: Array = vectors * np.sqrt(np.maximum(values, 0))
    largest = np.abs(scores).argmax(axis=0)
    return scores * np.where(scores[largest, np.arange(k)] < 0, -1.0, 1.0)


class GroupPCA(Estimator):
    """Principal components of several subjects' voxels side by side, and each subject's ridge to their scores.

    ``of = "subject"`` takes each subject's own components instead, which do not align. ``scale`` divides each subject's
    betas by the root of their total variance. ``objective_`` holds each subject's leave-one-out error, as a share of
    the scores' variance; see ``SRM`` for what else there is after ``fit``.
    """

    def __init__(
        self,
        k: int = 50,
        of: Of = "group",
        seed: int = 0,
        scale: bool = False,
        standardize: bool = False,
        budget: "str | int | MemoryBudget | None" = None,
    ) -> None:
        self.k = k
        self.of = of
        super().__init__(seed, scale, standardize, budget)

    def _method(self) -> Method:
        check_whole("k", self.k, 1)
        if self.of not in ("group", "subject"):
            raise SettingsError(f"GroupPCA with of = {shown(self.of)}", expected='"group" or "subject"')
        return Components(self.k, self.of)


class PCASettings(LinearSettings):
    """``alignment = "pca"``: principal components of all subjects' voxels side by side."""

    kind: Literal["pca"] = "pca"
    """Principal components over subjects, and a ridge from each subject's voxels to their scores."""
    k: int = Dims
    """Number of components, less than the images that all members saw."""
    of: Of = "group"
    """Components of all voxels side by side, or of each subject alone, which aligns nothing."""


class PCAAlignment(LinearAlignment):
    """Principal components of all subjects' voxels side by side, with a ridge from each subject to their scores."""

    Settings: ClassVar[type[BaseModel]] = PCASettings

    def method(self) -> Method:
        return Components(self.settings.k, self.settings.of)
