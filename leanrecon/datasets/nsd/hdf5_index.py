"""The positions of the numbers of a dataset in an HDF5 file: headers, and the index nodes above the needed chunks.

HDF5 itself reads one index node after the other (a minute a file at 30 ms a request). It also crashes the interpreter
at exit if a file that is read through Python can't be opened. So this module reads the few structures that matter, and
all index nodes of a level at once. HDF5 writes these formats by default, and MATLAB always (HDF5 File Format
Specification 3.0): superblocks of version 0 and 1 (II.A), groups in B-trees of version 1 (III.A.1, III.B, III.D),
object headers of version 1 (IV.A.1), data layouts of version 3 (IV.A.2.i).
"""

import contextlib
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from leanrecon.errors import InputError
from leanrecon.net.ranges import Bytes, RangeFile, coalesce

Array = np.ndarray[Any, Any]

UNWRITTEN = -1
"""The address of a chunk that was never written."""

_UNDEFINED = 2**64 - 1
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_SPACE, _TYPE, _ELSEWHERE, _LAYOUT = 0x0001, 0x0003, 0x0007, 0x0008  # types of header messages
_FILTERS, _CONTINUATION, _GROUP = 0x000B, 0x0010, 0x0011


@dataclass(frozen=True)
class Layout:
    """One dataset of numbers and its position in the file."""

    file: RangeFile
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunk: tuple[int, ...] | None
    """None: contiguous."""
    address: int | None
    """First byte of the numbers, or of the root of the chunks' index; None if nothing was written."""
    branching: int
    """Half of the entries that a node of the index has room for."""
    base: int

    @property
    def chunk_nbytes(self) -> int:
        return math.prod(self.chunk or self.shape) * self.dtype.itemsize


class UnknownLayoutError(InputError):
    """A sound HDF5 file in a format whose parts can't be found without reading all of it."""


def read_layout(file: RangeFile, key: str) -> Layout:
    """Find a dataset in the root group of a file.

    Raises InputError for a damaged file and a missing dataset, UnknownLayoutError for other formats.
    """
    with explained(file):
        return _read_layout(file, key)


def _read_layout(file: RangeFile, key: str) -> Layout:
    block = _Superblock.read(file)
    links = _links(file, block)
    if key not in links:
        raise InputError(f"{file.name} has no dataset {key!r}", expected=f"one of {', '.join(links) or 'none'}")
    messages = _messages(file, links[key], block.base)
    name = f"{file.name}:{key}"
    if any(kind not in messages for kind in (_SPACE, _TYPE, _LAYOUT)):
        raise InputError(f"{name} is not a dataset", expected="an array of numbers")
    shape, dtype = _shape(messages[_SPACE]), _dtype(messages[_TYPE])
    if messages.get(_FILTERS, b"\0\0")[1]:
        raise UnknownLayoutError(
            f"{name} is compressed", expected="plain chunks", todo="unpack a copy of it: h5repack -f NONE"
        )
    message = messages[_LAYOUT]
    if message[:2] not in (b"\x03\x01", b"\x03\x02") or _ELSEWHERE in messages:
        raise UnknownLayoutError(
            f"the layout of {name} is of version {message[0]}, class {message[1]}",
            expected="numbers in the file itself, as HDF5 1.8 and before lay them out (libver 'earliest')",
        )
    if message[1] == 1:
        address, chunk = struct.unpack_from("<Q", message, 2)[0], None
    else:
        address = struct.unpack_from("<Q", message, 3)[0]
        chunk = tuple(struct.unpack_from(f"<{len(shape)}I", message, 11))
    where = None if address == _UNDEFINED else address + block.base
    return Layout(file, name, shape, dtype, chunk, where, block.branching, block.base)


def locate_chunks(layout: Layout, corners: Array) -> Array:
    """First bytes of the chunks with these corners (int64 [n, dimensions], in elements); UNWRITTEN if there is none.

    Memory: a few hundred bytes a chunk. Raises InputError for a damaged index.
    """
    with explained(layout.file):
        return _locate_chunks(layout, corners)


def _locate_chunks(layout: Layout, corners: Array) -> Array:
    wanted = rank_of(corners, layout.shape)
    order = np.argsort(wanted, kind="stable")
    ranks = wanted[order]
    addresses = np.empty(len(ranks), np.int64)
    addresses[order] = leaf_addresses(layout, find_leaves(layout, ranks), ranks)
    return addresses


