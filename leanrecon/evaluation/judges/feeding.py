"""How an image becomes what a network sees: its size, its range, its mean and standard deviation."""

import math
from dataclasses import dataclass

import numpy as np

from leanrecon.images import Array, ImageShape, resize, resize_tensor, with_channels

_FLOAT = 4


@dataclass(frozen=True)
class Rule:
    """One rule of resizing and normalising."""

    size: int
    """Sides in pixels at the end."""
    through: int | None
    """Sides in pixels that images are brought to before that."""
    resample: str
    """"pillow": bilinear, averaging over all pixels when it shrinks. "tensor": bilinear between four pixels."""
    crop: bool
    """Whether the shorter side becomes ``size`` and the centre is cropped."""
    mean: tuple[float, float, float]
    sd: tuple[float, float, float]

    def described(self) -> str:
        """The rule in words."""
        first = (
            f"images at {self.through} pixels, then at {self.size}" if self.through else f"images at {self.size} pixels"
        )
        how = "as Pillow resizes" if self.resample == "pillow" else "as PyTorch resizes tensors, without antialiasing"
        return f"{first}, {how}{', the centre cropped' if self.crop else ''}"


def feed(image: Array, rule: Rule) -> Array:
    """What a network sees of one uint8 image [height, width, channels]: float32 [3, size, size]."""
    image = with_channels(image, 3)
    if rule.through is not None:
        image = _resized(image, (rule.through, rule.through, 3), rule)
    shape = _before_crop(image.shape, rule) if rule.crop else (rule.size, rule.size, 3)
    seen = _resized(image, shape, rule)
    top, left = (round((side - rule.size) / 2) for side in shape[:2])
    seen = seen[top : top + rule.size, left : left + rule.size]
    levels = seen.astype(np.float32) / np.float32(255)
    levels -= np.asarray(rule.mean, np.float32)
    levels /= np.asarray(rule.sd, np.float32)
    return np.ascontiguousarray(levels.transpose(2, 0, 1))


def feeding_nbytes(shape: ImageShape, rule: Rule) -> int:
    """Bytes that ``feed`` takes for an image of a shape."""
    largest = max(shape[0] * shape[1], rule.size**2 * 2, (rule.through or 0) ** 2)
    return 3 * largest * _FLOAT * (4 if rule.resample == "tensor" else 3)


def _before_crop(shape: tuple[int, ...], rule: Rule) -> ImageShape:
    height, width = shape[:2]
    if height <= width:
        return rule.size, int(rule.size * width / height), 3
    return int(rule.size * height / width), rule.size, 3


def _resized(image: Array, shape: ImageShape, rule: Rule) -> Array:
    return resize(image, shape) if rule.resample == "pillow" else resize_tensor(image, shape)


def convolved(side: int, *steps: tuple[int, int, int]) -> int:
    """The side after convolutions or poolings, each (kernel, stride, padding); 0 or less: there are too few pixels."""
    for kernel, stride, padding in steps:
        side = math.floor((side + 2 * padding - kernel) / stride) + 1 if side + 2 * padding >= kernel else 0
    return side
