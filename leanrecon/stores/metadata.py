"""The zarr.json of a store: how its array is laid out, and leanrecon's record among the attributes."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from leanrecon.errors import StoreError
from leanrecon.places import Location, seals
from leanrecon.places.files import write_bytes

NAME = "zarr.json"
ATTRIBUTE = "leanrecon"
UNPROVEN = "unproven"
"""The entry of a record that was damaged: what it says is to be proven before the store is continued."""
_CODECS = ["bytes", "crc32c"]


@dataclass
class Metadata:
    """What a zarr.json says. ``record`` is leanrecon's attribute; empty for the arrays of other programs."""

    document: dict[str, Any]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: tuple[int, ...]
    fill_value: Any
    record: dict[str, Any]

    def to_json(self) -> bytes:
        """The document with the present record, byte for byte as zarr-python writes it."""
        attributes = {**(self.document.get("attributes") or {}), ATTRIBUTE: self.record}
        return json.dumps({**self.document, "attributes": attributes}, indent=2).encode()


def new(shape: Sequence[int], dtype: "np.dtype[Any]", chunks: Sequence[int], record: Mapping[str, Any]) -> Metadata:
    """The metadata of a new store, made by zarr-python itself: little-endian bytes, crc32c, NaN where nothing is."""
    import zarr
    from zarr.codecs import BytesCodec, Crc32cCodec
    from zarr.storage import MemoryStore

    files: dict[str, Any] = {}
    zarr.create_array(
        MemoryStore(files),
        shape=tuple(shape),
        dtype=dtype,
        chunks=tuple(chunks),
        fill_value=np.nan if dtype.kind == "f" else 0,
        filters=None,
        serializer=BytesCodec(endian="little" if dtype.itemsize > 1 else None),
        compressors=[Crc32cCodec()],
        attributes={ATTRIBUTE: dict(record)},
    )
    return _parse(json.loads(files[NAME].to_bytes()))


def load_library() -> None:
    """Import zarr-python now, so that budgets that are taken afterwards count its memory as held."""
    import zarr  # noqa: F401


def read(path: Location) -> Metadata | None:
    """The metadata of the store at a location; None where there is no zarr.json.

    Raises StoreError for a zarr.json that can't be read, that does not match the checksum its study keeps, or that
    describes something else than an array.
    """
    try:
        data = (path / NAME).read_bytes()
    except FileNotFoundError:
        return None
    seals.check(path / NAME, data)
    return _read(path, data)


def distrust(path: Location) -> bool:
    """Mark a zarr.json that does not match its checksum as one to be proven by the next run that writes to the store.

    Returns False, and removes it, where it can't be read at all.
    """
    try:
        described = _read(path, (path / NAME).read_bytes())
    except StoreError:
        (path / NAME).unlink(missing_ok=True)
        return False
    described.record = {key: of for key, of in described.record.items() if key != "content"}
    described.record |= {"complete": False, UNPROVEN: True}
    write(path, described)
    return True


def _read(path: Location, data: bytes) -> Metadata:
    try:
        return _parse(json.loads(data))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        study = seals.sealing_root(path / NAME)
        todo = f"remove {path} and run again" if study is None else seals.repair(study)
        raise StoreError(f"{path / NAME} can't be read: {error}", todo=todo) from error


def write(path: Location, described: Metadata) -> None:
    """Write the zarr.json of a store, its checksum first."""
    write_bytes(path / NAME, described.to_json())


def _parse(document: dict[str, Any]) -> Metadata:
    if not isinstance(document, dict):
        raise ValueError("it does not hold a table")
    if document["zarr_format"] != 3 or document["node_type"] != "array":
        raise ValueError(f"it describes a {document['node_type']} of Zarr version {document['zarr_format']}")
    record = dict(document.get("attributes", {}).get(ATTRIBUTE, {}))
    if not record:
        return Metadata(document, (), np.dtype("u1"), (), 0, {})
    _check_record(record)
    codecs = [codec["name"] for codec in document["codecs"]]
    endian = document["codecs"][0].get("configuration", {}).get("endian") if codecs else None
    if codecs != _CODECS or endian not in ("little", None):
        raise ValueError(f"its codecs are {', '.join(codecs)} instead of {', '.join(_CODECS)}")
    fill_value = document["fill_value"]
    shape, chunks = _sizes(document["shape"]), _sizes(document["chunk_grid"]["configuration"]["chunk_shape"])
    if not shape or len(shape) != len(chunks) or 0 in chunks:
        raise ValueError(f"chunks of shape {chunks} don't fit an array of shape {shape}")
    return Metadata(
        document,
        shape=shape,
        dtype=np.dtype(str(document["data_type"])),
        chunks=chunks,
        fill_value=np.nan if fill_value == "NaN" else fill_value,
        record=record,
    )


def _check_record(record: dict[str, Any]) -> None:
    """Refuse a record of wrong types, as another program may have written it."""
    types = {"made_of": dict, "notes": dict, "complete": bool, "content": str, "fingerprint": str}
    for key, kind in types.items():
        if key in record and not isinstance(record[key], kind):
            raise ValueError(f"{key} of its record is {type(record[key]).__name__}, not {kind.__name__}")
    if record.get("complete") and "content" not in record:
        raise ValueError("its record is complete but lacks its checksum (content)")


def _sizes(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or not all(type(n) is int and 0 <= n < 2**53 for n in values):
        raise ValueError(f"{json.dumps(values)[:60]} is not a shape")
    return tuple(values)
