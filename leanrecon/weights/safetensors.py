"""Reading and writing safetensors files: headers are checked before any tensor is read."""

import json
import math
import mmap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from leanrecon.errors import InputError, said_by
from leanrecon.memory import buffer
from leanrecon.places.files import write_whole

if TYPE_CHECKING:
    import torch

Precision = Literal["float32", "bfloat16", "float16"]

FLOATS = {"F64": ("float64", 8), "F32": ("float32", 4), "F16": ("float16", 2), "BF16": ("bfloat16", 2)}
"""Floating-point types by their name in safetensors: the name in PyTorch, and bytes."""

SHORT = {long: short for short, (long, _) in FLOATS.items()}
"""Names in safetensors by the names in PyTorch."""

ALIGNMENT = 64
"""Alignment of each weight in memory in bytes, for vector instructions."""

AGAIN = "download it again with `leanrecon fetch-weights RECIPE`"
"""The advice for a damaged file."""

_HEADER_LIMIT = 100_000_000  # bytes, as the format defines

_LARGEST = 2**48  # bytes, and numbers along a dimension

_ALIGNED = 4096  # tensors of written files start a page, so that releasing one does not affect its neighbours

_OWN_PAGES = 1_000_000  # bytes; larger tensors are read into pages of their own


def itemsize(precision: str) -> int:
    """Bytes of a number of a precision."""
    return FLOATS[SHORT[precision]][1]


