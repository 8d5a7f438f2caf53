"""Checksums of the small files of a study: kept in its run.json, and recorded before each file is written.

An entry holds the SHA-256 of the new file and of the file before. So a process that is killed between the two writes
leaves a file that matches, and a file that matches neither is damaged.
"""

import contextlib
import hashlib
import io
import itertools
import json
import threading
from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import IO, Any

from leanrecon.errors import StoreError
from leanrecon.places.location import Location, LocationLike, as_location

MANIFEST = "run.json"
"""The file that holds the checksums of a study, and its own."""

SETTINGS = "study.toml"
"""The file beside the manifest of a study; folders of variants have none."""

CHECKSUMS, CHECKSUM = "checksums", "checksum"

_DEPTH = 6  # folders between a file and its study: variants/NAME/evaluation/latent_r2/FILE, or a zarr.json
_lock = threading.RLock()
_cache: dict[str, tuple[int | str | None, dict[str, Any]]] = {}


class State(StrEnum):
    """The state of a file by its checksum."""

    SOUND = "sound"
    DAMAGED = "damaged"
    UNKNOWN = "unknown"
    """It has no checksum."""


def repair(root: LocationLike) -> str:
    """What to do about damage in a study, for messages."""
    return f"run `leanrecon verify {root} --repair`, which makes it again"


# The manifest


def begin(root: Location) -> None:
    """Begin to keep checksums of all small files that are written below a folder."""
    there = load(root)
    if there is None or CHECKSUMS not in there:
        _write(root, {"stages": {}} | (there or {}) | {CHECKSUMS: {}})


def load(root: Location) -> dict[str, Any] | None:
    """The content of a study's manifest; None if there is none. Raises StoreError for a damaged one."""
    path = root / MANIFEST
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        content = json.loads(data)
        known = isinstance(content, dict) and isinstance(content["stages"], dict)
        sealed = known and bool({CHECKSUM, CHECKSUMS} & set(content))
        if not known or (sealed and content.pop(CHECKSUM, None) != _own_checksum(content)):
            raise ValueError("it does not match its checksum" if known else "it is not the record of a study")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreError(f"{path} is damaged ({error})", todo=repair(root)) from None
    checked: dict[str, Any] = content
    return checked


def _known(root: Location) -> dict[str, Any]:
    """The manifest of a study, parsed again only if it has changed; empty if it is damaged. Don't change it."""
    stamp = (root / MANIFEST).stamp()
    there = _cache.get(root.address())
    if there is None or there[0] != stamp:
        try:
            there = (stamp, load(root) or {})
        except StoreError:  # reading run.json itself says so
            there = (stamp, {})
        _cache[root.address()] = there
    return there[1]


def keeps(root: Location) -> bool:
    """Whether a folder is a study that keeps checksums."""
    return bool((root / MANIFEST).is_file() and _known(root).get(CHECKSUMS))


def files_of(root: Location) -> list[Location]:
    """The files whose checksums a study keeps, whether or not they exist."""
    return [root / name for name in (_known(root).get(CHECKSUMS, {}) if (root / MANIFEST).is_file() else ())]


def adopt(root: Location, paths: Iterable[Location]) -> None:
    """Keep the checksums of files as they are now, also for a study that had no checksums yet."""
    begin(root)
    content = load(root) or {}
    now = {_key(path, root): [digest_of(path)] for path in paths}
    if now:
        _write(root, content | {CHECKSUMS: content[CHECKSUMS] | now})


def write_manifest(path: Location, content: dict[str, Any]) -> None:
    """Write run.json with its present checksums."""
    with _lock:
        there = load(path.parent) or {}
        _write(path.parent, content | ({CHECKSUMS: there[CHECKSUMS]} if CHECKSUMS in there else {}))


