"""Single images: their size, their channels, and the rows of numbers that stand for them."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Array = np.ndarray[Any, Any]

ImageShape = tuple[int, int, int]
"""Height, width and channels (1 or 3) of an image."""


@dataclass(frozen=True)
class Sees:
    """How square images become what a network sees, before their levels are scaled."""

    sides: tuple[int, ...]
    """The sides in pixels that they are brought to, one after another."""
    how: Literal["bilinear", "bicubic", "tensor"]
    """Pillow's filter, or "tensor": bilinear between four pixels, without antialiasing."""


GREY = (0.2125, 0.7154, 0.0721)
"""Weights of red, green and blue in grey (Rec. 709, as scikit-image's rgb2gray)."""


def fitted_into(shape: ImageShape, longer: int) -> ImageShape:
    """The shape of an image whose longer side is ``longer``, with the same ratio of the sides to the nearest pixel."""
    height, width, channels = shape
    scale = longer / max(height, width)
    return max(round(height * scale), 1), max(round(width * scale), 1), channels


def resize(image: Array, shape: ImageShape, *, bicubic: bool = False) -> Array:
    """One uint8 image [height, width, channels] at another size; itself, if it has that size.

    Pillow's BILINEAR, which averages over all pixels when it shrinks: what torchvision's ``resize`` of a Pillow
    image does, and so what Brain-Diffuser and VDVAE were fed. ``bicubic`` is how it enlarges its first images.
    """
    if image.shape == shape:
        return image
    from PIL import Image

    height, width, channels = shape
    picture = Image.fromarray(image[:, :, 0] if channels == 1 else image)
    resample = Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR
    resized: Array = np.asarray(picture.resize((width, height), resample))
    return resized.reshape(shape)


def resize_tensor(image: Array, shape: ImageShape) -> Array:
    """An image at another size as PyTorch's bilinear ``interpolate`` gives it (corners not aligned, no antialiasing).

    Float32 [height, width, channels], unless it has that size already. Pixels between which it falls are weighted by
    their nearness, however much it shrinks.
    """
    if image.shape == shape:
        return image
    result = image.astype(np.float32)
    for axis in (0, 1):
        low, high, weight = _between(result.shape[axis], shape[axis])
        weight = weight.reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        result = result.take(low, axis) * (1 - weight) + result.take(high, axis) * weight
    return result


def _between(n: int, m: int) -> tuple[Array, Array, Array]:
    """For each of ``m`` pixels the two of ``n`` between which it falls, and how near it is to the second."""
    at = np.maximum((np.arange(m) + 0.5) * (n / m) - 0.5, 0)
    low = np.minimum(np.floor(at).astype(np.int64), n - 1)
    return low, np.minimum(low + 1, n - 1), (at - low).astype(np.float32)


def with_channels(image: Array, channels: int) -> Array:
    """An image in grey (1 channel) or RGB (3): grey is repeated, colour weighted by ``GREY``."""
    if image.shape[2] == channels:
        return image
    if channels == 3:
        return np.repeat(image, 3, axis=2)
    weighted = sum(image[:, :, k : k + 1] * weight for k, weight in enumerate(GREY))
    return np.rint(weighted).astype(np.uint8)


def to_pixels(image: Array, shape: ImageShape, out: Array) -> None:
    """Write one uint8 image, resized to ``shape``, as a row of numbers from 0 to 1: height, width, channels (C order)."""
    np.divide(resize(image, shape).reshape(-1), out.dtype.type(255), out=out, dtype=out.dtype)


def from_pixels(row: Array, shape: ImageShape) -> Array:
    """The uint8 image of a row of numbers; what lies outside 0 to 1 is clipped."""
    levels: Array = np.rint(np.clip(row, 0, 1) * 255)
    return levels.astype(np.uint8).reshape(shape)
