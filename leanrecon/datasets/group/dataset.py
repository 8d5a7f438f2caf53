"""A group: the studies of several subjects as one, their betas aligned on the train images that all of them saw."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import BaseModel, Field, SerializeAsAny, field_validator, model_validator

from leanrecon import kinds
from leanrecon.alignment.alignment import AlignmentPlan, AlignmentShapes
from leanrecon.context import Context
from leanrecon.datasets.plan import DatasetPlan, DatasetSettings
from leanrecon.places.paths import located
from leanrecon.study.layout import Study
from leanrecon.study.rows import AVERAGE, refuse_earlier_format

if TYPE_CHECKING:
    from leanrecon.datasets.group.members import Members

OVERHEAD = 6 * 10**6
"""Bytes that BLAS takes when it is first used, with room for ids and trials, and what stays of freed blocks."""

PANEL = 256
"""Rows that are brought into the shared space together, counted from a member's first: whatever the budget."""


class GroupSettings(DatasetSettings):
    """``[dataset] kind = "group"``: several subjects, each from a study whose dataset stage is complete."""

    kind: Literal["group"] = "group"
    """Several subjects in a shared space."""
    members: list[str] = Field(min_length=2)
    """The folders of the members' studies, one subject each."""
    subjects: list[str] | None = None
    """The name of each member; absent: the names of their folders."""
    alignment: SerializeAsAny[BaseModel] = Field(default_factory=dict, validate_default=True)
    """How betas are brought into a shared space: the name of an alignment, or a table with its settings; absent: not at all."""
    voxels: str | list[str] | None = Field(default=None, min_length=1)
    """The area whose voxels are aligned, or several, joined, by names that every member has; absent: all voxels."""
    average: bool = False
    """Whether the mean over subjects of each test image's rows is tested as well, as a subject called average."""
    allow_shared_stimuli: bool = False
    """Whether an image may be a train image of one subject and a test image of another."""

    @field_validator("alignment", mode="before")
    @classmethod
    def _known_alignment(cls, value: Any) -> BaseModel:
        if isinstance(value, BaseModel):
            return value
        table = {"kind": value} if isinstance(value, str) else value
        if not isinstance(table, dict):
            raise ValueError("name an alignment, or give a table with its kind and settings")
        return kinds.settings_of("alignments", table, "dataset.alignment.", default="none")

    @model_validator(mode="after")
    def _members_decide(self) -> Self:
        if self.folds is not None:
            raise ValueError("a group has the test rows of its members, so leave folds out")
        if self.rescale_average or (self.repeats, self.test_repeats) != ("average", "average"):
            raise ValueError("a group has the rows of its members: set repeats, test_repeats and rescale_average there")
        if self.subjects is not None and len(self.subjects) != len(self.members):
            raise ValueError(f"subjects has {len(self.subjects)} names for {len(self.members)} members")
        names = self.names()
        if AVERAGE in names:
            raise ValueError(f"no member can be called {AVERAGE}: name them by subjects")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two members are called {twice[0]}: name them by subjects")
        return self

    def names(self) -> list[str]:
        """The name of each member."""
        return self.subjects or [Path(member).name for member in self.members]

    def located(self, base_dir: Path | None) -> Self:
        return self.model_copy(update={"members": [located(member, base_dir, Path.is_dir) for member in self.members]})

    def finders(self, base_dir: Path | None) -> list[Callable[[], object]]:
        from leanrecon.datasets.group.members import find_member

        return [partial(find_member, member, base_dir) for member in self.members]

    @property
    def chosen_areas(self) -> list[str] | None:
        """The areas whose voxels are used; None for all."""
        return [self.voxels] if isinstance(self.voxels, str) else self.voxels

    @property
    def has_areas(self) -> bool:
        return False

    @property
    def simulated(self) -> bool:
        from leanrecon.datasets.group.members import is_simulated

        return any(map(is_simulated, self.members))


