"""Members by some of their areas alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from leanrecon.errors import InputError
from leanrecon.stores.fingerprint import fingerprint
from leanrecon.stores.matrix import ColumnSubset, as_matrix
from leanrecon.stores.store import Store
from leanrecon.study.layout import Study
from leanrecon.study.voxels import read_areas
from leanrecon.validation import nearest

Array = np.ndarray[Any, Any]


class ChosenVoxels(ColumnSubset):
    """Some columns of a store of betas; also read by slices of rows, as a store is."""

    def __init__(self, store: Store, voxels: Array) -> None:
        super().__init__(as_matrix(store), voxels)
        self.rows, self.columns = self.shape
        self.content = fingerprint({"betas": store.content, "voxels": voxels.tolist()})

    def buffer_nbytes(self) -> int:
        """Bytes that reading a panel takes."""
        return self.scratch_nbytes

    def __getitem__(self, rows: slice) -> Array:
        wanted = range(self.rows)[rows]
        result = np.empty((len(wanted), self.columns), self.dtype)
        self.read(wanted, range(self.columns), result)
        return result


def in_areas(name: str, study: Study, betas: Mapping[str, Store], areas: Sequence[str]) -> dict[str, ChosenVoxels]:
    """A member's betas of the voxels of some areas, by split; raises InputError for an area that it does not have."""
    try:
        masks = read_areas(study)
    except InputError as error:
        raise InputError(
            f"dataset.voxels: the study of {name} does not say which area each voxel is in",
            expected="members whose voxels have areas",
            todo=f"leave out dataset.voxels, or give {name} areas",
        ) from error
    for area in areas:
        if area not in masks:
            raise InputError(
                f"dataset.voxels: {name} has no area {area} ({nearest(area, masks)})",
                expected=f"areas that every member has; those of {name} are {', '.join(sorted(masks))}",
                todo=f"leave {area} out, or leave {name} out of the group",
            )
    voxels = np.flatnonzero(np.logical_or.reduce([masks[area] for area in areas]))
    return {split: ChosenVoxels(store, voxels) for split, store in betas.items()}
