"""Copies of stores in the formats of other programs."""

import contextlib
import os
from pathlib import Path

import numpy as np

from leanrecon.errors import InputError
from leanrecon.places import LocationLike
from leanrecon.places.disk import explained_disk_errors
from leanrecon.progress import Progress
from leanrecon.stores.store import Store


def export_npy(path: LocationLike, file: "str | os.PathLike[str]", *, progress: Progress) -> None:
    """Copy a complete store into a local .npy file, holding one row group at a time."""
    store = Store.open(path)
    file = Path(file)
    if file.is_dir():
        raise InputError(f"{file} is a folder", expected="the name of an .npy file")
    partial = file.with_name(f"{file.name}.partial")
    with explained_disk_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as out:
                header = {"descr": store.dtype.str, "fortran_order": False, "shape": store.shape}
                np.lib.format.write_array_header_1_0(out, header)
                with progress.task("export", total=store.rows, unit="rows") as advance:
                    for i in range(store.row_groups):
                        group = store.group_rows(i)
                        out.write(np.ascontiguousarray(store[group.start : group.stop]).data)
                        advance(len(group))
            partial.replace(file)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
