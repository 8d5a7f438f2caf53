"""Images in a folder, found by name and brought to one shape: upright, RGB, 8 bits."""

import contextlib
import io
import unicodedata
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from leanrecon.datasets.files.rows import Block, Rows, refused_by_system
from leanrecon.errors import InputError
from leanrecon.places.inputs import InputFile, folder_files, listed, missing, open_buffered, size_of
from leanrecon.places.location import Location

Array = np.ndarray[Any, Any]

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")

MOST_PIXELS = 100_000_000
"""Pixels of one image beyond which it is taken for a mistake: decoded, they take 300 MB."""

_LISTED_NBYTES = 800
"""Bytes that a listing takes for each file."""

_HEADER_NBYTES = 16384
"""Bytes that are fetched at a time for the header of an image in a bucket."""

_GREY = ("1", "L")
"""Pillow's modes of one channel without transparency."""

_LAYERED = ("LA", "PA", "RGBA", "La", "RGBa")
"""Pillow's modes with transparency."""

_DECODED_NBYTES, _LAYERED_NBYTES = 9, 20
"""Bytes a pixel that decoding takes at most. Pillow takes 4 for each of the image, its upright copy, and with
transparency white and what lies on it; WebP's decoder 11 of its own. Measured: up to 8.1 and 16."""

_EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "La", "RGBa")


def find_images(folder: InputFile, names: Iterable[str]) -> dict[str, InputFile]:
    """The file of each name, given with or without its ending; raises InputError for missing and for ambiguous names.

    An umlaut may be one character or two (a letter and its dots, as macOS writes names of files).
    """
    within = sorted(name for name in folder_files(folder) if PurePosixPath(name).suffix.lower() in ENDINGS)
    if not within and not folder.is_dir():
        raise InputError(f"there is no folder {folder}", expected="the folder of the images")
    files = [folder / name for name in within]
    by_name: dict[str, list[InputFile]] = {}
    for path, relative in zip(files, map(PurePosixPath, within), strict=True):
        known = (path.name, path.stem, relative.as_posix(), relative.with_suffix("").as_posix())
        for name in dict.fromkeys(map(_composed, known)):
            by_name.setdefault(name, []).append(path)
    found, lacking = {}, []
    for name in names:
        candidates = by_name.get(_composed(name), [])
        if len(candidates) > 1:
            raise InputError(
                f"{name} names several images: {candidates[0]} and {candidates[1]}",
                expected="one image of each name",
                todo="give the ending or the folder in the table",
            )
        if candidates:
            found[name] = candidates[0]
        else:
            lacking.append(name)
    if lacking:
        raise InputError(
            f"{len(lacking)} images of the table are not in {folder}; the first is {lacking[0]!r}",
            expected=f"a file of that name, with or without its ending ({', '.join(ENDINGS[:4])} …)",
            todo=f"the folder holds {len(files)} images, such as {files[0].name}" if files else "check the path",
        )
    return found


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


class FolderRows(Rows):
    """Image files as rows: uint8 [images, height, width, channels].

    Images of another size are scaled to cover ``shape`` and cropped at their centre. EXIF orientation is applied,
    transparency is laid on white. Those of a bucket lie below ``folder``, which is listed once. Raises InputError for
    images that can't be read, are animated or have 16 bits.
    """

    def __init__(
        self, paths: Sequence[InputFile], shape: tuple[int, int, int], folder: InputFile | None = None
    ) -> None:
        super().__init__(folder or paths[0].parent, None, (len(paths), *shape), np.uint8)
        self.paths = list(paths)
        self.name = str(paths[0].parent)
        self.scratch = decoding_nbytes(paths, shape)
        self._nbytes = 0
        self._listing = contextlib.ExitStack()
        weakref.finalize(self, self._listing.close)
        if self.away:
            self._listing.enter_context(listed(self.path))
            sizes = [size_of(path) for path in paths]
            self.held, self.pieces, self._nbytes = _LISTED_NBYTES * len(paths), len(paths), sum(sizes)
            self.scratch += 2 * max(sizes)

    @property
    def nbytes(self) -> int:
        """Bytes of the files, where they are in a bucket."""
        return self._nbytes

    def asked(self, at_once: int) -> int:
        return len(self)

    def blocks(self, index: Array) -> Iterator[Block]:
        for k, row in enumerate(index.tolist()):
            yield slice(k, k + 1), (), self._image(row)[None]

    def _image(self, row: int) -> Array:
        height, width, channels = self.shape[1:]
        return read_image(self.paths[row], (height, width, channels))

    def locate(self, row: int) -> str:
        return str(self.paths[row])

    def close(self) -> None:
        self._listing.close()


