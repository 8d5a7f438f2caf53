"""Generator ``sharpen``: sharpens first images, and corrects the colour of each block to the predicted one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import Field

from leanrecon.context import Context
from leanrecon.errors import InputError
from leanrecon.images import Array, ImageShape, from_pixels, resize, with_channels
from leanrecon.refinement.generator import GeneratorSettings
from leanrecon.refinement.inputs import Images, Rows, read_rows
from leanrecon.stores.pictures import Pictures
from leanrecon_example.features import block_means, enlarged


class SharpenSettings(GeneratorSettings):
    """``[refine]``"""

    kind: Literal["sharpen"] = "sharpen"
    guide: str = "block-means"
    """The feature space of kind block-means whose predictions give each block its colour."""
    size: int = Field(default=24, ge=1, le=4096)
    """Sides of final images in pixels."""
    amount: float = Field(default=1.0, ge=0)
    """How much of the difference to the blurred image is added."""


class Plan(NamedTuple):
    work: int
    summary: str
    scratch: int = 0


class Sharpen:
    """An unsharp mask, then a shift of each block to its predicted mean colour."""

    Settings = SharpenSettings
    refines: ClassVar[bool] = True

    def __init__(
        self,
        settings: SharpenSettings,
        *,
        seed: int = 0,
        device: str = "cpu",
        scratch: Path = Path(),
        unconditional: Mapping[str, Array] | None = None,
    ) -> None:
        self.settings = settings

    @classmethod
    def roles(cls, settings: SharpenSettings) -> dict[str, str]:
        return {"colours": settings.guide}

    @classmethod
    def unconditional_roles(cls, settings: SharpenSettings) -> dict[str, str]:
        return {}

    @property
    def shape(self) -> ImageShape:
        return self.settings.size, self.settings.size, 3

    def check(self) -> None:
        """There are no weights that could be missing."""

    def made_of(self) -> dict[str, Any]:
        return self.settings.model_dump(mode="json", exclude={"baselines"})

    def plan(self, rows: int, free: int) -> Plan:
        return Plan(10_000_000 + 10 * 4 * int(np.prod(self.shape)), "one image after the other")

    def draw(self, first: Images, predicted: Mapping[str, Rows], out: Pictures, context: Context) -> None:
        missing = out.missing()  # a run that was killed continues with these
        context.require(context.label, self.plan(out.rows, context.budget.free).work)
        with context.task(total=out.rows, unit="images", done=out.rows - len(missing)) as advance:
            for row in missing:
                colours = read_rows(predicted["colours"], range(row, row + 1))[0]
                out.write(row, self._sharpened(first.read(row), colours))
                advance(1)
        out.finish()

    def record(self) -> dict[str, Any]:
        return {"amount": self.settings.amount}

    def _sharpened(self, image: Array, colours: Array) -> Array:
        pixels = resize(with_channels(image, 3), self.shape).astype(np.float32) / 255
        pixels += self.settings.amount * (pixels - _blurred(pixels))
        blocks = round((len(colours) / 3) ** 0.5)
        if blocks**2 * 3 != len(colours):
            raise InputError(
                f"refine.guide = {self.settings.guide!r} has rows of {len(colours)} numbers",
                expected="a feature space of kind block-means, of colour images",
            )
        shift = colours.reshape(blocks, blocks, 3) - block_means(pixels, blocks)
        return from_pixels(pixels + enlarged(shift, self.shape), self.shape)


def _blurred(pixels: Array) -> Array:
    """Means of 3 × 3 pixels, the edge repeated."""
    padded = np.pad(pixels, ((1, 1), (1, 1), (0, 0)), mode="edge")
    height, width, _ = pixels.shape
    shifted = [padded[i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return sum(shifted[1:], shifted[0]) / 9
