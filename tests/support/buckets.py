"""Buckets on a real S3 server (moto) on this machine, and a proxy in front that counts requests and makes them fail."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from leanrecon.places import Location, as_location
from leanrecon.places.bucket import bucket_of

KEY, SECRET = "AKIATESTTESTTEST", "a-secret-that-must-not-be-written"
NAME = "studies"


@contextmanager
def serving() -> Iterator[str]:
    """Run moto's S3 server with one bucket; yields its address."""
    pytest.importorskip("obstore", reason="buckets are read by obstore: pip install 'leanrecon[cloud]'")
    pytest.importorskip("flask_cors", reason="the S3 server of the tests is moto's: pip install 'moto[server]'")
    server = pytest.importorskip(
        "moto.server", reason="the S3 server of the tests is moto's: pip install 'moto[server]'"
    )
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    started = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    started.start()
    try:
        host, port = started.get_host_and_port()
        import boto3

        url = f"http://{host}:{port}"
        keys = {"aws_access_key_id": KEY, "aws_secret_access_key": SECRET, "region_name": "us-east-1"}
        boto3.client("s3", endpoint_url=url, **keys).create_bucket(Bucket=NAME)
        yield url
    finally:
        started.stop()


@contextmanager
def environment(endpoint: str | None, key: str | None = KEY, cache: Path | None = None) -> Iterator[dict[str, str]]:
    """The variables by which leanrecon finds the server, of this process and for others."""
    values = {"AWS_REGION": "us-east-1", "AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": key}
    values |= {
        "AWS_SECRET_ACCESS_KEY": SECRET if key else None,
        "LEANRECON_CACHE": None if cache is None else str(cache),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in values.items():
            if value is not None:
                patch.setenv(name, value)
        bucket_of.cache_clear()
        yield {name: value for name, value in values.items() if value is not None}
    bucket_of.cache_clear()


def at(prefix: str) -> Location:
    """A folder of the bucket."""
    return as_location(f"s3://{NAME}/{prefix}")


def keys(place: Location) -> list[str]:
    """All that a folder of the bucket holds, as a fresh listing tells, holds included."""
    return [key for key, _ in bucket_of(f"s3://{NAME}").list(place.key)]


def put(folder: Path, to: Location) -> None:
    """Copy a folder into a bucket."""
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            (to / file.relative_to(folder).as_posix()).write_bytes(file.read_bytes())
