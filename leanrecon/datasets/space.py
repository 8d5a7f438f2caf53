"""Where the voxels of a study lie, and numbers put back there: NIfTI volumes, or vectors of the vertices of hemispheres."""

import gzip
import io
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from leanrecon.datasets.files.nifti import nibabel_library
from leanrecon.errors import InputError
from leanrecon.places import LocationLike, as_location
from leanrecon.study.layout import Study

Array = np.ndarray[Any, Any]

_PIECE = 2**20  # bytes of a volume that are packed together
_NIBABEL = 15_000_000  # bytes that nibabel and gzip take when they are first used: 10 MB were seen
_SHORT = 2**15  # sides that NIfTI-1 can't hold
_HAVE_SPACE = "a dataset whose voxels lie in a volume (nifti, glmsingle, miyawaki, nsd) or on a surface (algonauts)"


class Space(Protocol):
    """The places of the voxels of a study."""

    @property
    def voxels(self) -> int:
        """How many voxels have a place here."""

    @property
    def nbytes(self) -> int:
        """Most bytes that putting back one map takes."""

    def files(self, name: str) -> list[str]:
        """The names of the files of a map."""

    def filled(self, values: Array) -> Array:
        """One number a voxel among all places: outside of the voxels NaN, or 0 for whole numbers and truth values."""

    def write(self, folder: LocationLike, name: str, values: Array) -> None:
        """Write one number a voxel into the files of a map: float32, or whole numbers as they are."""


@dataclass(frozen=True)
class Volume:
    """Voxels in C order over a volume."""

    shape: tuple[int, int, int]
    affine: Array
    """[4, 4]: from voxel numbers to millimetres."""
    index: Array
    """int64 [voxels]: place in the flattened volume."""

    @property
    def voxels(self) -> int:
        return len(self.index)

    @property
    def nbytes(self) -> int:
        return _NIBABEL + 4 * math.prod(self.shape) + 12 * len(self.index) + 4 * _PIECE

    def files(self, name: str) -> list[str]:
        return [f"{name}.nii.gz"]

    def filled(self, values: Array) -> Array:
        """[x, y, z], x running first in memory, as NIfTI files have it."""
        values = _as_stored(values)
        volume = np.full(self.shape, _outside(values), values.dtype, order="F")
        volume[np.unravel_index(self.index, self.shape)] = values
        return volume

    def write(self, folder: LocationLike, name: str, values: Array) -> None:
        with (as_location(folder) / self.files(name)[0]).writing() as file:
            self.write_into(file, values, packed=True)

    def write_into(self, file: IO[bytes], values: Array, *, packed: bool) -> None:
        """Write a NIfTI file, gzipped where it is ``packed``: the same numbers are the same bytes."""
        if not packed:
            return self._write_nifti(file, values)
        with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as pack:
            self._write_nifti(pack, values)

    def _write_nifti(self, file: Any, values: Array) -> None:
        """NIfTI-1, or NIfTI-2 for sides that NIfTI-1 can't hold: little-endian, unscaled, qform and sform alike."""
        nibabel = nibabel_library()
        volume = self.filled(values)
        make = nibabel.Nifti2Header if max(self.shape) >= _SHORT else nibabel.Nifti1Header
        header = make(endianness="<")
        header.set_data_dtype(volume.dtype)
        header.set_data_shape(self.shape)
        header.set_sform(self.affine, code="aligned")
        header.set_qform(self.affine, code="aligned", strip_shears=True)
        header.set_xyzt_units("mm")
        header.set_slope_inter(1, 0)
        header["magic"] = header.single_magic
        header["vox_offset"] = header.single_vox_offset
        start = io.BytesIO()
        header.write_to(start)
        file.write(start.getvalue().ljust(header.single_vox_offset, b"\0"))
        flat = volume.reshape(-1, order="F").view(np.uint8)
        for first in range(0, len(flat), _PIECE):
            file.write(flat[first : first + _PIECE].data)


