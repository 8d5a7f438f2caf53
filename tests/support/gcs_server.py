"""What leanrecon asks of Google Cloud Storage, answered on this machine as its XML API describes.

https://docs.cloud.google.com/storage/docs/xml-api/overview: files by their keys, conditions by generation, ranges,
listings with prefix and delimiter, copies, and uploads in parts. Emulators in registries answer its JSON API alone.
"""

import hashlib
import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


@contextmanager
def serving(*buckets: str) -> Iterator[str]:
    """Serve empty buckets; yields the server's address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Answering", (_Answering,), {"held": _Held(buckets)}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Held:
    """The files of all buckets, with their generations, and the parts of uploads that have begun."""

    def __init__(self, buckets: tuple[str, ...]) -> None:
        self.files: dict[str, dict[str, tuple[bytes, int]]] = {name: {} for name in buckets}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.generations, self.lock = itertools.count(1001), threading.Lock()


class _Answering(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    held: _Held

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def fail(self, status: int, code: str) -> None:
        self.answer(status, b"" if self.command == "HEAD" else f"<Error><Code>{code}</Code></Error>".encode())

    def respond(self) -> None:
        url = urlsplit(self.path)
        _, bucket, *rest = unquote(url.path).split("/", 2)
        self.query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.held.lock:
            if (files := self.held.files.get(bucket)) is None:
                return self.fail(404, "NoSuchBucket")
            if not rest or not rest[0]:
                return self.list(files)
            {"GET": self.get, "HEAD": self.get, "PUT": self.put, "POST": self.post, "DELETE": self.remove}[
                self.command
            ](files, rest[0])

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = respond  # noqa: N815

    def get(self, files: dict[str, tuple[bytes, int]], key: str) -> None:
        if key not in files:
            return self.fail(404, "NoSuchKey")
        data, generation = files[key]
        if (wanted := self.headers.get("If-Match")) and wanted != etag(data):
            return self.fail(412, "PreconditionFailed")
        told = {
            "ETag": etag(data),
            "x_goog_generation": str(generation),
            "Last_Modified": "Mon, 01 Jan 2024 00:00:00 GMT",
        }
        if self.command == "HEAD":
            return self.answer(200, **told, Content_Length=str(len(data)))
        if asked := self.headers.get("Range"):
            first, last = asked.removeprefix("bytes=").split("-")
            start, stop = int(first), min(int(last) + 1 if last else len(data), len(data))
            if start >= len(data):
                return self.fail(416, "InvalidRange")
            return self.answer(206, data[start:stop], **told, Content_Range=f"bytes {start}-{stop - 1}/{len(data)}")
        self.answer(200, data, **told)

    def put(self, files: dict[str, tuple[bytes, int]], key: str) -> None:
        if "uploadId" in self.query:
            self.held.parts[self.query["uploadId"]][int(self.query["partNumber"])] = self.body
            return self.answer(200, ETag=etag(self.body))
        there = files[key][1] if key in files else 0
        if (wanted := self.headers.get("x-goog-if-generation-match")) is not None and int(wanted) != there:
            return self.fail(412, "PreconditionFailed")
        if source := self.headers.get("x-goog-copy-source"):
            self.body = files[unquote(source).split("/", 1)[1]][0]
        self.keep(files, key, self.body)

    def keep(self, files: dict[str, tuple[bytes, int]], key: str, data: bytes) -> None:
        files[key] = (data, next(self.held.generations))
        done = f"<R><ETag>{escape(etag(data))}</ETag></R>".encode() if self.command == "POST" else b""
        self.answer(200, done, ETag=etag(data), x_goog_generation=str(files[key][1]))

    def post(self, files: dict[str, tuple[bytes, int]], key: str) -> None:
        if "uploads" in self.query:
            number = str(next(self.held.generations))
            self.held.parts[number] = {}
            return self.answer(200, f"<R><UploadId>{number}</UploadId></R>".encode())
        parts = self.held.parts.pop(self.query["uploadId"], None)
        if parts is None:
            return self.fail(404, "NoSuchUpload")
        self.keep(files, key, b"".join(parts[k] for k in sorted(parts)))

    def remove(self, files: dict[str, tuple[bytes, int]], key: str) -> None:
        if files.pop(key, None) is None:
            return self.fail(404, "NoSuchKey")
        self.answer(204)

    def list(self, files: dict[str, tuple[bytes, int]]) -> None:
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter", "")
        after, most = self.query.get("continuation-token", ""), int(self.query.get("max-keys", 1000))
        found: dict[str, str] = {}
        for key in sorted(key for key in files if key.startswith(prefix)):
            name, cut, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
            if cut:
                found[prefix + name + cut] = (
                    f"<CommonPrefixes><Prefix>{escape(prefix + name + cut)}</Prefix></CommonPrefixes>"
                )
            else:
                data, _ = files[key]
                found[key] = (
                    f"<Contents><Key>{escape(key)}</Key><Size>{len(data)}</Size><ETag>{escape(etag(data))}</ETag>"
                    "<LastModified>2024-01-01T00:00:00.000Z</LastModified></Contents>"
                )
        names = [name for name in found if name > after][: most + 1]
        more = f"<NextContinuationToken>{escape(names[most - 1])}</NextContinuationToken>" if len(names) > most else ""
        body = "".join(found[name] for name in names[:most])
        self.answer(200, f"<ListBucketResult>{body}{more}</ListBucketResult>".encode())


def etag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'
