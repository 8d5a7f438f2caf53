"""Folders of PNG images, one a row, with a record beside them of what they were made of."""

import hashlib
import io
import json
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from leanrecon.errors import LeanreconWarning, StoreError
from leanrecon.images import Array, ImageShape
from leanrecon.places import Location, LocationLike, as_location, seals
from leanrecon.places.files import read_json, write_json
from leanrecon.stores.fingerprint import differences

FORMAT = 1
"""Version of the record beside the images."""

_SIZED = 33  # bytes of a PNG up to the end of its header

UNPROVEN = "unproven"
"""The entry of a record that was damaged: what it says is to be proven before the images are continued."""


class Pictures:
    """Images of one shape as ``FOLDER/00000.png``, …, and ``FOLDER.json``, the record of what they are made of.

    Images are written whole and kept when a run is continued; ``finish`` fixes their checksums.
    """

    def __init__(self, path: LocationLike, record: dict[str, Any]) -> None:
        self.path = as_location(path)
        self._record = record
        self._digests: dict[int, tuple[str, str]] = {}

    @classmethod
    def create(
        cls, path: LocationLike, rows: int, shape: ImageShape, *, made_of: Mapping[str, Any], overwrite: bool = False
    ) -> "Pictures":
        """Open a folder for writing: a new one, or an earlier one made of the same things, to be continued.

        Images made of something else raise StoreError with the settings that differ; with ``overwrite`` they are
        replaced. Files left half-written by a killed run are removed.
        """
        path = as_location(path)
        now = {"format": FORMAT, "images": {"rows": rows, "shape": list(shape)}, **made_of}
        if cls.there(path):
            there = _record_of(path)
            changed = list(differences(there["made_of"], now))
            unproven = there.get(UNPROVEN, False)
            if not changed:
                path.sweep()
                pictures = cls(path, {"made_of": now, "complete": False} if unproven else there)
                pictures._discard_damage()
                if unproven:
                    write_json(beside(path), pictures._record)
                return pictures
            if not overwrite and not unproven and any(image.suffix == ".png" for image in path.iterdir()):
                raise StoreError(
                    f"{path} was made with other settings: {'; '.join(changed)}",
                    todo="go back to those settings, choose another --study, or replace what was made with --overwrite",
                )
        remove(path)
        pictures = cls(path, {"made_of": now, "complete": False})
        write_json(beside(path), pictures._record)
        return pictures

    @classmethod
    def open(cls, path: LocationLike, *, incomplete: bool = False) -> "Pictures":
        """Open a folder for reading; raises StoreError where there is none, or while it is not complete."""
        path = as_location(path)
        if not cls.there(path):
            raise StoreError(f"there are no images at {path}", todo=path.todo())
        pictures = cls(path, _record_of(path))
        if not (pictures.complete or incomplete):
            raise StoreError(
                f"{path} is not complete: {len(pictures.missing())} of {pictures.rows} images are missing",
                todo="run the same command again to finish it",
            )
        return pictures

    @staticmethod
    def there(path: LocationLike) -> bool:
        """Whether images were begun at a location."""
        return beside(as_location(path)).is_file()

    @property
    def rows(self) -> int:
        return int(self._record["made_of"]["images"]["rows"])

    @property
    def shape(self) -> ImageShape:
        height, width, channels = self._record["made_of"]["images"]["shape"]
        return height, width, channels

    @property
    def made_of(self) -> dict[str, Any]:
        return dict(self._record["made_of"])

    @property
    def complete(self) -> bool:
        return bool(self._record.get("complete"))

    @property
    def content(self) -> str:
        """SHA-256 over the pixels of all images, fixed when they were completed: no encoder's version changes it."""
        return hashlib.sha256("".join(self._record["pixels"]).encode()).hexdigest()

    def file(self, row: int) -> Location:
        return self.path / f"{row:05d}.png"

    def plain(self) -> dict[str, Any]:
        """Where the images are, in plain values for another process."""
        return {"path": self.path.place.address(self.path.key), "rows": None}

    def missing(self) -> list[int]:
        """The rows whose images are still to be written."""
        return [row for row in range(self.rows) if not self._has(row)]

    def _has(self, row: int) -> bool:
        """Whether an image is there; an empty file is what a power cut leaves."""
        return bool(self.file(row).size())

    def write(self, row: int, image: Array) -> None:
        """Write the image of a row, uint8 of the folder's shape."""
        if image.shape != self.shape or image.dtype != np.uint8:
            raise ValueError(f"{self.path} can't take {image.dtype} of shape {image.shape}")
        from PIL import Image

        picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
        with self.file(row).writing() as file:
            picture.save(file, format="PNG")
        self._digests[row] = _digest(self.file(row).read_bytes()), _digest(image)

    def copy(self, other: "Pictures") -> None:
        """Write the missing images byte for byte as in another, complete folder; raises StoreError for damaged ones."""
        for row in self.missing():
            self.file(row).write_bytes(self._sound(other, row, row))

    def link(self, other: "Pictures", rows: Sequence[int] | None = None) -> None:
        """As ``copy``, but let both folders share the files, where their place can do that.

        Image i of the other folder becomes that of row ``rows[i]``, by default of row i.
        """
        place, missing = self.path.place, set(self.missing())
        for of, row in enumerate(range(self.rows) if rows is None else rows):
            if row in missing:
                data = self._sound(other, of, row)
                if other.path.place != place or not place.link(other.file(of).key, self.file(row).key):
                    self.file(row).write_bytes(data)

    def _sound(self, other: "Pictures", of: int, row: int) -> bytes:
        """The bytes of another folder's image ``of``, checked, with their checksums noted down for ``row`` of this one."""
        data = other.file(of).read_bytes() if other._has(of) else b""
        if _digest(data) != other._record["checksums"][of]:
            raise other._damage(of, "does not match its checksum" if data else "is missing")
        self._digests[row] = other._record["checksums"][of], other._record["pixels"][of]
        return data

    def finish(self) -> None:
        """Mark the folder complete, once every image is there, and fix its checksums."""
        if self.complete:
            return
        if missing := self.missing():
            raise StoreError(
                f"{self.path} lacks {len(missing)} images, {self.file(missing[0]).name} first",
                todo="run the same command again to write them",
            )
        digests = [self._digests.get(row) or self._digests_of(row) for row in range(self.rows)]
        pixels = [pixel for _, pixel in digests]
        if self._record.get("pixels", pixels) != pixels:
            warnings.warn(
                f"{self.path} was made again, but not to the same images: another kind of processor or another version "
                "of a library made the rest. What was made of it has to be made again too (--overwrite)",
                LeanreconWarning,
                stacklevel=2,
            )
        self._record |= {"complete": True, "checksums": [file for file, _ in digests], "pixels": pixels}
        write_json(beside(self.path), self._record)

    def _digests_of(self, row: int) -> tuple[str, str]:
        return _digest(self.file(row).read_bytes()), _digest(self.read(row))

    def is_as(self, row: int, checksum: str) -> bool:
        """Whether the file of a row is there with this checksum."""
        return self._has(row) and _digest(self.file(row).read_bytes()) == checksum

    def believe(self, row: int, file: str, pixels: str) -> None:
        """Note down the checksums of an image that another process wrote, of its file and of its pixels."""
        self._digests[row] = file, pixels

    def read(self, row: int) -> Array:
        """The image of a row, uint8 [height, width, channels]; raises StoreError if it is damaged."""
        from PIL import Image, UnidentifiedImageError

        height, width, channels = self.shape
        try:
            data = self.file(row).read_bytes()
            # Before anything is decoded: a damaged header may ask for gigabytes.
            if (
                len(data) >= _SIZED
                and data[12:16] == b"IHDR"
                and data[16:24] != width.to_bytes(4, "big") + height.to_bytes(4, "big")
            ):
                size = [int.from_bytes(data[k : k + 4], "big") for k in (20, 16)]
                raise self._damage(row, f"has {size[0]}×{size[1]} pixels instead of {self.shape}")
            with Image.open(io.BytesIO(data)) as picture:
                image = np.asarray(picture)
        except FileNotFoundError:
            raise self._damage(row, "is missing") from None
        except StoreError:
            raise
        except UnidentifiedImageError:
            raise self._damage(row, "can't be read (it is not a PNG image)") from None
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise self._damage(row, f"can't be read ({error})") from None
        if image.shape != ((height, width) if channels == 1 else self.shape) or image.dtype != np.uint8:
            raise self._damage(row, f"is {image.dtype} of shape {image.shape} instead of {self.shape}")
        return image.reshape(self.shape)

    def damage(self) -> Iterator[tuple[int, str]]:
        """The rows whose images are missing or altered, with what is wrong.

        Of a folder that is not complete the images that are there are checked, by the checksums within each PNG.
        """
        if not self.complete:
            for row in range(self.rows):
                if self.file(row).is_file() and (problem := png_problem(self.file(row).read_bytes())):
                    yield row, self._damage(row, problem).found
            return
        for row, digest in enumerate(self._record["checksums"]):
            if not self._has(row):
                yield row, self._damage(row, "is missing").found
            elif _digest(self.file(row).read_bytes()) != digest:
                yield row, self._damage(row, "does not match its checksum").found

    def _discard_damage(self) -> None:
        """Remove what a power cut left damaged of an unfinished folder, so that it is drawn again."""
        for row, what in [] if self.complete else list(self.damage()):
            warnings.warn(f"{what}: it is made again", LeanreconWarning, stacklevel=3)
            self.file(row).unlink(missing_ok=True)

    def discard(self, rows: Sequence[int]) -> None:
        """Remove images and mark the folder incomplete, so that the next run draws just these again."""
        for row in rows:  # first: a damaged image must not be taken for one that was written
            self.file(row).unlink(missing_ok=True)
        if rows:
            self._record["complete"] = False
            write_json(beside(self.path), self._record)

    def _damage(self, row: int, what: str) -> StoreError:
        return StoreError(
            f"image {self.file(row).name} of {self.path} {what}",
            todo=f"run `leanrecon verify {self.path} --repair`, which makes only this image again",
        )


