"""moto's S3 server with one bucket, which goes with all that it holds when the last server stops."""

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

KEY, SECRET = "AKIATESTTESTTEST", "a-secret-that-must-not-be-written"
"""Any will do for moto."""

_running: Counter[str] = Counter()
"""Servers by the bucket that they were started for."""


def client(url: str) -> Any:
    """A client of a server that may read and write."""
    import boto3

    return boto3.client(
        "s3", endpoint_url=url, aws_access_key_id=KEY, aws_secret_access_key=SECRET, region_name="us-east-1"
    )


@contextmanager
def serving(bucket: str) -> Iterator[str]:
    """Run the server in a thread; yields its address. All servers of a process share their buckets."""
    pytest.importorskip("boto3", reason="the bucket of the tests is made by boto3")
    pytest.importorskip("flask_cors", reason="the S3 server of the tests is moto's: pip install 'moto[server]'")
    server = pytest.importorskip(
        "moto.server", reason="the S3 server of the tests is moto's: pip install 'moto[server]'"
    )
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    started = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    started.start()
    try:
        host, port = started.get_host_and_port()
        url = f"http://{host}:{port}"
        client(url).create_bucket(Bucket=bucket)
        _running[bucket] += 1
        try:
            yield url
        finally:
            _running[bucket] -= 1
            if not _running[bucket]:
                remove(client(url), bucket)
    finally:
        started.stop()


def remove(of: Any, bucket: str) -> None:
    """Delete a bucket and its objects."""
    for page in of.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        if listed := [{"Key": each["Key"]} for each in page.get("Contents", [])]:
            of.delete_objects(Bucket=bucket, Delete={"Objects": listed})
    of.delete_bucket(Bucket=bucket)
