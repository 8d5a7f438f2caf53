"""A small NSD on a real S3 server (moto), and a proxy in front that counts requests and makes them fail."""

import http.client
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from support import moto

NAME = "natural-scenes-dataset"

PUBLIC = {"ACL": "public-read"}
"""What lets anyone read an object."""

FAULTS = ("drop", "500", "503", "truncate", "slow")
SLOW = 2.0
"""Seconds that a slow answer takes."""


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Run moto's S3 server locally with the files of a folder in one bucket; yields its address."""
    with moto.serving(NAME) as url:
        client = writer(url)
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.suffix != ".npy":
                client.upload_file(str(path), NAME, path.relative_to(folder).as_posix(), ExtraArgs=PUBLIC)
        yield url


writer = moto.client


@dataclass
class Answer:
    """One request and its outcome."""

    method: str
    path: str
    range: str | None
    status: int
    nbytes: int
    fault: str | None


@dataclass
class Proxy:
    """Forwards requests to a server; ``choose`` says which of them fail, and how."""

    url: str
    answers: list[Answer] = field(default_factory=list)
    choose: Callable[[int, str, str], str | None] = lambda number, method, path: None
    numbers: int = 0
    unheard: tuple[str, ...] = ()
    """Headers that the server behind is not told of."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def nbytes(self, part: str = "") -> int:
        """Bytes of response bodies sent for files with ``part`` in their name."""
        return sum(answer.nbytes for answer in self.answers if part in answer.path and answer.method == "GET")

    def requests(self, part: str = "") -> int:
        return sum(part in answer.path for answer in self.answers)


@contextmanager
def proxied(target: str) -> Iterator[Proxy]:
    """A proxy in front of the server at ``target``."""
    upstream = urlsplit(target).netloc
    local = threading.local()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *_: Any) -> None:
            return

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def do_PUT(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self._answer()

        def do_DELETE(self) -> None:
            self._answer()

        def _answer(self) -> None:
            self.sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with proxy.lock:
                number = proxy.numbers
                proxy.numbers += 1
            fault = proxy.choose(number, self.command, self.path)
            note = Answer(self.command, self.path, self.headers.get("Range"), 0, 0, fault)
            proxy.answers.append(note)
            try:
                self._pass(note)
            except OSError:
                self.close_connection = True

        def _pass(self, note: Answer) -> None:
            if note.fault == "drop":
                self.close_connection = True
                return
            if note.fault == "slow":
                time.sleep(SLOW)
            if note.fault and note.fault.isdigit():
                code = {"500": "InternalError", "503": "SlowDown"}.get(note.fault, "InvalidRequest")
                body = f"<Error><Code>{code}</Code><Message>later</Message></Error>".encode()
                note.status = int(note.fault)
                self.send_response(note.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(b"" if self.command == "HEAD" else body)
                return
            status, headers, body = self._upstream()
            if note.fault == "lost":
                self.close_connection = True
                return
            note.status = status
            self.send_response(status)
            for name, value in headers:
                if name.lower() not in ("connection", "transfer-encoding", "date", "server", "content-length"):
                    self.send_header(name, value)
            length = {name.lower(): value for name, value in headers}.get("content-length", str(len(body)))
            self.send_header("Content-Length", length if self.command == "HEAD" else str(len(body)))
            self.end_headers()
            if note.fault == "truncate":
                body = body[: len(body) // 2]
                self.close_connection = True
            note.nbytes = len(body)
            self.wfile.write(body)

        def _upstream(self) -> tuple[int, list[tuple[str, str]], bytes]:
            for attempt in range(3):
                try:
                    if not hasattr(local, "connection"):
                        local.connection = http.client.HTTPConnection(upstream)
                    kept = {k: v for k, v in self.headers.items() if k.lower() not in ("connection",)}
                    kept = {k: v for k, v in kept.items() if k.lower() not in proxy.unheard}
                    local.connection.request(self.command, self.path, body=self.sent or None, headers=kept)
                    answer = local.connection.getresponse()
                    return answer.status, answer.getheaders(), answer.read()
                except (http.client.HTTPException, OSError):
                    del local.connection
                    if attempt == 2:
                        raise
            raise AssertionError

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            return  # a client that was killed

    server = Server(("127.0.0.1", 0), Handler)
    proxy = Proxy(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
