"""What a network says of the images that are compared, kept on disk: embeddings, and identification by them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from leanrecon.errors import InputError
from leanrecon.evaluation.bootstrap import Scores
from leanrecon.evaluation.identification import identify, identify_nbytes
from leanrecon.evaluation.sources import Images
from leanrecon.images import Array, ImageShape, resize
from leanrecon.progress import Progress
from leanrecon.stores.fingerprint import fingerprint
from leanrecon.stores.matrix import as_matrix, panels
from leanrecon.stores.store import Store, remove

GROUP = 32
"""Images whose embeddings are written together: what a kill loses at most, 77 s of ViT-L/14 on one core."""

STIMULI = "stimuli"
"""The test stimuli among the sources."""

READERS = 3
"""Sources that hold a chunk of stimuli: the test stimuli, random and nearest train images."""

_FLOAT = 4


class Encoder(Protocol):
    """A network that describes images by rows of numbers; its weights are loaded when they are first needed."""

    model: str
    """What it is called in a report."""
    batch: int
    """Images that are handed over together."""

    @property
    def dims(self) -> int:
        """Length of an embedding."""

    @property
    def staying_nbytes(self) -> int:
        """Memory of libraries that stays once it was used."""

    def work_nbytes(self, shape: ImageShape) -> int:
        """Memory beyond it that images of a shape take, with weights that are still to be loaded."""

    def made_of(self) -> dict[str, Any]:
        """All that decides embeddings, as plain values."""

    def encode(self, images: Array) -> Array:
        """Embeddings [b, dims] in float32 of uint8 images [b, height, width, channels]."""

    def release(self) -> None:
        """Give the memory of the weights back."""


@dataclass(frozen=True)
class Embedded:
    """The embeddings of one source's images, each different image once."""

    store: Store
    index: Array
    """The row of the store that every test row has, int [m]."""

    def rows(self) -> Array:
        """The embedding of every test row, float32 [m, dims]."""
        found: Array = self.store[0 : self.store.rows][self.index]
        return found


def embed_nbytes(encoder: Encoder, shapes: Sequence[ImageShape], m: int, chunk: int) -> int:
    """Memory that ``embed`` and ``identified`` take, in bytes, of images of these shapes; ``chunk`` is one of stimuli."""
    drawing = max(
        encoder.work_nbytes(shape) + (2 * min(encoder.batch, GROUP) + 2) * math.prod(shape) for shape in shapes
    )
    identifying = 4 * m * encoder.dims * _FLOAT + identify_nbytes(m, encoder.dims)
    return max(drawing + 4 * GROUP * encoder.dims * _FLOAT, identifying) + READERS * chunk


def embed(
    encoder: Encoder,
    sources: Mapping[str, Images],
    m: int,
    shape: ImageShape,
    folder: Path,
    *,
    progress: Progress,
    label: str = "evaluate",
) -> dict[str, Embedded]:
    """Describe the images that ``m`` test rows have from every source, in a store each; what is there already is kept.

    Stores of other images or by another network are replaced, as figures are. Images with other ratios of their sides
    than ``shape`` are brought to it first, so that networks that cut out the middle are shown the same part of each.
    The network is given back at the end, and loaded only if an embedding is lacking. Raises InputError for embeddings
    that are not finite.
    """
    paths = {name: folder / f"{name.replace(' ', '_')}.zarr" for name in sources}
    for other in set(folder.glob("*.zarr")) - set(paths.values()):
        remove(other)  # of a permutation or a baseline that is no longer asked for
    made_of = {"encoder": encoder.made_of(), "shape": list(shape)}
    try:
        return {
            name: _embed(encoder, source, m, shape, paths[name], made_of, progress, f"{label}: embeddings, {name}")
            for name, source in sources.items()
        }
    finally:
        encoder.release()


def _embed(
    encoder: Encoder,
    source: Images,
    m: int,
    shape: ImageShape,
    path: Path,
    made_of: Mapping[str, Any],
    progress: Progress,
    label: str,
) -> Embedded:
    different, first, index = np.unique(source.numbers(m), return_index=True, return_inverse=True)
    images = {"content": source.content, "rows": fingerprint({"rows": different.tolist()})}
    store = Store.create(
        path,
        (len(different), encoder.dims),
        np.float32,
        made_of={**made_of, "images": images},
        chunk=GROUP * encoder.dims * _FLOAT,
        overwrite=True,
    )
    missing = store.missing_row_groups()
    done = store.rows - sum(len(store.group_rows(i)) for i in missing)
    if missing:
        with progress.task(label, total=store.rows, unit="images", done=done) as advance:
            for i in missing:
                group = store.group_rows(i)
                rows = np.empty((len(group), encoder.dims), np.float32)
                for part in panels(len(group), min(encoder.batch, GROUP)):
                    found = [_alike(source.read(int(first[group.start + k])), shape) for k in part]
                    rows[part.start : part.stop] = encoder.encode(np.stack(found))
                if not np.isfinite(rows).all():
                    raise InputError(
                        f"{encoder.model} gives embeddings that are NaN or infinite ({path.stem})",
                        expected="finite numbers",
                        todo='try evaluate.clip_precision = "float32", or fetch its weights again',
                    )
                store.write_rows(i, rows)
                advance(len(group))
    store.finish()
    return Embedded(store, index)


def _alike(image: Array, shape: ImageShape) -> Array:
    """The image itself, or at the size of ``shape`` if its sides have another ratio by more than a rounded pixel."""
    height, width, channels = image.shape
    if abs(height * shape[1] - width * shape[0]) < max(shape[:2]):
        return image
    return resize(image, (shape[0], shape[1], channels))


def identified(embedded: Mapping[str, Embedded], names: Sequence[str]) -> dict[str, Scores]:
    """Identification of every source's images by the correlation of their embeddings with those of the stimuli.

    ``names`` says which stimulus every test row shows; empty where all show the same.
    """
    seen = as_matrix(embedded[STIMULI].rows())
    found = {
        name: identify(as_matrix(images.rows()), seen, names, "clip")
        for name, images in embedded.items()
        if name != STIMULI
    }
    return {name: scores for name, scores in found.items() if scores is not None}
