"""What a generator is: it draws final images from first images and predicted features."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from pydantic import BaseModel, ConfigDict, field_validator

from leanrecon.context import Context
from leanrecon.images import Array, ImageShape
from leanrecon.refinement.inputs import Images, Rows

if TYPE_CHECKING:
    from leanrecon.stores.pictures import Pictures

Baseline = Literal["prior", "shuffled", "mismatched", "oracle"]


class GeneratorSettings(BaseModel):
    """``[refine]``: the settings that every generator has."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    kind: str
    """The generator."""
    baselines: list[Baseline] = []
    """Drawn for comparison: prior (mean prediction), shuffled (another row's), mismatched (with its own first image), oracle."""

    @field_validator("baselines")
    @classmethod
    def _each_once(cls, names: list[Baseline]) -> list[Baseline]:
        return list(dict.fromkeys(names))


@dataclass(frozen=True)
class GeneratorPlan:
    """What drawing will hold and write."""

    work: int
    """Bytes of memory at the peak, beside what the process holds."""
    summary: str
    """How it will run, as one line of the plan's table."""
    scratch: int = 0
    """Bytes on disk that are needed for a while, beside the images."""


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
        """The published weights that it reads (``weights.needs.Need``)."""

    @classmethod
    def notes(cls, settings: Any) -> Iterable[str]:
        """Sentences that a reader of the report must know."""

    @property
    def shape(self) -> ImageShape | None:
        """The shape of final images; None: that of first images."""

    def check(self) -> None:
        """Raise SettingsError or InputError for settings and weights that can't work; reads headers only."""

    def made_of(self) -> dict[str, Any]:
        """All that decides final images beyond first images and predictions, as plain values."""

    def plan(self, rows: int, free: int) -> GeneratorPlan:
        """Plan the drawing of ``rows`` images into ``free`` bytes of memory; ``work`` may exceed ``free``."""

    def draw(self, first: Images, predicted: Mapping[str, Rows], out: "Pictures", context: Context) -> None:
        """Draw the final images that ``out`` lacks, and finish it."""

    def record(self) -> dict[str, Any]:
        """What run.json keeps of the images drawn so far."""
