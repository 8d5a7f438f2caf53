"""What files in a bucket are: arrays, one by one or in a folder, volumes and tables."""

from leanrecon.datasets.files.open import SUFFIXES
from leanrecon.datasets.inspect.inspect import LISTED, TABLES, Inspection, arrays_of, of_file
from leanrecon.errors import InputError
from leanrecon.places.location import Location

READ = (*SUFFIXES, *TABLES, ".nii", ".gz")
"""Endings of the files that are looked into."""


def inspect_away(where: Location) -> Inspection:
    """Look at a file of a bucket, or at the arrays directly in a folder; raises InputError where there is nothing."""
    if where.suffix.lower() in READ:
        return of_file(where)
    names = [name.rstrip("/") for name in where.place.children(where.key)]
    if not names:
        raise InputError(f"there is nothing at {where}", todo="check the URL")
    arrays = [where / name for name in names if where.with_name(name).suffix.lower() in SUFFIXES]
    if not arrays:
        return Inspection(
            "unknown",
            [
                f"a folder of a bucket without arrays: it holds {', '.join(names[:LISTED])}",
                "published layouts are told from folders on a disk; docs/datasets.md shows their settings",
            ],
        )
    return arrays_of(arrays)
