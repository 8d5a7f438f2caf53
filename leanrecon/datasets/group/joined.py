"""A new subject joins a finished group, from the images that it shares with it."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, Field, model_validator

from leanrecon.alignment.ridge import map_nbytes
from leanrecon.context import Context
from leanrecon.datasets.group.dataset import PANEL
from leanrecon.datasets.plan import DatasetPlan, DatasetSettings
from leanrecon.places.paths import located
from leanrecon.study.layout import Study
from leanrecon.study.rows import refuse_earlier_format

Route = Literal["auto", "group", "own"]

OVERHEAD = 40 * 10**6
"""Bytes that SciPy and BLAS take when they are first used, with room for ids, trials and captions."""

MOST_TRIED = 1000
"""Most own train images that a route is chosen on."""

SIDE = 16
"""Longer side in pixels of the images that a route is chosen by."""


class JoinedSettings(DatasetSettings):
    """``[dataset] kind = "joined"``: a new subject in the space of a finished group."""

    kind: Literal["joined"] = "joined"
    """A new subject in the space of a finished group."""
    joins: str
    """The folder of the group's study."""
    member: str
    """The folder of the new subject's study."""
    subject: str | None = None
    """The new subject's name; absent: the name of its folder."""
    rows: float | None = Field(default=None, gt=0)
    """Train images of the new subject that are used: a share up to 1, or a number; absent: all. The seed draws them."""
    route: Route = "auto"
    """What decodes: "group", the decoder of the group's space; "own", the subject's own voxels; "auto" takes the better.

    "group" maps voxels by a ridge, and learns there from the mean over the group's subjects. "auto" compares both on
    train images that are left out.
    """
    allow_shared_stimuli: bool = False
    """Whether the new subject may be tested on images that the group was trained on."""

    @model_validator(mode="after")
    def _members_decide(self) -> Self:
        if self.folds is not None:
            raise ValueError("a joined subject has the test rows of its own study, so leave folds out")
        if self.rescale_average or (self.repeats, self.test_repeats) != ("average", "average"):
            raise ValueError("a joined subject has the rows of its own study: set repeats and test_repeats there")
        if self.rows is not None and self.rows > 1 and self.rows != int(self.rows):
            raise ValueError(f"rows = {self.rows:g} is neither a share up to 1 nor a whole number")
        return self

    def name(self) -> str:
        """The new subject's name."""
        return self.subject or Path(self.member).name

    def located(self, base_dir: Path | None) -> Self:
        return self.model_copy(
            update={key: located(getattr(self, key), base_dir, Path.is_dir) for key in ("joins", "member")}
        )

    def finders(self, base_dir: Path | None) -> list[Callable[[], object]]:
        from leanrecon.datasets.group.members import find_member

        return [partial(find_member, getattr(self, key), base_dir, f"dataset.{key}") for key in ("joins", "member")]

    @property
    def has_areas(self) -> bool:
        return False

    @property
    def simulated(self) -> bool:
        from leanrecon.datasets.group.members import is_simulated

        return is_simulated(self.member) or is_simulated(self.joins)


