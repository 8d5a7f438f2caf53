"""CLIP's preprocessing of images, by Pillow and NumPy alone.

The processor of transformers is not used: it resizes with torchvision where that is installed and with Pillow elsewhere,
and their pixels differ; some of its versions divided pixels by 255 twice.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from leanrecon.errors import InputError, said_by
from leanrecon.features.space import Array
from leanrecon.images import with_channels
from leanrecon.weights.folders import read_config
from leanrecon.weights.libraries import resized
from leanrecon.weights.safetensors import AGAIN

if TYPE_CHECKING:
    from torch import Tensor

_LARGEST_SIDE = 4096  # pixels

_FILTERS = 5  # Pillow's filters are numbered from 0 to 5

BICUBIC = 3
"""Pillow's number of this filter, as in preprocessor_config.json."""


@dataclass(frozen=True)
class Preprocessing:
    """Resize, crop at the centre, scale and normalise."""

    shortest: int | None
    """Shorter side in pixels after resizing; None: ``resized`` gives both."""
    resized: tuple[int, int] | None
    """Height and width after resizing."""
    crop: tuple[int, int]
    """Height and width of the crop at the centre."""
    resample: int
    """Pillow's number of the resampling filter."""
    scale: float
    """Factor of the levels from 0 to 255."""
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, folder: Path) -> Self:
        """The preprocessing in preprocessor_config.json, or in the image part of processor_config.json.

        Raises InputError for steps that CLIP does not have.
        """
        path = next(p for p in (folder / "preprocessor_config.json", folder / "processor_config.json") if p.is_file())
        table = read_config(path)
        table = table.get("image_processor", table)
        if not isinstance(table, dict):
            raise InputError(f"{path} has no table image_processor", todo=AGAIN)
        kind = str(table.get("image_processor_type", table.get("feature_extractor_type", "CLIP")))
        steps = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
        if "CLIP" not in kind or not all(table.get(step, True) for step in steps) or table.get("do_pad"):
            raise InputError(
                f"{path} is for a {kind} with other steps", expected="the steps of CLIP: resize, crop, scale, normalise"
            )
        size = table.get("size", 224)
        size = {"shortest_edge": size} if isinstance(size, int) else size
        crop = table.get("crop_size", 224)
        crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
        try:
            resized = None if "shortest_edge" in size else (int(size["height"]), int(size["width"]))
            found = cls(
                shortest=None if resized else int(size["shortest_edge"]),
                resized=resized,
                crop=(int(crop["height"]), int(crop["width"])),
                resample=int(table.get("resample", BICUBIC)),
                scale=float(table.get("rescale_factor", 1 / 255)),
                mean=tuple(map(float, table["image_mean"])),
                std=tuple(map(float, table["image_std"])),
            )
            found.require_usable()
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise InputError(f"{path} has no usable {said_by(error)}", todo=AGAIN) from error
        return found

    def require_usable(self) -> None:
        """Raise ValueError for sizes, filters and numbers that no image can be prepared with."""
        from math import isfinite

        sides = [*self.crop, *(self.resized or ()), *([] if self.shortest is None else [self.shortest])]
        if not all(1 <= side <= _LARGEST_SIDE for side in sides):
            raise ValueError(f"size of {sides}")
        if not 0 <= self.resample <= _FILTERS:
            raise ValueError(f"resample = {self.resample}")
        numbers = [self.scale, *self.mean, *self.std]
        if not all(map(isfinite, numbers)) or len(self.mean) != 3 or len(self.std) != 3 or 0 in self.std:
            raise ValueError(f"scale, mean and std of {numbers}")

    def as_table(self) -> dict[str, Any]:
        """All fields as plain values."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of an image after resizing; the longer side is rounded down."""
        if self.resized:
            return self.resized
        short = self.shortest or min(height, width)
        longer = int(short * max(height, width) / min(height, width))
        return (short, longer) if height <= width else (longer, short)

    def tensor(self, pixels: "Tensor") -> "Tensor":
        """Pixels [n, 3, height, width] from 0 to 1 as the network takes them, differentiable by them."""
        height, width = self.size_of(*pixels.shape[2:])
        top, left = (height - self.crop[0]) // 2, (width - self.crop[1]) // 2
        seen = resized(pixels, (height, width), bicubic=self.resample == BICUBIC)
        seen = seen[:, :, top : top + self.crop[0], left : left + self.crop[1]]
        mean, std = (pixels.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (seen * (255 * self.scale) - mean) / std

    def __call__(self, images: Array) -> Array:
        """Float32 [n, 3, height, width] of uint8 images [n, height, width, channels]; grey is repeated."""
        from PIL import Image

        height, width = self.size_of(*images.shape[1:3])
        top, left = (height - self.crop[0]) // 2, (width - self.crop[1]) // 2
        if top < 0 or left < 0:
            raise InputError(
                f"images of {height} × {width} pixels are smaller than the crop of {self.crop[0]} × {self.crop[1]}",
                expected="a size of at least crop_size in the model's preprocessor_config.json",
            )
        out = np.empty((len(images), 3, *self.crop), np.float32)
        mean, std = (np.array(values, np.float32)[:, None, None] for values in (self.mean, self.std))
        for image, place in zip(images, out, strict=True):
            picture = Image.fromarray(np.ascontiguousarray(with_channels(image, 3)))
            resized = np.asarray(picture.resize((width, height), Image.Resampling(self.resample)))
            cut = resized[top : top + self.crop[0], left : left + self.crop[1]]
            place[...] = (cut.transpose(2, 0, 1) * np.float32(self.scale) - mean) / std
        return out
