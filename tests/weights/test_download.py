"""A file fetched over HTTP: what there is of it is kept, and what is kept is of one version."""

import errno
import hashlib
import itertools
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np
import pytest
from support.hub_server import git_name

from leanrecon.errors import LeanreconError, NetworkError, StoreError
from leanrecon.net import download, retry
from leanrecon.net.download import Remote, fetch, find, partial_of
from leanrecon.progress import Progress

MB = 1_000_000
DATA = np.random.default_rng(0).bytes(5 * MB)
OTHER = np.random.default_rng(1).bytes(5 * MB)
SHA = hashlib.sha256(DATA).hexdigest()

KNOWN = {
    "sha256": {"sha256": SHA, "size": len(DATA)},
    "git": {"git": git_name(DATA), "size": len(DATA)},
    "md5": {"md5": hashlib.md5(DATA).hexdigest()},
    "nothing": {},
}


@pytest.fixture
def target(tmp_path):
    return tmp_path / "cache" / "weights.th"


def once(*faults):
    """These faults, one a request, and none afterwards."""
    left = list(faults)
    return lambda asked: left.pop(0) if left and asked.method == "GET" else None


def only(target):
    """Whether the file is there, and nothing else beside it."""
    return [path.name for path in target.parent.iterdir()] == [target.name]


@pytest.mark.parametrize("known", KNOWN.values(), ids=KNOWN)
def test_a_file_is_fetched_whole(known, server, target):
    fetch(Remote(server.put("/a.th", DATA), **known), target)
    assert target.read_bytes() == DATA
    assert only(target)
    assert server.nbytes() == len(DATA)


@pytest.mark.parametrize("known", KNOWN.values(), ids=KNOWN)
def test_a_connection_that_breaks_costs_nothing_of_what_it_brought(known, server, target):
    remote = Remote(server.put("/a.th", DATA), **known)
    server.fault = once(2 * MB, MB, 0, 503, 5)
    fetch(remote, target)
    assert target.read_bytes() == DATA
    assert server.nbytes() == len(DATA)
    ranges = [asked.headers.get("range") for asked in server.asked]
    assert ranges == [None, f"bytes={2 * MB}-"] + [f"bytes={3 * MB}-"] * 3 + [f"bytes={3 * MB + 5}-"]


@pytest.mark.parametrize("known", KNOWN.values(), ids=KNOWN)
def test_a_later_call_fetches_only_the_rest(known, server, target, monkeypatch):
    monkeypatch.setattr(retry, "ATTEMPTS", 2)
    remote = Remote(server.put("/a.th", DATA), **known)
    server.fault = once(3 * MB, 0, 0)
    with pytest.raises(NetworkError, match="could not be read in 2 attempts.*everything fetched so far is kept"):
        fetch(remote, target)
    assert not target.exists()
    assert partial_of(target).stat().st_size == 3 * MB
    before = server.nbytes()
    progress = Counted()
    fetch(remote, target, progress=progress)
    assert target.read_bytes() == DATA
    assert only(target)
    assert server.nbytes() - before == 2 * MB
    assert (progress.done, progress.advanced) == (3 * MB, 2 * MB)


class Counted(Progress):
    @contextmanager
    def task(self, name, *, total, unit, done=0):
        self.done, self.advanced = done, 0

        def advance(n):
            self.advanced += n

        yield advance


def begun(server, target, how=None, **known):
    """Leave three of five million bytes of a file, as a killed process does; returns what to fetch."""
    remote = Remote(server.put("/a.th", DATA, **(how or {})), **known)
    server.fault = once(3 * MB, 404)
    with pytest.raises(NetworkError, match="404"):
        fetch(remote, target)
    assert partial_of(target).stat().st_size == 3 * MB
    server.asked.clear()
    return remote


@pytest.mark.parametrize("if_range", [True, False])
def test_another_version_is_begun_anew(if_range, server, target):
    remote = begun(server, target)
    server.put("/a.th", OTHER, if_range=if_range)
    fetch(remote, target)
    assert target.read_bytes() == OTHER
    assert server.asked[0].headers["if-range"] == f'"{hashlib.md5(DATA).hexdigest()}"'
    assert len(server.asked) == (1 if if_range else 2)


