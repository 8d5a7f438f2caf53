"""The voxels of a region: read from NIfTI masks, kept beside the betas, and written back into the volume."""

import contextlib
import gzip
import hashlib
import io
import math
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leanrecon.datasets.files.named import needed_file
from leanrecon.datasets.files.nifti import nibabel_library
from leanrecon.datasets.nsd.layout import ATLASES, GENERAL, SubjectFiles, labels_of, region
from leanrecon.errors import InputError
from leanrecon.net.ranges import RangeFile, read_whole
from leanrecon.places import LocationLike
from leanrecon.places.inputs import InputFile

Array = np.ndarray[Any, Any]
Open = Callable[[str], RangeFile | None]

MASKS = (".nii", ".nii.gz")
"""Endings of file names; any other name of a region is an area."""

_NIFTI_1, _NIFTI_2 = 352, 540  # bytes before the numbers, and of the header of version 2
_MOST_VOLUME = 2**31  # bytes
_PIECE = 2**20
_STEP = 1.01  # steps of a scaling that a whole number may be off
_MOST_OFF = 0.1


@dataclass(frozen=True)
class Voxels:
    """The voxels of a study in C order over the volume, as ``betas[mask]`` gives them."""

    shape: tuple[int, int, int]
    """Of the volume."""
    affine: Array
    """[4, 4]: from voxel numbers to millimetres; from the mask, since some of NSD's betas have none."""
    index: Array
    """int64: place in the flattened volume"""
    areas: Array
    """str: name of the area, or empty"""
    ncsnr: Array
    """float32: standard deviation of the signal over that of a trial's noise; NaN if not known"""
    labels: dict[str, Array]
    """int16 by the name of the atlas: the number that it gives the voxel"""

    @property
    def coordinates(self) -> Array:
        """float32 [voxels, 3], millimetres in the subject's space."""
        mm: Array = self.corners @ self.affine[:3, :3].T + self.affine[:3, 3]
        return mm.astype(np.float32)

    @property
    def corners(self) -> Array:
        """int64 [voxels, 3]: place along x, y and z."""
        return np.stack(np.unravel_index(self.index, self.shape), axis=1)

    def digest(self) -> str:
        """SHA-256 of the volume's shape and the voxels' places."""
        return hashlib.sha256(repr(self.shape).encode() + self.index.astype("<i8").tobytes()).hexdigest()

    def write(self, path: LocationLike) -> None:
        """Write ``voxels.npz``."""
        from leanrecon.places.files import write_whole

        entries: dict[str, Any] = {
            "index": self.index, "shape": np.array(self.shape), "affine": self.affine, "areas": self.areas,
            "coordinates": self.coordinates, "ncsnr": self.ncsnr, **self.labels,
        }  # fmt: skip
        write_whole(path, lambda file: np.savez(file, **entries))

    @classmethod
    def read(cls, path: LocationLike) -> "Voxels":
        """Read ``voxels.npz``; raises InputError if there is none, or it describes no volume."""
        try:
            with np.load(path, allow_pickle=False) as found:
                x, y, z = (int(n) for n in found["shape"])
                labels = {name: found[name] for name in found.files if name in (*ATLASES, GENERAL)}
                return cls((x, y, z), found["affine"], found["index"], found["areas"], found["ncsnr"], labels)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(
                f"{path} doesn't say where the voxels lie in a volume: {error}",
                expected="a study of kind nsd whose stage dataset is done",
            ) from error


@dataclass(frozen=True)
class Volume:
    """A NIfTI volume."""

    name: str
    numbers: Array
    affine: Array


def parse_nifti(name: str, data: bytes) -> Volume:
    """Decode the bytes of a .nii or .nii.gz (NIfTI-1 or 2) of three dimensions; raises InputError where they are damaged.

    Integers that were saved with a scale are rounded back to integers, if they are off by no more than its step.
    """
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) if data[:2] == b"\x1f\x8b" else io.BytesIO(data) as file:
            header = nifti_header(name, file.read(_NIFTI_2))
            shape, dtype = tuple(header.get_data_shape()), header.get_data_dtype()
            shape = shape[:3] if shape[3:] == (1,) else shape
            if len(shape) != 3 or min(shape) < 1 or dtype.kind not in "biuf":
                raise InputError(f"{name} holds {dtype} of shape {shape}", expected="a volume of three dimensions")
            size, offset = math.prod(shape) * dtype.itemsize, int(header["vox_offset"]) or _NIFTI_1
            if size > _MOST_VOLUME or not 0 <= offset <= _MOST_VOLUME:
                raise ValueError(f"its header describes {size} bytes from byte {offset} on")
            file.seek(offset)
            raw = file.read(size)
            if len(raw) < size:
                raise EOFError(f"it ends after {len(raw)} of {size} bytes")
            while file.read(_PIECE):  # at its end what was unpacked is compared with the checksum
                pass
        affine = np.asarray(header.get_best_affine(), np.float64)
        slope, shift = header.get_slope_inter()
    except nifti_errors() as error:
        raise InputError(f"{name} is damaged or cut short: {error}", todo="copy it again") from error
    numbers = np.frombuffer(raw, dtype).reshape(shape, order="F")
    return Volume(name, unscaled(numbers, slope, shift), affine)


