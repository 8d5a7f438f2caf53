"""Public S3 buckets, read by ranges without credentials: retried, resumed within a range, and pinned to one version.

Works with public buckets at Amazon or at another endpoint. botocore is imported when a bucket is opened; it says the
addresses of objects. These are asked for through connections of our own, with the same proxies and certificates.
"""

import re
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from typing import Any

from leanrecon.errors import InputError, LeanreconError, NetworkError, SettingsError, installing
from leanrecon.net import ranges
from leanrecon.net.connections import Answer, Connections
from leanrecon.net.flight import Flight
from leanrecon.net.ranges import Bytes, Found, RangeFile, Source, Traffic, changed
from leanrecon.net.retry import RETRIED, TIMEOUT, Retry

CONNECTIONS = 256
"""Most concurrent requests of small ranges, and of large ones; there are fewer where more don't help."""

CONNECTION_NBYTES = 100_000
"""Bytes of memory that a connection takes with its thread, about."""

LARGE = 128 * 1024
"""Bytes from which on a range is large: it goes through connections of its own, as TCP has to learn what these carry."""

AT_ONCE = 4
"""Files that are read at once, each in a thread that waits for its ranges."""

_FINDERS = 64  # objects that are found at once: about as many as a subject has files

_PIECE = 256 * 1024  # bytes per read: the most that a broken connection loses
_HEADERS = {"Accept-Encoding": "identity", "User-Agent": "leanrecon"}
_TOLD = ("Code", "Message")  # of an error, in XML
_BUSY = (429, 503)  # how a server asks for fewer requests
_RETRIED_CODES = {"SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "Throttling"}


class Bucket(Source):
    """The objects below ``s3://BUCKET/PREFIX``; ``endpoint_url`` names a server other than Amazon's."""

    def __init__(
        self,
        root: str,
        *,
        endpoint_url: str | None = None,
        connections: int | None = None,
        timeout: float | None = None,
        attempts: int | None = None,
    ) -> None:
        self.attempts = attempts
        self.bucket, _, prefix = root.removeprefix("s3://").strip("/").partition("/")
        self.prefix = f"{prefix}/" if prefix else ""
        self.endpoint_url = endpoint_url
        self.connections = CONNECTIONS if connections is None else connections
        self.traffic = Traffic()
        self.closed = threading.Event()
        """Ends all retries."""
        self.timeout = TIMEOUT if timeout is None else timeout
        self.client = _client(endpoint_url)
        self.pool = ThreadPoolExecutor(min(_FINDERS, self.connections), thread_name_prefix="s3")
        self.aside = self._files = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="s3 file")
        self.lanes = tuple(Lane(self, name) for name in ("s3 small", "s3 large"))
        self._lock = threading.Lock()

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.pool.shutdown(wait=True, cancel_futures=True)
        for lane in self.lanes:
            lane.flight.close()
        self._files.shutdown(wait=True, cancel_futures=True)
        for lane in self.lanes:
            lane.connections.close()
        self.client.close()

    def stop(self) -> None:
        self.closed.set()

    def lane(self, nbytes: int) -> "Lane":
        """What ranges of about so many bytes go through."""
        return self.lanes[nbytes >= LARGE]

    def flight(self, nbytes: int) -> Flight:
        """What fetches ranges of about so many bytes concurrently."""
        flight = self.lane(nbytes).flight
        trips = [lane.connections.trip for lane in self.lanes if lane.connections.trip is not None]
        if trips:  # headers of files were read before
            flight.begin(min(trips))
        return flight

    def address(self, name: str) -> str:
        """The URL of an object."""
        where = {"Bucket": self.bucket, "Key": self.prefix + name}
        return str(self.client.generate_presigned_url("get_object", Params=where))  # unsigned, as the client is

    def move(self, region: str) -> None:
        """Go on in the region where the bucket is."""
        with self._lock:
            if region != self.client.meta.region_name:
                self.client = _client(self.endpoint_url, region)

    def refused(self, answer: Answer) -> None:
        """Follow the bucket to its region, or raise _RefusedError."""
        region = answer.headers.get("x-amz-bucket-region")
        if answer.status not in (301, 307) or not region:
            raise _RefusedError(answer.status, answer.text(_PIECE))
        self.move(region)

    def where(self, name: str) -> str:
        return f"s3://{self.bucket}/{self.prefix}{name}"

    def find(self, name: str) -> Found | None:
        """Size and ETag of an object; None if there is none, or no permission to read it."""
        retry = _Retry(self.where(name), self)
        while True:
            try:
                self.traffic.add(1, 0)
                with self.lanes[0].connections.ask("HEAD", self.address(name), _HEADERS) as answer:
                    if answer.status == 200:
                        return Found(int(answer.headers["content-length"]), answer.headers["etag"])
                    if answer.status in (403, 404):
                        return None
                    self.refused(answer)
                    raise EOFError("the bucket is in another region")
            except Exception as error:  # raised by _Retry unless it can be retried
                retry.after(error)

    def find_all(self, names: Sequence[str]) -> list[Found | None]:
        return list(self.pool.map(self.find, names))

    def open(self, name: str, found: Found) -> "S3File":
        return S3File(self, name, found)


