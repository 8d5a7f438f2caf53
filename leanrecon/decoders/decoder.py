"""What an end-to-end decoder is: trained on betas and images, it draws images from betas."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from pydantic import BaseModel

from leanrecon.context import Context
from leanrecon.images import ImageShape

if TYPE_CHECKING:
    from leanrecon.stores.matrix import Matrix
    from leanrecon.stores.pictures import Pictures
    from leanrecon.stores.store import Store

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class DecoderShapes:
    """Shapes of one training: ``n`` train rows, ``p`` voxels, ``m`` test rows, ``s`` train images of a shape."""

    n: int
    p: int
    m: int
    s: int
    image: ImageShape


@dataclass(frozen=True)
class DecoderPlan:
    """What training and decoding will hold (``work`` bytes of memory), keep on disk, and how in words."""

    work: int
    summary: str
    disk: int = 0
    scratch: int = 0


@dataclass(frozen=True)
class DecoderData:
    """What a decoder learns from."""

    betas: "Matrix"
    """[n, p]"""
    images: "Store"
    """uint8 [images, height, width, channels], each image once"""
    stimulus: Array
    """[n] the row of ``images`` that each train row shows"""
    groups: Sequence[str]
    """[n] labels; rows of one label stay together in validation"""
    content: str
    """Fingerprint of all of the above, to be kept with what was trained: a network of other data is refused."""


class Decoder(Protocol):
    """A kind of end-to-end decoder; made from its settings."""

    Settings: ClassVar[type[BaseModel]]

    def __init__(self, settings: Any) -> None: ...

    @classmethod
    def notes(cls, settings: Any) -> Iterable[str]:
        """Sentences that a reader of the report must know."""

    def image_shape(self, images: ImageShape) -> ImageShape:
        """The shape of decoded images, where the stimuli have the shape ``images``."""

    def made_of(self) -> dict[str, Any]:
        """All settings that decide the images, as plain values."""

    def plan(self, shapes: DecoderShapes, free: int) -> DecoderPlan:
        """Plan the work into ``free`` bytes of memory: arithmetic only."""

    def train(self, data: DecoderData, folder: Path, context: Context) -> dict[str, Any]:
        """Train, or continue, or take up what ``folder`` holds; returns what run.json keeps."""

    def decode(self, betas: "Matrix", out: "Pictures", context: Context) -> None:
        """Draw the images that ``out`` lacks, row by row of ``betas``, and finish it."""
