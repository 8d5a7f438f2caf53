"""Requests to a bucket through obstore: counted, retried after failures, and explained if they can't succeed.

obstore reads credentials from the environment alone, and no message contains them.
"""

import functools
import json
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

from leanrecon.errors import InputError, NetworkError, SettingsError, StoreError, installing
from leanrecon.places import credentials
from leanrecon.places.listing import Entry

SCHEMES = {"s3": "S3", "gs": "Google Cloud Storage", "az": "Azure"}

ATTEMPTS = 8
"""Failures in a row after which a request is given up, after about half a minute of waiting."""

FIRST_WAIT, LONGEST_WAIT = 0.25, 16.0
"""Seconds of waiting after the first failure, doubled after each further one."""

TIMEOUT = 120.0
"""Seconds that one request may take, its body included; received bytes are kept."""

PIECE = 2**20
"""Bytes of a file that are received at once, before they are copied to their memory."""

HELD_NBYTES = 32_000_000
"""Bytes that requests hold beside the chunks: obstore, 5 MB of pieces for each of a few reads, and two parts of a file
that is being uploaded. Chunks are sent from where they lie."""

_RETRIED = {408, 409, 425, 429, 500, 502, 503, 504}
_NO_BUCKET = {"NoSuchBucket", "ContainerNotFound"}

Result = TypeVar("Result")


@dataclass
class Traffic:
    """The requests of this process to a bucket."""

    requests: int = 0
    sent: int = 0
    """Bytes of files; of failed requests too."""
    received: int = 0
    _lock: Any = field(default_factory=threading.Lock, repr=False)

    def add(self, requests: int = 0, sent: int = 0, received: int = 0) -> None:
        with self._lock:
            self.requests += requests
            self.sent += sent
            self.received += received


class TakenError(Exception):
    """A conditional write found another version of the file."""


