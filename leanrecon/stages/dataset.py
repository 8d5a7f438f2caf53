"""The stage dataset: betas, stimuli, captions and voxels of a study, from any kind of dataset."""

from collections.abc import Iterator, Mapping
from typing import Any

from leanrecon import kinds
from leanrecon.context import Context
from leanrecon.errors import SettingsError
from leanrecon.progress import counted
from leanrecon.stages.costs_of_stages import dataset_cost
from leanrecon.stages.stage import Piece, PlannedStage, Planning, Run
from leanrecon.study.rows import Rows
from leanrecon.study.settings import RESERVED
from leanrecon.study.voxels import area_voxels

_STAYS = 2
"""The share of the bytes of captions that stays in the process, because freed strings leave gaps. Measured: 53 %."""


class DatasetStage:
    """Writes the stores that every later stage reads."""

    name = "dataset"

    def check(self, run: Run | Planning) -> None:
        """Raise SettingsError for ``[areas]`` with a dataset without areas."""
        if run.settings.areas and not run.settings.dataset.has_areas:
            raise SettingsError(
                "[areas]: dimensions of several subjects' data have no area",
                expected="no [areas] for the dataset kinds group and joined",
                todo="align some areas alone (dataset.voxels of a group), or compare areas in the members' studies",
            )

    def plan(self, planning: Planning) -> Iterator[PlannedStage]:
        self.check(planning)
        settings, budget = planning.settings, planning.budget
        kind = kinds.kind_of("datasets", settings.dataset)
        data = kind(settings.dataset).plan(base_dir=planning.base_dir, chunk=planning.chunk, free=budget.free)
        planning.dataset = data
        rows, images = data.n_train + data.n_test, data.train_images + data.test_images
        summary = f"{counted(images, 'images')}, {counted(data.voxels, 'voxels')}"
        if rows != images:
            summary = f"{rows} rows of {summary}"
        cost, shared = dataset_cost(data, planning.chunk, len(settings.areas))
        yield PlannedStage(
            self.name, summary, budget.reserved + data.work, data.disk, data.scratch, data.download, data.requests,
            cost=cost, shared=shared, shared_download=data.shared_download,
        )  # fmt: skip
        planning.hold(data.captions // _STAYS)

    def run(self, run: Run) -> None:
        settings = run.settings
        dataset = kinds.kind_of("datasets", settings.dataset)(settings.dataset)
        with run.recorded(self.name, run.study, [run.study.betas("train")]) as (record, context):
            shared = run.shared(context, self.name, {}, shares=hasattr(dataset, "piece"))
            record |= dataset.ingest(run.study, base_dir=run.base_dir, context=shared) or {}
            record["settings"] = settings.dataset.model_dump(exclude_none=True)
        _check_test_sets(run)
        area_voxels(run.study, settings.areas)  # unknown areas are refused before hours of work

    def piece(self, run: Run, named: Mapping[str, Any], context: Context) -> Piece:
        """Runs tasks of a dataset on a worker, if its kind has any."""
        dataset: Any = kinds.kind_of("datasets", run.settings.dataset)(run.settings.dataset)
        piece: Piece = dataset.piece(run.study, named, base_dir=run.base_dir, context=context)
        return piece


def _check_test_sets(run: Run) -> None:
    """Raise InputError for a test set with the name of another variant."""
    rows = Rows.read(run.study)
    named = rows["test"].test_set if "test" in rows else None  # with folds there is no such split
    for name in dict.fromkeys(named or ()):
        if name in run.settings.areas:
            raise SettingsError(f"{name} is a test set and an area", todo="give the area another name in [areas]")
        if RESERVED.fullmatch(name):
            raise SettingsError(
                f"{name} can't be the name of a test set: a baseline or a fold has it", todo="rename it"
            )
