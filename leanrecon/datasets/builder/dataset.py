"""What all datasets of the builder share: they read their materials, plan from them, and build a study."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel

from leanrecon.context import Context
from leanrecon.datasets.plan import DatasetPlan
from leanrecon.study.layout import Study
from leanrecon.study.rows import refuse_earlier_format

if TYPE_CHECKING:
    from leanrecon.datasets.builder.materials import Materials


class Builder(ABC):
    """A dataset that is built from materials: a kind of its own says where these lie."""

    Settings: ClassVar[type[BaseModel]]

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    @abstractmethod
    def materials(self, base_dir: Path | None) -> "Materials":
        """Open the files; only headers and tables are read. Raises InputError where they don't fit together."""

    @classmethod
    def notes(cls, settings: Any) -> Iterable[str]:
        """Sentences that a reader of the report must know."""
        if settings.allow_shared_stimuli:
            yield "Test images may be among the train images (dataset.allow_shared_stimuli)."
        if settings.zscore in ("run", "session"):
            yield f"Voxels were z-scored by all trials of a {settings.zscore}, tested ones among them (dataset.zscore)."
        if settings.zscore == "train" and settings.folds:
            yield "Voxels were z-scored by the trials of all folds, tested ones among them (dataset.zscore)."

    def plan(self, *, base_dir: Path | None, chunk: int, free: int) -> DatasetPlan:
        """Say what building would write and take, from headers and tables.

        Raises InputError for files that are missing, unreadable or don't fit together.
        """
        from leanrecon.datasets.builder.plan import plan_build

        with self.materials(base_dir) as materials:
            return plan_build(materials, self.settings, 0, base_dir, chunk, free)

    def ingest(self, study: Study, *, base_dir: Path | None, context: Context) -> dict[str, Any]:
        """Write a study's betas, stimuli, captions and rows.json, continuing where an earlier run stopped.

        Returns what the record of the stage tells.

        Raises InputError for data that can't be used, StoreError for stores made of something else, BudgetError.
        """
        from leanrecon.datasets.builder.build import Build
        from leanrecon.datasets.builder.plan import plan_build

        if not context.overwrite:
            refuse_earlier_format(study)
        with self.materials(base_dir) as materials:
            plan = plan_build(materials, self.settings, context.seed, base_dir, context.chunk, context.budget.free)
            context.require("reading the betas", plan.work)
            return Build(self.settings.kind, materials, self.settings, study, base_dir, context).run()
