"""Connections that are kept, against servers that close, stall, refuse and babble; through TLS and through proxies."""

import datetime
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from leanrecon.net.connections import Connections

pytest.importorskip("boto3", reason="the certificates and proxies are those of boto3")

BODY = bytes(range(256)) * 400
RANGE = {"Range": "bytes=0-102399"}
PARTIAL = b'HTTP/1.1 206 Partial Content\r\nETag: "e"\r\nContent-Length: 102400\r\n\r\n'

Talk = Callable[[socket.socket, list[str]], None]


def ask(sock: socket.socket, said: list[str]) -> bool:
    """Receive one request; False at the end of the connection."""
    text = b""
    while b"\r\n\r\n" not in text:
        data = sock.recv(4096)
        if not data:
            return False
        text += data
    said.append(text.decode())
    return True


def serve(sock: socket.socket, said: list[str]) -> None:
    while ask(sock, said):
        sock.sendall(PARTIAL + BODY)


@contextmanager
def talking(talk: Talk, context: ssl.SSLContext | None = None) -> Iterator[tuple[int, list[str], list[int]]]:
    """A server that talks as it is told: its port, what it heard, and the numbers of its connections."""
    said: list[str] = []
    opened: list[int] = []
    listening = socket.create_server(("127.0.0.1", 0))

    def one(sock: socket.socket) -> None:
        with suppress(OSError), sock:
            if context is None:
                talk(sock, said)
            else:
                with context.wrap_socket(sock, server_side=True) as secret:
                    talk(secret, said)

    def accept() -> None:
        with suppress(OSError):
            while True:
                sock = listening.accept()[0]
                opened.append(len(opened))
                threading.Thread(target=one, args=(sock,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listening.getsockname()[1], said, opened
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name in ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)


def read(connections: Connections, url: str) -> bytes:
    memory = memoryview(bytearray(len(BODY)))
    at = 0
    with connections.ask("GET", url, RANGE) as answer:
        assert (answer.status, answer.headers["etag"]) == (206, '"e"')
        while n := answer.readinto(memory[at : at + 9999]):
            at += n
    return bytes(memory[:at])


def test_a_connection_is_used_again_once_a_body_has_come() -> None:
    with talking(serve) as (port, said, opened):
        connections = Connections(f"http://127.0.0.1:{port}", 5)
        for _ in range(20):
            assert read(connections, f"http://127.0.0.1:{port}/a%20b?x=1") == BODY
        with connections.ask("GET", f"http://127.0.0.1:{port}/", {}) as answer:
            answer.readinto(memoryview(bytearray(10)))  # the rest stays on its way
        assert read(connections, f"http://127.0.0.1:{port}/") == BODY
        connections.close()
    assert len(opened) == 2
    assert said[0].startswith(f"GET /a%20b?x=1 HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nRange: bytes=0-102399\r\n")


def test_a_kept_connection_that_the_server_closed_is_replaced() -> None:
    def once(sock: socket.socket, said: list[str]) -> None:
        if ask(sock, said):
            sock.sendall(PARTIAL + BODY)

    with talking(once) as (port, said, opened):
        connections = Connections(f"http://127.0.0.1:{port}", 5)
        for _ in range(4):
            assert read(connections, f"http://127.0.0.1:{port}/") == BODY
        assert len(opened) == 4
        assert len(said) == 4


def test_a_server_that_says_so_is_not_asked_through_the_same_connection() -> None:
    def close(sock: socket.socket, said: list[str]) -> None:
        while ask(sock, said):
            sock.sendall(PARTIAL.replace(b"ETag", b"Connection: close\r\nETag") + BODY)

    with talking(close) as (port, _, opened):
        connections = Connections(f"http://127.0.0.1:{port}", 5)
        assert read(connections, f"http://127.0.0.1:{port}/") == read(connections, f"http://127.0.0.1:{port}/")
        assert len(opened) == 2


@pytest.mark.parametrize(
    "body",
    [
        b"Transfer-Encoding: chunked\r\n\r\n6\r\n<Code>\r\n8\r\nSlowDown\r\n7\r\n</Code>\r\n0\r\n\r\n",
        b"Content-Length: 21\r\n\r\n<Code>SlowDown</Code>",
        b"\r\n<Code>SlowDown</Code>",
    ],
    ids=["in chunks", "of a length", "to the end"],
)
def test_an_error_is_read_however_it_is_sent(body: bytes) -> None:
    def refuse(sock: socket.socket, said: list[str]) -> None:
        if ask(sock, said):
            sock.sendall(b"HTTP/1.1 503 Slow Down\r\nX-Amz-Bucket-Region: eu-west-1\r\n" + body)

    with (
        talking(refuse) as (port, *_),
        Connections(f"http://127.0.0.1:{port}", 5).ask("GET", f"http://127.0.0.1:{port}/", {}) as answer,
    ):
        assert (answer.status, answer.headers["x-amz-bucket-region"]) == (503, "eu-west-1")
        assert answer.text(1000) == "<Code>SlowDown</Code>"


def test_an_answer_to_head_has_no_body() -> None:
    def tell(sock: socket.socket, said: list[str]) -> None:
        while ask(sock, said):
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5000000000\r\nETag: x\r\n\r\n")

    with talking(tell) as (port, said, opened):
        connections = Connections(f"http://127.0.0.1:{port}", 5)
        for _ in range(3):
            with connections.ask("HEAD", f"http://127.0.0.1:{port}/", {}) as answer:
                assert (answer.status, answer.headers["content-length"], answer.text(9)) == (200, "5000000000", "")
        assert (len(opened), said[0][:5]) == (1, "HEAD ")


def test_a_body_that_ends_early_is_noticed() -> None:
    def cut(sock: socket.socket, said: list[str]) -> None:
        ask(sock, said)
        sock.sendall(PARTIAL + BODY[:5000])

    with talking(cut) as (port, _, opened):
        connections = Connections(f"http://127.0.0.1:{port}", 5)
        assert read(connections, f"http://127.0.0.1:{port}/") == BODY[:5000]
        assert read(connections, f"http://127.0.0.1:{port}/") == BODY[:5000]
        assert len(opened) == 2


def test_a_server_that_says_nothing_is_given_up() -> None:
    def stall(sock: socket.socket, said: list[str]) -> None:
        ask(sock, said)
        sock.recv(1)

    with talking(stall) as (port, *_):
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            Connections(f"http://127.0.0.1:{port}", 0.3).ask("GET", f"http://127.0.0.1:{port}/", {})
        assert 0.2 < time.monotonic() - began < 3


def test_what_is_no_http_is_an_error() -> None:
    def babble(sock: socket.socket, said: list[str]) -> None:
        ask(sock, said)
        sock.sendall(b"x" * 200_000)

    with talking(babble) as (port, *_), pytest.raises(OSError, match="bytes that are no headers"):
        Connections(f"http://127.0.0.1:{port}", 5).ask("GET", f"http://127.0.0.1:{port}/", {})


def test_a_server_that_is_not_there_is_named() -> None:
    with pytest.raises(OSError, match=r"no connection to 127\.0\.0\.1:9: .*refused"):
        Connections("http://127.0.0.1:9", 5).ask("GET", "http://127.0.0.1:9/", {})


def test_the_least_time_to_an_answer_is_known() -> None:
    def late(sock: socket.socket, said: list[str]) -> None:
        while ask(sock, said):
            time.sleep(0.05 * len(said))
            sock.sendall(PARTIAL + BODY)

    with talking(late) as (port, *_):
        connections = Connections(f"http://127.0.0.1:{port}", 5)
        assert connections.trip is None
        for _ in range(3):
            read(connections, f"http://127.0.0.1:{port}/")
        assert 0.05 <= connections.trip < 0.1


# TLS and proxies


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ssl.SSLContext]:
    """A certificate of its own authority for this machine, and a server's use of it."""
    pytest.importorskip("cryptography")
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = made.serial_number(1).not_valid_before(now - datetime.timedelta(days=1))
    made = made.not_valid_after(now + datetime.timedelta(days=1)).add_extension(names, False)
    made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
    folder = tmp_path_factory.mktemp("certificate")
    of_key = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(key.private_bytes(*of_key))
    (folder / "ca.pem").write_bytes(made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "ca.pem", folder / "key.pem")
    return folder / "ca.pem", context