@dataclass(frozen=True)
class Surface:
    """Vertices of hemispheres, one after the other, as the Algonauts challenge has them."""

    hemispheres: tuple[str, ...]
    """``lh`` and ``rh``, in the order of the vertices."""
    vertices: tuple[int, ...]
    """How many vertices each hemisphere has."""
    index: Array
    """int64 [voxels]: place among the vertices of all hemispheres."""

    @property
    def voxels(self) -> int:
        return len(self.index)

    @property
    def nbytes(self) -> int:
        return 8 * sum(self.vertices)

    def files(self, name: str) -> list[str]:
        return [f"{side}.{name}_challenge_space.npy" for side in self.hemispheres]

    def filled(self, values: Array) -> Array:
        """[vertices of all hemispheres]"""
        values = _as_stored(values)
        full = np.full(sum(self.vertices), _outside(values), values.dtype)
        full[self.index] = values
        return full

    def write(self, folder: LocationLike, name: str, values: Array) -> None:
        sides = np.split(self.filled(values), np.cumsum(self.vertices)[:-1])
        for file_name, side in zip(self.files(name), sides, strict=True):
            with (as_location(folder) / file_name).writing() as file:
                np.lib.format.write_array(file, side, version=(1, 0), allow_pickle=False)


def read_space(study: Study) -> Volume | Surface:
    """Where the voxels of a study lie, as voxels.npz says; raises InputError where it does not, or can't be read."""
    todo = "run the stage dataset again"
    try:
        with study.voxels.open() as file, np.load(file, allow_pickle=False) as found:
            names = set(found.files)
            if {"hemispheres", "vertices", "index"} <= names:
                sides, counts = found["hemispheres"].tolist(), found["vertices"].tolist()
                index = _checked(found["index"], sum(counts))
                return Surface(tuple(map(str, sides)), tuple(map(int, counts)), index)
            if {"shape", "affine", "index"} <= names and len(found["shape"]) == 3:
                x, y, z = (int(n) for n in found["shape"])
                affine = found["affine"].astype(np.float64).reshape(4, 4)
                return Volume((x, y, z), affine, _checked(found["index"], x * y * z))
    except FileNotFoundError:
        raise InputError(f"there is no {study.voxels} to say where the voxels lie", expected=_HAVE_SPACE) from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{study.voxels} can't be read ({error})", todo=todo) from None
    if "hemisphere" in names:
        raise InputError(
            f"{study.voxels} does not tell how many vertices each hemisphere has: an earlier leanrecon wrote it",
            todo=f"{todo} with --overwrite",
        )
    if "shape" in names and "affine" not in names:
        raise InputError(
            f"{study.voxels} has no affine, which says where a volume lies",
            expected=_HAVE_SPACE,
            todo="set dataset.mask, a NIfTI file, and run the stage dataset again with --overwrite",
        )
    raise InputError(
        f"{study.voxels} does not say where the voxels lie in a volume or on a surface",
        expected=_HAVE_SPACE,
        todo=f"`leanrecon export figures {study.root}` writes plots and tables, which need no places of voxels",
    )


def export_nifti(study: Study, vector: str | Path, out: str | Path) -> None:
    """Write one number a voxel, a ``.npy`` file, as a NIfTI volume in the subject's space; outside the mask it is NaN.

    Whole numbers stay whole, with 0 outside. Raises InputError where there are not as many numbers as voxels.
    """
    space = read_space(study)
    if not isinstance(space, Volume):
        raise InputError(f"the voxels of {study.root} lie on a surface", expected="voxels of a volume")
    try:
        values = np.load(vector, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{vector} can't be read: {error}", expected="a .npy file of one number a voxel") from error
    values = np.squeeze(values)
    if values.shape != (space.voxels,) or values.dtype.kind not in "biuf":
        raise InputError(
            f"{vector} holds {values.dtype} of shape {values.shape}",
            expected=f"one number for each of {space.voxels} voxels",
        )
    if not str(out).endswith((".nii", ".nii.gz")):
        raise InputError(f"{out} is not the name of a NIfTI file", expected="one that ends in .nii or .nii.gz")
    from leanrecon.places.files import write_whole

    packed = str(out).endswith(".gz")
    write_whole(Path(out), lambda file: space.write_into(file, values, packed=packed))


def _checked(index: Array, places: int) -> Array:
    if (
        index.ndim != 1
        or index.dtype.kind not in "iu"
        or not 0 <= index.min(initial=0) <= index.max(initial=0) < places
    ):
        raise ValueError(f"its voxels do not lie among {places} places")
    return index.astype(np.int64)


def _as_stored(values: Array) -> Array:
    """Float32, uint8 for truth values, and whole numbers as int32 or smaller."""
    if values.dtype.kind == "b":
        return values.view(np.uint8)
    if values.dtype.kind in "iu":
        return values.astype(np.int16 if values.dtype.itemsize <= 2 else np.int32, copy=False)
    return values.astype(np.float32, copy=False)


def _outside(values: Array) -> float | int:
    return np.nan if values.dtype.kind == "f" else 0
