"""The trials of one session of NSD: out of an .hdf5 file the masked voxels alone, out of a .nii.gz all of it."""

import contextlib
import gzip
import hashlib
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from leanrecon.datasets.nsd.chunks import Located, locate, read_chunks
from leanrecon.datasets.nsd.hdf5_index import Layout, read_layout
from leanrecon.datasets.nsd.layout import BETAS_KEY, TRIALS
from leanrecon.datasets.nsd.voxels import Voxels, check_shape, nifti_errors, nifti_header
from leanrecon.errors import InputError
from leanrecon.memory import buffer
from leanrecon.net.ranges import SPAN, RangeFile
from leanrecon.places.disk import explained_disk_errors

Array = np.ndarray[Any, Any]

PIECE = 2 * 2**20
"""Bytes of a file that is fetched whole which one request asks for."""

_HEADER = 64 * 1024  # bytes of a .nii.gz in which its header is found


def betas_layout(file: RangeFile) -> Layout:
    """Find the betas of a session's .hdf5 file; raises InputError where they are not laid out as NSD's are."""
    layout = read_layout(file, BETAS_KEY)
    trials, *volume = layout.shape if len(layout.shape) == 4 else (0,)
    if len(volume) != 3 or layout.dtype.kind != "i" or layout.dtype.itemsize != 2:
        raise InputError(
            f"{layout.name} holds {layout.dtype} of shape {layout.shape}", expected="int16 [trials, z, y, x]"
        )
    if layout.chunk != (trials, 1, 1, 1):
        raise InputError(
            f"{layout.name} is {f'in chunks of {layout.chunk}' if layout.chunk else 'contiguous'}",
            expected=f"chunks of one voxel's {trials} trials",
            todo='set dataset.betas_format = "nii.gz"',
        )
    check_trials(layout.name, trials)
    return layout


def check_trials(name: str, trials: int) -> None:
    """Refuse a session that the design doesn't fit."""
    if trials != TRIALS:
        raise InputError(
            f"{name} has {trials} trials",
            expected=f"{TRIALS}, as the design of the experiment has them",
            todo="check that the file is whole and is one of NSD's",
        )


def locate_trials(file: RangeFile, voxels: Voxels) -> Located:
    """Find the chunks of the voxels in a session's .hdf5 file, in the order of the voxels."""
    layout = betas_layout(file)
    check_shape(layout.name, layout.shape[:0:-1], voxels.shape, "the mask")
    corners = np.zeros((len(voxels.index), 4), np.int64)
    corners[:, 1:] = voxels.corners[:, ::-1]
    return locate(layout, corners)


def read_hdf5(located: Located, held: int | None = None) -> Array:
    """The trials of a session, int16 [trials, voxels], from their chunks alone; ``held`` as ``read_chunks`` has it."""
    layout = located.layout
    out = buffer((len(located.place), TRIALS), np.int16)
    read_chunks(located, out.view(np.uint8), held)
    if layout.dtype.newbyteorder("=") != layout.dtype:
        out.byteswap(inplace=True)
    return out.T


def download(file: RangeFile, folder: Path) -> Path:
    """Fetch a whole file into ``folder``, going on where an earlier run stopped."""
    name = PurePosixPath(file.name).name
    target = folder / f"{name}.{hashlib.sha256(file.print.encode()).hexdigest()[:16]}.download"
    with explained_disk_errors(target):
        folder.mkdir(parents=True, exist_ok=True)
        for other in folder.glob(f"{name}.*.download"):
            if other != target:
                other.unlink()
        with target.open("ab") as out:
            done = out.tell()
            spans = [(start, min(start + PIECE, file.size)) for start in range(done, file.size, PIECE)]
            for data in file.in_order(spans, lambda _, data: data):
                out.write(data)
                out.flush()
    return target


