"""No alignment: subjects whose voxels correspond already, as in a common surface or template space."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from leanrecon.alignment.alignment import AlignmentPlan, AlignmentShapes
from leanrecon.context import Context
from leanrecon.errors import InputError

if TYPE_CHECKING:
    from leanrecon.stores.matrix import Matrix

Array = np.ndarray[Any, Any]


class NoAlignmentSettings(BaseModel):
    """``alignment = "none"``: voxel k of every subject is the same place."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    kind: Literal["none"] = "none"
    """Voxels are used as they are."""


class NoAlignment:
    """Betas stay as they are; subjects with different numbers of voxels are refused."""

    Settings: ClassVar[type[BaseModel]] = NoAlignmentSettings
    learns: ClassVar[bool] = False

    def __init__(self, settings: NoAlignmentSettings) -> None:
        self.settings = settings

    @classmethod
    def notes(cls, settings: NoAlignmentSettings) -> Iterable[str]:
        """Sentences that a reader of the report must know."""
        yield "Subjects were not aligned: voxel k of each is taken for the same place."

    def plan(self, shapes: AlignmentShapes, free: int) -> AlignmentPlan:
        """No work; raises InputError where subjects have different numbers of voxels."""
        counts = set(shapes.voxels.values())
        if len(counts) > 1:
            listed = ", ".join(f"{name} {n}" for name, n in shapes.voxels.items())
            raise InputError(
                f"subjects have different numbers of voxels: {listed}",
                expected='the same voxels in every subject for dataset.alignment = "none"',
                todo="choose an alignment that brings them into a shared space (`leanrecon kinds` lists them)",
            )
        return AlignmentPlan(work=0, dims=counts.pop())

    def fit(self, matrices: "Mapping[str, Matrix]", context: Context) -> None:
        """Nothing is learned."""

    def transform(self, subject: str, betas: Array) -> Array:
        """The betas themselves, as float32."""
        return np.asarray(betas, np.float32)

    def state(self) -> dict[str, Array]:
        """Nothing was learned."""
        return {}

    def load(self, state: Mapping[str, Array], subjects: Sequence[str]) -> None:
        """Nothing was learned."""
