"""What zarr-python asks of a store, answered from a folder in a bucket that is only read."""

from collections.abc import AsyncIterator, Iterable
from typing import Any, NoReturn

import numpy as np
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype

from leanrecon.places.location import Location


class LocationStore(Store):
    """The files of a folder; a chunk is read by one request where the folder was listed."""

    def __init__(self, folder: Location) -> None:
        super().__init__(read_only=True)
        self.folder = folder

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LocationStore) and other.folder == self.folder

    def __hash__(self) -> int:
        return hash(self.folder)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        file = self.folder / key
        size = file.size()
        if size is None:
            return None
        start, stop = _range(byte_range, size)
        memory = np.empty(max(stop - start, 0), np.uint8)
        return prototype.buffer.from_bytes(memory[: file.place.read_into(file.key, memory, start)])  # type: ignore[arg-type]

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def exists(self, key: str) -> bool:
        return (self.folder / key).is_file()

    @property
    def supports_writes(self) -> bool:
        return False

    @property
    def supports_deletes(self) -> bool:
        return False

    @property
    def supports_listing(self) -> bool:
        return True

    async def list(self) -> AsyncIterator[str]:
        for file in self.folder.files():
            yield file.relative_to(self.folder)

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        async for key in self.list():
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        for name in self.folder.place.children((self.folder / prefix).key):
            yield name.rstrip("/")

    async def set(self, key: str, value: Buffer) -> NoReturn:
        raise NotImplementedError("inputs are only read")

    async def delete(self, key: str) -> NoReturn:
        raise NotImplementedError("inputs are only read")


def _range(wanted: Any, size: int) -> tuple[int, int]:
    """First and last byte, the last one left out, of a piece of a file."""
    if isinstance(wanted, RangeByteRequest):
        return wanted.start, min(wanted.end, size)
    if isinstance(wanted, OffsetByteRequest):
        return wanted.offset, size
    if isinstance(wanted, SuffixByteRequest):
        return max(size - wanted.suffix, 0), size
    return 0, size
