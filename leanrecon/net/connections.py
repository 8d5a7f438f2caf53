"""HTTP connections that are kept, for requests of byte ranges: with little processor time a request.

urllib3 opens a connection, through the proxies of the environment and with the certificates that boto3 trusts. From then
on a request is one piece of bytes, and the body of its answer is received into memory that is there already. That takes
a fifth of the time of botocore's own session, which copies bodies and parses headers as those of an e-mail.
"""

import io
import os
import ssl
import time
from http.client import HTTPResponse
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

_HEAD = 16 * 1024  # bytes that are received at once until the headers have ended
_MOST_HEAD = 64 * 1024  # bytes of headers
_PORTS = {"http": 80, "https": 443}

Origin = tuple[str, str, int]
"""Scheme, host and port."""


class Answer:
    """The status and the headers of an answer (names in lower case), and the bytes of its body as they come.

    The connection is kept for other requests if the body was received to its end.
    """

    def __init__(self, kept: list[Any], connection: Any, bare: bool, head: bytes, begun: bytes) -> None:
        """``bare``: without a body, as HEAD was asked for."""
        self._kept, self._connection, self._begun = kept, connection, memoryview(begun)
        self._other: HTTPResponse | None = None
        first, *lines = head.decode("latin-1").split("\r\n")
        self.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = self.headers.get("content-length", "")
        status = first[9:12]
        if first.startswith("HTTP/1.1 ") and bare and status.isdecimal() and status >= "200":
            self.status, self._left = int(status), 0
        elif first.startswith("HTTP/1.1 206") and length.isdecimal() and "transfer-encoding" not in self.headers:
            self.status, self._left = 206, int(length)
        else:  # such as an error whose length is not told
            received = _Received(head + b"\r\n\r\n" + begun, connection.sock)
            self._other = HTTPResponse(received, method="HEAD" if bare else "GET")  # type: ignore[arg-type]
            self._other.begin()
            self.status, self._left = self._other.status, -1
            self.headers = {name.lower(): value for name, value in self._other.getheaders()}

    def __enter__(self) -> "Answer":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._left == 0 and self.headers.get("connection", "").lower() != "close":
            self._kept.append(self._connection)
        else:
            self._connection.close()

    def readinto(self, memory: memoryview) -> int:
        """Receive some bytes; returns their number, 0 at the end of the body or of the connection."""
        if self._other is not None:
            return self._other.readinto(memory)
        if self._begun:
            n = min(len(self._begun), len(memory), self._left)
            memory[:n] = self._begun[:n]
            self._begun = self._begun[n:] if n < self._left else memoryview(b"")
        else:
            n = self._connection.sock.recv_into(memory[: self._left]) if self._left else 0
        self._left -= n
        return n

    def text(self, most: int) -> str:
        """The beginning of the body, such as what an error says."""
        data = memoryview(bytearray(most))
        done = 0
        while done < most and (n := self.readinto(data[done:])):
            done += n
        return bytes(data[:done]).decode("utf-8", "replace")


