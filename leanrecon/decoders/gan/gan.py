"""The decoder ``gan``: trained or continued in its folder, then images are generated row by row."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import BaseModel

from leanrecon.context import Context
from leanrecon.decoders.decoder import DecoderData, DecoderPlan, DecoderShapes
from leanrecon.decoders.gan import comparator
from leanrecon.decoders.gan.plan import CHUNK_NBYTES, FLOAT, Sizes, count_held, phases, summary
from leanrecon.decoders.gan.settings import GANSettings
from leanrecon.images import ImageShape
from leanrecon.weights.checkpoint import Folder
from leanrecon.weights.needs import Need
from leanrecon.weights.tensors import TensorFile

if TYPE_CHECKING:
    from leanrecon.stores.matrix import Matrix
    from leanrecon.stores.pictures import Pictures

FORMAT = 2
"""Version of the arithmetic from betas to images."""

WHILE_LEARNING = ("checkpoint", "best")

SAME_WEIGHTS = ("checkpoint_minutes", "recompute", "space")
"""Settings that don't decide the weights; predictions of a space are part of the data."""


class GAN:
    """A generator from voxels to images, trained by pixels, a comparator's features and a discriminator."""

    Settings: ClassVar[type[BaseModel]] = GANSettings

    def __init__(self, settings: GANSettings) -> None:
        self.settings = settings
        self._trained: TensorFile | None = None

    @classmethod
    def needs(cls, settings: GANSettings) -> Iterable[Need]:
        return comparator.needs(settings.comparator)

    @classmethod
    def notes(cls, settings: GANSettings) -> Iterable[str]:
        if settings.inputs == "noise":
            yield "Images were generated from random numbers in place of betas: a baseline that no brain gave."
        if settings.compares and settings.weights["feature"]:
            yield (
                f"The generator learned to match features of a network ({settings.comparator.kind}): a judge by the same "
                "features, or by a network of the same training images, favours it."
            )
            if comparator.group_of(settings.comparator.kind) == "judges":
                yield (
                    "Most published networks learned from ImageNet, whose train images hold 20 of the 50 natural test images "
                    "of Deep Image Reconstruction: a comparator may know them."
                )

    def image_shape(self, images: ImageShape) -> ImageShape:
        return self.settings.framed, self.settings.framed, images[2]

    def made_of(self) -> dict[str, Any]:
        settings = self.settings
        table = settings.model_dump(mode="json", exclude={"comparator", *SAME_WEIGHTS})
        compared = comparator.make(settings.comparator, "cpu").made_of() if settings.weights["feature"] else None
        return table | {"format": FORMAT, "comparator": compared}

    def plan(self, shapes: DecoderShapes, free: int) -> DecoderPlan:
        sizes = self._sizes(shapes)
        after = sizes.weights * FLOAT
        return DecoderPlan(
            max(phases(sizes).values()),
            summary(sizes, self.settings.epochs),
            disk=sizes.kept * FLOAT,
            scratch=5 * after,
        )

    def _sizes(self, shapes: DecoderShapes) -> Sizes:
        settings, compare = self.settings, 0
        at_once = min(settings.at_once or settings.batch_size, settings.batch_size)
        if settings.weights["feature"]:
            compare = comparator.nbytes(settings.comparator, at_once)
        return Sizes(
            n=shapes.n, p=shapes.p, image_nbytes=max(int(np.prod(shapes.image)), CHUNK_NBYTES),
            size=settings.size, side=settings.side, framed=settings.framed, width=settings.width, hidden=settings.hidden,
            discriminator=settings.discriminator_width if settings.weights["adversarial"] else None,
            batch=settings.batch_size, at_once=at_once, recomputes=settings.recompute, averages=settings.average > 0,
            reduction=settings.reduction, held=count_held(shapes.n, settings.validation), compare=compare,
        )  # fmt: skip

    # Training

    def train(self, data: DecoderData, folder: Path, context: Context) -> dict[str, Any]:
        from leanrecon.decoders.gan.learning import NETWORK, Learning

        (n, p), (s, *image) = data.betas.shape, data.images.shape
        shapes = DecoderShapes(n, p, 0, s, (image[0], image[1], image[2]))
        context.require(context.label or "decode", self.plan(shapes, context.budget.free).work)
        files = Folder(
            folder, {**self.made_of(), "data": data.content, "seed": context.seed}, overwrite=context.overwrite
        )
        found = files.find(NETWORK)
        if found is None:
            Learning(self.settings).learn(data, files, context)
            found = files.find(NETWORK)
            assert found is not None, "it was written a moment ago"
        files.forget(*WHILE_LEARNING)
        self._trained = found
        record: dict[str, Any] = found.record["result"]
        return record

    def decode(self, betas: "Matrix", out: "Pictures", context: Context) -> None:
        from leanrecon.decoders.gan.learning import Learning

        assert self._trained is not None, "train() first: it takes up what is there"
        Learning(self.settings).decode(self._trained, betas, out, context)
