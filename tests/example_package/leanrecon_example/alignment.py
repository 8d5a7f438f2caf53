"""Alignment ``shared-axes``: brings subjects into the space of the image differences that all their brains show.

Each subject's betas of the shared images are whitened by an SVD; the axes are the left singular vectors of all of them
side by side (generalised canonical correlation, MAXVAR: Kettenring 1971).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from leanrecon.alignment.alignment import AlignmentPlan, AlignmentShapes, Array
from leanrecon.context import Context


class SharedAxesSettings(BaseModel):
    """``[dataset.alignment]``"""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    kind: Literal["shared-axes"] = "shared-axes"
    dims: int = Field(default=20, ge=1)
    """Dimensions of the shared space."""
    components: int = Field(default=50, ge=1)
    """Principal components of each subject's betas that are kept."""


class SharedAxes:
    """A linear map for each subject, from voxels to ``dims`` shared axes."""

    Settings = SharedAxesSettings

    def __init__(self, settings: SharedAxesSettings) -> None:
        self.settings = settings
        self._means: dict[str, Array] = {}
        self._maps: dict[str, Array] = {}

    @classmethod
    def notes(cls, settings: SharedAxesSettings) -> Iterable[str]:
        return [f"Subjects were aligned to {settings.dims} axes on the train images that all of them saw."]

    def plan(self, shapes: AlignmentShapes, free: int) -> AlignmentPlan:
        largest = max(shapes.voxels.values())
        numbers = 4 * shapes.shared * largest  # one subject's betas, centred, and their SVD
        numbers += 3 * len(shapes.voxels) * shapes.shared * self.settings.components  # whitened betas, and their SVD
        numbers += sum(shapes.voxels.values()) * (self.settings.components + self.settings.dims)
        dims = min(self.settings.dims, shapes.shared)
        return AlignmentPlan(8 * numbers + 10_000_000, dims)

    def fit(self, matrices: Mapping[str, Any], context: Context) -> None:
        shared = next(iter(matrices.values())).shape[0]
        shapes = AlignmentShapes({subject: matrix.shape[1] for subject, matrix in matrices.items()}, shared)
        context.require(context.label, self.plan(shapes, context.budget.free).work)
        whitened, unmixing = [], {}
        for subject, matrix in matrices.items():
            betas = np.empty(matrix.shape, np.float64)
            matrix.read(range(matrix.shape[0]), range(matrix.shape[1]), betas)
            self._means[subject] = betas.mean(axis=0)
            left, values, right = np.linalg.svd(betas - self._means[subject], full_matrices=False)
            count = min(self.settings.components, int((values > values[0] * 1e-6).sum()))
            whitened.append(left[:, :count])
            unmixing[subject] = right[:count].T / values[:count], left[:, :count]
        axes = np.linalg.svd(np.hstack(whitened), full_matrices=False)[0][:, : self.settings.dims]
        for subject, (inverse, left) in unmixing.items():
            self._maps[subject] = inverse @ (left.T @ axes) * shared**0.5  # betas of variance 1

    def transform(self, subject: str, betas: Array) -> Array:
        return ((betas - self._means[subject]) @ self._maps[subject]).astype(np.float32)

    def state(self) -> dict[str, Array]:
        means = {f"mean {subject}": mean for subject, mean in self._means.items()}
        return means | {f"map {subject}": matrix for subject, matrix in self._maps.items()}

    def load(self, state: Mapping[str, Array], subjects: Sequence[str]) -> None:
        self._means = {subject: state[f"mean {subject}"] for subject in subjects}
        self._maps = {subject: state[f"map {subject}"] for subject in subjects}
