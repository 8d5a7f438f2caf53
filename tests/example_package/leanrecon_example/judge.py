"""Judge ``histogram``: compares the colours of two images, wherever they stand."""

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from leanrecon.images import Array, ImageShape, with_channels


class HistogramSettings(BaseModel):
    """``[judges.NAME]``"""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    kind: Literal["histogram"] = "histogram"
    bins: int = Field(default=8, ge=2, le=256)
    """Bins a channel."""


class Histogram:
    """The share of pixels in each bin of red, green and blue."""

    Settings = HistogramSettings
    measure: ClassVar[Literal["two_way", "distance"]] = "distance"
    model = "colour histogram"
    batch = 32
    staying_nbytes = 0  # no library is loaded for it

    def __init__(self, settings: HistogramSettings, *, name: str, device: str = "cpu") -> None:
        self.settings = settings
        self.name = name

    @classmethod
    def notes(cls, settings: HistogramSettings) -> Iterable[str]:
        return ["The colour histogram ignores where in the image a colour is."]

    @property
    def dims(self) -> int:
        return 3 * self.settings.bins

    def check(self) -> None:
        """There are no weights that could be missing."""

    def work_nbytes(self, shape: ImageShape) -> int:
        return 16 * int(np.prod(shape))

    def made_of(self) -> dict[str, Any]:
        return self.settings.model_dump(mode="json")

    def encode(self, images: Array) -> Array:
        """Histograms float32 [b, dims] of images uint8 [b, height, width, channels]; each sums to 1."""
        return np.stack([self._histogram(with_channels(image, 3)) for image in images])

    def _histogram(self, image: Array) -> Array:
        channels = [np.histogram(image[:, :, k], self.settings.bins, (0, 256))[0] for k in range(3)]
        return (np.concatenate(channels) / image.size).astype(np.float32)

    def release(self) -> None:
        """There are no weights to give back."""