def test_tls_is_used_and_the_server_must_be_trusted(
    certificate: tuple[Path, ssl.SSLContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    trusted, context = certificate
    with talking(serve, context) as (port, _, opened):
        url = f"https://127.0.0.1:{port}/x"
        with pytest.raises(OSError, match="certificate verify failed"):
            read(Connections(url, 5), url)
        monkeypatch.setenv("AWS_CA_BUNDLE", str(trusted))
        connections = Connections(url, 5)
        assert [read(connections, url) for _ in range(3)] == [BODY] * 3
        assert len(opened) == 2
        with talking(serve, context) as (other, *_), pytest.raises(OSError, match="doesn't match|mismatch|not valid"):
            monkeypatch.setattr(socket, "getaddrinfo", resolving(socket.getaddrinfo))
            read(Connections(url, 5), f"https://elsewhere.example:{other}/")


def resolving(real: Callable[..., object]) -> Callable[..., object]:
    return lambda host, *rest, **named: real("127.0.0.1" if host == "elsewhere.example" else host, *rest, **named)


def passing(sock: socket.socket, said: list[str]) -> None:
    """A proxy: a tunnel to where CONNECT says, or an answer of its own."""
    if not ask(sock, said):
        return
    if not said[-1].startswith("CONNECT "):
        sock.sendall(PARTIAL + BODY)
        serve(sock, said)
        return
    host, _, port = said[-1].split(" ")[1].rpartition(":")
    with socket.create_connection((host, int(port))) as beyond:
        sock.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        back = threading.Thread(target=pump, args=(beyond, sock), daemon=True)
        back.start()
        pump(sock, beyond)
        back.join(5)


def pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("secret", [False, True], ids=["http proxy", "https proxy"])
def test_tls_goes_through_the_proxy_of_the_environment(
    secret: bool, certificate: tuple[Path, ssl.SSLContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    trusted, context = certificate
    monkeypatch.setenv("AWS_CA_BUNDLE", str(trusted))
    with talking(serve, context) as (port, said, _), talking(passing, context if secret else None) as proxy:
        monkeypatch.setenv("https_proxy", f"http{'s' if secret else ''}://me:hush@127.0.0.1:{proxy[0]}")
        url = f"https://127.0.0.1:{port}/x"
        connections = Connections(url, 5)
        assert [read(connections, url) for _ in range(3)] == [BODY] * 3
        connections.close()
        assert len(said) == 3
        assert [text.split(" HTTP")[0] for text in proxy[1]] == [f"CONNECT 127.0.0.1:{port}"]
        assert "authorization: Basic bWU6aHVzaA==" in proxy[1][0].replace("Authorization", "authorization")
        assert "uthorization" not in said[0]
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert read(Connections(url, 5), url) == BODY
        assert len(proxy[1]) == 1


def test_plain_http_goes_through_a_proxy_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with talking(passing) as (port, said, opened):
        monkeypatch.setenv("http_proxy", f"http://me:hush@127.0.0.1:{port}")
        url = "http://somewhere.example/x"
        connections = Connections(url, 5)
        assert [read(connections, url) for _ in range(2)] == [BODY] * 2
        assert len(opened) == 1
        assert said[0].startswith("GET http://somewhere.example/x HTTP/1.1\r\nHost: somewhere.example\r\n")
        assert "Authorization: Basic bWU6aHVzaA==" in said[0]