def _write(root: Location, content: dict[str, Any]) -> None:
    content = {key: value for key, value in content.items() if key not in (CHECKSUM, CHECKSUMS)} | (
        {CHECKSUMS: dict(sorted(content[CHECKSUMS].items()))} if CHECKSUMS in content else {}
    )
    if CHECKSUMS in content:
        content[CHECKSUM] = _own_checksum(content)
    (root / MANIFEST).write_text(json.dumps(content, ensure_ascii=False, indent=2, allow_nan=False) + "\n")
    _cache.pop(root.address(), None)


def _own_checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def is_manifest(path: Location) -> bool:
    """Whether a file is the run.json of a study that keeps checksums, and not of a variant."""
    return path.name == MANIFEST and (path.parent / SETTINGS).is_file()


def sealing_root(path: Location) -> Location | None:
    """The study that keeps the checksum of a file; None if none does."""
    for folder in itertools.islice(path.above(), _DEPTH):
        if (folder / SETTINGS).is_file() and (folder / MANIFEST).is_file():
            return folder
    return None


def _key(path: Location, root: Location) -> str:
    return path.address()[len(root.address().rstrip("/")) + 1 :]


# One file


def expect(path: LocationLike, digest: str) -> None:
    """Record the checksum of a file that is about to be written; that of the earlier file stays valid."""
    path = as_location(path)
    with _lock:
        root = None if is_manifest(path) else sealing_root(path)
        content = {} if root is None else _known(root)
        if root is None or CHECKSUMS not in content:
            return
        before = _accepted(content, _key(path, root))
        if before[:1] != [digest]:
            _write(root, content | {CHECKSUMS: content[CHECKSUMS] | {_key(path, root): [digest, *before[:1]]}})


def fix(path: LocationLike) -> None:
    """Record the checksum of a file as it is now."""
    expect(path, digest_of(path))


def forget(path: LocationLike) -> None:
    """Delete the checksum of a file that is about to be removed, or written by other means."""
    path = as_location(path)
    with _lock:
        root = sealing_root(path)
        content = {} if root is None else _known(root)
        if root is not None and (key := _key(path, root)) in content.get(CHECKSUMS, {}):
            _write(root, content | {CHECKSUMS: {name: of for name, of in content[CHECKSUMS].items() if name != key}})


def _accepted(content: dict[str, Any], key: str) -> list[str]:
    found = content.get(CHECKSUMS, {}).get(key)
    return found if isinstance(found, list) else []


def digest_of(path: LocationLike) -> str:
    """SHA-256 of a file's bytes, read in pieces."""
    with as_location(path).open() as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def state(path: LocationLike, digest: str | None = None) -> State:
    """The state of an existing file by its checksum; ``digest`` spares reading it. Raises StoreError as ``load`` does."""
    path = as_location(path)
    if is_manifest(path):
        content = load(path.parent)  # raises where it is damaged
        return State.SOUND if content is not None and CHECKSUMS in content else State.UNKNOWN
    root = sealing_root(path)
    content = {} if root is None else _known(root)
    if root is None or not (accepted := _accepted(content, _key(path, root))):
        return State.UNKNOWN
    return State.SOUND if (digest or digest_of(path)) in accepted else State.DAMAGED


def check(path: LocationLike, data: bytes) -> None:
    """Raise StoreError for the bytes of a file that don't match its checksum."""
    path = as_location(path)
    if state(path, hashlib.sha256(data).hexdigest()) is State.DAMAGED:
        raise damaged(path)


def damaged(path: Location) -> StoreError:
    """The error of a file that does not match its checksum."""
    return StoreError(f"{path} does not match its checksum", todo=repair(sealing_root(path) or path.parent))


@contextlib.contextmanager
def writing(path: LocationLike) -> Iterator[IO[bytes]]:
    """A binary file to write to, whose checksum is recorded before it appears; it can't seek."""
    path = as_location(path)
    with path.writing() as file:
        hashing = _Hashing(file)
        yield hashing  # type: ignore[misc]
        expect(path, hashing.digest.hexdigest())


class _Hashing(io.RawIOBase):
    """A file that is hashed while it is written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.digest.update(data)
        self._file.write(data)
        return memoryview(data).nbytes
