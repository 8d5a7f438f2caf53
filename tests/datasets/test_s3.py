"""Ranges of objects on a real S3 server, through a network that fails in every way a network does."""

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.nsd_server import FAULTS, NAME, PUBLIC, Proxy, proxied, writer

from leanrecon.errors import InputError
from leanrecon.net import retry, s3
from leanrecon.net.ranges import BLOCK, Found, LocalFile, Traffic, coalesce
from leanrecon.net.s3 import Bucket, NetworkError

pytestmark = pytest.mark.slow

DATA = np.random.default_rng(5).bytes(1_000_000)
ROOT = f"s3://{NAME}/objects"


@pytest.fixture(scope="module")
def url(s3_url: str) -> str:
    writer(s3_url).put_object(Bucket=NAME, Key="objects/data", Body=DATA, **PUBLIC)
    writer(s3_url).put_object(Bucket=NAME, Key="objects/secret", Body=DATA)
    writer(s3_url).put_object(Bucket=NAME, Key="objects/empty", Body=b"", **PUBLIC)
    return s3_url


@pytest.fixture
def proxy(url: str, monkeypatch):
    monkeypatch.setattr(retry, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(retry, "LONGEST_WAIT", 0.01)
    with proxied(url) as found:
        yield found


def first(fault: str, times: int = 1):
    """Fail in the first so many requests of data."""
    left = iter(range(times))
    lock = threading.Lock()

    def choose(number: int, method: str, path: str) -> str | None:
        with lock:
            return fault if method == "GET" and next(left, None) is not None else None

    return choose


@pytest.mark.slow
def test_any_range_is_read(url):
    with Bucket(ROOT, endpoint_url=url) as bucket:
        file = bucket.open("data", bucket.find("data"))
        for start, stop in ((0, 1), (5, 4000), (999_999, 1_000_000), (0, 1_000_000)):
            assert bytes(file.fetch(start, stop)) == DATA[start:stop]
        assert bucket.traffic.nbytes == 1 + 3995 + 1 + 1_000_000


def test_it_reads_and_seeks_as_any_file_does(url):
    with Bucket(ROOT, endpoint_url=url) as bucket:
        file = bucket.open("data", bucket.find("data"))
        assert file.read(10) == DATA[:10]
        assert (file.seek(-5, 2), file.read()) == (999_995, DATA[-5:])
        file.seek(3 * BLOCK - 2)
        file.seek(1, 1)
        assert file.read(4) == DATA[3 * BLOCK - 1 : 3 * BLOCK + 3]
        requests = bucket.traffic.requests
        file.seek(2)
        assert file.read(100) == DATA[2:102]
        assert bucket.traffic.requests == requests, "the first block is still there"
        assert (file.seek(2_000_000), file.read(1)) == (2_000_000, b"")
        empty = bucket.open("empty", bucket.find("empty"))
        assert empty.read() == b""


def test_the_cache_of_blocks_is_bounded(url, monkeypatch):
    monkeypatch.setattr("leanrecon.net.ranges.BLOCKS", 3)
    with Bucket(ROOT, endpoint_url=url) as bucket:
        file = bucket.open("data", bucket.find("data"))
        assert file.read() == DATA
        assert len(file.cache.blocks) <= 3


def test_spans_come_in_order_and_at_once(proxy: Proxy):
    busy, most, lock = 0, 0, threading.Lock()
    gate = threading.Barrier(4, timeout=10)

    def choose(number: int, method: str, path: str) -> None:
        nonlocal busy, most
        if method == "GET":
            with lock:
                busy += 1
                most = max(most, busy)
            gate.wait()  # four requests have to be under way before any is answered
            with lock:
                busy -= 1

    proxy.choose = choose
    spans = [(k * 1000, k * 1000 + 7) for k in range(12)]
    with Bucket(ROOT, endpoint_url=proxy.url, connections=4) as bucket:
        file = bucket.open("data", bucket.find("data"))
        found = list(file.in_order(spans, lambda k, data: (k, bytes(data))))
    assert found == [(k, DATA[a:b]) for k, (a, b) in enumerate(spans)]
    assert most == 4


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_failure_that_passes_leaves_no_trace(proxy: Proxy, fault: str):
    proxy.choose = first(fault, 3)
    with Bucket(ROOT, endpoint_url=proxy.url, timeout=1.0) as bucket:
        file = bucket.open("data", bucket.find("data"))
        assert bytes(file.fetch(10, 900_000)) == DATA[10:900_000]
    faults = [answer.fault for answer in proxy.answers]
    assert faults.count(fault) == 3


def test_what_came_before_a_connection_broke_is_not_asked_for_again(proxy: Proxy):
    proxy.choose = first("truncate", 3)
    with Bucket(ROOT, endpoint_url=proxy.url) as bucket:
        file = bucket.open("data", bucket.find("data"))
        assert bytes(file.fetch(0, len(DATA))) == DATA
    lost = 3 * s3._PIECE  # of each broken answer, at most a piece
    assert proxy.nbytes() <= len(DATA) + lost
    starts = [int(a.range.removeprefix("bytes=").partition("-")[0]) for a in proxy.answers if a.range]
    assert starts[0] == 0
    assert starts[1] > 200_000


def test_a_network_that_stays_away_is_an_error_with_what_to_do(proxy: Proxy):
    proxy.choose = lambda number, method, path: "503" if method == "GET" else None
    with Bucket(ROOT, endpoint_url=proxy.url) as bucket:
        file = bucket.open("data", bucket.find("data"))
        with pytest.raises(NetworkError, match="8 attempts.*same command again; everything fetched so far is kept"):
            file.fetch(0, 10)
    assert sum(answer.fault == "503" for answer in proxy.answers) == retry.ATTEMPTS


def test_a_bucket_that_is_closed_gives_up_at_once(proxy: Proxy, monkeypatch):
    monkeypatch.setattr(retry, "FIRST_WAIT", 60.0)
    monkeypatch.setattr(retry, "LONGEST_WAIT", 60.0)
    proxy.choose = lambda number, method, path: "503" if method == "GET" else None
    started = time.monotonic()
    with Bucket(ROOT, endpoint_url=proxy.url) as bucket:
        file = bucket.open("data", bucket.find("data"))
        waiting = bucket.pool.submit(file.fetch, 0, 10)
        while not any(answer.fault for answer in proxy.answers):
            time.sleep(0.01)
    assert time.monotonic() - started < 20
    with pytest.raises(NetworkError, match="was cancelled"):
        waiting.result()


@pytest.mark.slow
def test_a_server_that_is_not_there_is_an_error_with_its_name(monkeypatch):
    pytest.importorskip("boto3")
    monkeypatch.setattr(retry, "FIRST_WAIT", 0.001)
    with (
        Bucket(ROOT, endpoint_url="http://127.0.0.1:9") as bucket,
        pytest.raises(NetworkError, match="objects/data.*127.0.0.1:9"),
    ):
        bucket.find("data")


def test_missing_and_forbidden_objects_are_not_found(url):
    with Bucket(ROOT, endpoint_url=url) as bucket:
        assert bucket.find_all(["nothing", "secret", "data"])[:2] == [None, None]
        found = bucket.find("data")
        with pytest.raises(InputError, match="objects/nothing is not there"):
            bucket.open("nothing", found).fetch(0, 5)


def test_a_file_that_changes_midway_is_an_error(url, s3_url):
    writer(s3_url).put_object(Bucket=NAME, Key="objects/changing", Body=b"first version", **PUBLIC)
    with Bucket(ROOT, endpoint_url=url) as bucket:
        file = bucket.open("changing", bucket.find("changing"))
        assert bytes(file.fetch(0, 5)) == b"first"
        writer(s3_url).put_object(Bucket=NAME, Key="objects/changing", Body=b"other version", **PUBLIC)
        with pytest.raises(InputError, match="objects/changing has changed since its first bytes were read"):
            file.fetch(6, 13)


def test_a_range_beyond_the_end_is_refused(url):
    with Bucket(ROOT, endpoint_url=url) as bucket:
        file = bucket.open("data", bucket.find("data"))
        with pytest.raises(InputError, match="truncated: it has 1000000 bytes"):
            file.fetch(999_000, 1_000_001)


def test_other_errors_are_not_waited_for(proxy: Proxy):
    with Bucket(ROOT, endpoint_url=proxy.url) as bucket:
        file = bucket.open("data", bucket.find("data"))
        proxy.choose = first("400")
        with pytest.raises(Exception, match="InvalidRequest"):
            file.fetch(0, 10)
    assert proxy.requests() == 2


def test_a_bucket_in_another_region_is_followed_there() -> None:
    pytest.importorskip("boto3")
    asked: list[tuple[str, str | None]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            return

        def do_HEAD(self) -> None:
            self.send_response(200 if asked else 301)
            asked.append((self.path, "HEAD"))
            self.send_header("x-amz-bucket-region", "eu-west-1")
            self.send_header("ETag", '"e"')
            self.send_header("Content-Length", str(len(DATA)))
            self.end_headers()

        def do_GET(self) -> None:
            asked.append((self.path, self.headers["Range"]))
            first = len(asked) == 1
            body = b"" if first else DATA[5:9]
            self.send_response(301 if first else 206)
            self.send_header("Content-Length", str(len(body)))
            if first:
                self.send_header("x-amz-bucket-region", "eu-west-1")
            else:
                self.send_header("ETag", '"e"')
                self.send_header("Content-Range", f"bytes 5-8/{len(DATA)}")
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with Bucket(ROOT, endpoint_url=f"http://127.0.0.1:{server.server_port}") as bucket:
            assert bucket.client.meta.region_name == "us-east-2"
            assert bytes(bucket.open("a b", Found(len(DATA), '"e"')).fetch(5, 9)) == DATA[5:9]
            assert bucket.client.meta.region_name == "eu-west-1"
        assert asked == [(f"/{NAME}/objects/a%20b", "bytes=5-8")] * 2
        asked.clear()
        with Bucket(ROOT, endpoint_url=f"http://127.0.0.1:{server.server_port}") as bucket:
            assert bucket.find("a b") == Found(len(DATA), '"e"')
            assert bucket.client.meta.region_name == "eu-west-1"
        assert asked == [(f"/{NAME}/objects/a%20b", "HEAD")] * 2
    finally:
        server.shutdown()
        server.server_close()


# Joining ranges


@pytest.mark.parametrize(
    ("ranges", "gap", "most", "spans"),
    [
        ([], 0, 100, []),
        ([(0, 10)], 0, 100, [(0, 10)]),
        ([(0, 10), (10, 20)], 0, 100, [(0, 20)]),
        ([(0, 10), (11, 20)], 0, 100, [(0, 10), (11, 20)]),
        ([(0, 10), (15, 20), (26, 30)], 5, 100, [(0, 20), (26, 30)]),
        ([(0, 10), (10, 20), (20, 30)], 0, 20, [(0, 20), (20, 30)]),  # no longer than is allowed
        ([(0, 500), (500, 510)], 0, 100, [(0, 500), (500, 510)]),  # one range may be longer
        ([(0, 50), (10, 20), (15, 60)], 0, 100, [(0, 60)]),  # overlapping
    ],
)
def test_ranges_are_joined(ranges, gap, most, spans):
    starts, stops = np.array([r[0] for r in ranges], int), np.array([r[1] for r in ranges], int)
    begins, ends, first = coalesce(starts, stops, gap=gap, most=most)
    assert list(zip(begins.tolist(), ends.tolist(), strict=True)) == spans
    assert len(first) == len(spans)


@given(
    st.lists(st.tuples(st.integers(0, 300), st.integers(1, 40)), max_size=40), st.integers(0, 30), st.integers(1, 200)
)
def test_every_range_lies_in_its_span(ranges, gap, most):
    ranges = sorted(ranges)
    starts = np.array([a for a, _ in ranges], int)
    stops = np.array([a + n for a, n in ranges], int)
    begins, ends, first = coalesce(starts, stops, gap=gap, most=most)
    lasts = [*first[1:], len(ranges)] if ranges else []
    for begin, end, a, b in zip(begins, ends, first, lasts, strict=True):
        assert a < b
        assert begin == starts[a]
        assert end == stops[a:b].max()
        assert end - begin <= most or b - a == 1
    assert sum(b - a for a, b in zip(first, lasts, strict=True)) == len(ranges)


# Files on disk


def test_a_local_file_is_read_by_ranges_too(tmp_path: Path):
    (tmp_path / "data").write_bytes(DATA)
    traffic = Traffic()
    with LocalFile(tmp_path / "data", "data", traffic) as file:
        assert file.fetch(7, 70) == DATA[7:70]
        assert (traffic.requests, traffic.nbytes) == (1, 63)
        with pytest.raises(InputError, match="data is truncated: it ends at byte 1000000"):
            file.fetch(999_999, 1_000_005)


def test_the_print_of_a_local_file_is_of_its_content(tmp_path: Path):
    def print_of(data: bytes) -> str:
        (tmp_path / "data").write_bytes(data)
        with LocalFile(tmp_path / "data", "data", Traffic()) as file:
            return file.print

    assert print_of(DATA) == print_of(DATA)
    assert len({print_of(DATA), print_of(DATA[:-1]), print_of(b"x" + DATA[1:]), print_of(b"")}) == 4
