"""Embeddings of all compared images by one judge, or their distances, kept on disk, and the metrics that follow from them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from leanrecon.context import Context
from leanrecon.errors import InputError
from leanrecon.evaluation.among import n_way
from leanrecon.evaluation.bootstrap import Scores
from leanrecon.evaluation.identification import distances, identify, squared_differences
from leanrecon.evaluation.image_sources import ImageSource
from leanrecon.evaluation.judges.judge import Judge, Measure
from leanrecon.evaluation.judges.pairs import KEPT, NO_OTHER, Seen, pair_distances, seen_in
from leanrecon.evaluation.plan import EMBEDDED, READERS, SLACK, encode_nbytes, staying_nbytes
from leanrecon.evaluation.pool import Part
from leanrecon.evaluation.source_from import source_from
from leanrecon.images import Array, ImageShape, resize
from leanrecon.places import Location, LocationLike, as_location
from leanrecon.stores.fingerprint import fingerprint
from leanrecon.stores.gather import gathered
from leanrecon.stores.matrix import Matrix, as_matrix, panels
from leanrecon.stores.shared import StorePart, receipts_of, share_rows
from leanrecon.stores.store import Store, remove

STIMULI = "stimuli"
"""The test stimuli among the sources."""

_FLOAT = 4


@dataclass(frozen=True)
class Embeddings:
    """The embeddings of one source's images, each different image once."""

    store: Store
    index: Array
    """The row of the store that every test row has, int [m]."""

    def rows(self) -> Array:
        """The embedding of every test row, float32 [m, dims]."""
        rows: Array = self.store[0 : self.store.rows][self.index]
        return rows

    def matrix(self) -> Matrix:
        """The same, read where it is needed."""
        return gathered(as_matrix(self.store), self.index)


def embed(
    judge: Judge,
    sources: Mapping[str, ImageSource],
    m: int,
    shape: ImageShape,
    folder: LocationLike,
    context: Context,
    every: Seen | None = None,
) -> dict[str, Embeddings]:
    """Embed the images that ``m`` test rows have from every source, in ``FOLDER/SOURCE.zarr`` each.

    Embeddings that are there already are kept; those of other images or of another network are replaced. Images with
    another aspect ratio than ``shape`` are resized to it first, so that a network that crops the centre sees the same
    part of each. The network is loaded only if an embedding is missing, and released at the end. A judge that compares
    two images at a time gives distances instead, and nothing for the stimuli alone. ``every`` holds the stimuli of
    all folds, where it finds another one if these rows show a single one. Raises InputError for embeddings that are
    not finite.
    """
    folder = as_location(folder)
    paths = {name: folder / f"{name.replace(' ', '_')}.zarr" for name in sources}
    for other in folder.glob("*.zarr"):
        if other not in paths.values():  # of a random pairing, a baseline or an area that is no longer asked for
            remove(other)
    made_of = {"judge": judge.made_of(), "shape": list(shape)}
    embeddings = {}
    try:
        for name, source in sources.items():
            if not hasattr(judge, "compare"):
                embedding = _Embedding(judge, source, m, shape, paths[name], made_of)
            elif name != STIMULI:
                embedding = _Distances(
                    judge, source, m, shape, paths[name], made_of, seen_in(sources[STIMULI], m, every)
                )
            else:
                continue
            embeddings[name] = embedding.run(context.named(f"{context.label}: embeddings by {judge.name}, {name}"))
    finally:
        judge.release()
    return embeddings


@dataclass(frozen=True)
class _Embedding:
    """The images of one source on their way into a store."""

    judge: Judge
    source: ImageSource
    m: int
    shape: ImageShape
    path: Location
    made_of: Mapping[str, Any]

    def run(self, context: Context) -> Embeddings:
        different, first, index = np.unique(self.numbers(), axis=0, return_index=True, return_inverse=True)
        images = {**self.contents(), "rows": fingerprint({"rows": different.tolist()})}
        store = Store.create(
            self.path,
            (len(different), self.judge.dims),
            np.float32,
            made_of={**self.made_of, "images": images},
            chunk=EMBEDDED * self.judge.dims * _FLOAT,
            overwrite=True,
        )
        missing = store.missing_row_groups()
        done = store.rows - sum(len(store.group_rows(i)) for i in missing)
        if missing:
            with context.task(total=store.rows, unit="images", done=done) as advance:
                if context.executor is not None and (given := self.plain()) is not None:
                    share_rows(store, context.executor, given, advance)
                for i in store.missing_row_groups():
                    self.fill(store, i, first)
                    advance(len(store.group_rows(i)))
        store.finish()
        return Embeddings(store, index.reshape(-1))

    def fill(self, store: Store, i: int, first: Array) -> None:
        """Write a group of rows of the store; ``first`` is a test row of every different image."""
        group = store.group_rows(i)
        store.write_rows(i, self.encoded(first[group.start : group.stop]))

    def first(self) -> Array:
        """A test row of every different image, int, in the order of the store."""
        found: Array = np.unique(self.numbers(), axis=0, return_index=True)[1]
        return found

    def plain(self) -> dict[str, Any] | None:
        """What a worker needs to embed images of the source (``piece``), in plain values; None for a single image."""
        source = self.source.plain()
        if source is None:
            return None
        path = self.path.place.address(self.path.key)
        return {"judge": self.judge.name, "source": source, "m": self.m, "shape": list(self.shape), "path": path}

    def numbers(self) -> Array:
        """What each test row is described by, int [m] or [m, numbers]; equal ones are described once."""
        return self.source.numbers(self.m)

    def contents(self) -> dict[str, str]:
        """Fingerprints of the images."""
        return {"content": self.source.content}

    def encoded(self, rows: Array) -> Array:
        """The embeddings of the images of some test rows, float32 [rows, dims]."""
        result = np.empty((len(rows), self.judge.dims), np.float32)
        for part in panels(len(rows), min(self.judge.batch, EMBEDDED)):
            result[part.start : part.stop] = self.described(rows[part.start : part.stop])
        if not np.isfinite(result).all():
            raise InputError(
                f"{self.judge.model} gives embeddings that are NaN or infinite ({self.path.stem})",
                expected="finite numbers",
                todo=f"set float32 as the precision of [judges.{self.judge.name}], or fetch its weights again",
            )
        return result

    def described(self, rows: Array) -> Array:
        """The embeddings of the images of at most ``batch`` test rows."""
        return self.judge.encode(self.read(self.source, rows))

    def read(self, source: ImageSource, rows: Array) -> Array:
        """The images of some test rows, uint8 [rows, height, width, channels]."""
        return np.stack([_same_aspect(source.read(int(row)), self.shape) for row in rows])