def nifti_shape(file: RangeFile) -> tuple[int, ...]:
    """The shape that the header of a .nii.gz says."""
    try:
        start = zlib.decompressobj(31).decompress(bytes(file.fetch(0, min(file.size, _HEADER))), 2048)
    except zlib.error as error:
        raise _damaged(file.name, error) from error
    return tuple(nifti_header(file.name, start).get_data_shape())


def read_nifti(name: str, path: Path, voxels: Voxels, out: Array) -> None:
    """Fill ``out``, int16 [trials, voxels], from a .nii.gz, whose checksum stands at its end.

    Raises InputError for a damaged file, other types of numbers or another shape than the mask's.
    """
    try:
        with gzip.open(path, "rb") as file:
            header = nifti_header(name, file.read(540))
            shape, dtype = tuple(header.get_data_shape()), header.get_data_dtype()
            slope, shift = (float(header[key]) for key in ("scl_slope", "scl_inter"))
            if len(shape) != 4 or dtype.kind != "i" or dtype.itemsize != 2 or not (_is(slope, 0, 1) and _is(shift, 0)):
                raise InputError(
                    f"{name} holds {dtype} of shape {shape}, scaled by {slope:g} and shifted by {shift:g}",
                    expected="unscaled int16 [x, y, z, trials]",
                )
            check_shape(name, shape[:3], voxels.shape, "the mask")
            check_trials(name, shape[3])
            file.seek(int(header["vox_offset"]) or 352)
            volume = np.empty(int(np.prod(shape[:3])), dtype)
            index = np.ravel_multi_index(tuple(voxels.corners.T), voxels.shape, order="F")
            for row in out:
                _read_whole(file, volume)
                row[:] = volume[index]
            while file.read(PIECE):  # at its end what was unpacked is compared with the checksum
                pass
    except InputError:
        raise
    except nifti_errors() as error:
        raise _damaged(name, error) from error


def _damaged(name: str, error: object) -> InputError:
    return InputError(f"{name} is damaged or cut short: {error}", todo="copy it again, or leave out its session")


def _is(value: float, *allowed: float) -> bool:
    return np.isnan(value) or value in allowed


def _read_whole(file: Any, volume: Array) -> None:
    view = volume.data.cast("B")
    while view:
        n = file.readinto(view)
        if not n:
            raise EOFError("it ends within a volume")
        view = view[n:]


@contextlib.contextmanager
def session_trials(file: RangeFile, path: Path | None, voxels: Voxels, scratch: Path) -> Iterator[Array]:
    """The trials of one session from either kind of file, int16 [trials, voxels].

    ``path`` is where a .nii.gz lies on this disk; else it is fetched into ``scratch`` first, and removed once the block
    has ended well.
    """
    if file.name.endswith(".hdf5"):
        yield read_hdf5(locate_trials(file, voxels))
        return
    fetched = download(file, scratch) if path is None else path
    session = buffer((TRIALS, len(voxels.index)), np.int16)
    try:
        read_nifti(file.name, fetched, voxels, session)
    except InputError:
        if path is None:  # it may be this copy alone that is damaged: the next run fetches another
            fetched.unlink()
        raise
    yield session
    if path is None:
        fetched.unlink()


def session_nbytes(voxels: Voxels, names: Iterable[str], held: int, ahead: int = 1) -> int:
    """Most bytes of memory that sessions of files of these names take; ``held``: of ranges in memory, 0 from a disk.

    From afar, so many sessions of .hdf5 files come while the one before is written and the next one is located.
    """
    names = list(names)
    n, volume = len(voxels.index), int(np.prod(voxels.shape)) * 2
    session = n * (TRIALS * 2 + 200)
    surgical = (
        session * (1 + ahead if held else 1) + held + ahead * SPAN
        if any(name.endswith(".hdf5") for name in names)
        else 0
    )
    streamed = (
        2 * volume + held + PIECE + n * (TRIALS * 2 + 40) if any(name.endswith(".nii.gz") for name in names) else 0
    )
    return max(surgical, streamed)