class Group:
    """Several subjects as one dataset."""

    Settings: ClassVar[type[BaseModel]] = GroupSettings

    def __init__(self, settings: GroupSettings) -> None:
        self.settings = settings
        self.alignment = kinds.kind_of("alignments", settings.alignment)(settings.alignment)

    @classmethod
    def notes(cls, settings: GroupSettings) -> Iterable[str]:
        """Sentences that a reader of the report must know."""
        yield f"Rows are those of {len(settings.members)} subjects: {', '.join(settings.names())}."
        if areas := settings.chosen_areas:
            yield f"Betas are those of {', '.join(areas)} alone."
        if settings.allow_shared_stimuli:
            yield "Test images of one subject may be train images of another (dataset.allow_shared_stimuli)."
        of_alignment = getattr(kinds.kind_of("alignments", settings.alignment), "notes", None)
        if of_alignment is not None:
            yield from of_alignment(settings.alignment)

    @property
    def learns(self) -> bool:
        """Whether the alignment is fitted on shared images."""
        return bool(getattr(self.alignment, "learns", True))

    def plan(self, *, base_dir: Path | None, chunk: int, free: int) -> DatasetPlan:
        """Say what would be written and taken, from the members' rows and the headers of their stores.

        Raises InputError for members that are not studies or don't fit together, StoreError for incomplete ones.
        """
        from leanrecon.datasets.group.members import open_members

        members = open_members(self.settings, base_dir, shared=self.learns)
        return self.plan_members(members, chunk, free)

    def plan_alignment(self, members: "Members", free: int) -> AlignmentPlan:
        """The plan of the alignment of opened members."""
        plan: AlignmentPlan = self.alignment.plan(AlignmentShapes(members.voxels, len(members.shared)), free)
        return plan

    def plan_members(self, members: "Members", chunk: int, free: int) -> DatasetPlan:
        """The plan of members that are opened."""
        from leanrecon.datasets.group.shared import averaging_nbytes
        from leanrecon.stores.layout import plan_chunks, store_nbytes

        aligned = self.plan_alignment(members, free)
        height, width, channels = members.image_shape
        images = {split: len(members.images[split]) for split in ("train", "test")}
        rows = {split: members.n_rows(split) for split in ("train", "test")}
        rows["test"] += images["test"] if self.settings.average else 0
        image = height * width * channels
        image_chunk = plan_chunks((max(images.values()), height, width, channels), "uint8", chunk)[0] * image
        shared = {name: (len(members.shared), n) for name, n in members.voxels.items()} if self.learns else {}
        of_betas, of_stimuli = members.chunk_nbytes("betas"), members.chunk_nbytes("stimuli")
        fitted = aligned.libraries if self.learns else 0  # from the fit on
        work = max(
            *(averaging_nbytes(shape, chunk, free, reading=of_betas) for shape in shared.values()),
            aligned.work + fitted,
            self._transform_nbytes(members, aligned, max(rows.values()), chunk) + fitted,
            # A group of images, a chunk of each member, and what is compared or padded.
            image_chunk + len(members.each) * of_stimuli + max(image_chunk, 2 * min(image_chunk, of_stimuli)),
        )
        disk = sum(store_nbytes((n, aligned.dims), "float32", chunk) for n in rows.values())
        disk += sum(store_nbytes((n, height, width, channels), "uint8", chunk) for n in images.values())
        captions = members.captions_nbytes
        return DatasetPlan(
            n_train=rows["train"],
            n_test=rows["test"],
            train_images=images["train"],
            test_images=images["test"],
            max_repeats=members.max_repeats,
            voxels=aligned.dims,
            image_shape=members.image_shape,
            folds=None,
            work=OVERHEAD + captions + work,
            disk=disk,
            captions=captions,
            scratch=aligned.scratch + sum(store_nbytes(shape, "float32", chunk) for shape in shared.values()),
        )

    def _transform_nbytes(self, members: "Members", aligned: AlignmentPlan, rows: int, chunk: int) -> int:
        """Most bytes that bringing rows into the shared space takes: of a panel, and of a group of rows."""
        from leanrecon.stores.layout import plan_chunks

        tall, wide = plan_chunks((rows, aligned.dims), "float32", chunk)
        given, out = PANEL * max(members.voxels.values()) * 4, PANEL * aligned.dims * 4
        # Read with its chunk; centred, and in the shared space, of which what is absent or left out is a copy each.
        making = max(given + members.chunk_nbytes("betas"), 2 * given * self.learns + 3 * out)
        held = (aligned.work if aligned.held is None else aligned.held) + members.n_rows("train") * 16
        if self.settings.average:
            held += len(members.images["test"]) * aligned.dims * 8
            making += 2 * out  # their sums and counts, in float64
        return held + tall * aligned.dims * 4 + max(making, out + tall * wide * 4)

    def ingest(self, study: Study, *, base_dir: Path | None, context: Context) -> None:
        """Fit the alignment and write the rows of all members in the shared space, each image once.

        What was learned is kept in ``betas/alignment.npz``. A killed run continues where it stopped, and neither the
        memory budget nor the size of chunks decides anything.
        Raises InputError for members that don't fit together, StoreError for incomplete ones, BudgetError.
        """
        from leanrecon.datasets.group.ingest import Ingest, Making
        from leanrecon.datasets.group.members import open_members

        if not context.overwrite:
            refuse_earlier_format(study)
        members = open_members(self.settings, base_dir, shared=self.learns)
        plan = self.plan_members(members, context.chunk, context.budget.free)
        context.require("aligning the subjects", plan.work)
        making = Making(
            "group",
            self.alignment,
            self.plan_alignment(members, context.budget.free).dims,
            {"alignment": self.settings.alignment.model_dump()},
            learns=self.learns,
            average=self.settings.average,
            allow_shared_stimuli=self.settings.allow_shared_stimuli,
        )
        Ingest(making, members, study, context).run()
