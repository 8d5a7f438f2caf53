"""Weights in safetensors files: sizes from their headers, tensors mapped rather than loaded, and files of our own."""

import json
import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leanrecon.errors import InputError
from leanrecon.memory import buffer
from leanrecon.stores.files import write_whole

if TYPE_CHECKING:
    import torch

ITEMSIZE = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Bytes of a number, by its name in a header."""

DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""Names in a header, by PyTorch's."""

_ALIGNED = 4096  # tensors of our own files begin a page, so that giving one back leaves its neighbours alone

_OWN_PAGES = 1_000_000  # bytes from which a tensor that is read gets pages of its own

_HEADER_LIMIT = 100_000_000  # bytes; the format's own


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies in a file, from its header."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    """Its first byte in the file."""

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * ITEMSIZE[self.dtype]

    def nbytes_as(self, dtype: str) -> int:
        """Bytes of the same numbers in another precision, by PyTorch's name."""
        return prod(self.shape) * ITEMSIZE[DTYPES[dtype]]


Entries = dict[str, Entry]


def read_header(file: Path) -> tuple[Entries, dict[str, str]]:
    """The tensors of a safetensors file and its metadata, without reading a weight.

    Raises InputError for what is no such file or is cut short.
    """
    try:
        with file.open("rb") as source:
            length = struct.unpack("<Q", source.read(8))[0]
            if length > _HEADER_LIMIT:
                raise ValueError("its header is too long")
            header = json.loads(source.read(length))
        metadata = header.pop("__metadata__", {})
        entries = {
            name: Entry(file, it["dtype"], tuple(it["shape"]), 8 + length + it["data_offsets"][0])
            for name, it in header.items()
        }
        size = file.stat().st_size
        if any(entry.start + entry.nbytes > size for entry in entries.values()):
            raise ValueError(f"it ends after {size} bytes")
    except FileNotFoundError:
        raise InputError(f"there is no file {file}", expected="weights as .safetensors") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise InputError(
            f"{file} can't be read as safetensors ({error})",
            expected="a whole file of floating-point weights",
            todo="download it again",
        ) from None
    return entries, metadata


class MappedWeights(Mapping[str, "torch.Tensor"]):
    """Tensors whose memory is the file itself: the kernel reads pages when they are used and may drop them at will."""

    def __init__(self, entries: Entries) -> None:
        self._entries = entries
        self._maps: dict[Path, mmap.mmap] = {}
        for file in {entry.file for entry in entries.values()}:
            with file.open("rb") as source:
                # A private mapping: nothing writes to it, but PyTorch warns of memory that can't be written.
                self._maps[file] = mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_COPY)

    def __getitem__(self, name: str) -> "torch.Tensor":
        import torch

        entry = self._entries[name]
        dtype = getattr(torch, {"F64": "float64", **{short: long for long, short in DTYPES.items()}}[entry.dtype])
        count = prod(entry.shape)
        if not count:
            return torch.empty(entry.shape, dtype=dtype)
        flat = torch.frombuffer(self._maps[entry.file], dtype=dtype, count=count, offset=entry.start)
        return flat.reshape(entry.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def release(self, name: str) -> None:
        """Give the pages of a tensor back; they are read again, from the page cache or the disk, when it is next used."""
        if not hasattr(mmap, "MADV_DONTNEED"):  # Windows
            return
        entry = self._entries[name]
        first = entry.start // mmap.PAGESIZE * mmap.PAGESIZE
        if entry.nbytes:
            self._maps[entry.file].madvise(mmap.MADV_DONTNEED, first, entry.start + entry.nbytes - first)


class ReadWeights(MappedWeights):
    """Tensors read into memory of their own each time that they are asked for, and held by whoever asked."""

    def __getitem__(self, name: str) -> "torch.Tensor":
        import torch

        mapped, nbytes = super().__getitem__(name), self._entries[name].nbytes
        if nbytes < _OWN_PAGES:
            return mapped.clone()
        # From malloc, what one layer frees would stay in the heap: twice a layer's weights in the end.
        own = torch.from_numpy(buffer((nbytes,), np.uint8)).view(mapped.dtype).reshape(mapped.shape).copy_(mapped)
        self.release(name)
        return own


def write_weights(path: Path, tensors: Iterator[tuple[str, "torch.Tensor"]], entries: Entries, dtype: str) -> None:
    """Write tensors one by one, in one precision, as a safetensors file that appears whole or not at all.

    ``entries`` gives names and shapes in the order in which the tensors come.
    """
    import torch

    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, entry in entries.items():
        stop = offset + entry.nbytes_as(dtype)
        header[name] = {"dtype": DTYPES[dtype], "shape": list(entry.shape), "data_offsets": [offset, stop]}
        offset = stop
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNED)

    def write(file: Any) -> None:
        file.write(struct.pack("<Q", len(text)) + text)
        for (name, tensor), expected in zip(tensors, entries, strict=True):
            if name != expected:
                raise ValueError(f"{name} came where {expected} was expected")
            file.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)

    write_whole(path, write)
