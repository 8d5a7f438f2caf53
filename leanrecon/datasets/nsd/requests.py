"""What a fetch asks of the network, before its index is read: requests and bytes, from headers, masks and the design.

HDF5 gives every chunk the next free place when it is first written, and every node of an index when the one before it
is full. A file that was written in the order of its chunks, as MATLAB writes an array, thus has each chunk and node at a
place that follows from its number. That order is taken for granted; a file of another order needs other requests.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from leanrecon.datasets.nsd.betas import PIECE, betas_layout
from leanrecon.datasets.nsd.chunks import NEAR, filled_entries
from leanrecon.datasets.nsd.files import Files
from leanrecon.datasets.nsd.hdf5_index import Layout, node_nbytes
from leanrecon.datasets.nsd.stimuli import lie_apart, spans_of, stored_shape
from leanrecon.net.ranges import GAP, coalesce
from leanrecon.stores.layout import plan_chunks

if TYPE_CHECKING:
    from leanrecon.datasets.nsd.dataset import NSDSettings
    from leanrecon.datasets.nsd.files import Prepared

Array = np.ndarray[Any, Any]

_ODD = 0.15  # how much emptier nodes have to be to be taken for those of another order


@dataclass(frozen=True)
class Moved:
    """What is asked of a server."""

    requests: int = 0
    nbytes: int = 0
    """Bytes that are received."""

    def __add__(self, other: "Moved") -> "Moved":
        return Moved(self.requests + other.requests, self.nbytes + other.nbytes)

    def __sub__(self, other: "Moved") -> "Moved":
        return Moved(self.requests - other.requests, self.nbytes - other.nbytes)


def planned_traffic(settings: "NSDSettings", prepared: "Prepared", images: Layout, files: Files, chunk: int) -> Moved:
    """All that a fetch moves where nothing fails.

    ``files`` have been asked for what a fetch asks for before its first session, and for nothing else: the headers of
    its file among it. Those of one session's .hdf5 file are read again; those of the others are taken to be alike.
    """
    moved, betas, header = _asked(files), None, Moved()
    names = list(prepared.betas.values())
    if (first := next((name for name in names if name.endswith(".hdf5")), None)) is not None:
        with Files(files.source, files.found).need(first) as file:
            betas = betas_layout(file)
        header = _asked(files) - moved
        if first == names[0]:
            moved -= header
    index = np.ravel_multi_index(tuple(prepared.voxels.corners.T[::-1]), prepared.voxels.shape[::-1])
    sessions: dict[int, Moved] = {}
    for name in prepared.betas.values():
        size = prepared.found[name].size
        if not name.endswith(".hdf5"):
            moved += Moved(-(-size // PIECE), size)
        elif betas is not None:
            if size not in sessions:
                sessions[size] = header + session_traffic(betas, index, size)
            moved += sessions[size]
    shape, every = stored_shape(images.shape, settings.image_size), np.unique(prepared.design.stimulus)
    for split in ("train", "test"):
        numbers = np.array(list(prepared.design.shown(split)), np.int64)
        rows = plan_chunks((len(numbers), *shape), np.uint8, chunk)[0]
        moved += images_traffic(images, numbers, every, np.arange(len(numbers)) // rows)
    return moved


def _asked(files: Files) -> Moved:
    return Moved(files.source.traffic.requests, files.source.traffic.nbytes)


def session_traffic(layout: Layout, index: Array, size: int) -> Moved:
    """Of the voxels with these numbers, in the file's order, and the nodes on the way to them; ``size`` of the file."""
    chunks = math.prod(layout.shape[1:])
    index = np.sort(index)
    tree = Tree.of(layout, chunks, size)
    starts, nbytes = tree.places(index), layout.chunk_nbytes
    if not tree.orderly or chunks <= tree.room:
        return tree.nodes_traffic(index) + _joined(starts, nbytes, NEAR)
    leaves, above = next(tree.levels(index)), tree.nodes_traffic(index, above=1)
    starts, stops = np.append(starts, leaves), np.append(starts + nbytes, leaves + tree.node)
    order = np.argsort(starts, kind="stable")
    begins, ends, _ = coalesce(starts[order], stops[order], gap=NEAR)
    return above + Moved(len(begins), int((ends - begins).sum()))


