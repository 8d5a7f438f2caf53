"""The stages of a study in their order, run or continued."""

import contextlib
import time
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import tomli_w

from leanrecon.errors import InputError, SettingsError, StoreError, shown
from leanrecon.places import LocationLike
from leanrecon.places.files import write_text
from leanrecon.progress import Progress, format_seconds
from leanrecon.stages.dataset import DatasetStage
from leanrecon.stages.decode import DecodeStage
from leanrecon.stages.evaluate import EvaluateStage
from leanrecon.stages.evaluate_features import EvaluateFeaturesStage
from leanrecon.stages.features import FeaturesStage
from leanrecon.stages.refine import RefineStage
from leanrecon.stages.regression import RegressionStage
from leanrecon.stages.stage import PlannedStage, Planning, Run, Stage, budget_of
from leanrecon.stages.stage1 import StageOneStage
from leanrecon.stages.without_images import GIVE_IMAGES, check_images
from leanrecon.stores.metadata import load_library
from leanrecon.study.beginning import undone
from leanrecon.study.heal import heal
from leanrecon.study.layout import Study
from leanrecon.study.lock import only_run
from leanrecon.study.mirror import Mirror
from leanrecon.study.needs import require_weights
from leanrecon.study.readable import problem_of
from leanrecon.study.record import HEADER, check_format, is_study, sweep
from leanrecon.study.settings import Settings, check_settings
from leanrecon.validation import nearest
from leanrecon.weights.libraries import counting

STAGES = ("dataset", "features", "regression", "stage1", "refine", "evaluate")
"""The names of the stages of most studies, in order."""

GATHERED_NBYTES = 28_000_000
"""Bytes that a run holds before its first stage, and a plan does not: zarr (9 MB), other modules and records."""


def stages_of(settings: Settings) -> list[Stage]:
    """The stages of a study in order; stages of images are left out if the dataset has none."""
    to_features: list[Stage] = [FeaturesStage(), RegressionStage()]
    if not settings.dataset.has_images:
        return [DatasetStage(), *to_features, evaluate_stage(settings)]
    to_images: Stage = StageOneStage() if settings.decode is None else DecodeStage()
    before = to_features if settings.features else []
    return [DatasetStage(), *before, to_images, RefineStage(), evaluate_stage(settings)]


def evaluate_stage(settings: Settings) -> EvaluateStage | EvaluateFeaturesStage:
    """The stage that compares images, or features alone."""
    return EvaluateStage() if settings.dataset.has_images else EvaluateFeaturesStage()


def stages_until(settings: Settings, until: str | None) -> list[Stage]:
    """The stages up to and including ``until`` (None: all).

    Raises SettingsError for an unknown stage, and InputError if the dataset lacks images that the stages need.
    """
    stages = stages_of(settings)
    names = [stage.name for stage in stages]
    if until is not None and until not in names:
        if not settings.dataset.has_images and until in STAGES:
            raise InputError(f"the stage {until} needs images, and this dataset has none", todo=GIVE_IMAGES)
        named = until if isinstance(until, str) and until else shown(until)
        raise SettingsError(f"{named} is not a stage of this study ({nearest(until, names)})")
    chosen = stages if until is None else stages[: names.index(until) + 1]
    if len(chosen) > 1 and not settings.dataset.has_images:
        check_images(settings)
    return chosen


def plan_study(
    settings: Settings, *, base_dir: Path | None, until: str | None = None, study: LocationLike = "."
) -> list[PlannedStage]:
    """The plan of the stages up to ``until``; only headers of arrays and weights are read.

    ``study`` is the folder or URL of the study: requests to a bucket take memory too.
    """
    stages = stages_until(settings, until)
    budget = budget_of(settings, study)
    budget = replace(budget, reserved=budget.reserved + GATHERED_NBYTES)
    planning = Planning(settings, base_dir, budget)
    lines: list[PlannedStage] = []
    with counting():
        for stage in stages:
            lines += stage.plan(planning)
            if stage.name == "dataset" and len(stages) > 1:
                require_weights(settings, [later.name for later in stages], planned=True)
    return lines


