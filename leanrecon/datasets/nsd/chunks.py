"""The wanted chunks of an HDF5 file that was written in their order: fetched together with the index that lists them.

HDF5 gives every chunk the next free place when it is first written, and every leaf of the index when the one before it
is full. So the addresses of leaves predict the address of each chunk between them. Leaves and chunks are fetched together,
near ones as one range. A chunk is used only if its leaf lists it there; the others are fetched from their true address.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from leanrecon.datasets.nsd.hdf5_index import (
    UNWRITTEN,
    Layout,
    Leaves,
    check_end,
    damaged,
    explained,
    find_leaves,
    leaf_addresses,
    leaf_entries,
    node_nbytes,
    numbers_of,
    rank_of,
)
from leanrecon.net.ranges import Bytes, coalesce

Array = np.ndarray[Any, Any]

NEAR = 8 * 1024
"""Bytes between chunks and leaves up to which they are fetched as one: 1.3 ms at 50 Mbit/s."""

FILLED = 0.9
"""Share of a node's entries that HDF5 leaves in it, where chunks are written in order and it had to be split."""

_ORDERLY = 0.9  # share of leaves that must lie as those of a file written in order


@dataclass(frozen=True)
class Located:
    """Wanted chunks of a file, ascending as HDF5 orders them."""

    layout: Layout
    place: Array
    """Which of the wanted corners each is."""
    ranks: Array
    address: Array
    """Its first byte; UNWRITTEN for one that is not known to lie anywhere."""
    leaves: Leaves | None
    """The leaves by which the addresses have yet to be checked; None where they come from them."""


def filled_entries(branching: int) -> int:
    """How many entries of a node are used where chunks were written in order."""
    return max(int(FILLED * 2 * branching), 1)


def locate(layout: Layout, corners: Array) -> Located:
    """Find the chunks with these corners, int64 [n, dimensions], in elements.

    Memory: a few hundred bytes a chunk. Raises InputError for a damaged index.
    """
    wanted = rank_of(corners, layout.shape)
    place = np.argsort(wanted, kind="stable")
    ranks = wanted[place]
    with explained(layout.file):
        leaves = find_leaves(layout, ranks)
        expected = _expected(layout, leaves, ranks)
        if expected is None:
            return Located(layout, place, ranks, leaf_addresses(layout, leaves, ranks), None)
        return Located(layout, place, ranks, expected, leaves)


def _expected(layout: Layout, leaves: Leaves, ranks: Array) -> Array | None:
    """Where chunks lie if they were written in order; None where the leaves say that they were not."""
    if leaves.root is not None or not len(leaves.address):
        return None
    size, node, room = layout.chunk_nbytes, node_nbytes(layout), 2 * layout.branching
    address, after, start = leaves.address, leaves.after, numbers_of(leaves.start, layout)
    before = np.where(leaves.before < 0, start - filled_entries(layout.branching), numbers_of(leaves.before, layout))
    before[start == 0] = -room - 1  # the first leaf had the place of the root until there was a second one
    told = (after >= 0) & (start > 0)
    orderly = (after - address == node + size * (start - before))[told]
    if not len(orderly) or orderly.mean() < _ORDERLY:
        return None
    of = np.empty(len(ranks), np.int64)
    for k in range(len(address)):
        of[leaves.own(k)] = k
    # A leaf was made, and so lies, right behind the chunk that found no room in the leaf before.
    number, made, next_made = numbers_of(ranks, layout), (before + room + 1)[of], (start + room + 1)[of]
    expected: Array = np.where(
        number < made,
        address[of] - size * (made - number),
        np.where(after[of] >= 0, after[of] - size * (next_made - number), address[of] + node + size * (number - made)),
    )
    expected[(expected < 0) | (expected + size > layout.file.size)] = UNWRITTEN
    return expected


def read_chunks(located: Located, out: Array, held: int | None = None) -> None:
    """Fill ``out``, uint8 [n, bytes of a chunk], in the order of the corners; zeros for a chunk that was never written.

    At most ``held`` bytes of ranges are in memory at once; the file's, where none are given. Raises InputError for a
    damaged index.
    """
    with explained(located.layout.file):
        found = _read(located, out, held)
        wrong = np.flatnonzero(found != located.address)
        if len(wrong):
            rest = Located(located.layout, located.place[wrong], located.ranks[wrong], found[wrong], None)
            _read(rest, out, held)


def _read(located: Located, out: Array, held: int | None) -> Array:
    """Read what lies at the addresses; returns those that the leaves list."""
    layout, address, leaves, place = located.layout, located.address, located.leaves, located.place.tolist()
    chunks = np.flatnonzero(address != UNWRITTEN)
    found = address if leaves is None else np.full(len(address), UNWRITTEN, np.int64)
    out[located.place[address == UNWRITTEN]] = 0
    size, n = layout.chunk_nbytes, len(chunks)
    starts, stops = address[chunks], address[chunks] + size
    if leaves is not None:
        starts, stops = np.append(starts, leaves.address), np.append(stops, leaves.address + node_nbytes(layout))
        stops = np.minimum(stops, layout.file.size)  # leaves at the end of a file may be cut to what they hold
        if (starts >= stops).any():
            raise damaged(layout.file, "its index lies beyond its end")
    order = np.argsort(starts, kind="stable")
    begins, ends, first = coalesce(starts[order], stops[order], gap=NEAR)
    lasts = [*first[1:].tolist(), len(order)]

    def take(k: int, data: Bytes) -> None:
        span = np.frombuffer(data, np.uint8)
        own = order[int(first[k]) : lasts[k]]
        at = zip(own.tolist(), (starts[own] - begins[k]).tolist(), (stops[own] - begins[k]).tolist(), strict=True)
        for i, begin, end in at:
            if i < n:
                out[place[chunks[i]]] = span[begin:end]
            elif leaves is not None:
                listed = leaves.own(i - n)
                found[listed] = leaf_entries(layout, data[begin:end], located.ranks[listed])

    for _ in layout.file.as_they_come(list(zip(begins.tolist(), ends.tolist(), strict=True)), take, held):
        pass
    check_end(layout, found)
    return found
