"""The networks of a search, and how latents become images and images features."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from leanrecon.images import Array, ImageShape, resize, with_channels

if TYPE_CHECKING:
    from torch import Tensor

_START = 41  # stream of the random numbers that restarts begin from


@dataclass(frozen=True)
class Loaded:
    """Feature spaces in float32, each with weights of its own, so that both directions are there at once."""

    decoder: Any
    """Decodes latents."""
    encoder: Any
    """Encodes first images into latents."""
    features: Any
    """Describes images."""
    device: str

    def tensor(self, numbers: Array) -> "Tensor":
        import torch

        return torch.tensor(np.ascontiguousarray(numbers), device=self.device)  # a copy: it may be read-only

    def latents(self, images: Sequence[Array]) -> "Tensor":
        """The latents [b, d] of uint8 images of any size."""
        import torch

        with torch.no_grad():
            found: Tensor = self.encoder.rows_of(self.pixels(images))
        return found

    def decoded(self, latents: "Tensor") -> "Tensor":
        import torch

        with torch.no_grad():
            found: Tensor = self.decoder.pixels_of(latents)
        return found

    def pixels(self, images: Sequence[Array]) -> "Tensor":
        """Uint8 images as pixels [b, 3, height, width] from 0 to 1."""
        block = np.stack([with_channels(image, 3) for image in images]).transpose(0, 3, 1, 2)
        return self.tensor(block.astype(np.float32) / np.float32(255))


def loaded(decoder: Any, features: Any) -> Loaded:
    """Both feature spaces, ready to be searched through; weights are loaded when they are first used."""
    target = in_float32(features)
    same = decoder.name == features.name
    return Loaded(in_float32(decoder), target if same else in_float32(decoder), target, target.device)


def in_float32(space: Any) -> Any:
    """Another instance of a feature space, in float32 and with weights of its own."""
    settings = space.settings.model_copy(update={"precision": "float32"})
    return type(space)(settings, name=space.name, seed=space.seed, device=space.device)


def noise(seed: int, rows: Sequence[int], restart: int, width: int) -> Array:
    """Standard normal numbers [rows, width] of a restart, drawn from the seed and the row."""
    drawn = [np.random.default_rng([seed, row, restart, _START]).standard_normal(width, np.float32) for row in rows]
    return np.stack(drawn)


def shown(pixels: "Tensor", shape: ImageShape) -> list[Array]:
    """Uint8 images of a shape of pixels [b, 3, height, width] from 0 to 1."""
    levels = np.rint(np.clip(pixels.float().cpu().numpy(), 0, 1) * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    return [with_channels(resize(image, (*shape[:2], 3), bicubic=True), shape[2]) for image in levels]


def added(first: Array, change: Array) -> Array:
    """A first image, uint8, plus a change of its pixels [3, height, width] in units of 1, at the first image's size."""
    height, width, channels = first.shape
    if change.shape[1:] != (height, width):
        from PIL import Image

        side = [Image.fromarray(plane).resize((width, height), Image.Resampling.BICUBIC) for plane in change]
        change = np.stack([np.asarray(plane) for plane in side])
    levels = with_channels(first, 3).astype(np.float32) + change.transpose(1, 2, 0) * np.float32(255)
    return with_channels(np.rint(np.clip(levels, 0, 255)).astype(np.uint8), channels)
