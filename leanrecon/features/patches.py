"""Patches of several scales: the local image bases of Miyawaki et al. (2008), Neuron 60, 915-929.

A row holds the mean contrast of every patch of every scale. An image is decoded as a weighted sum of its patches: at each
scale a pixel takes the mean of the patches that cover it, also at the border. The scales are added with weights that are
learned from out-of-fold predictions (see ``combination``).
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from leanrecon.errors import InputError, SettingsError
from leanrecon.features.plan import FLOAT, Cost
from leanrecon.features.space import Array, FixedSpace, ImageShape, Rows
from leanrecon.images import from_pixels, with_channels

if TYPE_CHECKING:
    from leanrecon.context import Context
    from leanrecon.places import LocationLike
    from leanrecon.stores import Matrix, Store

Cells = Annotated[int, Field(strict=True, ge=1, le=1024)]

BATCH = 256

_DOUBLE = 8


class PatchesSettings(BaseModel):
    """``[features.patches]``"""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    kind: Literal["patches"] = "patches"
    scales: Annotated[list[tuple[Cells, Cells]], Field(min_length=1)] = [(1, 1), (1, 2), (2, 1), (2, 2)]
    """[height, width] of the patches of each scale, in cells; patches overlap."""
    grid: tuple[Cells, Cells] | Literal["original"] = "original"
    """[rows, columns] of the cells that images are averaged to first; "original": a cell is a pixel."""
    measure: Literal["mean", "count"] = "mean"
    """What a patch is described by: its mean contrast, from 0 to 1, or the number of its lit cells."""
    combine: Literal["equal", "scale", "patch"] = "scale"
    """Weights of the decoded image: the same for all scales, one a scale, or one a patch near to its scale's."""

    @field_validator("scales")
    @classmethod
    def _differ(cls, scales: list[tuple[int, int]]) -> list[tuple[int, int]]:
        if twice := [list(scale) for k, scale in enumerate(scales) if scale in scales[:k]]:
            raise ValueError(f"the scale {twice[0]} is named twice")
        return scales


