"""What a judge is: a network, or any other function, that describes images by rows of numbers to compare them by."""

import re
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal, Protocol, get_args

from pydantic import BaseModel

from leanrecon.errors import SettingsError
from leanrecon.images import Array, ImageShape
from leanrecon.stores.fingerprint import fingerprint

Measure = Literal["two_way", "distance", "mse", "classes", "perceptual"]

RESERVED = ("pixels", "features")
"""Names that no judge may have: metrics as ``two_way_pixels`` bear them already."""


class Judge(Protocol):
    """A kind of judge; made from its settings, weights are loaded when they are needed."""

    Settings: ClassVar[type[BaseModel]]
    measure: Measure
    """two_way: identification by the correlation of embeddings. distance: their mean correlation distance, 1 − r.
    mse: their mean squared difference, the perceptual error where a layer of a network describes images.
    classes: embeddings are a classifier's output, and n-way identification is by the class of the stimulus.
    perceptual: the judge compares two images at a time (``pairs.ComparesPairs``); its distance of the pair."""
    name: str
    """The judge's name in settings, metrics (``two_way_NAME``) and the folder of its embeddings."""
    model: str
    """What the network is called in a report."""
    batch: int
    """Images that are handed over together."""

    def __init__(self, settings: Any, *, name: str, device: str = "cpu") -> None: ...

    @classmethod
    def needs(cls, settings: Any, prefix: str) -> Iterable[Any]:
        """The published weights that it reads (``weights.needs.Need``); ``prefix`` is as in ``judges.NAME.``."""

    @classmethod
    def notes(cls, settings: Any) -> Iterable[str]:
        """Sentences that a reader of the report must know."""

    @property
    def dims(self) -> int:
        """Length of an embedding."""

    @property
    def staying_nbytes(self) -> int:
        """Bytes of libraries that stay in the process once it was used.

        A judge may tell them apart in ``libraries``, bytes by name, so that what several judges share counts once.
        """

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


def check_judges(judges: Sequence[Judge]) -> None:
    """Raise SettingsError for a judge whose name or measure gives no metrics of its own."""
    for judge in judges:
        if judge.name in RESERVED or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", judge.name):
            raise SettingsError(
                f"a judge can't be named {judge.name!r}",
                expected=f"letters, digits, dots, dashes and underscores, and none of {', '.join(RESERVED)}",
                todo="rename its table [judges.NAME]",
            )
        if judge.measure not in get_args(Measure):
            raise SettingsError(
                f"the judge {judge.name} measures {judge.measure!r}",
                expected=f"one of {', '.join(get_args(Measure))}",
                todo="change the attribute `measure` of its class",
            )


def judge_record(judge: Judge) -> dict[str, Any]:
    """What metrics.json keeps of a judge: its model's name, what it measures, and a fingerprint of its weights."""
    return {"model": judge.model, "measure": judge.measure, "content": fingerprint(judge.made_of())}
