"""Feature space ``block-means``: the mean colour of each block of an image, and the way back to an image."""

from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from leanrecon.features.plan import Cost
from leanrecon.features.space import FixedSpace
from leanrecon.images import Array, ImageShape, from_pixels


class BlockMeansSettings(BaseModel):
    """``[features.NAME]``"""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    kind: Literal["block-means"] = "block-means"
    blocks: int = Field(default=6, ge=1, le=64)
    """Blocks along each side of an image."""


class BlockMeans(FixedSpace):
    """Mean colour of every block, from 0 to 1; rows hold block rows, block columns, then channels."""

    Settings = BlockMeansSettings
    settings: BlockMeansSettings
    decodes = True

    def dims(self, image_shape: ImageShape) -> int:
        return self.settings.blocks**2 * image_shape[2]

    def cost(self, image_shape: ImageShape) -> Cost:
        return Cost(held=0, per_image=4 * int(np.prod(image_shape)), batch=64)

    def made_of(self) -> dict[str, Any]:
        return self.settings.model_dump(mode="json")

    def encode(self, images: Array, rows: Any) -> Array:
        """Rows float32 [b, dims] of images uint8 [b, height, width, channels]."""
        return np.stack([block_means(image, self.settings.blocks).reshape(-1) for image in images])

    # The decoder. A space without one leaves out ``decodes`` and the methods below.

    def decoded_shape(self, image_shape: ImageShape) -> ImageShape:
        return image_shape

    def decode_cost(self, image_shape: ImageShape) -> Cost:
        return Cost(held=0, per_image=8 * int(np.prod(image_shape)), batch=64)

    def decode(self, features: Array, rows: Any, image_shape: ImageShape) -> Array:
        """Images uint8 [b, *image_shape] of rows [b, dims]: every pixel has the colour of its block."""
        blocks, channels = self.settings.blocks, image_shape[2]
        means = features.reshape(-1, blocks, blocks, channels)
        return np.stack([from_pixels(enlarged(one, image_shape), image_shape) for one in means])


def block_means(image: Array, blocks: int) -> Array:
    """Mean colours float32 [blocks, blocks, channels] of one image [height, width, channels]; uint8 counts to 255."""
    height, width, channels = image.shape
    scale = 255 if image.dtype == np.uint8 else 1
    means = np.empty((blocks, blocks, channels), np.float32)
    for i, j in np.ndindex(blocks, blocks):
        rows = slice(i * height // blocks, max((i + 1) * height // blocks, i * height // blocks + 1))
        columns = slice(j * width // blocks, max((j + 1) * width // blocks, j * width // blocks + 1))
        means[i, j] = image[rows, columns].mean(axis=(0, 1), dtype=np.float64) / scale
    return means


def enlarged(means: Array, shape: ImageShape) -> Array:
    """An image of ``shape`` whose pixels have the values of their block, in the dtype of ``means``."""
    rows = np.arange(shape[0]) * len(means) // shape[0]
    columns = np.arange(shape[1]) * means.shape[1] // shape[1]
    return means[rows][:, columns]
