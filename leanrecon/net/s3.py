"""Public S3 buckets, read by ranges without credentials: retried, resumed within a range, and pinned to one version.

Works with public buckets at Amazon or at another endpoint. boto3 is imported when a bucket is opened.
"""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from leanrecon.errors import InputError, LeanreconError, NetworkError, SettingsError
from leanrecon.net.ranges import Found, RangeFile, Source, Traffic, changed
from leanrecon.net.retry import RETRIED, TIMEOUT, Retry

CONNECTIONS = 32
"""Concurrent requests."""

_PIECE = 256 * 1024  # bytes per read: the most that a broken connection loses
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
    ) -> None:
        self.bucket, _, prefix = root.removeprefix("s3://").strip("/").partition("/")
        self.prefix = f"{prefix}/" if prefix else ""
        self.endpoint_url = endpoint_url
        self.connections = CONNECTIONS if connections is None else connections
        self.traffic = Traffic()
        self.closed = threading.Event()
        self.client = _client(endpoint_url, self.connections, TIMEOUT if timeout is None else timeout)
        self.pool = ThreadPoolExecutor(self.connections, thread_name_prefix="s3")

    def __exit__(self, *_: object) -> None:
        self.closed.set()  # ends all retries
        self.pool.shutdown(wait=True, cancel_futures=True)
        self.client.close()

    def where(self, name: str) -> str:
        return f"s3://{self.bucket}/{self.prefix}{name}"

    def find(self, name: str) -> Found | None:
        """Size and ETag of an object; None if there is none, or no permission to read it."""
        retry = _Retry(self.where(name), self.closed)
        while True:
            try:
                self.traffic.add(1, 0)
                head = self.client.head_object(Bucket=self.bucket, Key=self.prefix + name)
                return Found(int(head["ContentLength"]), str(head["ETag"]))
            except Exception as error:
                if _status(error) in (403, 404):
                    return None
                retry.after(error)

    def find_all(self, names: Sequence[str]) -> list[Found | None]:
        return list(self.pool.map(self.find, names))

    def open(self, name: str, found: Found) -> "S3File":
        return S3File(self, name, found)


class S3File(RangeFile):
    """One object of a bucket; every range must come from the version that was found at first."""

    def __init__(self, bucket: Bucket, name: str, found: Found) -> None:
        super().__init__(bucket.where(name), found.size, found.print)
        self.bucket = bucket
        self.key = bucket.prefix + name
        self.pool = bucket.pool
        self.at_once = bucket.connections

    def fetch(self, start: int, stop: int) -> bytearray:
        """The bytes ``start:stop``; an interrupted request is resumed where it stopped."""
        if stop > self.size:
            raise InputError(
                f"{self.name} is truncated: it has {self.size} bytes",
                expected=f"at least {stop} bytes, as its header says",
            )
        data = bytearray(stop - start)
        done = 0
        retry = _Retry(self.name, self.bucket.closed)
        while done < len(data):
            before = done
            try:
                with memoryview(data) as view:
                    for n in self._receive(start + done, stop, view[done:]):
                        done += n
                error: Exception = EOFError(f"{stop - start - done} bytes are missing")
            except Exception as failure:  # raised by _Retry unless it can be retried
                error = failure
            if done < len(data):
                retry.after(error, progress=done > before)
        return data

    def _receive(self, start: int, stop: int, memory: memoryview) -> Any:
        self.bucket.traffic.add(1, 0)
        answer = self.bucket.client.get_object(
            Bucket=self.bucket.bucket, Key=self.key, Range=f"bytes={start}-{stop - 1}", IfMatch=self.print
        )
        body = answer["Body"]
        try:
            if answer["ETag"] != self.print:
                raise changed(self.name)
            if not str(answer.get("ContentRange", "")).startswith(f"bytes {start}-"):
                raise InputError(f"the server of {self.name} does not serve byte ranges", todo="use a local copy")
            at = 0
            while at < len(memory):
                n = body.readinto(memory[at : at + _PIECE])
                if not n:
                    return
                at += n
                self.bucket.traffic.add(0, n)
                yield n
        finally:
            body.close()


class _Retry(Retry):
    """The retry policy of S3: raises permanent errors at once, and stops waiting when the bucket is closed."""

    def __init__(self, name: str, closed: threading.Event) -> None:
        super().__init__(name, "the connection", self._wait)
        self.closed = closed

    def _wait(self, seconds: float) -> None:
        if self.closed.wait(seconds):
            raise NetworkError(f"reading {self.name} was cancelled")

    def after(self, error: Exception, *, progress: bool = False) -> None:
        from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError

        if isinstance(error, LeanreconError):
            raise error
        status = _status(error)
        if status == 412:
            raise changed(self.name) from error
        if status == 416:
            raise InputError(f"{self.name} is shorter than it was", todo="run again with --overwrite") from error
        if status in (403, 404):
            raise InputError(f"{self.name} is not there or can't be read ({error})") from error
        code = error.response.get("Error", {}).get("Code") if isinstance(error, ClientError) else None
        lost = isinstance(error, BotoCoreError | HTTPClientError | OSError | EOFError) or _is_urllib3(error)
        if not (lost or status in RETRIED or code in _RETRIED_CODES):
            raise error
        super().after(error, progress=progress)


def _status(error: Exception) -> int | None:
    answer = getattr(error, "response", None)
    return answer.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(answer, dict) else None


def _is_urllib3(error: Exception) -> bool:
    """Whether it is an error of urllib3, some of which botocore passes through."""
    from urllib3.exceptions import HTTPError

    return isinstance(error, HTTPError)


def _client(endpoint_url: str | None, connections: int, timeout: float) -> Any:
    try:
        import boto3
        from botocore import UNSIGNED
        from botocore.config import Config
    except ImportError:
        raise SettingsError("reading from S3 needs boto3", todo="pip install boto3") from None
    style = {"addressing_style": "path"} if endpoint_url else {}
    config = Config(
        signature_version=UNSIGNED,
        max_pool_connections=connections,
        connect_timeout=timeout,
        read_timeout=timeout,
        retries={"total_max_attempts": 1},  # _Retry resumes within a range instead
        response_checksum_validation="when_required",  # byte ranges have no checksum
        s3=style,
    )
    try:
        return boto3.session.Session().client("s3", region_name="us-east-2", endpoint_url=endpoint_url, config=config)
    except ValueError as error:
        raise SettingsError(f"endpoint_url = {endpoint_url!r}: {error}", expected="such as https://host:port") from None
