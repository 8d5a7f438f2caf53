"""The images of NSD that a subject saw, from the file of all 73,000, and their captions."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leanrecon.datasets.files.captions import cell_text, stream_captions
from leanrecon.datasets.files.open import find_file, open_array
from leanrecon.datasets.nsd.hdf5_index import UNWRITTEN, Layout, locate_chunks, read_layout
from leanrecon.datasets.nsd.layout import STIMULI_KEY
from leanrecon.errors import InputError
from leanrecon.images import ImageShape, resize
from leanrecon.net.ranges import SPAN, Bytes, RangeFile, coalesce

Array = np.ndarray[Any, Any]
Place = Callable[[int], Array]

_NEAR = 4096  # bytes between two images up to which one request fetches both: images are large
_AHEAD = 2  # times as much is fetched ahead: a connection that begins anew takes 1.2 s for an image at 200 ms
_CAPTION_ROWS = 256  # rows of captions that are read together


def stimuli_layout(file: RangeFile) -> Layout:
    """Find the images; raises InputError if they are not uint8 [images, height, width, 3]."""
    layout = read_layout(file, STIMULI_KEY)
    if len(layout.shape) != 4 or layout.shape[3] != 3 or layout.dtype != np.uint8:
        raise InputError(
            f"{layout.name} holds {layout.dtype} of shape {layout.shape}", expected="uint8 [images, height, width, 3]"
        )
    return layout


def stored_shape(shape: Sequence[int], size: int | None) -> ImageShape:
    """Height, width and channels of the images in the study; ``shape`` is that of the file."""
    height, width, channels = shape[1:]
    return (size, size, channels) if size else (height, width, channels)


@dataclass(frozen=True)
class _Unit:
    """Images in the same chunks of the file."""

    first: int
    """Number of the first image."""
    images: Array
    """The needed images, counted from the first."""
    addresses: Array
    """First bytes of its chunks."""


def read_images(
    layout: Layout, images: Array, shape: ImageShape, place: Place, groups: Array | None = None
) -> Iterator[list[int]]:
    """Read the wanted images (numbers, ascending) into their places; yield which of them are there, as they come.

    ``place(k)`` gives the memory of the k-th image, uint8 [*shape], just before it is read. ``groups`` numbers the group
    of each image, ascending; at most ``open_groups`` groups are incomplete at once. Images that lie apart are fetched
    separately; a chunk with several images is fetched once.
    """
    if len(images) and (images[0] < 0 or images[-1] >= layout.shape[0]):
        raise InputError(
            f"{layout.name} holds {layout.shape[0]} images, and number {images[-1]} is needed",
            expected="the images that the design of the experiment shows",
        )
    if lie_apart(layout):
        of = np.zeros(len(images), np.int64) if groups is None else groups
        yield from read_apart(layout.file, layout.shape, locate_images(layout, images), shape, place, of)
    else:
        yield from _read_chunks(layout, images, shape, place)


def lie_apart(layout: Layout) -> bool:
    """Whether each image is one run of bytes."""
    return layout.chunk is None or layout.chunk == (1, *layout.shape[1:])


def locate_images(layout: Layout, images: Array) -> Array:
    """The first bytes of images (numbers, ascending) that lie apart; raises InputError for images that are not there."""
    nbytes = int(np.prod(layout.shape[1:]))
    if layout.chunk is None:
        address = np.full(len(images), UNWRITTEN if layout.address is None else layout.address, np.int64)
        starts: Array = _written(layout, address, images) + images * nbytes
        if len(starts) and starts[-1] + nbytes > layout.file.size:
            raise InputError(f"{layout.name} is cut short", todo="copy it again")
        return starts
    corners = np.zeros((len(images), 4), np.int64)
    corners[:, 0] = images
    return _written(layout, locate_chunks(layout, corners), images)


def spans_of(starts: Array, nbytes: int, groups: Array) -> tuple[Array, Array, Array]:
    """What is fetched as one of images of ``nbytes``, sorted by group and first byte: as ``coalesce`` gives it."""
    joined = []
    for group in np.split(np.arange(len(starts)), np.flatnonzero(np.diff(groups)) + 1):
        a, b, of_first = coalesce(starts[group], starts[group] + nbytes, gap=_NEAR)
        joined.append((a, b, of_first + group[:1].sum()))
    begins, ends, first = (np.concatenate(parts) for parts in zip(*joined, strict=True))
    return begins, ends, first


def read_apart(
    file: RangeFile, of_file: Sequence[int], starts: Array, shape: ImageShape, place: Place, groups: Array
) -> Iterator[list[int]]:
    """Read images whose first bytes are known, as ``read_images`` does; ``of_file`` is the shape of the file's images."""
    pixels = tuple(of_file[1:])
    nbytes = int(np.prod(pixels))
    order = np.lexsort((starts, groups))
    starts = starts[order]
    begins, ends, first = spans_of(starts, nbytes, groups[order])
    lasts = [*first[1:].tolist(), len(starts)]
    numbers = np.unique(groups[order[first]], return_inverse=True)[1].tolist()
    places: dict[int, list[Array]] = {}

    def into(k: int) -> memoryview | None:
        places[k] = [place(int(i)) for i in order[int(first[k]) : lasts[k]]]
        alone = shape == pixels and len(places[k]) == 1
        return places[k][0].reshape(-1).data if alone else None

    def cut(k: int, data: Bytes) -> list[int]:
        own = slice(int(first[k]), lasts[k])
        targets = places.pop(k)
        if shape != pixels or len(targets) > 1:
            for target, at in zip(targets, (starts[own] - begins[k]).tolist(), strict=True):
                target[:] = resize(np.frombuffer(data, np.uint8, nbytes, at).reshape(pixels), shape)
        return order[own].tolist()  # type: ignore[no-any-return]

    spans = list(zip(begins.tolist(), ends.tolist(), strict=True))
    rows = int(np.bincount(groups - groups[0]).max()) if len(groups) else 1
    most = open_groups(of_file, shape, file.held, rows)
    held = _ahead(shape == pixels, file.held)
    yield from file.as_they_come(spans, cut, held, into=into, group=lambda k: numbers[k], groups=most)


