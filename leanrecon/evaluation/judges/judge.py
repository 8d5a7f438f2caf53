"""What a judge is: a network, or any other function, that describes images by rows of numbers to compare them by."""

from collections.abc import Iterable
from typing import Any, ClassVar, Literal, Protocol

from pydantic import BaseModel

from leanrecon.images import Array, ImageShape

Measure = Literal["two_way", "distance"]


class Judge(Protocol):
    """A kind of judge; made from its settings, weights are loaded when they are needed."""

    Settings: ClassVar[type[BaseModel]]
    measure: ClassVar[Measure]
    """two_way: identification by the correlation of embeddings. distance: the mean distance of embeddings."""
    name: str
    """The judge's name in settings, metrics (``two_way_NAME``) and the folder of its embeddings."""
    model: str
    """What the network is called in a report."""
    batch: int
    """Images that are handed over together."""

    def __init__(self, settings: Any, *, name: str, device: str = "cpu") -> None: ...

    @classmethod
    def needs(cls, settings: Any) -> Iterable[Any]:
        """The published weights that it reads (``weights.fetch.Want``)."""

    @classmethod
    def notes(cls, settings: Any) -> Iterable[str]:
        """Sentences that a reader of the report must know."""

    @property
    def dims(self) -> int:
        """Length of an embedding."""

    @property
    def staying_nbytes(self) -> int:
        """Bytes of libraries that stay in the process once it was used."""

    def check(self) -> None:
        """Raise InputError for weights that are not there or are of another kind; reads headers only."""

    def work_nbytes(self, shape: ImageShape) -> int:
        """Bytes of memory that images of a shape take beyond that, with weights still to be loaded."""

    def made_of(self) -> dict[str, Any]:
        """All that decides embeddings, as plain values."""

    def encode(self, images: Array) -> Array:
        """Embeddings float32 [b, dims] of uint8 images [b, height, width, channels]."""

    def release(self) -> None:
        """Give the memory of the weights back."""