class Patches(FixedSpace):
    """Rows of the mean contrast, or the count of lit cells, of overlapping patches of several scales."""

    Settings: ClassVar[type[BaseModel]] = PatchesSettings
    decodes = True

    def __init__(self, settings: PatchesSettings, *, name: str = "", seed: int = 0, device: str = "cpu") -> None:
        super().__init__(settings, name=name, seed=seed, device=device)
        self.calibrates = settings.combine != "equal"  # type: ignore[misc]  # of this space, not of its kind
        self._weights: Array | None = None
        self._grid: tuple[int, int] | None = None

    @property
    def scales(self) -> list[tuple[int, int]]:
        return [(int(h), int(w)) for h, w in self.settings.scales]

    # Shapes

    def decoded_shape(self, image_shape: ImageShape) -> ImageShape:
        rows, columns = self._cells(image_shape)
        return rows, columns, 1

    def dims(self, image_shape: ImageShape) -> int:
        return sum(a * b for a, b in self._places(self._cells(image_shape)))

    def _cells(self, image_shape: ImageShape) -> tuple[int, int]:
        """Rows and columns of cells of images; raises SettingsError where they or a scale do not fit."""
        height, width = image_shape[:2]
        rows, columns = (height, width) if self.settings.grid == "original" else self.settings.grid
        if height % rows or width % columns:
            raise SettingsError(
                f"features.{self.name}: images of {height} × {width} pixels can't be cut into {rows} × {columns} cells",
                expected="a grid whose rows and columns divide the height and width",
                todo='set grid = "original" or another grid',
            )
        for h, w in self.scales:
            if h > rows or w > columns:
                raise SettingsError(
                    f"features.{self.name}: patches of {h} × {w} are larger than the image of {rows} × {columns} cells",
                    expected="scales that fit into the image",
                )
        self._grid = rows, columns
        return rows, columns

    def _places(self, cells: tuple[int, int]) -> list[tuple[int, int]]:
        """How many places a patch of each scale has, down and across."""
        return [(cells[0] - h + 1, cells[1] - w + 1) for h, w in self.scales]

    def slices(self, cells: tuple[int, int]) -> list[slice]:
        """The columns of each scale, for images of so many cells."""
        ends = np.cumsum([0, *(a * b for a, b in self._places(cells))]).tolist()
        return [slice(a, b) for a, b in pairwise(ends)]

    def groups(self) -> dict[str, slice]:
        if self._grid is None:
            return {}
        return {f"{h} × {w}": part for (h, w), part in zip(self.scales, self.slices(self._grid), strict=True)}

    def cost(self, image_shape: ImageShape) -> Cost:
        rows, columns = self._cells(image_shape)
        pixels = int(np.prod(image_shape))
        per_image = (
            (pixels if image_shape[2] > 1 else 0) + 4 * rows * columns * _DOUBLE + self.dims(image_shape) * FLOAT
        )
        return Cost(held=0, per_image=per_image, batch=BATCH)

    def decode_cost(self, image_shape: ImageShape) -> Cost:
        rows, columns = self._cells(image_shape)
        dims = self.dims(image_shape) * _DOUBLE
        return Cost(held=dims, per_image=(len(self.scales) + 3) * rows * columns * _DOUBLE + 2 * dims, batch=BATCH)

    def made_of(self) -> dict[str, Any]:
        made_of: dict[str, Any] = self.settings.model_dump(mode="json", exclude={"combine"})
        return made_of

    # Encoding and decoding

    def encode(self, images: Array, rows: Rows) -> Array:
        """Float32 rows [b, patches] of uint8 images [b, height, width, channels]: scale by scale, in C order.

        Raises InputError for an image that is not black and white where lit cells are counted.
        """
        grid = self._cells(images.shape[1:])
        cells, full = self.sums(images)
        if self.settings.measure == "count":
            odd = np.flatnonzero(((cells != 0) & (cells != full)).any(axis=(1, 2)))
            if len(odd):
                raise InputError(
                    f"features.{self.name}: image {rows[int(odd[0])]} is not black and white, so its lit cells can't be "
                    "counted",
                    expected="pixels of 0 and 255",
                    todo='set measure = "mean"',
                )
        out = np.empty((len(images), self.dims(images.shape[1:])), np.float32)
        for (h, w), (a, b), part in zip(self.scales, self._places(grid), self.slices(grid), strict=True):
            shifted = (cells[:, y : y + a, x : x + b] for y in range(h) for x in range(w))
            total: Array = sum(shifted, np.zeros((), cells.dtype))
            unit = full if self.settings.measure == "count" else full * h * w
            out[:, part] = (total / unit).reshape(len(images), -1)
        return out

    def sums(self, images: Array) -> tuple[Array, int]:
        """The sum of the grey levels of every cell, int64 [b, rows, columns], and that of a cell that is all lit."""
        rows, columns = self._cells(images.shape[1:])
        grey = np.stack([with_channels(image, 1) for image in images]) if images.shape[3] != 1 else images
        height, width = images.shape[1] // rows, images.shape[2] // columns
        tiled = grey.reshape(len(images), rows, height, columns, width)
        return tiled.sum(axis=(2, 4), dtype=np.int64), 255 * height * width

    def decode(self, features: Array, rows: Rows, image_shape: ImageShape) -> Array:
        cells = self._cells(image_shape)
        if features.shape[1] != self.dims(image_shape):
            raise InputError(
                f"rows of {features.shape[1]} numbers do not hold the patches of images of {image_shape}",
                expected=f"{self.dims(image_shape)}",
            )
        weights = self.weights(image_shape)
        total = self.spread(features * weights, cells).sum(axis=1)
        out = np.empty((len(features), *cells, 1), np.uint8)
        for image, levels in zip(out, total, strict=True):
            image[...] = from_pixels(levels, (*cells, 1))
        return out

    def spread(self, features: Array, cells: tuple[int, int]) -> Array:
        """The image of each scale, float64 [b, scales, rows, columns]: a pixel is the mean of the patches that cover it."""
        result = np.zeros((len(features), len(self.scales), *cells))
        every = zip(self.scales, self._places(cells), self.slices(cells), strict=True)
        for k, ((h, w), (a, b), part) in enumerate(every):
            values = features[:, part].reshape(-1, a, b)
            for y in range(h):
                for x in range(w):
                    result[:, k, y : y + a, x : x + b] += values
            size = h * w if self.settings.measure == "count" else 1
            result[:, k] /= coverage(cells, (h, w)) * size
        return result

    def weights(self, image_shape: ImageShape) -> Array:
        """The weight of every patch, float64 [patches]: as learned, and before that the same share for every scale."""
        if self._weights is not None:
            return self._weights
        return np.full(self.dims(image_shape), 1 / len(self.scales))

    # Calibration

    def decode_made_of(self) -> dict[str, Any]:
        found: dict[str, Any] = {"combine": self.settings.combine}
        return found if self._weights is None else found | {"weights": self._weights.tolist()}

    def learned(self) -> dict[str, Any]:
        """The mean weight of the patches of each scale, where weights were learned."""
        if self._weights is None:
            return {}
        return {"weights": {name: float(self._weights[part].mean()) for name, part in self.groups().items()}}

    def calibrate_nbytes(self, shape: Sequence[int], image_shape: ImageShape) -> int:
        from leanrecon.features.combination import plan_combination

        rows, columns = self._cells(image_shape)
        return plan_combination(shape[0], shape[1], len(self.scales), rows * columns, self.settings.combine)

    def calibrate(
        self,
        predictions: "Matrix",
        images: "Store",
        stimulus: Rows,
        path: "LocationLike",
        context: "Context | None" = None,
    ) -> None:
        if not self.calibrates:
            return
        from leanrecon.features.combination import calibrate

        self._take(calibrate(self, predictions, images, np.asarray(stimulus), path, context))

    def load_calibration(self, path: "LocationLike") -> None:
        from leanrecon.features.combination import load

        self._take(load(path)[0])

    def _take(self, learned: tuple[Array, tuple[int, int]]) -> None:
        self._weights, self._grid = learned


def coverage(cells: tuple[int, int], scale: tuple[int, int]) -> Array:
    """How many patches of a scale cover each pixel, float64 [rows, columns]."""
    down, across = (
        np.minimum(np.minimum(np.arange(n) + 1, n - np.arange(n)), min(size, n - size + 1)).astype(float)
        for n, size in zip(cells, scale, strict=True)
    )
    return np.outer(down, across)
