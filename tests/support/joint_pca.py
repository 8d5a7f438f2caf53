"""A small alignment for tests: a joint PCA of all subjects' responses to the images that they share."""

from typing import Any, Literal

import numpy as np
from pydantic import BaseModel

from leanrecon.alignment.alignment import AlignmentPlan


class JointPCASettings(BaseModel):
    kind: Literal["joint-pca"] = "joint-pca"
    dims: int = 6


class JointPCA:
    """Subjects' voxels side by side, one SVD over images; each subject keeps its part of the right singular vectors."""

    Settings = JointPCASettings

    def __init__(self, settings: JointPCASettings) -> None:
        self.settings = settings
        self.parts: dict[str, tuple[Any, Any]] = {}

    @classmethod
    def notes(cls, settings: JointPCASettings) -> list[str]:
        return [f"Aligned by a joint PCA of {settings.dims} dimensions."]

    def plan(self, shapes: Any, free: int) -> AlignmentPlan:
        voxels = sum(shapes.voxels.values())
        return AlignmentPlan(work=8 * voxels * (6 * shapes.shared + self.settings.dims), dims=self.settings.dims)

    def fit(self, matrices: Any, context: Any) -> None:
        blocks = {}
        for name, matrix in matrices.items():
            blocks[name] = np.empty(matrix.shape)
            matrix.read(range(matrix.shape[0]), range(matrix.shape[1]), blocks[name])
        means = {name: block.mean(axis=0) for name, block in blocks.items()}
        joint = np.concatenate([block - means[name] for name, block in blocks.items()], axis=1)
        axes = np.linalg.svd(joint, full_matrices=False)[2][: self.settings.dims].T
        start = 0
        for name, block in blocks.items():
            own = axes[start : start + block.shape[1]]
            self.parts[name] = means[name], own @ np.linalg.inv(own.T @ own)
            start += block.shape[1]

    def transform(self, subject: str, betas: Any) -> Any:
        mean, weights = self.parts[subject]
        return ((betas - mean) @ weights).astype(np.float32)

    def state(self) -> dict[str, Any]:
        return {
            f"{part} {name}": of[k] for name, of in self.parts.items() for k, part in enumerate(("mean", "weights"))
        }

    def load(self, state: Any, subjects: Any) -> None:
        self.parts = {name: (state[f"mean {name}"], state[f"weights {name}"]) for name in subjects}
