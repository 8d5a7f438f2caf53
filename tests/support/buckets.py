"""Buckets on a real S3 server (moto) on this machine, and a proxy in front that counts requests and makes them fail."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from leanrecon.places import Location, as_location
from leanrecon.places.bucket import bucket_of
from support import moto
from support.moto import KEY, SECRET

NAME = "studies"


@contextmanager
def serving() -> Iterator[str]:
    """Run moto's S3 server with one bucket; yields its address."""
    pytest.importorskip("obstore", reason="buckets are read by obstore: pip install 'leanrecon[cloud]'")
    with moto.serving(NAME) as url:
        yield url


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
