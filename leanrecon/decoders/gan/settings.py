"""The settings of the decoder ``gan``."""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from leanrecon.decoders.gan.comparator import NONE, checked

Count = Annotated[int, Field(strict=True, ge=1)]
Weight = Annotated[float, Field(ge=0, lt=math.inf)]
Share = Annotated[float, Field(ge=0, lt=1)]

WEIGHTS = {"relative": (1.0, 1.0, 0.1), "published": (2e-6, 0.01, 100.0)}
"""Weights of the image, the feature and the adversarial loss, in each way of counting them."""


class GANSettings(BaseModel):
    """``[decode]`` with ``kind = "gan"``."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    kind: Literal["gan"] = "gan"
    """A generator from voxels to images, trained by pixels, features and a discriminator (Shen et al. 2019)."""

    size: Literal[32, 64, 128, 256] = 64
    """The side in pixels of generated images; 256 as published."""
    crop: Annotated[int, Field(strict=True, ge=24)] | None = None
    """Side in pixels of the centre of generated images that is compared and kept; 227 as published; absent: all of it."""
    jitter: Annotated[int, Field(strict=True, ge=0, le=256)] = 0
    """Pixels by which true images are larger than crop; training shows a random part of them each time. 21 as published."""
    width: Annotated[int, Field(strict=True, ge=8, multiple_of=8)] = 256
    """Channels of the generator's first map; the others are twice that to an eighth of it. 256 as published."""
    hidden: Count = 4096
    """Units of the generator's linear layers; 4096 as published."""
    discriminator_width: Count = 32
    """Channels of the discriminator's first layer; the others are up to eight times that. 32 as published."""
    dropout: Share = 0.0
    """Share of the units of linear layers that are left out while the generator learns; none as published."""

    inputs: Literal["betas", "noise"] = "betas"
    """What images are generated from: betas, or random numbers in their place, a baseline that no brain gave."""
    space: str | None = None
    """The feature space whose predictions stand in for betas, after [features] and [regression]; absent: betas themselves."""
    reduction: Literal["exact", "pca", "none"] = "exact"
    """What betas are reduced to: exact: the directions that train rows span; pca: principal components; none: no reduction."""
    explained: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Share of the variance of train betas that the principal components hold, with reduction = "pca"."""
    noise: Weight = 0.0
    """Standard deviation of noise added to inputs in training, in those of a voxel; it acts as a ridge of alpha = rows · noise²."""

    comparator: Any = NONE
    """The network whose features are compared: "none", "alexnet", "vgg16", or the table of a feature space or judge."""
    losses: Literal["relative", "published"] = "relative"
    """relative: squared errors divided by those of a constant guess; published: half their sums, of colours from 0 to 255."""
    image_weight: Weight | None = None
    """Weight of the image loss; by default 1, or 2e-6 as published."""
    feature_weight: Weight | None = None
    """Weight of the feature loss; by default 1, or 0.01 as published. Without a comparator it counts for nothing."""
    adversarial_weight: Weight | None = None
    """Weight of the adversarial loss; by default 0.1, or 100 as published. With 0 there is no discriminator."""

    epochs: Count = 60
    """Most passes over the train rows."""
    batch_size: Count = 64
    """Rows of a batch; 64 as published."""
    at_once: Count | None = None
    """Rows of a batch that are held at once; fewer take less memory; absent: all."""
    recompute: bool = False
    """Whether activations of the generator are computed again on the way back, for less memory; weights are the same."""
    learning_rate: Annotated[float, Field(gt=0, lt=math.inf)] = 2e-4
    """Learning rate of Adam; 2e-4 as published."""
    schedule: Literal["halved", "cosine"] = "halved"
    """The learning rate is halved at the steps of halve_at, or falls to zero along half a cosine."""
    halve_at: tuple[Count, ...] = (300_000, 500_000, 700_000, 900_000, 1_100_000)
    """Steps at which the learning rate is halved, as published."""
    weight_decay: Annotated[float, Field(ge=0, lt=math.inf)] = 4e-4
    """Weight decay of the discriminator (L2); the generator has none."""
    average: Share = 0.0
    """How much of a moving average of the generator's weights stays at each step; 0: the weights themselves are used."""
    validation: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    """Share of the train rows that is held out; the weights of their least loss are kept. 0: the last ones are."""
    patience: Count = 10
    """Epochs without a lower loss of held-out rows after which training stops."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of products and convolutions while training; weights stay float32."""
    checkpoint_minutes: Annotated[float, Field(ge=0)] = 5.0
    """Minutes between checkpoints of the training."""

    @field_validator("comparator", mode="before")
    @classmethod
    def _checked(cls, comparator: Any) -> Any:
        return checked(comparator)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.side > self.size:
            raise ValueError(f"crop = {self.crop} is larger than size = {self.size}")
        if not any(self.weights.values()):
            raise ValueError("no loss is left: every weight is 0, or the comparator of the only one is missing")
        return self

    @property
    def side(self) -> int:
        """The side in pixels of what is compared and kept."""
        return self.crop or self.size

    @property
    def framed(self) -> int:
        """The side in pixels of true images, parts of which are shown in training."""
        return self.side + self.jitter

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each loss by its name; 0 for one that is left out."""
        default = WEIGHTS[self.losses]
        given = (self.image_weight, self.feature_weight, self.adversarial_weight)
        image, feature, adversarial = (d if g is None else g for d, g in zip(default, given, strict=True))
        return {"image": image, "feature": feature if self.compares else 0.0, "adversarial": adversarial}

    @property
    def compares(self) -> bool:
        """Whether there is a comparator."""
        return bool(self.comparator != NONE)
