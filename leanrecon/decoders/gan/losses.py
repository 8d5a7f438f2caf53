"""The losses of the generator and the discriminator, and the rule that pauses the one that is ahead."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from leanrecon.decoders.gan.comparator import Compare

if TYPE_CHECKING:
    import torch

REAL, GENERATED = 0, 1
"""Labels of the discriminator, as published."""

DISCRIMINATOR_WEIGHT = 100.0
"""What each of the discriminator's two losses is multiplied by, as published; its weight decay is measured by it."""

LEVELS = 255.0


@dataclass(frozen=True)
class Losses:
    """The generator's losses: each a mean times a factor; a factor of 0 leaves one out.

    Images are float32 [b, 3, side, side] from 0 (black) to 1.
    """

    image: float
    """Factor of the mean squared error of pixels."""
    feature: float
    """Factor of the mean squared error of the comparator's features."""
    adversarial: float
    """Factor of −log of the discriminator's probability that a generated image is real."""
    compare: Compare | None = None
    """The comparator: features [b, dims] of images."""

    def of_images(self, generated: "torch.Tensor", true: "torch.Tensor") -> "dict[str, torch.Tensor]":
        """The image and the feature loss, by name."""
        import torch
        from torch.nn import functional

        found = {}
        if self.image:
            found["image"] = self.image * functional.mse_loss(generated, true)
        if self.feature:
            assert self.compare is not None
            with torch.no_grad():
                wanted = self.compare(true)
            found["feature"] = self.feature * functional.mse_loss(self.compare(generated), wanted)
        return found


def published_factors(weights: dict[str, float], side: int, dims: int) -> dict[str, float]:
    """Factors of means that give Caffe's losses: sums of squares over images by 2, colours from 0 to 255."""
    return {
        "image": weights["image"] * LEVELS**2 * 3 * side**2 / 2,
        "feature": weights["feature"] * dims / 2,
        "adversarial": weights["adversarial"],
    }


def relative_factors(weights: dict[str, float], image: float, feature: float) -> dict[str, float]:
    """Factors that measure squared errors by those of a constant guess, which are given."""
    return {
        "image": weights["image"] / image,
        "feature": weights["feature"] / feature if weights["feature"] else 0.0,
        "adversarial": weights["adversarial"],
    }


def cross_entropy(logits: "torch.Tensor", label: int) -> Any:
    """Mean of −log of the probability of a label, from answers [b, 2]."""
    import torch
    from torch.nn import functional

    labels = torch.full((len(logits),), label, dtype=torch.long, device=logits.device)
    return functional.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), labels)


@dataclass
class Pausing:
    """Which of the two networks learn: one that is far ahead waits for the other, by the published rule."""

    discriminator: bool = True
    generator: bool = True

    def after(self, real: float, generated: float, fooled: float) -> None:
        """Decide for the next step, from the discriminator's two losses and the adversarial one, all unweighted."""
        ratio = (real + generated) / fooled if fooled else math.inf
        if ratio < 0.1 and self.discriminator:
            self.discriminator, self.generator = False, True
        if ratio > 0.5 and not self.discriminator:
            self.discriminator, self.generator = True, True
        if ratio > 10 and self.generator:
            self.discriminator, self.generator = True, False
