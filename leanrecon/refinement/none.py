"""No refinement: final images are first images."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import model_validator

from leanrecon.context import Context
from leanrecon.images import Array
from leanrecon.refinement.generator import GeneratorPlan, GeneratorSettings
from leanrecon.refinement.inputs import Rows

if TYPE_CHECKING:
    from leanrecon.stores.pictures import Pictures

COPYING_NBYTES = 8_000_000
"""Memory of checking and linking, or copying, images one by one."""


class NoRefinementSettings(GeneratorSettings):
    """``[refine]`` with ``kind = "none"``."""

    kind: Literal["none"] = "none"
    """No generator: final images are first images."""

    @model_validator(mode="after")
    def _without_baselines(self) -> Self:
        if self.baselines:
            raise ValueError(
                'baselines are drawn by a generator, and kind = "none" does not have one: leave baselines out'
            )
        return self


class NoRefinement:
    """The generator that leaves first images as they are."""

    Settings: ClassVar = NoRefinementSettings
    refines: ClassVar = False

    def __init__(
        self,
        settings: NoRefinementSettings,
        *,
        seed: int = 0,
        device: str = "cpu",
        scratch: Path = Path(),
        unconditional: Mapping[str, Array] | None = None,
    ) -> None:
        self.settings = settings

    @classmethod
    def roles(cls, settings: NoRefinementSettings) -> dict[str, str]:
        return {}

    @classmethod
    def unconditional_roles(cls, settings: NoRefinementSettings) -> dict[str, str]:
        return {}

    @property
    def shape(self) -> None:
        """Final images have the shape of first images."""

    def check(self) -> None:
        """There is nothing that could fail."""

    def made_of(self) -> dict[str, Any]:
        return {"kind": self.settings.kind}

    def plan(self, rows: int, free: int) -> GeneratorPlan:
        return GeneratorPlan(COPYING_NBYTES, "none")

    def draw(self, first: "Pictures", predicted: Mapping[str, Rows], out: "Pictures", context: Context) -> None:
        """Link (or copy) the files of the first images that ``out`` lacks, and finish it."""
        if out.missing():
            context.require(context.label or "refine", COPYING_NBYTES)
            out.link(first)
        out.finish()

    def record(self) -> dict[str, Any]:
        return {}
