"""The kinds of datasets by name; each is imported when it is first asked for."""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leanrecon.datasets.plan import DatasetPlan, DatasetSettings
    from leanrecon.memory import MemoryBudget
    from leanrecon.progress import Progress
    from leanrecon.study.layout import Study


@dataclass(frozen=True)
class Kind:
    """Where one kind of dataset is to be found: its settings, and the functions that plan it and write its stores."""

    module: str
    settings: str
    plan: str
    ingest: str


KINDS: dict[str, Kind] = {
    "arrays": Kind("leanrecon.datasets.arrays.dataset", "ArraysSettings", "plan_arrays", "ingest_arrays"),
    "nsd": Kind("leanrecon.datasets.nsd.dataset", "NsdSettings", "plan_nsd", "ingest_nsd"),
    "simulated": Kind(
        "leanrecon.datasets.simulated.dataset", "SimulatedSettings", "plan_simulated", "ingest_simulated"
    ),
}


def settings_model(kind: str) -> "type[DatasetSettings]":
    """The settings of a kind of dataset, as a pydantic model."""
    model: type[DatasetSettings] = getattr(import_module(KINDS[kind].module), KINDS[kind].settings)
    return model


def plan_dataset(
    settings: "DatasetSettings", *, base_dir: Path | None, chunk: str | int | None, free: int
) -> "DatasetPlan":
    """Say what the stage dataset would make and take; ``free`` is the memory it may take in bytes."""
    found = _found(settings)
    made: DatasetPlan = getattr(import_module(found.module), found.plan)(
        settings, base_dir=base_dir, chunk=chunk, free=free
    )
    return made


def ingest_dataset(
    settings: "DatasetSettings",
    study: "Study",
    *,
    base_dir: Path | None,
    chunk: str | int | None,
    budget: "MemoryBudget",
    seed: int,
    overwrite: bool,
    progress: "Progress",
) -> None:
    """Write a study's betas, stimuli and captions, continuing where an earlier run stopped."""
    how: dict[str, Any] = {"budget": budget, "seed": seed, "overwrite": overwrite, "progress": progress}
    found = _found(settings)
    getattr(import_module(found.module), found.ingest)(settings, study, base_dir=base_dir, chunk=chunk, **how)


def _found(settings: "DatasetSettings") -> Kind:
    return KINDS[settings.model_dump()["kind"]]