class Pipeline:
    """Runs the stages of one study. Complete work, also in its mirror, is not done again."""

    def __init__(
        self,
        settings: Settings,
        study: Study,
        *,
        base_dir: Path | None = None,
        overwrite: bool = False,
        progress: Progress | None = None,
        mirror: LocationLike | None = None,
        cluster: Any = None,
    ) -> None:
        """``cluster`` (``execution.cluster.Cluster``) gives the workers that share the stages; None: there are none."""
        self._cluster = cluster
        progress = progress or Progress()
        kept = Mirror(study.root, mirror, overwrite=overwrite, progress=progress) if mirror else None
        self._run = Run(settings, study, base_dir, overwrite, progress, kept)

    def run(self, until: str | None = None) -> None:
        """Run the stages up to and including ``until``; None: all."""
        run, settings = self._run, self._run.settings
        stages = stages_until(settings, until)
        self._check(stages)
        self._require_memory(until)
        root = run.study.root
        with only_run(root), undone(root), run.mirror.held() if run.mirror else contextlib.nullcontext():
            if not run.overwrite:
                check_format(run.study)
            sweep(run.study)
            if run.mirror is not None:
                if run.study.record.is_file():
                    heal(run.study)
                run.mirror.restore()
            if not run.study.settings.exists() or problem_of(run.study.settings):
                self._write_settings(stages_of(settings))
            heal(run.study)
            load_library()
            began = time.monotonic()
            with contextlib.nullcontext() if self._cluster is None else self._cluster.opened(run) as run.workers:
                for k, stage in enumerate(stages):
                    run.progress.say(_where(stages, k, self._place(stage), time.monotonic() - began))
                    stage.run(run)
                    self._write_settings(stages[: k + 1])  # once this stage has accepted them
            if run.mirror is not None:
                run.mirror.keep()

    def _require_memory(self, until: str | None) -> None:
        """Raise BudgetError where a stage of a new study does not fit, before any work is done.

        A study that was begun, here or in its mirror, has stages that are complete: there each stage asks for itself.
        With workers the stages are theirs.
        """
        run = self._run
        begun = run.study.settings.exists() or (run.mirror is not None and is_study(run.mirror.folder))
        if begun or self._cluster is not None:
            return
        lines = plan_study(run.settings, base_dir=run.base_dir, until=until, study=run.study.root)
        largest = max(lines, key=lambda line: line.memory)
        budget = budget_of(run.settings, run.study.root)
        budget.require(largest.stage, largest.memory - budget.reserved)

    def _place(self, stage: Stage) -> str:
        """Where a stage runs, if there are workers."""
        if self._run.workers is None:
            return ""
        return ", on workers" if hasattr(stage, "piece") else ", in this process"

    def _check(self, stages: Sequence[Stage]) -> None:
        """Raise errors of settings and inputs before any work is done."""
        run = self._run
        if run.study.settings.exists() and not is_study(run.study.root):
            raise StoreError(
                f"{run.study.settings} was not written by leanrecon, and would be replaced",
                todo="choose a folder of its own for the study with --study",
            )
        require_weights(run.settings, [stage.name for stage in stages])
        for stage in stages:
            stage.check(run)

    def _write_settings(self, accepted: Sequence[Stage]) -> None:
        """Write study.toml: the settings that these stages accepted, and those of earlier runs for later stages."""
        run = self._run
        tables = run.settings.located(run.base_dir).tables()
        names = {stage.name for stage in accepted}
        if "evaluate" not in names and not run.overwrite and run.study.settings.exists():
            with contextlib.suppress(SettingsError, ValueError):  # else all of them are new
                accepted_sections = _sections(names)
                before = tomllib.loads(run.study.settings.read_text())
                kept = {key: value for key, value in before.items() if key not in accepted_sections or key in tables}
                merged = kept | {key: tables[key] for key in tables if key in accepted_sections}
                check_settings(merged)
                tables = merged
        write_text(run.study.settings, HEADER + tomli_w.dumps(tables))


def _where(stages: Sequence[Stage], k: int, place: str, seconds: float) -> str:
    """The line of a stage that begins: where it runs, the time so far, and the stages that are left."""
    since = f", {format_seconds(seconds)} so far" if seconds >= 60 else ""
    left = ", ".join(stage.name for stage in stages[k + 1 :])
    return f"stage {k + 1} of {len(stages)}: {stages[k].name}{place}{since}" + (f"; left: {left}" if left else "")


def _sections(stages: set[str]) -> set[str]:
    """The sections of settings that these stages have accepted."""
    sections = {"stores", *stages}
    if {"regression", "decode"} & stages:
        sections.add("areas")
    return sections | ({"judges"} if "evaluate" in stages else set())