def open_groups(of_file: Sequence[int], shape: ImageShape, held: int, rows: int) -> int:
    """The most groups of ``rows`` images that are open at once: as many as hold the bytes under way, and one more."""
    return 1 + -(-_ahead(tuple(of_file[1:]) == tuple(shape), held) // (math.prod(of_file[1:]) * rows))


def _ahead(as_stored: bool, held: int) -> int:
    """Bytes that are under way at once: more where an image is received where it stays, and so takes its bytes only once."""
    return held * _AHEAD if as_stored else held


def _read_chunks(layout: Layout, images: Array, shape: ImageShape, place: Place) -> Iterator[list[int]]:
    """Images in chunks that hold several of them, or parts of them."""
    assert layout.chunk is not None
    depth = layout.chunk[0]
    grid = [range(0, n, c) for n, c in zip(layout.shape[1:], layout.chunk[1:], strict=True)]
    tiles = np.stack([axis.reshape(-1) for axis in np.meshgrid(*grid, indexing="ij")], axis=1)
    groups, of_image = np.unique(images // depth, return_inverse=True)
    corners = np.empty((len(groups), len(tiles), 4), np.int64)
    corners[:, :, 0] = groups[:, None] * depth
    corners[:, :, 1:] = tiles
    addresses = locate_chunks(layout, corners.reshape(-1, 4)).reshape(len(groups), len(tiles))
    for g, group in enumerate(groups.tolist()):
        own = np.flatnonzero(of_image == g)
        unit = _Unit(group * depth, images[own] - group * depth, _written(layout, addresses[g], images[own]))
        for k, image in zip(own.tolist(), _assemble(layout, unit, tiles), strict=True):
            place(k)[:] = resize(image, shape)
        yield own.tolist()


def _assemble(layout: Layout, unit: _Unit, tiles: Array) -> Array:
    """The wanted images of one unit, [n, height, width, channels]."""
    assert layout.chunk is not None
    whole = np.empty((len(unit.images), *layout.shape[1:]), np.uint8)
    spans = [(int(a), int(a) + layout.chunk_nbytes) for a in unit.addresses]
    chunks = layout.file.in_order(spans, lambda _, data: data)
    for data, (y, x, c) in zip(chunks, tiles.tolist(), strict=True):
        chunk = np.frombuffer(data, np.uint8).reshape(layout.chunk)
        part = whole[:, y : y + layout.chunk[1], x : x + layout.chunk[2], c : c + layout.chunk[3]]
        part[:] = chunk[unit.images, : part.shape[1], : part.shape[2], : part.shape[3]]
    return whole


def _written(layout: Layout, addresses: Array, images: Array) -> Array:
    if (addresses == UNWRITTEN).any():
        raise InputError(
            f"{layout.name} lacks images that were shown, such as one of {images[0]} to {images[-1]}",
            expected="all images that the design of the experiment shows",
            todo="check that stimuli and design belong together",
        )
    return addresses


def apart_nbytes(of_file: Sequence[int], shape: ImageShape, held: int, rows: int) -> int:
    """The most bytes of memory for reading images that lie apart into groups of ``rows``.

    ``held`` is of ranges in memory, 0 from a disk.
    """
    image, kept = math.prod(of_file[1:]), math.prod(shape)
    places = open_groups(of_file, shape, held, rows) * rows * kept
    as_stored = tuple(of_file[1:]) == tuple(shape)
    ranges = _ahead(as_stored, held) + max(SPAN, image)
    if as_stored:
        return places + (ranges if 2 * image <= SPAN else 0)  # ranges of several images have memory of their own
    return places + ranges + (ranges // image + 1) * (image + kept)


def together_nbytes(layout: Layout, shape: ImageShape) -> int:
    """The most bytes of memory for reading images whose chunks hold several of them, or parts of them."""
    assert layout.chunk is not None
    image, kept = int(np.prod(layout.shape[1:])), int(np.prod(shape))
    return layout.file.held + 2 * layout.chunk_nbytes + layout.chunk[0] * (image + 2 * kept)


def captions_of(spec: str, images: Sequence[int], total: int, base_dir: Path | None) -> list[list[str]]:
    """The captions of these images in the annotation file, one or more sentences for each image.

    The file has a row for each of NSD's ``total`` images: ``COCO_73k_annots_curated.npy``, or any that kind
    ``arrays`` reads. Raises InputError for another number of rows and for images without a caption.
    """
    path = find_file(spec, base_dir)
    if path is None or path.suffix.lower() != ".npy":
        kept: dict[int, list[str]] = {int(image): [] for image in images}
        last = -1
        for row, text in stream_captions(spec, None, base_dir):
            last = max(last, row)
            if text and row in kept:
                kept[row].append(text)
        _check_captions(spec, last + 1, total)
        for image, texts in kept.items():
            if not texts:
                raise InputError(f"row {image} of {spec} has no caption", expected="one or more an image")
        return [kept[int(image)] for image in images]
    with open_array(spec, None, base_dir) as rows:
        _check_captions(rows.name, len(rows), total)
        if rows.dtype.kind not in "US":
            raise InputError(f"{rows.name} holds {rows.kind}", expected="captions: strings")
        wanted = np.unique(np.asarray(images, np.int64))
        found: dict[int, list[str]] = {}
        for start in range(0, len(wanted), _CAPTION_ROWS):
            index = wanted[start : start + _CAPTION_ROWS]
            out = np.empty((len(index), *rows.shape[1:]), rows.dtype)
            rows.read(index, out)
            for image, cells in zip(index.tolist(), out.reshape(len(index), -1), strict=True):
                texts = [cell_text(rows.name, image, cells[k : k + 1]).strip() for k in range(len(cells))]
                found[image] = [text for text in texts if text]
                if not found[image]:
                    raise InputError(f"row {image} of {rows.name} has no caption", expected="one or more an image")
    return [found[image] for image in images]


def _check_captions(name: str, rows: int, total: int) -> None:
    if rows != total:
        raise InputError(f"{name} has {rows} rows", expected=f"one for each of {total} images")
