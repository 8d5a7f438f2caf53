"""The gallery of `leanrecon retrieve`: a folder of images, a store of images, or a store of features."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leanrecon.context import Context
from leanrecon.datasets.files.folder import ENDINGS, decoding_nbytes, image_size, read_image
from leanrecon.errors import InputError
from leanrecon.features.extract import extract
from leanrecon.images import Array, ImageShape
from leanrecon.places import Location
from leanrecon.stores.fingerprint import fingerprint
from leanrecon.stores.images import ImageReader, image_shape
from leanrecon.stores.layout import plan_chunks
from leanrecon.stores.matrix import panels
from leanrecon.stores.store import Store, remove

_FLOAT = 4


@dataclass
class Gallery:
    """The pictures by number: their names, the pictures themselves, and their features."""

    names: list[str]
    source: Any
    """The files, a store of images, or None if only features are given."""
    features: Store

    def picture(self, number: int) -> Array | None:
        """One picture, uint8 [height, width, channels]; None if there are only features."""
        if isinstance(self.source, list):
            file = self.source[number]
            height, width, _ = image_size(file)
            return read_image(file, (height, width, 3))
        if self.source is None:
            return None
        images: ImageReader = self.source
        image: Array = images.read(range(number, number + 1), np.empty(images.images.columns, np.uint8))[0]
        return image.copy()


def open_gallery(path: Path, space: Any, shape: ImageShape, folder: Location, context: Context) -> Gallery:
    """The gallery at a path, with its features in ``space`` under ``folder``, which a stopped run continues.

    Pictures of a folder are brought to ``shape``, that of the study's stimuli, as the images of a dataset are. Raises InputError for a path without
    pictures, or with features of another length.
    """
    if not path.exists():
        raise InputError(
            f"there is no {path}", expected="a folder of pictures, or a store (.zarr) of images or features"
        )
    if (path / "zarr.json").exists():
        return _of_store(Store.open(path), space, shape, folder, context)
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in ENDINGS) if path.is_dir() else []
    if not files:
        raise InputError(f"{path} holds no pictures", expected=f"a folder with files of {', '.join(ENDINGS)}")
    names = [file.relative_to(path).as_posix() for file in files]
    return Gallery(names, files, _encoded(files, names, space, shape, folder / "features.zarr", context))


def _of_store(store: Store, space: Any, shape: ImageShape, folder: Location, context: Context) -> Gallery:
    names = [str(number) for number in range(store.rows)]
    if len(store.shape) == 4:
        found = image_shape(store)
        if space.dims(found) != space.dims(shape):
            raise InputError(
                f"{store.path} holds images of {found[0]} × {found[1]} × {found[2]}, whose {space.name} has another length",
                expected=f"images of {shape[0]} × {shape[1]} × {shape[2]}, as the study's",
            )
        made_of = fingerprint({"images": store.content, "space": space.made_of()})
        target = folder / f"of-{made_of[:16]}.zarr"
        for other in folder.glob("*.zarr"):
            if other != target:  # of another gallery
                remove(other)
        return Gallery(names, ImageReader(store), extract(space, store, target, context))
    if store.dtype != np.float32 or len(store.shape) != 2 or store.columns != space.dims(shape):
        raise InputError(
            f"{store.path} holds {store.dtype} {list(store.shape)}",
            expected=f"images, or features of {space.name}: float32 [rows, {space.dims(shape)}]",
        )
    return Gallery(names, None, store)


def _encoded(
    files: list[Path], names: list[str], space: Any, shape: ImageShape, target: Location, context: Context
) -> Store:
    """The features of all files, float32 [files, dims], written group by group."""
    dims, cost = space.dims(shape), space.cost(shape)
    stamps = [[name, file.stat().st_size, file.stat().st_mtime_ns] for name, file in zip(names, files, strict=True)]
    store = Store.create(
        target,
        (len(files), dims),
        np.float32,
        made_of={
            "files": fingerprint({"files": stamps}),
            "space": space.made_of(),
            "shape": list(shape),
            "read": "as stimuli",
        },
        chunk=context.chunk,
        overwrite=True,
    )
    missing = store.missing_row_groups()
    if not missing:
        store.finish()
        return store
    rows, columns = plan_chunks((len(files), dims), np.float32, context.chunk)
    image = int(np.prod(shape))
    batch = max(min(cost.batch, 64), 1)
    held = (
        min(rows, len(files)) * dims * _FLOAT + 2 * rows * columns * _FLOAT + 20_000_000 + decoding_nbytes(files, shape)
    )
    context.require("retrieve", cost.held + batch * (cost.per_image + 2 * image + dims * _FLOAT) + held)
    done = store.rows - sum(len(store.group_rows(i)) for i in missing)
    with context.task(total=store.rows, unit="pictures", done=done) as advance:
        for i in missing:
            group = store.group_rows(i)
            encoded = np.concatenate(
                [
                    _encode(space, files, range(group.start + p.start, group.start + p.stop), shape)
                    for p in panels(len(group), batch)
                ]
            )
            store.write_rows(i, encoded)
            advance(len(group))
    store.finish()
    return store


def _encode(space: Any, files: list[Path], rows: range, shape: ImageShape) -> Array:
    images = [read_image(files[row], shape) for row in rows]
    encoded: Array = space.encode(np.stack(images), rows)
    if not np.isfinite(encoded).all():
        raise InputError(
            f"the feature space {space.name} gave NaN or infinite numbers for {files[rows.start]} or after it",
            expected="finite features",
            todo='check that picture; a network in float16 may need precision = "float32"',
        )
    return encoded


def cells(numbers: Array, r: Array, gallery: Gallery) -> Iterator[tuple[int, str, float]]:
    """Rank, name and correlation of the pictures of one test row."""
    for rank, (number, value) in enumerate(zip(numbers.tolist(), r.tolist(), strict=True), start=1):
        yield rank, gallery.names[number], value
