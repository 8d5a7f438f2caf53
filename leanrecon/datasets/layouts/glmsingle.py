"""Outputs of GLMsingle (Prince et al. 2022): ``betasmd`` of one model, with a table of the trials in their order."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel

from leanrecon.datasets.builder.dataset import Builder
from leanrecon.datasets.builder.settings import FolderSettings, TrialsSettings
from leanrecon.datasets.files.rows import BLOCK, Block, Rows
from leanrecon.errors import InputError
from leanrecon.places.inputs import InputFile, is_url
from leanrecon.places.location import elsewhere
from leanrecon.progress import counted

if TYPE_CHECKING:
    from leanrecon.datasets.builder.materials import Materials

Array = np.ndarray[Any, Any]

MODEL = "TYPED_FITHRF_GLMDENOISE_RR"
KEY = "betasmd"


class GLMsingleSettings(TrialsSettings, FolderSettings):
    """``[dataset] kind = "glmsingle"``: betas as GLMsingle writes them in MATLAB or Python.

    ``root`` is the folder of the outputs, or the file ``TYPED_FITHRF_GLMDENOISE_RR.hdf5`` or ``.mat``.
    """

    kind: Literal["glmsingle"] = "glmsingle"
    """Outputs of GLMsingle."""

    def _find_root(self, base_dir: Path | None) -> object:
        return self.root if is_url(self.root) else _model_file(self.root, base_dir)


class GLMsingle(Builder):
    """Outputs of GLMsingle as a dataset."""

    Settings: ClassVar[type[BaseModel]] = GLMsingleSettings

    def materials(self, base_dir: Path | None) -> "Materials":
        """Open the betas, the table, the mask and the areas. Betas are (x, y, z, trials) or (voxels, trials)."""
        from leanrecon.datasets.builder.materials import Materials, VoxelTable
        from leanrecon.datasets.files.named import needed_file
        from leanrecon.datasets.files.table import read_table, table_nbytes
        from leanrecon.datasets.nifti.read import area_masks, shown_images, trials_of

        settings = self.settings
        path = _model_file(settings.root, base_dir)
        betas = LastAxis(path)
        table_path = needed_file(settings.trials, base_dir, "trials")
        trials = trials_of(read_table(table_path))
        files = [path, table_path]
        reference = None
        if settings.mask is not None:
            from leanrecon.datasets.files.nifti import is_inside, read_volume

            mask_path = needed_file(settings.mask, base_dir, "mask")
            reference, mask = read_volume(mask_path)
            inside = is_inside(reference, mask)
            index, columns = np.flatnonzero(inside.reshape(-1)), betas.columns_of(inside)
            if columns is None:
                raise InputError(
                    f"{mask_path} has shape {mask.shape} with {counted(len(index), 'voxels')} inside, and "
                    f"{betas.name} {betas.volume}",
                    expected="one grid of voxels, or betas of all voxels of the grid or of the mask as (voxels, trials)",
                )
            files.append(mask_path)
        else:
            index = columns = np.flatnonzero(np.isfinite(betas[0:1][0]))
        areas: dict[str, Array] = {}
        area_files: list[InputFile] = []
        if settings.areas is not None:
            if reference is None:
                raise InputError(
                    "dataset.areas are NIfTI files, and there is no mask to compare them with", todo="set dataset.mask"
                )
            areas, area_files = area_masks(settings.areas, settings.area_names, reference, index, base_dir)
        trials, images = shown_images(settings.images, trials, settings.image_size, base_dir)
        about: dict[str, Any] = {"index": index, "shape": np.array(betas.volume)}
        if reference is not None:
            about |= {"shape": np.array(reference.grid), "affine": reference.affine}
        return Materials(
            responses=betas.picked(columns),
            trials=trials,
            voxels=VoxelTable(len(index), areas, about),
            images=images,
            files=[*files, *area_files],
            held=table_nbytes(table_path) + 40 * len(index),
        )


def _model_file(root: str, base_dir: Path | None) -> InputFile:
    from leanrecon.datasets.layouts.files import one_of
    from leanrecon.places.paths import find

    path: InputFile | None = elsewhere(root) if is_url(root) else find(root, base_dir)
    if path is None:
        raise InputError(f"dataset.root: there is nothing at {root}", todo="check the path")
    if path.is_dir():
        if (path / f"{MODEL}.npy").is_file() and not any(
            (path / f"{MODEL}{end}").is_file() for end in (".hdf5", ".mat")
        ):
            path = path / f"{MODEL}.npy"
        else:
            path = one_of(path, [f"{MODEL}.hdf5", f"{MODEL}.mat"], "output of GLMsingle")
    if path.suffix == ".npy":
        raise InputError(
            f"{path} is a pickle, which is never loaded: a pickle can run any program",
            expected=f"{MODEL}.hdf5 or .mat",
            todo="let GLMsingle write HDF5 (wantfileoutputs with wanthdf5 = 1), or save betasmd with h5py",
        )
    return path


class LastAxis(Rows):
    """``betasmd`` with trials on its last axis, as rows of voxels in C order over the volume: float32 [trials, voxels]."""

    def __init__(self, path: InputFile, index: Array | None = None) -> None:
        from leanrecon.datasets.files.hdf5 import is_hdf5, open_h5

        if not is_hdf5(path):
            raise InputError(f"{path} is not an HDF5 file", expected="GLMsingle's .hdf5, or .mat of version 7.3")
        self.opened = open_h5(path, KEY)
        self.data, self.matlab = self.opened.dataset, self.opened.transposed
        data, shape = self.data, self.opened.shape
        if len(shape) not in (2, 4) or data.dtype.kind not in "iuf" or 0 in shape:
            raise InputError(
                f"{path}:{KEY} holds {data.dtype} of shape {shape}", expected="(x, y, z, trials) or (voxels, trials)"
            )
        self.volume = shape[:-1]
        self.index = np.arange(math.prod(self.volume)) if index is None else index
        super().__init__(path, KEY, (shape[-1], len(self.index)), np.float32)
        self.together = 1 if self.matlab else len(self)
        chunk = math.prod(data.chunks or (0,)) * data.dtype.itemsize
        whole = math.prod(self.volume) * 8
        self.scratch = 4 * BLOCK + 2 * chunk + (3 * whole if self.matlab else 0) + 16 * len(self.index)

    def columns_of(self, inside: Array) -> Array | None:
        """Where the betas of each voxel of a mask lie, voxels in C order of the mask; None if the mask does not fit.

        (voxels, trials) may hold the whole grid or the voxels of the mask alone, in the order in which the program
        that wrote them counts: x runs first in MATLAB, z in Python.
        """
        places = np.flatnonzero(inside.reshape(-1))
        if inside.shape == self.volume:
            return places
        if math.prod(self.volume) != self.volume[0]:
            return None
        if self.matlab:
            places = np.ravel_multi_index(np.unravel_index(places, inside.shape), inside.shape, order="F")
        if self.volume[0] == inside.size:
            return places
        return np.argsort(np.argsort(places)) if self.volume[0] == len(places) else None

    def picked(self, index: Array) -> "LastAxis":
        """The same betas of some voxels."""
        self.close()
        return LastAxis(self.path, index)

    def blocks(self, index: Array) -> Iterator[Block]:
        yield from self._by_trial(index) if self.matlab else self._by_voxel(index)

    def _by_trial(self, index: Array) -> Iterator[Block]:
        """MATLAB keeps the volume of a trial together, x running first."""
        for k, trial in enumerate(index.tolist()):
            volume = self._read((trial,)).T  # [x, y, z] or [voxels]
            yield slice(k, k + 1), (), volume.reshape(-1)[self.index][None].astype(np.float32)

    def _by_voxel(self, index: Array) -> Iterator[Block]:
        """Python keeps the trials of a voxel together: slabs along the first axis are read, all trials of the span."""
        if not len(index):
            return
        first, last = int(index[0]), int(index[-1]) + 1
        rest = math.prod(self.volume[1:])
        at_once = max(BLOCK // max(rest * (last - first) * self.data.dtype.itemsize, 1), 1)
        for start in range(0, self.volume[0], at_once):
            stop = min(start + at_once, self.volume[0])
            a, b = (int(at) for at in np.searchsorted(self.index, [start * rest, stop * rest]))
            if a == b:
                continue
            slab = self._read((slice(start, stop), *[slice(None)] * (len(self.volume) - 1), slice(first, last)))
            picked = slab.reshape(-1, last - first)[self.index[a:b] - start * rest]
            yield slice(0, len(index)), (slice(a, b),), picked[:, index - first].T.astype(np.float32)

    def _read(self, region: tuple[Any, ...]) -> Array:
        from leanrecon.datasets.files.rows import explained_damage

        with explained_damage(self.name):
            block: Array = self.data[region]
        return block

    def locate(self, row: int) -> str:
        return f"trial {row} of {self.name}"

    def close(self) -> None:
        self.opened.close()
