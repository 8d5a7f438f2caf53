"""Images in arrays: their shape, the range of their values, and an id for each."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np

from leanrecon.datasets.files.rows import Convert, Rows
from leanrecon.errors import InputError

Array = np.ndarray[Any, Any]

ROUNDING = 0.5 / 255
"""Half a grey level, in images of 0..1: values beyond by less, as interpolation leaves them, round to 0 or 255."""

OVERSHOOT = 0.25
"""What interpolation with negative weights goes beyond 0..1 at most: such images are to be clipped, not scaled."""

_EXPECTED = "0 to 1, or whole numbers from 0 to 255"

ID_DIGITS = 16
"""Hexadecimal digits of a stimulus id: 64 bits of the SHA-256 of the image's bytes."""


def image_shape_of(
    name: str, shape: Sequence[int], image_shape: Sequence[int] | None, order: Literal["C", "F"]
) -> tuple[int, int, int]:
    """Height, width and channels of the images in an array of ``shape`` (rows first), or an InputError that says why not.

    [n, H·W·C] needs ``image_shape``; [n, H, W] is grey; [n, H, W, C] has 1 or 3 channels, last.
    """
    given = None if image_shape is None else (*image_shape, *(1,) * (3 - len(image_shape)))
    if len(shape) == 2:
        return _flat_shape(name, shape[1], given)
    if len(shape) not in (3, 4):
        raise InputError(
            f"{name} has shape {tuple(shape)}",
            expected="images as [rows, height, width], [rows, height, width, channels] or flat rows with image_shape",
        )
    if order != "C":
        raise InputError(
            f'image_order = "{order}" is for images given as flat rows, but {name} has shape {tuple(shape)}',
            todo="leave image_order out",
        )
    found = (*shape[1:], *(1,) * (4 - len(shape)))
    if found[2] not in (1, 3):
        first = found[0] in (1, 3)
        raise InputError(
            f"{name} has shape {tuple(shape)}" + (": its channels come first" if first else ""),
            expected="1 or 3 channels on the last axis",
            todo="move them: numpy.moveaxis(images, 1, -1)" if first else "keep the red, green and blue channels only",
        )
    if given is not None and given != found:
        raise InputError(
            f"image_shape is {list(image_shape or ())}, but {name} has shape {tuple(shape)}",
            expected="the images' own shape",
            todo="leave image_shape out: only images given as flat rows need it",
        )
    return found[0], found[1], found[2]


def _flat_shape(name: str, width: int, given: tuple[int, ...] | None) -> tuple[int, int, int]:
    if given is None:
        side = round(width**0.5)
        raise InputError(
            f"{name} has {width} numbers a row and image_shape is not set",
            todo=f"set image_shape, as in [{side}, {side}]" if side * side == width else "set image_shape",
        )
    if int(np.prod(given)) != width:
        raise InputError(
            f"{name} has {width} numbers a row",
            expected=f"{'·'.join(map(str, given))} = {int(np.prod(given))} as image_shape says",
        )
    return given[0], given[1], given[2]


def to_images(block: Array, image_shape: tuple[int, int, int], order: Literal["C", "F"]) -> Array:
    """View rows of any accepted shape as [rows, H, W, C]; order F means that a flat row runs down the columns."""
    if block.ndim == 2 and order == "F":
        return block.reshape(len(block), *reversed(image_shape)).transpose(0, 3, 2, 1)
    return block.reshape(len(block), *image_shape)


@dataclass(frozen=True)
class Values:
    """The range of the floating-point numbers of an array, and whether all of them are whole."""

    low: float
    high: float
    whole: bool

    @classmethod
    def of_all(cls, found: Sequence[Self]) -> Self:
        """The range of several arrays together."""
        return cls(min(v.low for v in found), max(v.high for v in found), all(v.whole for v in found))

    def of(self, name: str) -> str:
        """In words, with the digits that tell 1.0000002 from 1."""
        verb = "hold" if " and " in name else "holds"
        return f"{name} {verb} floating-point values from {self.low:.8g} to {self.high:.8g}"