@dataclass(frozen=True)
class Leaves:
    """The nodes of an index that list wanted chunks, ascending by address, as the nodes above tell of them.

    A chunk's rank orders chunks as HDF5 does. All are int64 [leaves].
    """

    address: Array
    first: Array
    """The first wanted chunk that each lists."""
    last: Array
    """The wanted chunk behind its last one."""
    start: Array
    """Rank of its first chunk, wanted or not."""
    before: Array
    """Rank of the first chunk of the leaf before; -1 where another node tells of it."""
    after: Array
    """Address of the leaf behind; -1 where another node tells of it."""
    root: Bytes | None = None
    """The only node, where there are no others."""

    def own(self, k: int) -> slice:
        """The wanted chunks that leaf ``k`` lists."""
        return slice(int(self.first[k]), int(self.last[k]))


def find_leaves(layout: Layout, ranks: Array) -> Leaves:
    """The leaves that list chunks of these ranks, ascending: the nodes above them are read.

    Raises InputError for a damaged index.
    """
    nodes: list[tuple[int, ...]] = []
    if layout.address is not None and len(ranks):
        nodes.append((layout.address, 0, len(ranks), 0, -1, -1))
    level: int | None = None
    while nodes and level != 1:
        below: list[tuple[int, ...]] = []
        for (_, first, last, *_), node in zip(nodes, fetch_nodes(layout, [n[0] for n in nodes]), strict=True):
            keys, children, own = _parse(layout, node)
            if level is not None and own != level - 1:
                raise damaged(layout.file, "its index is not a tree")
            if own == 0:
                return Leaves(*_columns(nodes), root=node)
            cuts = np.searchsorted(ranks[first:last], keys) + first
            cuts[0], cuts[-1] = first, last
            before, after = np.append(-1, keys[:-2]), np.append(children[1:], -1)
            table = np.stack([children, cuts[:-1], cuts[1:], keys[:-1], before, after], axis=1)
            below += map(tuple, table[cuts[1:] > cuts[:-1]].tolist())
        level = own
        nodes = sorted(below)
    return Leaves(*_columns(nodes))


def _columns(nodes: list[tuple[int, ...]]) -> tuple[Array, Array, Array, Array, Array, Array]:
    address, first, last, start, before, after = np.array(nodes, np.int64).reshape(-1, 6).T
    return address, first, last, start, before, after


def leaf_addresses(layout: Layout, leaves: Leaves, ranks: Array) -> Array:
    """Addresses of the chunks of these ranks, ascending, from their leaves; UNWRITTEN where there is none."""
    found = np.full(len(ranks), UNWRITTEN, np.int64)
    nodes = fetch_nodes(layout, leaves.address.tolist()) if leaves.root is None else [leaves.root]
    for k, node in enumerate(nodes):
        found[leaves.own(k)] = leaf_entries(layout, node, ranks[leaves.own(k)])
    check_end(layout, found)
    return found


def leaf_entries(layout: Layout, node: Bytes, ranks: Array) -> Array:
    """Addresses of the chunks of these ranks, ascending, that a leaf of the index lists; UNWRITTEN for the others."""
    keys, children, level = _parse(layout, node)
    if level:
        raise damaged(layout.file, "its index is not a tree")
    at = np.minimum(np.searchsorted(keys[:-1], ranks), len(children) - 1)
    return np.where(keys[at] == ranks, children[at], UNWRITTEN)


def check_end(layout: Layout, addresses: Array) -> None:
    """Refuse a file that ends before chunks at these addresses do."""
    if ((addresses != UNWRITTEN) & (addresses + layout.chunk_nbytes > layout.file.size)).any():
        raise damaged(layout.file, f"it ends at byte {layout.file.size}, before chunks that it lists")


def damaged(file: RangeFile, what: object) -> InputError:
    """The error of a damaged file."""
    return InputError(f"{file.name} is damaged or cut short: {what}", todo="copy it again, or do without it")


@contextlib.contextmanager
def explained(file: RangeFile) -> Iterator[None]:
    """Raise InputError if the headers of a file have impossible values."""
    try:
        yield
    except InputError:
        raise
    except (struct.error, IndexError, OverflowError, ValueError, TypeError) as error:
        raise damaged(file, f"its headers make no sense ({error})") from error