def remove(path: LocationLike) -> None:
    """Remove a folder of images and its record; raises StoreError, and removes nothing, where it holds other files."""
    path = as_location(path)
    if path.is_link():
        beside(path).unlink(missing_ok=True)
        path.delete_tree()
        return
    if others := [name for name in path.place.children(path.key) if not name.endswith(".png")]:
        raise StoreError(f"{path} holds {others[0].rstrip('/')} beside images", todo="move it elsewhere")
    beside(path).unlink(missing_ok=True)
    path.delete_tree()


def beside(path: Location) -> Location:
    """The record of the images in a folder: the file of its name and ``.json``."""
    return path.with_name(f"{path.name}.json")


def _record_of(path: Location) -> dict[str, Any]:
    record = read_json(beside(path))
    try:
        images = record["made_of"]["images"]
        rows, shape = images["rows"], images["shape"]
        lists = [record[key] for key in ("checksums", "pixels") if key in record or record.get("complete")]
        sound = type(rows) is int and rows >= 0 and len(shape) == 3 and all(type(n) is int and n > 0 for n in shape)
        sound = sound and isinstance(record.get("complete", False), bool)
        sound = sound and all(len(of) == rows and all(isinstance(one, str) for one in of) for of in lists)
    except (TypeError, KeyError, AttributeError):
        sound = False
    if not sound:
        study = seals.sealing_root(beside(path))
        raise StoreError(
            f"{beside(path)} is damaged, or no record of images",
            todo="remove it and run again to draw them anew" if study is None else seals.repair(study),
        )
    checked: dict[str, Any] = record
    return checked


def distrust(path: Location) -> bool:
    """Mark a record that does not match its checksum as one to be proven by the next run that draws the images.

    Returns False, and removes it, where it can't be read at all.
    """
    try:
        made_of = json.loads(beside(path).read_bytes())["made_of"]
        write_json(beside(path), {"made_of": made_of, "complete": False, UNPROVEN: True})
        _record_of(path)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):  # a StoreError among them
        beside(path).unlink(missing_ok=True)
        return False
    return True


def png_problem(data: bytes) -> str:
    """What is wrong with the bytes of a PNG file, by the checksum of each of its chunks; empty where it is sound."""
    if not data:
        return "is empty"
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        return "can't be read (it is not a PNG image)"
    start, kind = 8, b""
    while start + 12 <= len(data) and kind != b"IEND":
        length = int.from_bytes(data[start : start + 4], "big")
        kind, end = data[start + 4 : start + 8], start + 8 + length
        if zlib.crc32(data[start + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            return "does not match its checksum"
        start = end + 4
    return "" if kind == b"IEND" and start == len(data) else "is truncated"


def _digest(data: bytes | Array) -> str:
    return hashlib.sha256(data if isinstance(data, bytes) else data.tobytes()).hexdigest()[:16]