def test_another_version_that_was_found_beforehand_is_begun_anew(server, target):
    begun(server, target)
    remote = find(Remote(server.put("/a.th", OTHER, md5=True)))
    assert (remote.size, remote.md5) == (len(OTHER), hashlib.md5(OTHER).hexdigest())
    fetch(remote, target)
    assert target.read_bytes() == OTHER
    assert "range" not in server.asked[-1].headers


@pytest.mark.parametrize("how", [{"etag": None}, {"etag": 'W/"weak"'}], ids=["none", "weak"])
def test_without_a_version_to_go_by_a_file_is_begun_anew(how, server, target):
    fetch(begun(server, target, how), target)
    assert target.read_bytes() == DATA
    assert "range" not in server.asked[0].headers


@pytest.mark.parametrize("how", [{"etag": None}, {"etag": 'W/"weak"'}], ids=["none", "weak"])
def test_a_digest_is_enough_to_go_on(how, server, target):
    fetch(begun(server, target, how, sha256=SHA), target)
    assert target.read_bytes() == DATA
    assert server.nbytes() == 2 * MB


def test_a_server_without_ranges_sends_all_of_it(server, target):
    fetch(begun(server, target, {"ranges": False}, sha256=SHA), target)
    assert target.read_bytes() == DATA
    assert server.nbytes() == len(DATA)


def test_a_server_that_does_not_tell_the_size_is_believed_if_the_digest_is_right(server, target):
    server.put("/a.th", DATA, length=False)
    fetch(Remote(f"{server.url}/a.th", sha256=SHA), target)
    assert target.read_bytes() == DATA


@pytest.mark.parametrize("kind", ["sha256", "git", "md5"])
def test_a_damaged_part_is_found_and_fetched_again(kind, server, target):
    remote = begun(server, target, **KNOWN[kind])
    with partial_of(target).open("r+b") as file:
        file.seek(MB)
        file.write(b"damaged")
    fetch(remote, target)
    assert target.read_bytes() == DATA
    assert server.nbytes() == 2 * MB + len(DATA)


def test_a_part_that_is_longer_than_the_file_is_begun_anew(server, target):
    remote = begun(server, target, **KNOWN["sha256"])
    partial_of(target).write_bytes(bytes(6 * MB))
    fetch(remote, target)
    assert target.read_bytes() == DATA


def test_a_part_that_is_whole_asks_for_nothing(server, target):
    remote = begun(server, target, **KNOWN["sha256"])
    partial_of(target).write_bytes(DATA)
    fetch(remote, target)
    assert target.read_bytes() == DATA
    assert server.asked == []


@pytest.mark.parametrize("kind", ["sha256", "git", "md5"])
def test_wrong_bytes_are_refused(kind, server, target):
    known = KNOWN[kind]
    remote = Remote(server.put("/a.th", OTHER), **known)
    with pytest.raises(NetworkError, match=f"sent a file whose {kind} is .*, not {known[kind]}"):
        fetch(remote, target)
    assert list(target.parent.iterdir()) == []


def test_the_server_s_own_digest_is_checked(server, target, monkeypatch):
    server.put("/a.th", DATA, md5=True)
    monkeypatch.setattr(server.contents["/a.th"], "data", DATA)
    real = download._Transfer._write
    monkeypatch.setattr(download._Transfer, "_write", lambda self, file, piece: real(self, file, b"x" * len(piece)))
    with pytest.raises(NetworkError, match="sent a file whose md5 is"):
        fetch(Remote(f"{server.url}/a.th"), target)
    assert list(target.parent.iterdir()) == []