@dataclass(frozen=True)
class _Distances(_Embedding):
    """The same by a judge that compares two images at a time: a row is ``KEPT`` distances, not an embedding."""

    seen: Seen

    def plain(self) -> dict[str, Any] | None:
        if (given := super().plain()) is None:
            return None
        return given | {"stimuli": self.seen.images.plain(), "pool": [self.seen.rows, self.seen.first]}

    def numbers(self) -> Array:
        return np.stack(
            [*self.seen.numbers(self.m), self.source.numbers(self.m)], axis=1
        )  # in the order of the stimuli

    def contents(self) -> dict[str, str]:
        return {"content": self.source.content, "stimuli": self.seen.images.content}

    def described(self, rows: Array) -> Array:
        own, other = (numbers[rows] for numbers in self.seen.numbers(self.m))
        alone = other == NO_OTHER
        pairs = np.stack([own, np.where(alone, own, other)], axis=1)
        needed = np.unique(pairs)
        images = self.read(self.seen.images, self.seen.rows_of(needed))
        compare: Any = self.judge
        distances: Array = compare.compare(self.read(self.source, rows), images, np.searchsorted(needed, pairs))
        distances[alone, KEPT - 1] = NO_OTHER
        return distances


def piece(judge: Judge, named: Mapping[str, Any], context: Context) -> Callable[[Sequence[int]], Any]:
    """What a worker does: it embeds groups of rows of one source, in the store that ``embed`` began."""
    path, shape, m = as_location(named["path"]), tuple(named["shape"]), named["m"]
    one = _Embedding(judge, source_from(named["source"]), m, shape, path, {})
    if "stimuli" in named:
        one = _Distances(judge, one.source, m, shape, path, {}, Seen(source_from(named["stimuli"]), *named["pool"]))
    store, first = StorePart.begun(path, named["of"]), one.first()
    seen = one.source.read(0).shape
    chunks = READERS * context.chunk
    work = SLACK + staying_nbytes([judge]) + max(encode_nbytes(judge, of) for of in (seen, shape)) + chunks
    context.require(f"embeddings by {judge.name}", work)

    def work_on(groups: Sequence[int]) -> Any:
        for i in groups:
            one.fill(store, i, first)
        return receipts_of(store, [(i, j) for i in groups for j in range(store.column_groups)])

    return work_on


def _same_aspect(image: Array, shape: ImageShape) -> Array:
    """The image itself, or resized to ``shape`` where their aspect ratios differ by more than a rounded pixel."""
    height, width, channels = image.shape
    if abs(height * shape[1] - width * shape[0]) < max(shape[:2]):
        return image
    return resize(image, (shape[0], shape[1], channels))


def judge_scores(judge: Judge, embeddings: Mapping[str, Embeddings], names: Sequence[str]) -> dict[str, Scores]:
    """The metrics of every source's images by a judge, from the correlation of their embeddings with the stimuli's.

    ``two_way_NAME`` and ``top1_NAME`` with their reverse, ``distance_NAME``, ``mse_NAME``, ``way50_NAME`` or
    ``perceptual_NAME``, by what it measures. ``names`` holds the stimulus id of every test row. Sources without a metric,
    as where all rows show one stimulus, are left out.
    """
    scores = {
        name: judge_measure(judge, [Part(images.matrix(), stimuli_beside(name, embeddings).matrix())], names)[0]
        for name, images in embeddings.items()
        if name != STIMULI
    }
    return {name: of_source for name, of_source in scores.items() if of_source is not None}


def stimuli_beside(name: str, embeddings: Mapping[str, Embeddings]) -> Embeddings:
    """What a source's embeddings are compared with; distances hold the stimuli already, and stand for both."""
    return embeddings.get(STIMULI, embeddings[name])


def judge_measure(judge: Judge, parts: Sequence[Part], names: Sequence[str]) -> tuple[Scores | None, None]:
    """The scores of the embeddings of reconstructions and stimuli, by what the judge measures; None without any."""
    return _MEASURES[judge.measure](parts, names, judge.name), None


_MEASURES: dict[Measure, Callable[..., Scores | None]] = {
    "two_way": identify,
    "distance": distances,
    "mse": squared_differences,
    "classes": n_way,
    "perceptual": pair_distances,
}