class Bucket:
    """One bucket; ``url`` is its scheme and name, as in ``s3://bucket``."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.scheme = url.partition(":")[0]
        self.traffic = Traffic()
        self._store = _opened(url)
        self._uploads = _opened(url, ATTEMPTS)

    # Reading

    def head(self, key: str) -> Entry | None:
        """Size and version of a file; None if there is none."""
        try:
            return _entry(self._ask(key, "head"))
        except FileNotFoundError:
            return None

    def list(self, start: str) -> Iterator[tuple[str, Entry]]:
        """All files in a folder, in pages of about a thousand."""
        from obstore import list as listed

        def every() -> list[tuple[str, Entry]]:
            pages = listed(self._store, prefix=start or None)
            found = [(meta["path"], _entry(meta)) for page in pages for meta in page]
            self.traffic.add(requests=len(found) // 1000)
            return found

        yield from self._retried(start, "listed", every)

    def children(self, start: str) -> Any:
        """Names directly in a folder, those of folders with a ``/`` at their end."""
        found = self._ask(start, "list_with_delimiter", what="listed")
        cut = len(start) + 1 if start else 0
        return [path[cut:].rstrip("/") + "/" for path in found["common_prefixes"]] + [
            meta["path"][cut:] for meta in found["objects"]
        ]

    def pieces(self, key: str, start: int, stop: int) -> Iterator[memoryview]:
        """The bytes ``start:stop`` of a file in pieces, fewer at its end; a broken request continues where it broke.

        Raises FileNotFoundError, and StoreError for a file that was replaced meanwhile.
        """
        at, failures, version = start, 0, None
        while at < stop:
            before = at
            try:
                self.traffic.add(requests=1)
                got = self._call("get", key, options={"range": (at, stop)} | ({"if_match": version} if version else {}))
                version, stop = got.meta["e_tag"], min(stop, got.meta["size"])
                for piece in got.stream(min_chunk_size=PIECE):
                    view = memoryview(piece)[: stop - at]
                    self.traffic.add(received=len(view))
                    at += len(view)
                    yield view
                if at < stop:
                    raise _BrokenError
            except FileNotFoundError as error:
                if _code(error) in _NO_BUCKET:
                    self._refuse(key, "read", None, _code(error))
                raise FileNotFoundError(f"{self.url}/{key}") from None
            except Exception as error:
                if _status(error) == 416:  # it begins at the end of the file, or after it
                    return
                if _status(error) == 412 and version:
                    raise StoreError(
                        f"{self.url}/{key} was replaced while it was read", todo="run the same command again"
                    ) from None
                failures = self._wait(key, "read", error, 0 if at > before else failures)

    # Writing

    def put(self, key: str, parts: Any, *, only_if: Any = None) -> Entry:
        """Write a file whole from bytes-like parts; with ``only_if`` conditionally, or raises TakenError.

        ``only_if`` is ``"create"``, or the entry that the file must still have.
        """
        views = [memoryview(part).cast("B") for part in parts if memoryview(part).nbytes]
        size = sum(map(len, views))
        stamp = only_if.stamp if isinstance(only_if, Entry) else ""

        def write(e_tag: str = stamp) -> Any:
            mode = only_if
            if isinstance(only_if, Entry):
                mode = {"e_tag": e_tag} | ({"version": only_if.version} if only_if.version else {})
            self.traffic.add(sent=size)
            return self._call("put", key, views or b"", use_multipart=False, mode=mode)

        try:
            done = self._retried(key, "written", write)
        except TakenError:
            bare = stamp.strip('"')
            if bare == stamp or self.head(key) != only_if:
                raise
            done = self._retried(key, "written", lambda: write(bare))  # Ceph compares it with a stamp without quotes
        return Entry(size, str(done["e_tag"]), done["version"])

    def upload(self, key: str, file: Any, size: int) -> Entry:
        """Write a file whole from an open one, in parts of a few megabytes; it appears after the last part."""
        from obstore import put

        parts: Any = {"use_multipart": size > _PART, "chunk_size": _PART, "max_concurrency": 2}

        def write() -> Any:
            file.seek(0)
            self.traffic.add(sent=size, requests=1 + size // _PART)
            try:
                return put(self._uploads, key, file, **parts)  # obstore retries a part that fails
            except FileNotFoundError as error:
                if _code(error) in _NO_BUCKET:
                    raise
                raise _BrokenError from None  # the last answer was lost, and the server has dropped the parts

        return Entry(size, str(self._retried(key, "written", write)["e_tag"]))

    def copy(self, source: str, target: str) -> None:
        """Copy a file within the bucket, without a download."""
        self._ask(source, "copy", target, what="copied")

    def delete(self, *keys: str) -> None:
        """Delete files; those that are not there are not an error."""
        for start in range(0, len(keys), 1000):
            part = list(keys[start : start + 1000])
            try:
                self._ask(part[0], "delete", what="deleted", of=part)
            except FileNotFoundError:
                if len(part) > 1:  # some servers stop at the first that is not there
                    for key in part:
                        self.delete(key)

    # Requests

    def _call(self, name: str, key: str, *more: Any, **options: Any) -> Any:
        import obstore

        try:
            return getattr(obstore, name)(self._store, key, *more, **options)
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # of Rust, which is not an Exception
                raise
            raise InputError(
                f"{self.url} can't be reached: an environment variable holds characters that no request can carry",
                todo=f"{credentials.TO_SET[self.scheme]}, without spaces and line breaks",
            ) from None

    def _ask(self, key: str, name: str, *more: Any, what: str = "read", of: Any = None) -> Any:
        return self._retried(key, what, lambda: self._call(name, key if of is None else of, *more))

    def _retried(self, key: str, what: str, call: Callable[[], Result]) -> Result:
        failures = 0
        while True:
            try:
                self.traffic.add(requests=1)
                return call()
            except FileNotFoundError as error:
                if _code(error) in _NO_BUCKET:
                    self._refuse(key, what, None, _code(error))
                raise FileNotFoundError(f"{self.url}/{key}") from None
            except InputError:
                raise
            except Exception as error:
                if type(error).__name__ in ("AlreadyExistsError", "PreconditionError"):
                    raise TakenError from None
                failures = self._wait(key, what, error, failures)

    def _wait(self, key: str, what: str, error: Exception, failures: int) -> int:
        """Wait before a retry; raises StoreError if a retry can't help, NetworkError after ``ATTEMPTS`` failures."""
        status = _status(error)
        passing = status is None or status in _RETRIED
        if not (isinstance(error, _BrokenError) or type(error).__name__ == "GenericError") or not passing:
            self._refuse(key, what, status, _code(error), error)
        if "non-partial" in str(error):  # a server without range requests
            self._refuse(key, what, status, _code(error), error)
        if "169.254." in str(error) or "metadata.google" in str(error):  # where cloud machines ask for credentials
            self._refuse(key, what, 401, "")
        if failures + 1 >= ATTEMPTS:
            raise NetworkError(
                f"{self.url}/{key} could not be {what} in {ATTEMPTS} attempts ({_reason(error)})",
                todo="check the connection and run the same command again; everything written so far is kept",
            ) from None
        # Random waits: requests that failed together are not retried together.
        _sleep(min(FIRST_WAIT * 2**failures, LONGEST_WAIT) * random.uniform(0.5, 1))
        return failures + 1

    def _refuse(self, key: str, what: str, status: int | None, code: str, error: Exception | None = None) -> NoReturn:
        """Raise StoreError with the reason. The server's answer is not repeated: it may contain the name of a key."""
        where = f"{self.url}/{key}"
        if code in _NO_BUCKET:
            variable = credentials.SERVERS[self.scheme][-1]
            raise StoreError(f"there is no bucket {self.url}", todo=f"create it, or check its name and {variable}")
        if status in (401, 403):
            known, todo = f"the {SCHEMES[self.scheme]} server refused it", credentials.TO_SET[self.scheme]
            if status == 401 or not credentials.has_credentials(self.scheme):
                known, todo = credentials.missing(self.scheme)
            may = "read" if what in ("read", "listed") else "write"
            raise StoreError(
                f"{where} can't be {what}: {known}" + (f" ({code})" if code else ""),
                todo=f"{todo}, of an account that may {may} there",
            )
        reason = _reason(error) if error is not None else code
        raise StoreError(f"{where} can't be {what}: {reason}", todo="check its name and the server")


