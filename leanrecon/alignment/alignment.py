"""What an alignment is: fitted on the images that subjects share, applied to all rows of each."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from pydantic import BaseModel

from leanrecon.context import Context

if TYPE_CHECKING:
    from leanrecon.stores.matrix import Matrix

Array = np.ndarray[Any, Any]


SCIPY = 12 * 10**6
"""Bytes that SciPy's linear algebra takes when it is first used: 11 MB measured."""


@dataclass(frozen=True)
class AlignmentShapes:
    """Shapes of one alignment: voxels of each subject, and how many train images all of them saw."""

    voxels: Mapping[str, int]
    shared: int


@dataclass(frozen=True)
class AlignmentPlan:
    """What an alignment will hold and write."""

    work: int
    """Bytes of memory at the peak."""
    dims: int
    """Shared dimensions."""
    scratch: int = 0
    """Bytes on disk that are needed while it is fitted."""
    held: int | None = None
    """Bytes of what was learned, which stays in memory while betas are transformed; None: as much as ``work``."""
    libraries: int = SCIPY
    """Bytes of libraries that the fit loads."""


class Alignment(Protocol):
    """A kind of alignment; made from its settings."""

    Settings: ClassVar[type[BaseModel]]
    learns: ClassVar[bool] = True
    """Whether it is fitted, which takes train images that all subjects saw; a kind that lacks the attribute is."""

    def __init__(self, settings: Any) -> None: ...

    @classmethod
    def notes(cls, settings: Any) -> Iterable[str]:
        """Sentences that a reader of the report must know."""

    def plan(self, shapes: AlignmentShapes, free: int) -> AlignmentPlan:
        """Plan the fit: arithmetic only. Raises InputError for shapes that can't be aligned."""

    def fit(self, matrices: Mapping[str, "Matrix"], context: Context) -> None:
        """Learn from the train betas of each subject for the shared images: [shared, voxels], images in one order."""

    def transform(self, subject: str, betas: Array) -> Array:
        """Betas [rows, voxels] of a subject in the shared space, float32 [rows, dims]; at most 256 rows at once."""

    def left_out(self, subject: str) -> Array | None:
        """What leaving each shared image out of the fit changes in a subject's scores for it: float32 [shared, dims].

        Train rows of these images get it added, since nothing is fitted to test rows either. None, or a kind that lacks
        the method: train rows stay as fitted.
        """

    def state(self) -> dict[str, Array]:
        """What was learned, as arrays by name, to be kept beside the study's betas."""

    def load(self, state: Mapping[str, Array], subjects: Sequence[str]) -> None:
        """Take up what an earlier ``fit`` learned."""