def rank_of(corners: Array, shape: tuple[int, ...]) -> Array:
    """One number for each corner, in HDF5's order: by the first dimension, then the second, …"""
    rank = np.zeros(len(corners), np.int64)
    for axis, n in enumerate(shape):
        rank = rank * (2 * n + 2) + corners[:, axis]  # the last key of a node may lie one chunk beyond the edge
    return rank


def numbers_of(ranks: Array, layout: Layout) -> Array:
    """The number of the chunk of each rank in HDF5's order, had all of the grid been written."""
    assert layout.chunk is not None
    left, number, stride = ranks.copy(), np.zeros(len(ranks), np.int64), 1
    for n, size in zip(reversed(layout.shape), reversed(layout.chunk), strict=True):
        left, corner = np.divmod(left, 2 * n + 2)
        number += corner // size * stride
        stride *= -(-n // size)
    return number


def node_nbytes(layout: Layout) -> int:
    """Bytes of a node of the index, full or not."""
    return 24 + (2 * layout.branching + 1) * _key_nbytes(layout) + 2 * layout.branching * 8


def _key_nbytes(layout: Layout) -> int:
    """Bytes of one of its keys: size, filters, corner and a 0."""
    return 8 + 8 * (len(layout.shape) + 1)


def fetch_nodes(layout: Layout, addresses: list[int]) -> Iterator[Bytes]:
    """The nodes at ascending addresses."""
    size = node_nbytes(layout)
    starts = np.array(addresses, np.int64)
    # Nodes at the end of a file may be cut to what they hold.
    stops = np.minimum(starts + size, layout.file.size)
    if (starts >= stops).any():
        raise damaged(layout.file, "its index lies beyond its end")
    begins, ends, first = coalesce(starts, stops)
    lasts = [*first[1:].tolist(), len(starts)]

    def cut(k: int, data: Bytes) -> list[Bytes]:
        of = slice(int(first[k]), lasts[k])
        return [data[a - begins[k] : b - begins[k]] for a, b in zip(starts[of], stops[of], strict=True)]

    for found in layout.file.in_order(list(zip(begins.tolist(), ends.tolist(), strict=True)), cut):
        yield from found


def _parse(layout: Layout, node: Bytes) -> tuple[Array, Array, int]:
    """Ranks of a node's keys [entries + 1], addresses of its entries, and its level (0: these are chunks)."""
    key_nbytes = _key_nbytes(layout)
    dimensions = len(layout.shape)
    if len(node) < 24 or node[:4] != b"TREE" or node[4] != 1:
        raise damaged(layout.file, "its index holds something else")
    level, entries = int(node[5]), struct.unpack_from("<H", node, 6)[0]
    pair = np.dtype(
        [("nbytes", "<u4"), ("filters", "<u4"), ("corner", "<i8", (dimensions,)), ("0", "<i8"), ("child", "<i8")]
    )
    if not 0 < entries <= 2 * layout.branching or len(node) < 24 + entries * pair.itemsize + key_nbytes:
        raise damaged(layout.file, f"a node of its index has {entries} entries")
    pairs = np.frombuffer(node, pair, entries, 24)
    last = np.frombuffer(node, "<i8", dimensions, 24 + entries * pair.itemsize + 8)
    if level == 0 and (pairs["nbytes"] != layout.chunk_nbytes).any():
        raise damaged(layout.file, f"its chunks are not of {layout.chunk_nbytes} bytes")
    keys = rank_of(np.concatenate([pairs["corner"], last[None]]), layout.shape)
    return keys, pairs["child"] + layout.base, level


# Headers


@dataclass(frozen=True)
class _Superblock:
    base: int
    """What addresses count from."""
    branching: int
    """Half of the most entries of an index node."""
    root: int
    """First byte of the root group's header."""

    @classmethod
    def read(cls, file: RangeFile) -> "_Superblock":
        starts = (0, *(512 << k for k in range(12)))  # behind what else a file may begin with
        base = next((at for at in starts if at < file.size and _read(file, at, 8, short=True) == _SIGNATURE), None)
        if base is None:
            raise damaged(file, "it is not an HDF5 file")
        head = _read(file, base, 100)
        if head[8] > 1 or head[13:15] != b"\x08\x08":
            raise UnknownLayoutError(
                f"{file.name} has a superblock of version {head[8]}",
                expected="version 0 or 1, with addresses of 64 bits (libver 'earliest')",
            )
        at = 28 if head[8] else 24
        end, root = struct.unpack_from("<Q", head, at + 16)[0], struct.unpack_from("<Q", head, at + 40)[0]
        if end > file.size:
            raise damaged(file, f"it has {file.size} bytes of {end}")
        return cls(base, struct.unpack_from("<H", head, 24)[0] if head[8] else 32, root + base)


def _links(file: RangeFile, block: _Superblock) -> dict[str, int]:
    """What is in the root group: first bytes of the headers by name."""
    messages = _messages(file, block.root, block.base)
    if _GROUP not in messages:
        raise UnknownLayoutError(f"{file.name} keeps its groups in another way", expected="as libver 'earliest' does")
    tree, heap = (at + block.base for at in struct.unpack_from("<QQ", messages[_GROUP], 0))
    size, _, names = struct.unpack("<QQQ", _read(file, heap, 32, b"HEAP")[8:])
    texts = _read(file, names + block.base, size)
    links: dict[str, int] = {}
    nodes = [tree]
    while nodes:
        node = nodes.pop()
        kind = _read(file, node, 4)
        count = struct.unpack("<H", _read(file, node + 6, 2))[0]
        if kind == b"SNOD":
            for entry in range(count):
                name, header = struct.unpack("<QQ", _read(file, node + 8 + 40 * entry, 16))
                links[texts[name : texts.find(b"\0", name)].decode("utf-8", "replace")] = header + block.base
        elif kind == b"TREE":
            pairs = struct.unpack(f"<{2 * count}Q", _read(file, node + 24, 16 * count))
            nodes += [child + block.base for child in pairs[1::2]]
        else:
            raise damaged(file, "its list of datasets holds something else")
    return dict(sorted(links.items()))


def _messages(file: RangeFile, address: int, base: int) -> dict[int, bytes]:
    """The messages of the object header at ``address``, by their types."""
    prefix = _read(file, address, 16)
    if prefix[0] != 1:
        raise UnknownLayoutError(
            f"{file.name} has an object header of a newer version", expected="version 1 (libver 'earliest')"
        )
    left, size = struct.unpack_from("<H", prefix, 2)[0], struct.unpack_from("<I", prefix, 8)[0]
    blocks = [(address + 16, size)]
    messages: dict[int, bytes] = {}
    while blocks and left > 0:
        data = _read(file, *blocks.pop(0))
        at = 0
        while at + 8 <= len(data) and left > 0:
            kind, length, flags = struct.unpack_from("<HHB", data, at)
            body = data[at + 8 : at + 8 + length]
            if kind == _CONTINUATION:
                start, more = struct.unpack_from("<QQ", body, 0)
                blocks.append((start + base, more))
            elif kind == _TYPE and flags & 2:
                raise UnknownLayoutError(f"{file.name} keeps its types apart", expected="plain numbers")
            else:
                messages.setdefault(kind, body)
            at += 8 + length
            left -= 1
    return messages


def _shape(message: bytes) -> tuple[int, ...]:
    version, rank = message[0], message[1]
    return struct.unpack_from(f"<{rank}Q", message, 8 if version == 1 else 4)


def _dtype(message: bytes) -> np.dtype[Any]:
    """Integers and floating-point numbers; anything else is void of the same size."""
    kind, bits, size = message[0] & 15, message[1], struct.unpack_from("<I", message, 4)[0]
    code = {0: "i" if bits & 8 else "u", 1: "f"}.get(kind)
    if code is None or size not in (1, 2, 4, 8):
        return np.dtype((np.void, size))
    return np.dtype(f"{'>' if bits & 1 else '<'}{code}{size}")


def _read(file: RangeFile, start: int, size: int, magic: bytes = b"", *, short: bool = False) -> bytes:
    """Bytes from ``start`` on, through the cache of blocks."""
    if not 0 <= start <= file.size or (start + size > file.size and not short):
        raise damaged(file, f"its headers lie beyond its end, at byte {start} of {file.size}")
    file.seek(start)
    data = file.read(size) or b""
    if not data.startswith(magic):
        raise damaged(file, "its headers hold something else")
    return data