_PART = 8 * 2**20
_sleep = time.sleep


class _BrokenError(Exception):
    """An answer that ended before its last byte."""

    def __str__(self) -> str:
        return "the answer ended early"


@functools.lru_cache(maxsize=32)
def bucket_of(url: str) -> Bucket:
    """The bucket at this URL, opened once in a process. Raises SettingsError if obstore is missing."""
    return Bucket(url)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=bucket_of.cache_clear)  # threads of obstore don't survive a fork


def _opened(url: str, retries: int = 0) -> Any:
    """A client of obstore; without ``retries`` of its own, ``Bucket`` counts and retries requests."""
    try:
        from obstore.store import from_url
    except ImportError:
        raise SettingsError(f"{url} is a bucket, and reading buckets needs obstore", todo=installing("cloud")) from None
    scheme = url.partition(":")[0]
    credentials.check_environment(scheme)
    endpoint = credentials.endpoint_of(scheme)
    own: Any = {"endpoint": endpoint} if endpoint and scheme == "s3" else {}  # obstore reads Azure's itself
    if endpoint and scheme == "gs":  # emulators need no credentials
        nobody = dict.fromkeys(("client_email", "private_key", "private_key_id"), "")
        own = {"service_account_key": json.dumps(nobody | {"gcs_base_url": endpoint, "disable_oauth": True})}
    client: Any = {"timeout": timedelta(seconds=TIMEOUT), "allow_http": endpoint.startswith("http://")}
    again: Any = {"max_retries": retries, "retry_timeout": timedelta(seconds=TIMEOUT)}
    try:
        return from_url(url, client_options=client, retry_config=again, **own)
    except Exception as error:
        lacking, todo = credentials.missing(scheme)
        if credentials.has_credentials(scheme):
            lacking, todo = _reason(error), credentials.TO_SET[scheme]
        raise InputError(f"{url} can't be opened: {lacking}", todo=todo) from None


def _entry(meta: Any) -> Entry:
    return Entry(int(meta["size"]), str(meta["e_tag"] or meta["last_modified"]), meta["version"])


def _status(error: Exception) -> int | None:
    found = re.search(r"status code: (\d{3})", str(error))
    return int(found[1]) if found else None


def _code(error: Exception) -> str:
    found = re.search(r"<Code>(\w{1,60})</Code>", str(error))
    return found[1] if found else ""


def _reason(error: Exception) -> str:
    """The reason of a failed request in a few words: its status, or the kind of failure, without the answer's text."""
    if status := _status(error):
        return f"status {status} {_code(error)}".strip()
    if isinstance(error, _BrokenError):
        return str(error)
    kind = re.search(r"kind: (Timeout|Connect|Request|Body|Decode|Interrupted)", str(error))
    words = {"Timeout": "no answer in time", "Connect": "no connection", "Body": "the answer ended early"}
    if kind:
        return words.get(kind[1], "the connection was lost")
    line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return re.sub(r"https?://\S+", "…", line)[:200]
