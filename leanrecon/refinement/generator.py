"""What a generator is: it makes final images from first images and predicted features."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from pydantic import BaseModel, ConfigDict, field_validator

from leanrecon.context import Context
from leanrecon.images import Array, ImageShape
from leanrecon.refinement.inputs import Images, Rows
from leanrecon.stores.pictures import Pictures

Baseline = Literal["prior", "shuffled", "oracle"]


class GeneratorSettings(BaseModel):
    """``[refine]``: what every generator has."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    baselines: list[Baseline] = []
    """Final images without this brain: prior (the mean prediction), shuffled (another row's), oracle (true features)."""

    @field_validator("baselines")
    @classmethod
    def _each_once(cls, names: list[Baseline]) -> list[Baseline]:
        return list(dict.fromkeys(names))


class Generator(Protocol):
    """A kind of generator; made from its settings, weights are loaded when they are needed."""

    Settings: ClassVar[type[GeneratorSettings]]
    refines: ClassVar[bool]
    """Whether final images differ from first ones: False for the kind "none" alone."""

    def __init__(
        self,
        settings: Any,
        *,
        seed: int = 0,
        device: str = "cpu",
        scratch: Path = Path(),
        unconditional: Mapping[str, Array] | None = None,
    ) -> None: ...

    @classmethod
    def roles(cls, settings: Any) -> dict[str, str]:
        """The feature space whose predictions fill each role, as ``{"text": "clip"}``."""

    @classmethod
    def unconditional_roles(cls, settings: Any) -> dict[str, str]:
        """The feature space of each role whose unconditional embedding (empty caption, black image) is needed."""

    @classmethod
    def needs(cls, settings: Any) -> Iterable[Any]:
        """The published weights that it reads (``weights.fetch.Want``)."""

    @classmethod
    def notes(cls, settings: Any) -> Iterable[str]:
        """Sentences that a reader of the report must know."""

    @property
    def shape(self) -> ImageShape:
        """The shape of final images."""

    def check(self) -> None:
        """Raise SettingsError or InputError for settings and weights that can't work; reads headers only."""

    def made_of(self) -> dict[str, Any]:
        """All that decides final images beyond first images and predictions, as plain values."""

    def plan(self, rows: int, free: int) -> Any:
        """Plan the drawing of ``rows`` images: ``work``, ``summary`` and ``scratch`` in bytes."""

    def draw(self, first: Images, predicted: Mapping[str, Rows], out: Pictures, context: Context) -> None:
        """Draw the final images that ``out`` lacks, and finish it."""

    def record(self) -> dict[str, Any]:
        """What run.json keeps of the images drawn so far."""