def unscaled(raw: Array, slope: float | None, shift: float | None) -> Array:
    """Numbers of a volume in C order: ``raw`` times ``slope`` plus ``shift``, with integers rounded back.

    Fitting 0 and 1 into 16 bits leaves 0 a step of the scaling off; a mask is compared with 0, labels with theirs.
    """
    slope, shift = 1.0 if slope is None else float(slope), 0.0 if shift is None else float(shift)
    if (slope, shift) == (1, 0):
        return np.ascontiguousarray(raw)
    numbers = np.multiply(raw, slope, dtype=np.float64, order="C") + shift
    if raw.dtype.kind in "iu":
        off = numbers - np.rint(numbers)
        numbers -= np.where(np.abs(off) <= min(abs(slope) * _STEP, _MOST_OFF), off, 0)
    return np.ascontiguousarray(numbers)


def nifti_header(name: str, start: bytes) -> Any:
    """The header that a file begins with, of NIfTI-1 or 2; raises InputError if it is neither."""
    nibabel = nibabel_library()
    try:
        if start[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c"):
            return nibabel.Nifti2Header(start[:_NIFTI_2])
        return nibabel.Nifti1Header(start[:348])
    except nifti_errors() as error:
        raise InputError(f"{name} is damaged or cut short: {error}", todo="copy it again") from error


def nifti_errors() -> tuple[type[Exception], ...]:
    """The exceptions that reading a damaged NIfTI file raises."""
    nibabel = nibabel_library()
    return (
        OSError,
        EOFError,
        ValueError,
        OverflowError,
        TypeError,
        KeyError,
        zlib.error,
        nibabel.filebasedimages.ImageFileError,
        nibabel.spatialimages.HeaderDataError,
        nibabel.wrapstruct.WrapStructError,
    )


def names_of(roi: str | Sequence[str]) -> list[str]:
    """The areas and files that a setting names: one, several in a list, or joined by ``+``."""
    parts = roi.split("+") if isinstance(roi, str) else roi
    return [part.strip() for part in parts]


def mask_files(roi: str | Sequence[str], base_dir: Path | None) -> dict[str, InputFile]:
    """The NIfTI files among the names of a region."""
    return {name: needed_file(name, base_dir, "roi") for name in names_of(roi) if name.endswith(MASKS)}


def read_voxels(roi: str | Sequence[str], subject: int, open_file: Open, base_dir: Path | None) -> Voxels:
    """Find the voxels of a region, with their areas and ncsnr; ``open_file`` gives NSD's files, None for a missing one.

    Every voxel of the mask is kept. Raises InputError for unknown areas and for volumes of different shapes.
    """
    files = SubjectFiles(subject)
    labelled = _published(files, open_file)
    noise = labelled.pop(files.ncsnr, None)
    given = {name: parse_nifti(str(path), path.read_bytes()) for name, path in mask_files(roi, base_dir).items()}
    names = names_of(roi)
    volumes = {atlas: volume.numbers for atlas, volume in labelled.items()}
    masks = [given[name].numbers > 0 if name in given else region(name, volumes) for name in names]
    reference = [*labelled.values(), *given.values()][0]
    for volume in (*labelled.values(), *given.values()):
        check_shape(volume.name, volume.numbers.shape, reference.numbers.shape, reference.name)
    index = np.flatnonzero(np.logical_or.reduce(masks).reshape(-1))
    if not len(index):
        raise InputError(f"dataset.roi = {roi!r} has no voxels", expected="a mask with values above 0")
    ncsnr = np.full(len(index), np.nan, np.float32)
    if noise is not None:
        check_shape(noise.name, noise.numbers.shape, reference.numbers.shape, reference.name)
        ncsnr = noise.numbers.reshape(-1)[index].astype(np.float32)
    x, y, z = reference.numbers.shape
    labels = {
        atlas: np.rint(np.nan_to_num(numbers.reshape(-1)[index])).astype(np.int16) for atlas, numbers in volumes.items()
    }
    affine = next(iter(given.values()), reference).affine
    return Voxels((x, y, z), affine, index, labels_of(volumes, index), ncsnr, labels)


def _published(files: SubjectFiles, open_file: Open) -> dict[str, Volume]:
    """The volumes that NSD has of a subject: of areas by their atlas, and ncsnr by its file's name."""
    names = {atlas: files.roi(atlas) for atlas in (GENERAL, *ATLASES)} | {files.ncsnr: files.ncsnr}
    with contextlib.ExitStack() as stack:
        opened = {name: open_file(path) for name, path in names.items()}
        there = {name: stack.enter_context(file) for name, file in opened.items() if file is not None}
        read = read_whole(list(there.values()))
        return {name: parse_nifti(file.name, data) for (name, file), data in zip(there.items(), read, strict=True)}


def check_shape(name: str, shape: tuple[int, ...], expected: tuple[int, ...], other: str) -> None:
    """Raise InputError for a volume of another shape."""
    if tuple(shape) != tuple(expected):
        raise InputError(
            f"{name} is a volume of {'x'.join(map(str, shape))} voxels and {other} of {'x'.join(map(str, expected))}",
            expected="the shape of the betas",
            todo="resample the mask to the betas' grid (func1pt8mm)",
        )
