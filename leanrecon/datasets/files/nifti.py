"""NIfTI files of responses: each volume is a row, read one after the other; masks and areas as volumes."""

import gzip
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from leanrecon.datasets.files.rows import BLOCK, Block, Rows, explained_damage, row_blocks, unreadable
from leanrecon.errors import InputError, SettingsError, installing
from leanrecon.places.inputs import PAGE, InputFile, open_buffered, open_raw, size_of, streamed
from leanrecon.places.location import Location

Array = np.ndarray[Any, Any]

SUFFIXES = (".nii", ".nii.gz")

NEAR = 1e-3
"""Largest difference between two affines, in millimetres a voxel, that rounding explains."""

_NIFTI2 = 540
"""The number that a header of NIfTI-2 begins with: its size."""

_PIECE = 2**20  # bytes of a compressed file that are unpacked together where nothing of them is wanted


@dataclass(frozen=True)
class NiftiHeader:
    """What the header of a NIfTI file (1 or 2, either byte order) says; its numbers are not read."""

    path: InputFile
    shape: tuple[int, ...]
    """[x, y, z] or [x, y, z, volumes]."""
    dtype: Any
    """As stored."""
    slope: float
    inter: float
    """Numbers are ``slope * stored + inter``."""
    offset: int
    """Bytes before the first number."""
    affine: Array
    """[4, 4]: from voxel numbers to millimetres."""

    @property
    def volumes(self) -> int:
        return self.shape[3] if len(self.shape) == 4 else 1

    @property
    def grid(self) -> tuple[int, int, int]:
        return self.shape[0], self.shape[1], self.shape[2]

    @property
    def scaled(self) -> bool:
        return self.slope != 1 or self.inter != 0

    @classmethod
    def read(cls, path: InputFile) -> "NiftiHeader":
        """Read a header; raises InputError for damaged files, and for numbers that are not real."""
        nibabel = nibabel_library()
        with explained_damage(str(path)):
            image = _loaded(nibabel, path)
            if type(image) not in (nibabel.Nifti1Image, nibabel.Nifti2Image):
                raise InputError(
                    f"{path} is of another kind of file ({type(image).__name__.removesuffix('Image')})",
                    expected="volumes in one NIfTI file, .nii or .nii.gz",
                    todo="convert it, as by nibabel.save(nibabel.Nifti1Image(values, affine), PATH)",
                )
            data = image.dataobj
            shape, dtype = tuple(int(n) for n in image.shape), np.dtype(data.dtype)
            affine = np.asarray(image.affine, np.float64)
            slope, inter, offset = float(data.slope), float(data.inter), int(data.offset)
        while len(shape) > 4 and 1 in shape[3:]:  # some programs write [x, y, z, 1, volumes]
            shape = (*shape[:3], *(n for n in shape[3:] if n != 1))
        if len(shape) not in (3, 4) or math.prod(shape) == 0:
            raise InputError(f"{path} has shape {shape}", expected="[x, y, z] or [x, y, z, volumes]")
        if dtype.kind not in "biuf":
            raise InputError(f"{path} holds {dtype} values", expected="real numbers")
        return cls(path, shape, dtype, slope, inter, offset, affine)


def _loaded(nibabel: Any, path: InputFile) -> Any:
    """The image of a file, of which only the header has been read."""
    if not isinstance(path, Location):
        with path.open("rb"):  # nibabel does not say why a file can't be opened
            pass
        return nibabel.load(path)
    if not path.name.endswith(SUFFIXES):
        raise InputError(f"{path} is of an unknown kind", expected="volumes in one NIfTI file, .nii or .nii.gz")
    packed = path.name.endswith(".gz")
    file = gzip.GzipFile(fileobj=open_buffered(path)) if packed else open_buffered(path)
    size = {int.from_bytes(file.peek(4)[:4], order) for order in ("little", "big")}
    kind = nibabel.Nifti2Image if _NIFTI2 in size else nibabel.Nifti1Image
    return kind.from_file_map({"image": nibabel.FileHolder(str(path), file)})