def images_traffic(layout: Layout, images: Array, every: Array, groups: Array) -> Moved:
    """Of images, ascending, of these row groups; ``every`` image that was shown is taken to be in the file."""
    nbytes = math.prod(layout.shape[1:])
    if layout.chunk is None:
        starts = images * nbytes
        begins, ends, _ = spans_of(starts, nbytes, groups)
        return Moved(len(begins), int((ends - begins).sum()))
    if not lie_apart(layout):
        tiles = math.prod(-(-n // c) for n, c in zip(layout.shape[1:], layout.chunk[1:], strict=True))
        units, shown = np.unique(images // layout.chunk[0]), np.unique(every // layout.chunk[0])
        tree, places = _written(layout, units, shown, -(-layout.shape[0] // layout.chunk[0]), tiles)
        chunks = (places[:, None] * tiles + np.arange(tiles)).reshape(-1)
        return tree.nodes_traffic(chunks) + Moved(len(chunks), len(chunks) * layout.chunk_nbytes)
    tree, places = _written(layout, images, every, layout.shape[0], 1)
    begins, ends, _ = spans_of(tree.places(places), nbytes, groups)
    return tree.nodes_traffic(places) + Moved(len(begins), int((ends - begins).sum()))


def _written(layout: Layout, wanted: Array, shown: Array, total: int, chunks: int) -> tuple["Tree", Array]:
    """The tree of what a file of images holds, and the places of what is wanted among it: numbers, ascending.

    ``shown`` holds all that is surely there, of ``total``; each of them has so many chunks. How many there are is told
    by the file's size, and those beside the shown ones are drawn among the rest.
    """
    node, filled = node_nbytes(layout), filled_entries(layout.branching)
    held = round(layout.file.size / (layout.chunk_nbytes + node / filled) / chunks)
    held = min(max(held, len(shown)), total)
    share = (held - len(shown)) / max(total - len(shown), 1)
    gaps = np.diff(shown, prepend=-1) - 1
    before = np.cumsum(np.random.default_rng(0).binomial(gaps, share))
    places = (np.arange(len(shown)) + before)[np.searchsorted(shown, wanted)]
    return Tree(layout.chunk_nbytes, node, filled, 2 * layout.branching, held * chunks), places


@dataclass(frozen=True)
class Tree:
    """Chunks that were written in order, and the nodes of their index between them."""

    chunk: int
    """Bytes of a chunk."""
    node: int
    """Bytes of a node."""
    filled: int
    """Entries of a node."""
    room: int
    """Most entries of a node: with more it is split."""
    chunks: int

    orderly: bool = True
    """Whether its chunks were written in order."""

    @classmethod
    def of(cls, layout: Layout, chunks: int, size: int) -> "Tree":
        """The tree of a file of this size; how full its nodes are is told by what the chunks leave of it."""
        node, filled = node_nbytes(layout), filled_entries(layout.branching)
        told = chunks * node / max(size - chunks * layout.chunk_nbytes, 1)
        orderly = not 0 < told < (1 - _ODD) * filled
        if not orderly:  # nodes are half empty
            filled = max(round(told), 1)
        return cls(layout.chunk_nbytes, node, filled, 2 * layout.branching, chunks, orderly)

    def places(self, chunks: Array) -> Array:
        """The first bytes of chunks, from the beginning of the first one."""
        found: Array = chunks * self.chunk + self._before(chunks) * self.node
        return found

    def nodes_traffic(self, chunks: Array, above: int = 0) -> Moved:
        """The nodes on the way to these chunks, ascending, from the leaves or from the level ``above`` to the root."""
        moved = Moved(1, self.node)
        for starts in itertools.islice(self.levels(chunks), above, None):
            moved += _joined(starts, self.node)
        return moved

    def levels(self, chunks: Array) -> Iterator[Array]:
        """The first bytes of the nodes on the way to these chunks, level by level from the leaves to below the root."""
        each, count, split = self.filled, self.chunks, self.room
        while count > self.room:
            count = -(-count // self.filled)
            own = np.unique(chunks // each)
            # A node is made when the one before it is full; the first one moves away from the root's place then.
            after = np.maximum(own - 1, 0) * each + split
            yield np.sort(self.places(after) + self.chunk + np.where(own == 0, self.node, 0))
            split += (self.room - 1) * each
            each *= self.filled

    def _before(self, chunks: Array) -> Array:
        """How many leaves lie before chunks: one more whenever the last one is full, and two at the first time."""
        made: Array = np.maximum((chunks - self.room - 1) // self.filled + 1, 0)
        return np.where(made > 0, made + 1, 0)


def _joined(starts: Array, nbytes: int, gap: int = GAP) -> Moved:
    """Ranges of so many bytes, joined as they are fetched."""
    begins, ends, _ = coalesce(starts, starts + nbytes, gap=gap)
    return Moved(len(begins), int((ends - begins).sum()))