class Lane:
    """Connections for ranges of like size, and how many of them are used at once."""

    def __init__(self, bucket: Bucket, name: str) -> None:
        self.flight = Flight(bucket.connections, name)
        self.connections = Connections(bucket.client.meta.endpoint_url, bucket.timeout)


class S3File(RangeFile):
    """One object of a bucket; every range must come from the version that was found at first."""

    def __init__(self, bucket: Bucket, name: str, found: Found) -> None:
        super().__init__(bucket.where(name), found.size, found.print)
        self.bucket = bucket
        self.key = name
        self.url = bucket.address(name)
        self.flight = bucket.flight
        self.held = ranges.HELD

    def fetch(self, start: int, stop: int, into: memoryview | None = None) -> Bytes:
        """The bytes ``start:stop``, in ``into`` where that is given; an interrupted request is resumed where it stopped."""
        if stop > self.size:
            raise InputError(
                f"{self.name} is truncated: it has {self.size} bytes",
                expected=f"at least {stop} bytes, as its header says",
            )
        data = memoryview(bytearray(stop - start)) if into is None else into
        done = 0
        retry, lane = _Retry(self.name, self.bucket), self.bucket.lane(len(data))
        while done < len(data):
            before = done
            try:
                for n in self._receive(lane, start + done, stop, data[done:]):
                    done += n
                error: Exception = EOFError(f"{stop - start - done} bytes are missing")
            except Exception as failure:  # raised by _Retry unless it can be retried
                error = failure
                if _status(failure) in _BUSY:
                    lane.flight.refused()
            if done < len(data):
                retry.after(error, progress=done > before)
        return data

    def _receive(self, lane: Lane, start: int, stop: int, memory: memoryview) -> Iterator[int]:
        if self.bucket.closed.is_set():
            raise NetworkError(f"reading {self.name} was cancelled")
        self.bucket.traffic.add(1, 0)
        wanted = {"Range": f"bytes={start}-{stop - 1}", "If-Match": self.print}
        with lane.connections.ask("GET", self.url, wanted | _HEADERS) as answer:
            if answer.status >= 300:
                self.bucket.refused(answer)
                self.url = self.bucket.address(self.key)
                return
            if answer.headers.get("etag") != self.print:
                raise changed(self.name)
            if not answer.headers.get("content-range", "").startswith(f"bytes {start}-"):
                raise InputError(f"the server of {self.name} does not serve byte ranges", todo="use a local copy")
            at = 0
            while at < len(memory) and (n := answer.readinto(memory[at : at + _PIECE])):
                at += n
                self.bucket.traffic.add(0, n)
                yield n


class _RefusedError(Exception):
    """A server's answer that tells of an error."""

    def __init__(self, status: int, body: str) -> None:
        found = {name: re.search(rf"<{name}>(.*?)</{name}>", body, re.S) for name in _TOLD}
        code, message = (of[1].strip() if of else "" for of in found.values())
        super().__init__(f"{code or 'status'} {status}: {message}".rstrip(": "))
        self.status, self.code = status, code


class _Retry(Retry):
    """The retry policy of S3: raises permanent errors at once, and stops waiting when the bucket is closed."""

    def __init__(self, name: str, bucket: Bucket) -> None:
        super().__init__(name, "the connection", self._wait, bucket.attempts)
        self.closed = bucket.closed

    def _wait(self, seconds: float) -> None:
        if self.closed.wait(seconds):
            raise NetworkError(f"reading {self.name} was cancelled")

    def after(self, error: Exception, *, progress: bool = False) -> None:
        if isinstance(error, LeanreconError):
            raise error
        status = _status(error)
        if status == 412:
            raise changed(self.name) from error
        if status == 416:
            raise InputError(f"{self.name} is shorter than it was", todo="run again with --overwrite") from error
        if status in (403, 404):
            raise InputError(
                f"{self.name} is not there or can't be read ({error})",
                todo="check its name, and that these credentials may read it",
            ) from error
        code = error.code if isinstance(error, _RefusedError) else None
        lost = isinstance(error, HTTPException | OSError | EOFError)
        if not (lost or status in RETRIED or code in _RETRIED_CODES):
            raise error
        super().after(error, progress=progress)


def _status(error: Exception) -> int | None:
    return error.status if isinstance(error, _RefusedError) else None


def _client(endpoint_url: str | None, region: str = "us-east-2") -> Any:
    """What says the addresses of objects."""
    try:
        from botocore import UNSIGNED
        from botocore.config import Config
        from botocore.session import get_session
    except ImportError:
        raise SettingsError("reading from S3 needs boto3", todo=installing("nsd")) from None
    config = Config(signature_version=UNSIGNED, s3={"addressing_style": "path"} if endpoint_url else {})
    try:
        return get_session().create_client("s3", region_name=region, endpoint_url=endpoint_url, config=config)
    except ValueError as error:
        raise SettingsError(f"endpoint_url = {endpoint_url!r}: {error}", expected="such as https://host:port") from None