class NiftiRows(Rows):
    """The volumes of one NIfTI file as rows of the voxels in ``index``: float32 [volumes, voxels].

    ``index`` holds places in the flattened volume in C order, ascending. A ``.nii.gz`` is unpacked as a stream: one
    volume is held, and rows are best read in ascending order. Its checksum is compared once all has been read.
    """

    spans = False

    def __init__(self, header: NiftiHeader, index: Array) -> None:
        super().__init__(header.path, None, (header.volumes, len(index)), np.float32)
        self.header = header
        self.sequential = header.path.name.endswith(".gz")
        corners = np.unravel_index(index, header.grid)
        places = np.ravel_multi_index(corners, header.grid, order="F")  # NIfTI runs along x first
        self.first = int(places.min()) if len(places) else 0
        self.span = int(places.max()) + 1 - self.first if len(places) else 0
        self.places = places - self.first
        self.volume_nbytes = math.prod(header.grid) * header.dtype.itemsize
        self.held = 2 * self.volume_nbytes
        self.scratch = 3 * max(BLOCK, self.row_nbytes) + 16 * len(index)
        self._file: Any = None
        self._volume: Array | None = None

    @cached_property
    def nbytes(self) -> int:
        """Bytes of the file."""
        return size_of(self.path)

    def asked(self, at_once: int) -> int:
        together = self.sequential or self.span * self.header.dtype.itemsize <= PAGE
        return 1 + (streamed(self.nbytes) if together else len(self))

    def blocks(self, index: Array) -> Iterator[Block]:
        at_once = max(BLOCK // max(self.row_nbytes, 1), 1)
        for rows, first, last, picks in row_blocks(index, at_once):
            wanted = np.arange(first, last)[picks]
            block = np.empty((len(wanted), len(self.places)), np.float32)
            for k, row in enumerate(wanted.tolist()):
                block[k] = self._row(row)
            yield rows, (), block

    def _row(self, row: int) -> Array:
        header = self.header
        if self._volume is None:
            self._volume = np.empty(self.span, header.dtype)
        self._read(header.offset + row * self.volume_nbytes + self.first * header.dtype.itemsize, self._volume)
        return self._scaled(self._volume[self.places])

    def whole(self) -> Array:
        """The first volume, all of it: float32 [x, y, z]."""
        memory = np.empty(math.prod(self.header.grid), self.header.dtype)
        self._read(self.header.offset, memory)
        return self._scaled(memory).reshape(self.header.grid, order="F")

    def _scaled(self, values: Array) -> Array:
        if self.header.scaled:
            values = values.astype(np.float64)
            values *= self.header.slope
            values += self.header.inter
        with np.errstate(over="ignore"):  # what doesn't fit float32 becomes infinite, which is looked for later
            return values.astype(np.float32, copy=False)

    def _read(self, offset: int, memory: Array) -> None:
        with explained_damage(self.name):
            if self._file is None:
                self._file = self._opened()
            if not self.sequential:
                self._file.seek(offset)
            else:
                if self._file.tell() > offset:
                    self._file.rewind()
                while (gap := offset - self._file.tell()) > 0 and self._file.read(min(gap, _PIECE)):
                    pass
            view = memory.view(np.uint8).data
            while view:
                n = self._file.readinto(view)
                if not n:
                    raise unreadable(self.name, "it ends within a volume")
                view = view[n:]

    def _opened(self) -> Any:
        if not self.sequential:
            return open_raw(self.path)
        return gzip.GzipFile(fileobj=open_buffered(self.path)) if self.away else gzip.GzipFile(self.path)

    def locate(self, row: int) -> str:
        return f"volume {row} of {self.name}"

    def release(self) -> None:
        """Compare the checksum of a .nii.gz that has been read to its last volume, and close it."""
        file, self._file, self._volume = self._file, None, None
        if file is None:
            return
        try:
            if self.sequential and file.tell() >= self.header.offset + (len(self) - 1) * self.volume_nbytes + self.span:
                with explained_damage(self.name):
                    while file.read(_PIECE):
                        pass
        finally:
            file.close()


def read_volume(path: InputFile) -> tuple[NiftiHeader, Array]:
    """A NIfTI volume of three dimensions as it is stored, [x, y, z], with its header."""
    header = NiftiHeader.read(path)
    if header.volumes != 1:
        raise InputError(f"{path} holds {header.volumes} volumes", expected="one volume")
    rows = NiftiRows(header, np.arange(1))
    try:
        return header, rows.whole()
    finally:
        rows.release()


def is_inside(header: NiftiHeader, values: Array) -> Array:
    """Which voxels of a mask are in it: bool [x, y, z].

    Programs that save a mask again scale it, so that its zeros may come back as small numbers. Values up to half a step
    of the stored integers, or a thousandth of the largest value, count as 0.
    """
    largest = float(np.nanmax(np.abs(values), initial=0))
    step = abs(header.slope) / 2 if header.dtype.kind in "iu" and header.scaled else 0.0
    inside: Array = np.nan_to_num(values) > max(step, 1e-3 * largest)
    return inside


def check_grid(header: NiftiHeader, reference: NiftiHeader) -> None:
    """Refuse a file of another shape than the reference, or one that lies elsewhere in space."""
    if header.grid != reference.grid:
        raise InputError(
            f"{header.path} has {'x'.join(map(str, header.grid))} voxels and {reference.path} "
            f"{'x'.join(map(str, reference.grid))}",
            expected="one grid for betas, mask and areas",
            todo="resample the mask and the areas to the betas' grid (nilearn.image.resample_to_img, nearest)",
        )
    difference = float(np.abs(header.affine - reference.affine).max())
    if difference > NEAR:
        raise InputError(
            f"the affines of {header.path} and {reference.path} differ by {difference:.3g}",
            expected="one affine for betas, mask and areas",
            todo="resample to the betas' grid, or copy their affine if only the header is wrong",
        )


def nibabel_library() -> Any:
    """nibabel, or an error that says how to get it."""
    try:
        import nibabel
    except ImportError:
        raise SettingsError("reading NIfTI files needs nibabel", todo=installing("nsd")) from None
    return nibabel
