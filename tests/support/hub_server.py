"""A local server that speaks the parts of the Hugging Face Hub that are used, and range requests; it can be made to fail."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = 2000
"""Bytes from which a file of a model is kept apart from git, with a SHA-256 of its own."""


@dataclass
class Asked:
    """One request and its response."""

    method: str
    path: str
    headers: dict[str, str]
    status: int = 0
    nbytes: int = 0


@dataclass
class Content:
    """A file at an address."""

    data: bytes
    etag: str | None
    md5: bool = False
    ranges: bool = True
    if_range: bool = True
    """Whether the server knows of If-Range."""
    length: bool = True


@dataclass
class Server:
    """What is served, what was requested, and what fails."""

    url: str = ""
    contents: dict[str, Content] = field(default_factory=dict)
    models: dict[str, tuple[str, dict[str, bytes]]] = field(default_factory=dict)
    """By name (data sets as datasets/NAME): commit, and files by name."""
    asked: list[Asked] = field(default_factory=list)
    fault: Callable[[Asked], Any] = lambda asked: None
    """What goes wrong with a request: a status, or how many bytes are sent before the connection breaks."""

    def put(self, path: str, data: bytes, *, etag: str | None = "", **how: Any) -> str:
        """Serve bytes at a path; returns the address."""
        etag = f'"{hashlib.md5(data).hexdigest()}"' if etag == "" else etag
        self.contents[path] = Content(data, etag, **how)
        return f"{self.url}{path}"

    def put_model(self, name: str, folder: Path, *, commit: str = "1" * 40) -> None:
        """Serve a folder as the model or dataset of this name."""
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        self.models[name] = commit, {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}

    def nbytes(self, part: str = "") -> int:
        """Bytes sent of files with ``part`` in their address, without lists of models."""
        return sum(a.nbytes for a in self.asked if part in a.path and a.method == "GET" and "/api/" not in a.path)

    def files(self) -> set[str]:
        """Names of the files that were requested."""
        return {a.path.partition("/resolve/")[2].partition("/")[2] for a in self.asked if "/resolve/" in a.path}


def git_name(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def listed(name: str, data: bytes) -> dict[str, Any]:
    """A file's entry in the Hub's list of a model's files."""
    found: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": git_name(data)}
    if len(data) >= LARGE:
        pointer = git_name(b"a pointer to " + hashlib.sha256(data).hexdigest().encode())
        found |= {"blobId": pointer}
        found["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return found


@contextmanager
def serving() -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            return

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            asked = Asked(self.command, path, {name.lower(): value for name, value in self.headers.items()})
            server.asked.append(asked)
            fault = server.fault(asked)
            if fault in range(400, 600):
                return self.send(asked, fault, {}, b"")
            if listing := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+|[^/]+)(/revision/.*)?", path):
                return self.send_list(asked, listing)
            if resolved := re.fullmatch(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.*)", path):
                return self.send_of_model(asked, resolved, fault)
            content = server.contents.get(path)
            if content is None:
                return self.send(asked, 404, {}, b"")
            headers = {"ETag": content.etag} if content.etag else {}
            if content.md5:
                headers["Content-MD5"] = base64.b64encode(hashlib.md5(content.data).digest()).decode()
            return self.send_file(asked, content, headers, fault)

        def send_list(self, asked: Asked, listing: re.Match[str]) -> None:
            name = ("datasets/" if listing[1] == "datasets" else "") + listing[2]
            if name not in server.models:
                return self.send(asked, 404, {"X-Error-Code": "RepoNotFound"}, b"{}")
            commit, files = server.models[name]
            info = {"id": listing[2], "sha": commit, "siblings": [listed(n, data) for n, data in files.items()]}
            return self.send(asked, 200, {"Content-Type": "application/json"}, json.dumps(info).encode())

        def send_of_model(self, asked: Asked, resolved: re.Match[str], fault: Any) -> None:
            commit, files = server.models.get(resolved[1], ("", {}))
            if resolved[3] not in files or resolved[2] not in (commit, "main"):
                return self.send(asked, 404, {"X-Error-Code": "EntryNotFound"}, b"")
            data = files[resolved[3]]
            entry = listed(resolved[3], data)
            digest = entry["lfs"]["sha256"] if "lfs" in entry else entry["blobId"]
            headers = {"ETag": f'"{digest}"', "X-Repo-Commit": commit, "X-Linked-Size": str(len(data))}
            return self.send_file(asked, Content(data, f'"{digest}"'), headers, fault)

        def send_file(self, asked: Asked, content: Content, headers: dict[str, str], fault: Any) -> None:
            data, status = content.data, 200
            found = re.fullmatch(r"bytes=(\d+)-", asked.headers.get("range", ""))
            fresh = not content.if_range or asked.headers.get("if-range", content.etag) == content.etag
            if found and content.ranges and fresh:
                start = int(found[1])
                if start >= len(data):
                    return self.send(asked, 416, {"Content-Range": f"bytes */{len(data)}"}, b"")
                headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
                headers.pop("Content-MD5", None)
                data, status = data[start:], 206
            return self.send(asked, status, headers, data, fault, length=content.length)

        def send(self, asked: Asked, status: int, headers: Any, data: bytes, cut: Any = None, *, length=True) -> None:
            asked.status = status
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if length:
                self.send_header("Content-Length", str(len(data)))
            else:
                self.send_header("Connection", "close")
            self.end_headers()
            if self.command == "HEAD":
                return
            if cut is not None:
                data = data[:cut]
                self.close_connection = True
            asked.nbytes = len(data)
            self.wfile.write(data)

    class Threads(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            return  # a client that was killed

    listening = Threads(("127.0.0.1", 0), Handler)
    server = Server(f"http://127.0.0.1:{listening.server_port}")
    thread = threading.Thread(target=listening.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listening.shutdown()
        listening.server_close()