def look_through(rows: Rows, index: Array | None) -> Values:
    """Find the range of the numbers of all rows, or of those in ``index`` (ascending), block by block.

    Raises InputError at the first number that is not finite.
    """
    index = np.arange(len(rows)) if index is None else index
    low, high, whole = np.inf, -np.inf, True
    for span, _, block in rows.blocks(index):
        if not block.size:
            continue
        smallest, largest = float(block.min()), float(block.max())
        if not (np.isfinite(smallest) and np.isfinite(largest)):
            row = int(index[span.start + int(np.argwhere(~np.isfinite(block))[0][0])])
            raise InputError(f"{rows.locate(row)} holds NaN or infinite values", expected="images without any")
        low, high = min(low, smallest), max(high, largest)
        whole = whole and bool(np.all(block == np.rint(block)))
    return Values(low, high, whole)


def scale_of(name: str, found: Sequence[Values], *, beside_whole_types: bool) -> int:
    """What floating-point train images are multiplied by to reach 0..255: 255 or 1, decided from all of them together.

    Values up to 1 are intensities of 0..1, whole numbers up to 255 are grey values; anything else is ambiguous
    and refused. ``beside_whole_types`` says that other images of the study are integers, thus 0..255.
    """
    values = Values.of_all(found)
    scale = 255 if values.high <= 1 + ROUNDING else 1
    check_scale(name, values, scale)
    if scale == 255 and values.whole and beside_whole_types:
        raise InputError(
            f"{values.of(name)}, the study's other images integers",
            expected=_EXPECTED,
            todo="save all of them as uint8, 0 to 255, or set dataset.image_range to 1 or 255",
        )
    return scale


def check_scale(name: str, found: Values, scale: int) -> None:
    """Refuse images whose values go beyond 0..1 (``scale`` 255) or 0..255, and those of 0..255 that are not whole."""
    margin = ROUNDING if scale == 255 else 0
    near_one = found.low >= -OVERSHOOT and found.high <= 1 + OVERSHOOT
    todo = "clip them: numpy.clip(images, 0, 1)" if near_one else "shift and scale them, and save them as uint8"
    if found.low < -margin or found.high > 255 / scale + margin:
        raise InputError(found.of(name), expected=_EXPECTED, todo=todo)
    if scale == 1 and not found.whole:
        todo = todo if near_one else "round or scale them, and save as uint8"
        raise InputError(f"{found.of(name)} that are not whole", expected=_EXPECTED, todo=todo)


def check_like_train(name: str, found: Values, train: str, scale: int) -> None:
    """Refuse test images of another range than that of the train images, which decided the ``scale``."""
    if found.high > 1 + ROUNDING if scale == 255 else found.high <= 1 and not found.whole:
        raise InputError(
            f"{found.of(name)}, and the train images in {train} go to {255 // scale}",
            expected="train and test images of one range",
            todo="scale the test images as the train images are, or set dataset.image_range to 1 or 255",
        )
    check_scale(name, found, scale)


def to_uint8(name: str, scale: int) -> Convert:
    """A function that turns blocks of numbers into uint8: bool to 0 or 255, floats times ``scale``, rounded."""

    def convert(block: Array) -> Array:
        if block.dtype == np.uint8:
            return block
        if block.dtype.kind == "b":
            return block.astype(np.uint8) * np.uint8(255)
        if block.dtype.kind == "f":
            scaled = np.multiply(block, scale, dtype=np.result_type(block.dtype, np.float32))
            return np.clip(np.rint(scaled, out=scaled), 0, 255, out=scaled).astype(np.uint8)
        if block.size and (block.min() < 0 or block.max() > 255):
            raise InputError(
                f"{name} holds {block.dtype} values from {block.min()} to {block.max()}",
                expected="images of 0 to 255",
                todo="shift and scale them, and save them as uint8",
            )
        return block.astype(np.uint8)

    return convert


def stimulus_ids(images: Array) -> list[str]:
    """A short id for each image, equal for equal images: the start of the SHA-256 of its bytes."""
    return [hashlib.sha256(np.ascontiguousarray(image).data).hexdigest()[:ID_DIGITS] for image in images]
