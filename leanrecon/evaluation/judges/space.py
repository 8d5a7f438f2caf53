"""Any feature space as a judge: pixels, the latents of an autoencoder, and those of other packages."""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, field_validator

from leanrecon import kinds
from leanrecon.errors import SettingsError
from leanrecon.evaluation.judges.judge import Measure
from leanrecon.images import Array, ImageShape, Sees
from leanrecon.weights.libraries import LIBRARY_NBYTES


class SpaceSettings(BaseModel):
    """``[judges.NAME]``"""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    kind: Literal["space"] = "space"
    space: Any
    """The feature space, as its table: {kind = "pixels", size = 64}. One that learns from train images judges nothing."""
    measure: Measure = "two_way"
    """two_way: identification by the correlation of rows. distance: 1 − r. mse: their squared differences."""

    @field_validator("space", mode="before")
    @classmethod
    def _checked(cls, table: Any) -> Any:
        if isinstance(table, BaseModel):
            return table
        if not isinstance(table, Mapping) or "kind" not in table:
            raise ValueError('a table with a kind is expected, as in {kind = "pixels"}')
        try:
            return kinds.settings_of("features", table, "space.", default="pixels")
        except SettingsError as error:
            raise ValueError(str(error)) from None


class SpaceJudge:
    """The rows of a feature space that needs no train images: what the study predicts, or another description."""

    Settings: ClassVar[type[BaseModel]] = SpaceSettings
    family: ClassVar[str | None] = None

    def __init__(self, settings: SpaceSettings, *, name: str, device: str = "cpu") -> None:
        kind = kinds.kind_of("features", settings.space)
        if kind.inputs != "images" or kind.learns:
            what = "takes captions" if kind.inputs != "images" else "learns from a study's train images"
            raise SettingsError(
                f"judges.{name}.space is of kind {settings.space.kind}, which {what}",
                expected="a feature space of images that learns nothing, as pixels, clip-vision, vdvae or autokl",
            )
        self.settings = settings
        self.name = name
        self.measure: Measure = settings.measure
        self.model = f"the feature space {settings.space.kind}"
        self._space: Any = kind(settings.space, name=name, device=device)

    @classmethod
    def needs(cls, settings: SpaceSettings, prefix: str) -> Iterable[Any]:
        return kinds.optional(kinds.kind_of("features", settings.space), "needs", settings.space, f"{prefix}space.")

    @classmethod
    def notes(cls, settings: SpaceSettings) -> Iterable[str]:
        yield f"A judge is the feature space {settings.space.kind}: where it was predicted, its scores favour it."
        yield from kinds.optional(kinds.kind_of("features", settings.space), "notes", settings.space)

    @property
    def dims(self) -> int:
        return int(self._space.dims(SEEN))

    @property
    def batch(self) -> int:
        return int(self._space.cost(SEEN).batch)

    @property
    def staying_nbytes(self) -> int:
        return LIBRARY_NBYTES if self._space.library else 0

    def check(self) -> None:
        """Raise InputError for weights that are missing or don't fit, SettingsError for rows that have no one length."""
        if self._space.dims(SEEN) != self._space.dims((2 * SEEN[0], SEEN[1], 3)):
            raise SettingsError(
                f"judges.{self.name}.space gives rows whose length follows from the images, which differ in size",
                todo=f"set judges.{self.name}.space.size to [height, width]",
            )
        if (check := getattr(self._space, "check", None)) is not None:
            check()

    def work_nbytes(self, shape: ImageShape) -> int:
        cost = self._space.cost(shape)
        return int(cost.held + cost.batch * cost.per_image)

    def made_of(self) -> dict[str, Any]:
        made_of: dict[str, Any] = self._space.made_of()
        return {"space": made_of}

    def encode(self, images: Array) -> Array:
        rows: Array = self._space.encode(images, range(len(images)))
        return rows

    def release(self) -> None:
        self._space.release()

    @property
    def sees(self) -> Sees | None:
        """How images become what the feature space sees, where it says so."""
        found: Sees | None = getattr(self._space, "sees", None)
        return found


SEEN: ImageShape = (256, 256, 3)
"""An image shape; lengths of rows that follow from it are refused."""