def reserved(shape: Sequence[int], size: int) -> int:
    """Bytes that a tensor of numbers of ``size`` bytes takes, with its alignment."""
    return -(-math.prod(shape) * size // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class Entry:
    """The position and type of a tensor in a file, from its header."""

    file: Path
    dtype: str
    """The name in safetensors: F32, BF16, …"""
    shape: tuple[int, ...]
    start: int
    """Position of its first byte in the file."""
    nbytes: int
    """Bytes in the file."""

    def nbytes_as(self, precision: str) -> int:
        """Bytes of the tensor in another precision."""
        return math.prod(self.shape) * itemsize(precision)

    def is_read_as_it_is(self, precision: Precision) -> bool:
        """Whether its bytes in memory equal those in the file; convolutions are stored with channels last in memory."""
        return self.dtype == SHORT[precision] and len(self.shape) != 4


Entries = dict[str, Entry]


def read_header(file: Path) -> tuple[Entries, dict[str, str]]:
    """The tensors of a safetensors file and its metadata, without reading a weight.

    Raises InputError for another kind of file, a truncated one, or one whose header and tensors do not match.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as source:
            length = int.from_bytes(source.read(8), "little")
            if length > min(size, _HEADER_LIMIT):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            header = json.loads(source.read(length))
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("metadata that is not a table of text")
        entries = {name: _entry(file, 8 + length, name, table) for name, table in header.items()}
        end = 8 + length
        for entry in sorted(entries.values(), key=lambda entry: (entry.start, entry.nbytes)):
            if entry.start != end:
                raise ValueError(f"the tensor at byte {entry.start} does not begin where another ends")
            end += entry.nbytes
    except FileNotFoundError:
        raise InputError(f"there is no file {file}", expected="weights as .safetensors") from None
    except IsADirectoryError:
        raise InputError(f"{file} is a folder", expected="a file of weights (.safetensors)") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        said = error.strerror if isinstance(error, OSError) else said_by(error)
        raise InputError(f"{file} is damaged or not a safetensors file: {said}", todo=AGAIN) from error
    if size != end:
        raise InputError(f"{file} has {size} bytes", expected=f"{end}", todo=AGAIN)
    return entries, metadata


def _entry(file: Path, data: int, name: str, table: Mapping[str, Any]) -> Entry:
    shape, (start, stop) = tuple(map(index, table["shape"])), map(index, table["data_offsets"])
    if any(not 0 <= side < _LARGEST for side in shape) or not 0 <= start <= stop < _LARGEST or len(shape) > 32:
        raise ValueError(f"{name} has a shape or a place that no tensor has")
    entry = Entry(file, str(table["dtype"]), shape, data + start, stop - start)
    if entry.nbytes < 0 or (entry.dtype in FLOATS and entry.nbytes != math.prod(shape) * FLOATS[entry.dtype][1]):
        raise ValueError(f"{name} of {list(shape)} in {entry.nbytes} bytes")
    return entry


def header_of(
    tensors: Mapping[str, tuple[str, Sequence[int], int]], metadata: Mapping[str, str], aligned: int = 8
) -> bytes:
    """The header of a file whose tensors (type, shape, bytes by name) follow in this order."""
    tables: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, (kind, shape, nbytes) in tensors.items():
        stop = offset + nbytes
        tables[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [offset, stop]}
        offset = stop
    text = json.dumps(tables).encode()
    text += b" " * (-(8 + len(text)) % aligned)
    return len(text).to_bytes(8, "little") + text


class MappedWeights(Mapping[str, "torch.Tensor"]):
    """Memory-mapped tensors: the kernel reads pages when they are used, and may drop them again."""

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self._entries = entries
        self._maps: dict[Path, mmap.mmap] = {}
        for file in {entry.file for entry in entries.values()}:
            with file.open("rb") as source:
                # A private mapping, as PyTorch warns of read-only memory; nothing writes to it.
                self._maps[file] = mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_COPY)

    def __getitem__(self, name: str) -> "torch.Tensor":
        import torch

        entry = self._entries[name]
        if entry.dtype not in FLOATS:
            raise InputError(f"{name} in {entry.file} is {entry.dtype}", expected="floating-point weights")
        dtype = getattr(torch, FLOATS[entry.dtype][0])
        if not entry.nbytes:
            return torch.empty(entry.shape, dtype=dtype)
        count = math.prod(entry.shape)
        flat = torch.frombuffer(self._maps[entry.file], dtype=dtype, count=count, offset=entry.start)
        return flat.reshape(entry.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def release(self, name: str) -> None:
        """Release the pages of a tensor; they are read again when it is next used."""
        if not hasattr(mmap, "MADV_DONTNEED"):  # Windows
            return
        entry = self._entries[name]
        first = entry.start // mmap.PAGESIZE * mmap.PAGESIZE
        if entry.nbytes:
            self._maps[entry.file].madvise(mmap.MADV_DONTNEED, first, entry.start + entry.nbytes - first)


class ReadWeights(MappedWeights):
    """Tensors that are read into new memory at each access."""

    def __getitem__(self, name: str) -> "torch.Tensor":
        import torch

        mapped, nbytes = super().__getitem__(name), self._entries[name].nbytes
        if nbytes < _OWN_PAGES:
            return mapped.clone()
        # Memory from malloc would stay in the heap when a layer frees it: twice the weights of a layer.
        own = torch.from_numpy(buffer((nbytes,), np.uint8)).view(mapped.dtype).reshape(mapped.shape).copy_(mapped)
        self.release(name)
        return own


def write_weights(
    path: Path, tensors: Iterator[tuple[str, "torch.Tensor"]], shapes: Mapping[str, Sequence[int]], dtype: str
) -> None:
    """Write tensors one by one, in one precision, as a safetensors file that appears whole or not at all.

    ``shapes`` has their names in the order of ``tensors``.
    """
    import torch

    size = itemsize(dtype)
    tables = {name: (SHORT[dtype], shape, math.prod(shape) * size) for name, shape in shapes.items()}
    start = header_of(tables, {"format": "pt"}, _ALIGNED)

    def write(file: Any) -> None:
        file.write(start)
        for (name, tensor), expected in zip(tensors, shapes, strict=True):
            if name != expected:
                raise ValueError(f"{name} came where {expected} was expected")
            file.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)

    write_whole(path, write)
