"""What a dataset is: it says what it would make, and writes a study's betas, stimuli and captions."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Protocol

from pydantic import BaseModel

from leanrecon.context import Context
from leanrecon.datasets.plan import DatasetPlan
from leanrecon.study.layout import Study


class Dataset(Protocol):
    """A kind of dataset; made from its settings, which derive from ``datasets.plan.DatasetSettings``.

    One that gives tasks to the workers of a cluster (``context.executor`` in ``ingest``) also has a method
    ``piece(study, named, *, base_dir, context)``. It opens what they need in the process of a worker, and returns what
    does them: called with the numbers of a task, and closed, if it has a method ``close``.
    """

    Settings: ClassVar[type[BaseModel]]

    def __init__(self, settings: Any) -> None: ...

    @classmethod
    def notes(cls, settings: Any) -> Iterable[str]:
        """Sentences that a reader of the report must know."""

    def plan(self, *, base_dir: Path | None, chunk: int, free: int) -> DatasetPlan:
        """Say what would be made, from settings and headers; chunk files have ``chunk`` bytes."""

    def ingest(self, study: Study, *, base_dir: Path | None, context: Context) -> dict[str, Any] | None:
        """Write betas, stimuli, captions and rows.json, continuing where an earlier run stopped.

        May return what the record of the stage tells beside time and memory, such as ``voxels_left_out``.
        """
