"""The protocol of a stage, and the state that all stages of a run share."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from leanrecon import kinds
from leanrecon.context import Context, Executor
from leanrecon.datasets.plan import DatasetPlan
from leanrecon.features.extract_captions import NO_IMAGE
from leanrecon.features.first_images import decoding_space, picture_shape
from leanrecon.images import ImageShape
from leanrecon.memory import MemoryBudget, give_back
from leanrecon.places import Location, LocationLike, as_location
from leanrecon.places.inputs import names_bucket, requests_nbytes
from leanrecon.progress import Progress
from leanrecon.stores.images import image_shape as shape_of
from leanrecon.stores.store import Store
from leanrecon.study.costs import Cost
from leanrecon.study.layout import Study
from leanrecon.study.record import recorded
from leanrecon.study.settings import Settings
from leanrecon.study.variants import Variant, variants

LIBRARY_NBYTES = {"sklearn": 90_000_000, "torch": 180_000_000, "transformers": 340_000_000, "diffusers": 390_000_000}
"""Bytes of libraries that stay in the process after their first use. The last three import each other."""


@dataclass(frozen=True)
class PlannedStage:
    """One line of the plan, all sizes in bytes."""

    stage: str
    summary: str
    memory: int
    """Peak of the whole process."""
    disk: int
    """Bytes that stay on disk."""
    scratch: int = 0
    """Bytes that are needed on disk for a while."""
    download: int = 0
    requests: int = 0
    """Approximate number of requests of the download; 0 if not known."""
    cost: Cost = field(default_factory=Cost)
    """The work of the driver."""
    shared: Cost = field(default_factory=Cost)
    """The work that workers of a cluster share."""
    shared_scratch: int = 0
    """Bytes that workers need on disk for a while, besides ``scratch``."""
    shared_download: float = 0.0
    """The share of ``download`` and ``requests`` that workers take."""


@dataclass
class Planning:
    """The state that stages share while they plan: the dataset's shapes, and the memory that earlier stages keep."""

    settings: Settings
    base_dir: Path | None
    budget: MemoryBudget
    planned: bool = True
    dataset: DatasetPlan | None = None

    @property
    def chunk(self) -> int:
        """Bytes of a chunk file."""
        return self.settings.stores.chunk_bytes

    @property
    def data(self) -> DatasetPlan:
        assert self.dataset is not None, "the stage dataset plans first"
        return self.dataset

    @property
    def image_shape(self) -> ImageShape:
        """The shape of the stimuli; ``NO_IMAGE`` where there are none."""
        return self.data.image_shape or NO_IMAGE

    @cached_property
    def spaces(self) -> dict[str, Any]:
        """The feature spaces by name; no weights are loaded."""
        return make_spaces(self.settings, self.base_dir)

    @property
    def first_space(self) -> Any:
        """The feature space that first images are decoded from; None with ``[decode]``."""
        return _first_space(self.settings, self.spaces)

    @property
    def first_shape(self) -> ImageShape:
        """The shape of first images."""
        settings = self.settings
        if settings.decode is not None:
            decoder = kinds.kind_of("decoders", settings.decode)(settings.decode)
            shape: ImageShape = decoder.image_shape(self.image_shape)
            return shape
        return picture_shape(self.first_space, settings.stage1.size, self.image_shape)

    @property
    def split(self) -> tuple[int, int]:
        """Train and test rows of one variant: of the split, or of the largest fold."""
        data = self.data
        if not data.folds:
            return data.n_train, data.n_test
        total = data.n_train + data.n_test
        m = -(-total // data.folds)
        return total - m, m

    @property
    def images(self) -> tuple[int, int]:
        """Train and test images in the stores."""
        return self.data.train_images, self.data.test_images

    @property
    def folds(self) -> int:
        """The number of variants with all voxels: the split, or every fold."""
        return self.data.folds or 1

    @property
    def variants(self) -> int:
        """The number of variants that are predicted: every fold, with all voxels and by area."""
        return self.folds * (1 + len(self.settings.areas))

    @property
    def joins(self) -> int:
        """The number of stores or folders that join folds: with all voxels and by area; 0 without folds."""
        return 1 + len(self.settings.areas) if self.data.folds else 0

    def hold(self, nbytes: int) -> None:
        """Count bytes that stay in the process as held by all later stages."""
        self.budget = replace(self.budget, reserved=self.budget.reserved + nbytes)


def budget_of(settings: Settings, study: LocationLike) -> MemoryBudget:
    """A new budget, less the memory of requests: those of the study, and those of inputs in buckets."""
    held = as_location(study).place.held_nbytes
    tables = [of.model_dump() for of in (settings.dataset, *settings.features.values())]
    return MemoryBudget.of(settings.general.memory, requests_nbytes(held, names_bucket(tables)))


@dataclass
class Run:
    """The state that the stages of one run share."""

    settings: Settings
    study: Study
    base_dir: Path | None = None
    overwrite: bool = False
    progress: Progress = field(default_factory=Progress)
    mirror: Any = None
    """Keeps a copy of what is finished (``study.mirror.Mirror``), or None."""
    workers: "Workers | None" = None
    """Workers of a cluster; None: every stage runs in this process."""

    @cached_property
    def spaces(self) -> dict[str, Any]:
        """The feature spaces by name; no weights are loaded."""
        return make_spaces(self.settings, self.base_dir)

    @property
    def image_shape(self) -> ImageShape:
        """The shape of the stimuli; ``NO_IMAGE`` where there are none."""
        return shape_of(Store.open(self.study.stimuli("train"))) if self.settings.dataset.has_images else NO_IMAGE

    @property
    def first_space(self) -> Any:
        """The feature space that first images are decoded from; None with ``[decode]``."""
        return _first_space(self.settings, self.spaces)

    def context(self, label: str = "") -> Context:
        """A context with a new budget; memory that the process holds now counts as reserved."""
        general = self.settings.general
        return Context(
            budget_of(self.settings, self.study.root),
            seed=general.seed,
            device=general.device,
            chunk=self.settings.stores.chunk_bytes,
            scratch=self.study.root.workplace(),
            overwrite=self.overwrite,
            progress=self.progress,
            label=label,
        )

    def shared(self, context: Context, stage: str, named: Mapping[str, Any], *, shares: bool = True) -> Context:
        """The context of the piece of a stage that ``named`` identifies, with the workers that share it.

        ``shares`` says whether the kind has tasks for workers; if it has none, a line says so.
        """
        if self.workers is None:
            return context
        if not shares:
            self.progress.say(f"{context.label}: in this process, because this kind has no tasks for workers")
            return context
        return replace(context, executor=self.workers.piece(stage, named))

    @contextlib.contextmanager
    def recorded(
        self,
        stage: str,
        study: Study,
        products: Sequence[Location],
        label: str = "",
        networks: Sequence[Location] = (),
    ) -> Iterator[tuple[dict[str, Any], Context]]:
        """Measure a piece of a stage and keep its record in run.json, unless all ``products`` stay as they were.

        ``networks`` are folders of networks that it may train.
        """
        give_back()
        context = self.context(label or stage)
        follow = self.mirror.following() if self.mirror is not None and networks else contextlib.nullcontext()
        with recorded(stage, study, context, products, networks) as record, follow:
            yield record, context
            if self.workers is not None and (peaks := self.workers.told()):
                record |= {"workers": len(peaks), "worker_peak_bytes": max(peaks.values())}
        if self.mirror is not None:
            self.mirror.keep_or_warn()


Piece = Callable[[Sequence[int]], Any]
"""Runs tasks of one piece of a stage, given their numbers; it holds open stores and loaded networks.

If it has a method ``close``, the worker calls it before it opens another piece.
"""


class Workers(Protocol):
    """Workers of a cluster, for one study."""

    def piece(self, stage: str, named: Mapping[str, Any]) -> Executor:
        """The workers for a piece of a stage. On each, the stage's ``piece`` makes the function for its tasks."""

    def told(self) -> dict[str, int]:
        """The most bytes that each worker held since the last call."""


def variant_named(run: Run, name: str) -> Variant:
    """The variant of a study with this name."""
    return next(one for one in variants(run.study, run.settings) if one.name == name)


class Stage(Protocol):
    """One stage of a study: it reads stores and writes stores, and plans and runs from the same settings."""

    name: str

    def check(self, run: Run) -> None:
        """Raise SettingsError or InputError for settings and inputs that can't work, before any work is done."""

    def plan(self, planning: Planning) -> Iterator[PlannedStage]:
        """Yield the lines of the plan; only headers are read."""

    def run(self, run: Run) -> None:
        """Do the missing work of the stage."""


def make_spaces(settings: Settings, base_dir: Path | None) -> dict[str, Any]:
    """The feature spaces of a study by name; no weights are loaded.

    Relative paths of their files start at the current folder or at ``base_dir``.
    """
    general, settings = settings.general, settings.located(base_dir)
    return {
        name: kinds.kind_of("features", table)(table, name=name, seed=general.seed, device=general.device)
        for name, table in settings.features.items()
    }


def _first_space(settings: Settings, spaces: Mapping[str, Any]) -> Any:
    return None if settings.decode is not None else decoding_space(spaces, settings.stage1.space)
