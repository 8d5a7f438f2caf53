"""Servers that lie: redirects to other schemes, endless answers, absurd headers. Each is told in one sentence."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from leanrecon.errors import NetworkError
from leanrecon.net import retry
from leanrecon.net.download import Remote, fetch, find, partial_of

Answer = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def serving(answer: Answer) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            answer(self)

        def do_HEAD(self) -> None:
            answer(self)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def headed(status: int = 200, **headers: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response_only(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.close_connection = True

    return answer


def endless(handler: BaseHTTPRequestHandler) -> None:
    """Announces nothing and sends chunks until the other side has enough."""
    handler.send_response_only(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    piece = b"%x\r\n" % 2**20 + bytes(2**20) + b"\r\n"
    try:
        for _ in range(300):
            handler.wfile.write(piece)
    except OSError:
        handler.close_connection = True


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "ATTEMPTS", 1)


@pytest.mark.parametrize(
    "to", ["ftp://example.org/a", "file:///etc/passwd", "data:text/plain,x", "gopher://example.org/"]
)
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_to_other_schemes_are_refused(to: str, status: int, tmp_path: Path) -> None:
    with serving(headed(status, Location=to)) as url, pytest.raises(NetworkError, match="redirects to"):
        fetch(Remote(f"{url}/a.th"), tmp_path / "a.th")
    assert not (tmp_path / "a.th").exists()


def test_a_download_longer_than_announced_is_cut_and_removed(tmp_path: Path) -> None:
    target = tmp_path / "a.th"
    with serving(endless) as url, pytest.raises(NetworkError, match="more than the 10000 bytes"):
        fetch(Remote(f"{url}/a.th", size=10_000), target)
    assert not target.exists()
    assert not partial_of(target).exists() or partial_of(target).stat().st_size <= 10_000


@pytest.mark.parametrize(
    "headers",
    [
        {"Content_Length": "9" * 5000},
        {"Content_Length": "-5"},
        {"Content_Length": "ten"},
        {"Content_Length": "4", "Content_MD5": "ÿþ"},
        {"Content_Length": "4", "Content_Range": "bytes 0-3/" + "9" * 5000, "ETag": "\x1b]0;title\x07"},
    ],
)
def test_absurd_headers_end_in_a_sentence_or_are_ignored(headers: dict[str, str], tmp_path: Path) -> None:
    with serving(headed(200, **headers)) as url:
        remote = Remote(f"{url}/a.th")
        try:
            size = find(remote).size
        except NetworkError as error:
            size, told = None, str(error)
            assert "\x1b" not in told
        assert size in (None, 4)


def test_passwords_in_addresses_are_not_told(tmp_path: Path) -> None:
    with serving(headed(404)) as url, pytest.raises(NetworkError) as refused:
        fetch(Remote(url.replace("http://", "http://me:secret@") + "/a.th?X-Amz-Signature=abcdef"), tmp_path / "a.th")
    assert "secret" not in str(refused.value)
    assert "abcdef" not in str(refused.value)