class Connections:
    """Connections to servers; those that are not in use are kept. ``url`` tells which proxies of the environment apply."""

    def __init__(self, url: str, timeout: float) -> None:
        from botocore.httpsession import ProxyConfiguration, get_cert_path
        from botocore.session import get_session
        from botocore.utils import get_environ_proxies

        trusted = get_session().get_config_variable("ca_bundle") or os.environ.get("REQUESTS_CA_BUNDLE") or True
        proxies = get_environ_proxies(url)
        self._proxies = ProxyConfiguration(proxies)
        secret = url.startswith("https:") or proxies
        self._context = ssl.create_default_context(cafile=get_cert_path(trusted)) if secret else None
        self._timeout = timeout
        self._kept: dict[Origin, list[Any]] = {}
        self.trip: float | None = None
        """The least seconds from a request to the first bytes of its answer; None before there was one."""

    def ask(self, method: str, url: str, headers: dict[str, str]) -> Answer:
        """GET or HEAD ``url``, and return the answer once its headers have come.

        A kept connection that the server has closed meanwhile is replaced by a new one. Raises OSError or
        HTTPException where there is no connection or no answer.
        """
        parts = urlsplit(url)
        origin = (parts.scheme, parts.hostname or "", parts.port or _PORTS[parts.scheme])
        target = f"{parts.path}?{parts.query}" if parts.query else parts.path
        headers = {"Host": parts.netloc.rpartition("@")[2], **headers}
        if parts.scheme == "http" and (proxy := self._proxies.proxy_url_for(url)):
            target = url
            headers |= self._proxies.proxy_headers_for(proxy)
        lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "\r\n"]
        request = "\r\n".join(lines).encode("latin-1")
        kept = self._kept.setdefault(origin, [])
        try:
            connection = kept.pop()
        except IndexError:
            return self._exchange(kept, self._open(origin), request)
        try:
            return self._exchange(kept, connection, request)
        except (ConnectionError, ssl.SSLError, _ClosedError):
            return self._exchange(kept, self._open(origin), request)

    def close(self) -> None:
        """Close those that are not in use."""
        for kept in self._kept.values():
            while kept:
                kept.pop().close()

    def _exchange(self, kept: list[Any], connection: Any, request: bytes) -> Answer:
        """Send a request, and receive the headers of the answer."""
        try:
            began = time.monotonic()
            connection.sock.sendall(request)
            received = connection.sock.recv(_HEAD)
            trip = time.monotonic() - began
            while (end := received.find(b"\r\n\r\n")) < 0:
                data = connection.sock.recv(_HEAD)
                if not data:
                    raise _ClosedError("the connection was closed before an answer came")
                received += data
                if len(received) > _MOST_HEAD:
                    raise OSError(f"an answer begins with {len(received)} bytes that are no headers")
            self.trip = trip if self.trip is None else min(self.trip, trip)
            return Answer(kept, connection, request[:4] == b"HEAD", received[:end], received[end + 4 :])
        except BaseException:
            connection.close()
            raise

    def _open(self, origin: Origin) -> Any:
        """A new connection to a server, through a proxy where the environment says so."""
        from urllib3.connection import HTTPConnection, HTTPSConnection, ProxyConfig
        from urllib3.exceptions import HTTPError
        from urllib3.util import parse_url

        scheme, host, port = origin
        given: dict[str, Any] = {"timeout": self._timeout}
        address = self._proxies.proxy_url_for(f"{scheme}://{host}")
        if address:
            proxy = parse_url(address)
            tls = "https" in (scheme, proxy.scheme)
            given |= {"proxy": proxy, "proxy_config": ProxyConfig(self._context, False, None, None)}
            first = proxy.host or "", proxy.port or _PORTS[proxy.scheme or "http"]
        else:
            tls, first = scheme == "https", (host, port)
        connection: HTTPConnection
        if tls:
            connection = HTTPSConnection(*first, ssl_context=self._context, **given)
        else:
            connection = HTTPConnection(*first, **given)
        if address and scheme == "https":
            connection.set_tunnel(host, port, self._proxies.proxy_headers_for(address), scheme=proxy.scheme or "http")
        try:
            connection.connect()
        except (OSError, HTTPError) as error:
            connection.close()
            raise OSError(f"no connection to {host}:{port}: {str(error).rpartition('>: ')[2]}") from error
        return connection


class _ClosedError(OSError):
    """A connection that ended before an answer began."""


class _Received(io.RawIOBase):
    """Bytes that were received, and what comes after them, as http.client reads a connection."""

    def __init__(self, begun: bytes, sock: Any) -> None:
        self._begun, self._sock = memoryview(begun), sock

    def makefile(self, _: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, memory: Any) -> int:
        if not self._begun:
            return int(self._sock.recv_into(memory))
        n = min(len(self._begun), len(memory))
        memory[:n] = self._begun[:n]
        self._begun = self._begun[n:]
        return n
