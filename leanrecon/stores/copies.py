"""Copies of complete stores and folders of images: continued where they broke off, and read back."""

import itertools
from typing import Any

import numpy as np

from leanrecon.errors import StoreError
from leanrecon.memory import buffer
from leanrecon.places import LocationLike, as_location
from leanrecon.progress import Advance
from leanrecon.stores import metadata
from leanrecon.stores.pictures import Pictures
from leanrecon.stores.pictures import distrust as distrust_pictures
from leanrecon.stores.pictures import remove as remove_pictures
from leanrecon.stores.store import Store, remove

Kept = Store | Pictures


def opened(path: LocationLike) -> Kept | None:
    """The store or the folder of images at a location, complete or not; None where there is none."""
    path = as_location(path)
    if (path / metadata.NAME).is_file():
        return Store.open(path, incomplete=True)
    return Pictures.open(path, incomplete=True) if Pictures.there(path) else None


def distrust(path: LocationLike) -> bool:
    """Mark the damaged record of a store or of a folder of images as one to be proven; False where it had to go."""
    path = as_location(path)
    return metadata.distrust(path) if (path / metadata.NAME).is_file() else distrust_pictures(path)


def removed(path: LocationLike) -> None:
    """Remove the store or the folder of images at a location."""
    (remove_pictures if Pictures.there(path) else remove)(path)


def is_copy(source: Kept, target: Kept | None) -> bool:
    """Whether a complete store or folder of images has its complete copy."""
    return (
        target is not None
        and type(target) is type(source)
        and target.complete
        and target.made_of == source.made_of
        and target.content == source.content
    )


def copy(source: Kept, path: LocationLike, advance: Advance) -> list[Any]:
    """Copy a complete store or folder of images; returns the chunks or rows that are damaged in the source.

    Every part is checked as it is read, written whole, and read back. Only a copy without damage is marked as
    complete. A store or folder made of something else is replaced.
    Raises StoreError where the copy can't be written, or does not read as it was written.
    """
    return _copy_store(source, path, advance) if isinstance(source, Store) else _copy_pictures(source, path, advance)


def _copy_store(source: Store, path: LocationLike, advance: Advance) -> list[tuple[int, int]]:
    target = Store.begin_copy(source, path)
    memory = buffer((source.buffer_nbytes(),), np.uint8)
    damaged = []
    for i, j in itertools.product(range(source.row_groups), range(source.column_groups)):
        if not (target.has(i, j) and source.has(i, j) and target.checksum(i, j) == source.checksum(i, j)):
            try:
                block = source.read_chunk(i, j, memory)
            except StoreError:
                damaged.append((i, j))
                continue
            rows, columns = len(source.group_rows(i)), len(source.group_columns(j))
            target.write_chunk(i, j, block[:rows, :columns])
            target.read_chunk(i, j, memory)
        advance(1)
    if not damaged:
        target.finish()
        _check(source, target)
    return damaged


def _copy_pictures(source: Pictures, path: LocationLike, advance: Advance) -> list[int]:
    target = Pictures.open(path, incomplete=True) if Pictures.there(path) else None
    if target is not None and (target.complete or target.made_of != source.made_of):
        remove_pictures(path)  # complete, and yet not the same images
    if damaged := [row for row, _ in source.damage()]:
        return damaged
    target = Pictures.create(path, source.rows, source.shape, made_of=source.made_of)
    target.copy(source)
    target.finish()
    _check(source, target)
    for _, what in target.damage():
        raise StoreError(what, todo="check the drive it was just written to, and run the same command again")
    advance(source.rows)
    return []


def _check(source: Kept, target: Kept) -> None:
    if target.content != source.content:
        removed(target.path)
        raise StoreError(
            f"{source.path} changed while it was copied to {target.path}, or since an earlier copy was stopped",
            todo="run the same command again to copy it anew",
        )