def test_a_file_of_another_size_is_refused_before_its_bytes(server, target):
    with pytest.raises(NetworkError, match=rf"has {len(DATA)} bytes\. Expected {len(DATA) + 1}\."):
        fetch(Remote(server.put("/a.th", DATA), size=len(DATA) + 1), target)
    assert partial_of(target).stat().st_size == 0


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_what_is_not_to_be_had_is_asked_for_once(status, server, target):
    server.put("/a.th", DATA)
    server.fault = lambda asked: status
    for ask in (lambda remote: fetch(remote, target), find):
        with pytest.raises(NetworkError, match=rf"cannot download http\S+/a.th \({status} "):
            ask(Remote(f"{server.url}/a.th"))
    assert len(server.asked) == 2


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_what_may_pass_is_asked_for_again(status, server, target):
    remote = Remote(server.put("/a.th", DATA))
    count = itertools.count()
    server.fault = lambda asked: status if next(count) % 4 else None
    next(count)
    fetch(find(remote), target)
    assert target.read_bytes() == DATA
    assert len(server.asked) == 8


def test_a_server_that_is_not_there_is_named(target, monkeypatch):
    monkeypatch.setattr(retry, "FIRST_WAIT", 0.001)
    with pytest.raises(NetworkError, match=r"could not be read in 8 attempts.*Check the network and 127\.0\.0\.1:9"):
        fetch(Remote("http://127.0.0.1:9/a.th"), target)


def test_what_proves_who_asks_is_not_sent_on(server, target):
    server.put("/a.th", DATA)
    fetch(Remote(f"{server.url}/a.th", headers={"Authorization": "Bearer secret"}), target)
    assert server.asked[0].headers["authorization"] == "Bearer secret"
    assert "secret" not in repr(Remote("u", headers={"Authorization": "Bearer secret"}))


def test_a_full_disk_keeps_what_there_is(server, target, monkeypatch):
    remote = Remote(server.put("/a.th", DATA), **KNOWN["sha256"])
    real = download._Transfer._written

    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def close(self):
            self.file.close()

        def write(self, view):
            room = 2 * MB + 17 - self.file.tell()
            if room <= 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.file.write(view[:room])

    monkeypatch.setattr(download._Transfer, "_written", lambda self: Full(real(self)))
    with pytest.raises(StoreError, match="the disk is full.*everything written so far is kept"):
        fetch(remote, target)
    assert partial_of(target).stat().st_size == 2 * MB + 17
    monkeypatch.setattr(download._Transfer, "_written", real)
    server.asked.clear()
    fetch(remote, target)
    assert target.read_bytes() == DATA
    assert server.asked[0].headers["range"] == f"bytes={2 * MB + 17}-"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_named_with_what_chooses_another(server, tmp_path):
    (tmp_path / "cache").mkdir(mode=0o500)
    with pytest.raises(StoreError, match="LEANRECON_CACHE"):
        fetch(Remote(server.put("/a.th", DATA)), tmp_path / "cache" / "a.th")


FETCHING = """
import sys
from pathlib import Path
from leanrecon.net.download import Remote, fetch
fetch(Remote(sys.argv[1]), Path(sys.argv[2]))
"""


def test_a_process_that_is_killed_continues(server, target):
    url = server.put("/a.th", DATA)
    server.fault = slowed(server)
    command = [sys.executable, "-c", FETCHING, url, str(target)]
    process = subprocess.Popen(command)
    until = time.monotonic() + 30
    while not (partial_of(target).exists() and partial_of(target).stat().st_size >= MB):
        assert time.monotonic() < until
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = partial_of(target).stat().st_size
    assert MB <= kept < len(DATA)
    server.fault = lambda asked: None
    server.asked.clear()
    subprocess.run(command, check=True)
    assert target.read_bytes() == DATA
    assert server.asked[0].headers["range"] == f"bytes={kept}-"
    assert server.nbytes() == len(DATA) - kept


def slowed(server):
    """Each request brings half a million bytes, and its time."""

    def fault(asked):
        time.sleep(0.1)
        return MB // 2

    return fault


def test_every_refusal_is_one_of_ours(server, target):
    assert issubclass(NetworkError, LeanreconError)
    assert not issubclass(NetworkError, OSError)  # which would be taken for the disk's