class Joined:
    """A new subject in the space of a group: its voxels are mapped there by a ridge, and decoders learn from the group."""

    Settings: ClassVar[type[BaseModel]] = JoinedSettings

    def __init__(self, settings: JoinedSettings) -> None:
        self.settings = settings

    @classmethod
    def notes(cls, settings: JoinedSettings) -> Iterable[str]:
        """Sentences that a reader of the report must know."""
        group = Path(settings.joins).name
        yield {
            "group": f"{settings.name()} is decoded in the space of the group {group}, by a decoder of the mean over its subjects.",
            "own": f"{settings.name()} is decoded from its own voxels alone, to be compared with joining {group}.",
            "auto": f"{settings.name()} is decoded in the space of the group {group} or from its own voxels, as its "
            "train images decided (betas/alignment.npz says which, with both scores).",
        }[settings.route]
        if settings.rows is not None:
            share = f"{settings.rows:.3g}" if settings.rows <= 1 else f"{settings.rows:.0f}"
            yield f"{share} of the train images of {settings.name()} were used."
        if settings.allow_shared_stimuli:
            yield "The group may have been trained on test images (dataset.allow_shared_stimuli)."

    def plan(self, *, base_dir: Path | None, chunk: int, free: int, seed: int = 0) -> DatasetPlan:
        """Say what would be written and taken, at most: ``route = "auto"`` counts the larger of the two.

        Raises InputError for what does not fit together, StoreError for incomplete studies.
        """
        from leanrecon.datasets.group.join import open_pair

        pair = open_pair(self.settings, base_dir, seed)
        return self.plan_pair(pair, chunk, free)

    def plan_pair(self, pair: Any, chunk: int, free: int) -> DatasetPlan:
        """The plan of opened studies."""
        from leanrecon.datasets.group.shared import averaging_nbytes
        from leanrecon.stores.layout import plan_chunks, store_nbytes

        route, own, group = self.settings.route, pair.own, pair.group
        dims = {"own": own.voxels, "group": group.voxels}
        routes = ["group", "own"] if route == "auto" else [route]
        members = {name: pair.members(name) for name in routes}
        rows = {s: max(m.n_rows(s) for m in members.values()) for s in ("train", "test")}
        images = {s: max(len(m.images[s]) for m in members.values()) for s in ("train", "test")}
        width = max(dims[name] for name in routes)
        height, across, channels = pair.image_shape
        image = height * across * channels
        c, k, p = len(pair.common), group.voxels, own.voxels
        betas = max(own.betas["train"].buffer_nbytes(), group.betas["train"].buffer_nbytes())
        group_of_rows = plan_chunks((max(rows.values()), width), "float32", chunk)[0] * width * 4
        transform = p * k * 4 + 2 * PANEL * max(p, k) * 4 + 3 * PANEL * width * 4 + 3 * group_of_rows + betas
        stimuli = 3 * plan_chunks((max(images.values()), height, across, channels), "uint8", chunk)[0] * image
        stimuli += 4 * max(m.chunk_nbytes("stimuli") for m in members.values())
        fitting = 0
        if "group" in routes:
            transform += group.betas["train"].nbytes()
            fitting = max(map_nbytes(c, p, k), averaging_nbytes((c, p), chunk, free)) + betas + 2 * c * k * 8
            fitting += group.betas["train"].nbytes()
        if route == "auto":  # the map is there, what it was fitted with is not
            trying = trying_nbytes(len(pair.tried), p, k, len(group.rows["train"]), len(pair.used)) + 3 * betas
            fitting = max(fitting, trying + (p + 3 * c) * k * 8 + group.betas["train"].nbytes())
        disk = sum(store_nbytes((n, width), "float32", chunk) for n in rows.values())
        disk += sum(store_nbytes((n, height, across, channels), "uint8", chunk) for n in images.values())
        captions = max(m.captions_nbytes for m in members.values())
        return DatasetPlan(
            n_train=rows["train"],
            n_test=rows["test"],
            train_images=images["train"],
            test_images=images["test"],
            max_repeats=max(m.max_repeats for m in members.values()),
            voxels=width,
            image_shape=pair.image_shape,
            folds=None,
            work=OVERHEAD + captions + max(fitting, transform, stimuli),
            disk=disk,
            captions=captions,
            scratch=store_nbytes((c, p), "float32", chunk) if "group" in routes else 0,
        )

    def ingest(self, study: Study, *, base_dir: Path | None, context: Context) -> None:
        """Write the rows of the chosen route: those of the group and the new subject, or its own alone.

        ``betas/alignment.npz`` keeps the map, the route and what it was chosen by. A killed run continues.
        Raises InputError for studies that don't fit together, StoreError for incomplete ones, BudgetError.
        """
        from leanrecon.datasets.group.join import open_pair, run_join

        if not context.overwrite:
            refuse_earlier_format(study)
        pair = open_pair(self.settings, base_dir, context.seed)
        context.require("joining the group", self.plan_pair(pair, context.chunk, context.budget.free).work)
        run_join(self.settings, pair, study, context)


def trying_nbytes(tried: int, voxels: int, dims: int, group_images: int, own_images: int) -> int:
    """Most bytes that choosing a route takes beside the map: small images, scores, Gram matrix, predictions."""
    pixels = SIDE * SIDE * 3
    targets = (group_images + own_images) * pixels * 4 + 2 * tried * pixels * 8
    gram = tried * voxels * 4 * 2 + tried * tried * 4  # betas, and a copy of them on the way into the group's space
    own = 6 * tried * tried * 8 + 4 * tried * pixels * 8
    group = group_images * (6 * dims + 2 * pixels + 4 * 48) * 8 + tried * dims * 8
    return targets + max(gram, tried * tried * 8 + max(own, group))
