"""The simplest feature space: pixels from 0 to 1."""

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from leanrecon.errors import InputError
from leanrecon.features.plan import FLOAT, Cost
from leanrecon.features.space import Array, FixedSpace, ImageShape, Rows
from leanrecon.images import fitted_into, from_pixels, to_pixels

Side = Annotated[int, Field(strict=True, ge=1, le=8192)]
"""A side of an image in pixels."""

BATCH = 64


class PixelsSettings(BaseModel):
    """``[features.pixels]``"""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    kind: Literal["pixels"] = "pixels"
    size: Side | tuple[Side, Side] | Literal["original"] = "original"
    """Size to which images are resized: their longer side in pixels, [height, width], or "original"."""


class Pixels(FixedSpace):
    """Rows of height · width · channels pixels, divided by 255, in C order."""

    Settings: ClassVar[type[BaseModel]] = PixelsSettings
    decodes = True

    def dims(self, image_shape: ImageShape) -> int:
        height, width, channels = self.decoded_shape(image_shape)
        return height * width * channels

    def cost(self, image_shape: ImageShape) -> Cost:
        return Cost(held=0, per_image=0, batch=BATCH, operations=0)

    def made_of(self) -> dict[str, Any]:
        made_of: dict[str, Any] = self.settings.model_dump(mode="json")
        return made_of

    def encode(self, images: Array, rows: Rows) -> Array:
        """Float32 rows [b, dims] of uint8 images [b, height, width, channels]."""
        shape = self.decoded_shape(images.shape[1:])
        out = np.empty((len(images), self.dims(images.shape[1:])), np.float32)
        for image, row in zip(images, out, strict=True):
            to_pixels(image, shape, row)
        return out

    def decoded_shape(self, image_shape: ImageShape) -> ImageShape:
        size = self.settings.size
        if size == "original":
            return image_shape
        return fitted_into(image_shape, size) if isinstance(size, int) else (*size, image_shape[2])

    def decode_cost(self, image_shape: ImageShape) -> Cost:
        return Cost(held=3 * self.dims(image_shape) * FLOAT, per_image=0, batch=BATCH, operations=0)

    def decode(self, features: Array, rows: Rows, image_shape: ImageShape) -> Array:
        """Uint8 images at the size of the rows, not of the images that were encoded."""
        shape = self.decoded_shape(image_shape)
        if features.shape[1] != self.dims(image_shape):
            raise InputError(
                f"rows of {features.shape[1]} numbers do not hold the pixels of images of {shape}",
                expected=f"{self.dims(image_shape)}",
            )
        out = np.empty((len(features), *shape), np.uint8)
        for row, image in zip(features, out, strict=True):
            image[...] = from_pixels(row, shape)
        return out
