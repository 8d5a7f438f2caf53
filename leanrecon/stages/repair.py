"""The repair of a study: damaged files are removed and made again, by running the study from its study.toml."""

from collections.abc import Sequence

from leanrecon.errors import StoreError
from leanrecon.places import Location, LocationLike, as_location
from leanrecon.progress import Progress
from leanrecon.stages.pipeline import Pipeline, plan_study, stages_of
from leanrecon.study.layout import Role, Study, item_of
from leanrecon.study.lock import only_run
from leanrecon.study.recipes import read_settings
from leanrecon.study.record import is_complete, study_above
from leanrecon.study.verify import Damage


def mend(path: LocationLike, damaged: Damage, *, progress: Progress | None = None) -> None:
    """Make damaged chunks, images, networks and records again; only these are computed.

    Raises StoreError if the location belongs to no study, or the study's settings don't make the damaged file.
    """
    path = as_location(path)
    study = study_above(path)
    if study is None:
        raise StoreError(f"{path} belongs to no study", todo="make it again with the program that wrote it")
    if any(one.path == study.settings for one in damaged):
        raise StoreError(
            f"{study.settings} was edited by hand, or is damaged, so nothing can be made again from it",
            todo=f"run `leanrecon run SETTINGS --study {study.root}` with the settings that made it, which "
            "writes the file again",
        )
    settings, base_dir = read_settings(study.settings)
    pipeline = Pipeline(settings, study, base_dir=base_dir, progress=progress)
    if any(writers_of(study, one.path) == ("dataset",) for one in damaged):
        # The input arrays must exist before anything is removed.
        plan_study(settings, base_dir=base_dir, until="dataset")
    last = last_stage(study, [stage.name for stage in stages_of(settings)])  # a damaged part may be all of a stage
    with only_run(study.root):
        for one, parts in damaged.items():
            one.discard([part for part, _ in parts])
    pipeline.run(last)
    for one in damaged:
        item = item_of(one.path.relative_to(study.root))
        if item is not None and item.stages and item.role is not Role.SCRATCH and not is_complete(one.path):
            raise StoreError(
                f"{one.path} is not made by the settings in {study.settings}, so it stays damaged",
                todo="remove it, or run the settings that made it",
            )


def writers_of(study: Study, path: Location) -> tuple[str, ...]:
    """The stages that may write a location of a study."""
    item = item_of(path.relative_to(study.root))
    return item.stages if item is not None else ()


def last_stage(study: Study, stages: Sequence[str]) -> str:
    """The last of these stages that a study has begun."""
    begun = {
        stage for found in study.found(*Role) for stage in found.item.stages if found.item.role is not Role.SCRATCH
    }
    return next((stage for stage in reversed(stages) if stage in begun), stages[0])