def image_size(path: InputFile) -> tuple[int, int, int]:
    """Height, width and channels of an image as it is shown, from its header."""
    image = _opened(path)
    with image:
        width, height = image.size
        try:
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # by a quarter
        except Exception as error:  # Pillow reads PNG to its end for this, and raises anything on the way
            raise _unreadable(path, error) from error
        if turned:
            width, height = height, width
        return height, width, 1 if image.mode in _GREY else 3


def shape_of(paths: Sequence[InputFile], size: Sequence[int] | None) -> tuple[int, int, int]:
    """Height, width and channels in which images are stored together; their size is ``size``, or that of the first."""
    height, width = size or image_size(paths[0])[:2]
    return height, width, channels_of(paths)


def channels_of(paths: Sequence[InputFile]) -> int:
    """Channels in which images are stored together: 1 if every one of them is grey, 3 otherwise.

    Headers are read up to the first image in colour.
    """
    return 1 if all(_is_grey(path) for path in paths) else 3


def decoding_nbytes(paths: Sequence[InputFile], shape: tuple[int, int, int]) -> int:
    """Bytes that reading any of some images as ``shape`` takes, from their headers.

    Those in a bucket are taken to have four million pixels at most. Images that can't be read take nothing here: reading
    them says why.
    """
    least = 8 * max(4_000_000, *(n * n for n in shape[:2]))
    return max(least, *(_decoding_nbytes(path, shape) for path in paths if isinstance(path, Path)), 0)


def _decoding_nbytes(path: Path, shape: tuple[int, int, int]) -> int:
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.size[0] * image.size[1] > MOST_PIXELS:
                return 0
            image.draft("RGB", (shape[1], shape[0]))
            layers = image.mode in _LAYERED or "transparency" in image.info or image.format == "WEBP"
            return image.size[0] * image.size[1] * (_LAYERED_NBYTES if layers else _DECODED_NBYTES)
    except Exception:  # Pillow's readers raise anything on damaged files
        return 0


def _is_grey(path: InputFile) -> bool:
    from PIL import Image

    try:
        with open_buffered(path, _HEADER_NBYTES) as file, Image.open(file) as image:
            return image.mode in _GREY
    except InputError:
        raise
    except Exception as error:  # Pillow's readers raise anything on damaged files
        raise _unreadable(path, error) from error


def read_image(path: InputFile, shape: tuple[int, int, int]) -> Array:
    """Read an image file as uint8 of ``shape`` (height, width, channels)."""
    from PIL import Image, ImageOps

    image = _opened(path)
    try:
        with image:
            image.draft("RGB", (shape[1], shape[0]))  # JPEG: decode at a fraction of the size where that is enough
            ImageOps.exif_transpose(image, in_place=True)
            shown: Any = image
            if shown.mode in _LAYERED or "transparency" in shown.info:
                over = shown if shown.mode == "RGBA" else shown.convert("RGBA")
                shown = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)
                del over
            mode = "L" if shape[2] == 1 else "RGB"
            shown = shown if shown.mode == mode else shown.convert(mode)  # to convert always copies
            if shown.size != (shape[1], shape[0]):
                shown = ImageOps.fit(shown, (shape[1], shape[0]), Image.Resampling.LANCZOS)
            return np.asarray(shown, np.uint8).reshape(shape)
    except InputError:
        raise
    except Exception as error:  # Pillow's decoders raise anything on damaged files
        raise _unreadable(path, error) from error


def _fetched(file: Location) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise missing(file) from None


def _unreadable(path: InputFile, error: object) -> InputError:
    return refused_by_system(str(path), error) or InputError(
        f"{path} can't be read as an image: {error}", todo="copy it again"
    )


def _opened(path: InputFile) -> Any:
    from PIL import Image

    source = path if isinstance(path, Path) else io.BytesIO(_fetched(path))
    try:
        image = Image.open(source)
        frames = getattr(image, "n_frames", 1)
    except Exception as error:  # Pillow's readers raise anything on damaged files
        raise _unreadable(path, error) from error
    problem = ""
    if frames > 1:
        problem = f"is animated ({frames} frames)"
    elif image.mode not in _EIGHT_BITS:
        problem = f"has pixels of mode {image.mode}, more than 8 bits a channel"
    elif any(";16" in str(tile[-1]) for tile in image.tile):  # which Pillow would cut to 8 bits
        problem = "has 16 bits a channel"
    elif image.size[0] * image.size[1] > MOST_PIXELS:
        problem = f"has {image.size[0]} x {image.size[1]} pixels"
    if problem:
        image.close()
        raise InputError(f"{path} {problem}", expected="a still image of 8 bits a channel", todo="convert it to PNG")
    return image
