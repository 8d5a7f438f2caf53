"""Pictures small enough for a page of a thousand of them, as data URIs."""

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np

from leanrecon.errors import InputError

Array = np.ndarray[Any, Any]

SMALL = 64
"""Pictures with sides of at most this many pixels are kept as they are, without loss."""

SIDE = 192
SIDE_OF_MANY = 128
MANY = 300
"""From more rows than this on, pictures are made smaller."""

PAGE_BYTES = 20_000_000
"""What all pictures of a page may take together, in bytes of base64."""

_QUALITIES = (85, 70, 50, 30)

_PIXELATED = 48  # below this side smoothing only blurs what there is


@dataclass(frozen=True)
class Thumbnail:
    """A picture as a data URI, with its size in pixels."""

    uri: str
    width: int
    height: int

    @property
    def pixelated(self) -> bool:
        """Whether it looks right only with its pixels shown as squares."""
        return max(self.width, self.height) < _PIXELATED


def thumbnail(image: Array, rows: int) -> Thumbnail:
    """Encode a uint8 picture ``[height, width, 1 or 3]`` for a page of so many rows.

    Small ones are PNG at their own size, larger ones WebP (JPEG where Pillow has no WebP) of a limited side
    and, on long pages, of a limited number of bytes.
    """
    from PIL import Image

    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3) or 0 in image.shape:
        raise InputError(
            f"a picture of the report is {image.dtype} {list(image.shape)}", expected="uint8 [height, width, 1 or 3]"
        )
    picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    side = SIDE_OF_MANY if rows > MANY else SIDE
    limit = PAGE_BYTES * 3 // 4 // (3 * max(rows, 1))  # three pictures a row; base64 takes four bytes for three
    if max(picture.size) <= SMALL:
        data = _encoded(picture, "PNG", optimize=True)
        if len(data) <= limit:
            return _named("png", data, picture.size)
    else:
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    kind = _lossy()
    for quality in _QUALITIES:
        data = _encoded(picture, kind, quality=quality)
        if len(data) <= limit:
            break
    return _named(kind.lower(), data, picture.size)


def _lossy() -> str:
    from PIL import features

    return "WEBP" if features.check("webp") else "JPEG"


def _encoded(picture: Any, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def _named(kind: str, data: bytes, size: tuple[int, int]) -> Thumbnail:
    return Thumbnail(f"data:image/{kind};base64,{base64.b64encode(data).decode()}", *size)
