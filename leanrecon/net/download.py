"""Downloads over HTTP: resumed, of one version only, checked, and complete or absent."""

import base64
import functools
import hashlib
import http.client
import importlib.util
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from leanrecon.errors import NetworkError, said_by
from leanrecon.net.retry import RETRIED, TIMEOUT, Retry
from leanrecon.places.disk import explained_disk_errors
from leanrecon.places.files import read_json, write_json
from leanrecon.progress import Advance, Progress

CHOOSES = "LEANRECON_CACHE (files) or HF_HOME (models)"
"""The environment variables that choose the folders of downloads."""

LARGEST = 200 * 10**9
"""Bytes of a download of unknown size that is given up."""

_PIECE = 2**20  # bytes
_MD5 = 32  # hexadecimal digits
_DIGITS = 18  # of a size; the largest files have 13
_BROKEN = (http.client.HTTPException, urllib.error.URLError, TimeoutError, ConnectionError)


@dataclass(frozen=True)
class Remote:
    """A file on a server, with what is known of its content."""

    url: str
    size: int | None = None
    sha256: str | None = None
    git: str | None = None
    """Git's blob id: SHA-1 of a header and the bytes."""
    md5: str | None = None
    etag: str | None = None
    """The server's identifier of this version."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Headers for this server alone: not sent to servers that it redirects to."""

    @property
    def digest(self) -> tuple[str, str] | None:
        """The strongest known digest of its content: kind and hexadecimal digits."""
        kinds = {"sha256": self.sha256, "git": self.git, "md5": self.md5}
        return next(((kind, digits) for kind, digits in kinds.items() if digits), None)


def digest_of(path: Path, kind: str) -> str:
    """The digest of a file's bytes: sha256, md5 or git."""
    start = f"blob {path.stat().st_size}\0".encode() if kind == "git" else b""

    def begun() -> Any:
        return hashlib.new("sha1" if kind == "git" else kind, start, usedforsecurity=False)

    with path.open("rb") as file:
        return hashlib.file_digest(file, begun).hexdigest()


def partial_of(target: Path) -> Path:
    """The path of a file until it is complete."""
    return target.with_name(f"{target.name}.partial")


def find(remote: Remote) -> Remote:
    """The file with size, version and MD5 from its server; raises NetworkError if it has none."""
    retry = retry_of(remote.url)
    while True:
        try:
            with _opened(remote, "HEAD", {}) as answer:
                return _described(remote, answer)
        except _BROKEN as error:
            retry.after(error)


def fetch(remote: Remote, target: Path, *, progress: Progress | None = None, label: str = "") -> None:
    """Download a file, or resume a download of the same version; ``target`` appears complete or not at all.

    Raises NetworkError for a server that keeps failing or sends unexpected bytes, StoreError for a full disk. Bytes so
    far are kept for the next call.
    """
    partial = partial_of(target)
    transfer = _Transfer(remote, partial)
    with explained_disk_errors(target, CHOOSES):
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
    with (progress or Progress()).task(
        label or target.name, total=remote.size or 0, unit="bytes", done=transfer.done
    ) as advance:
        resumed = transfer.done > 0
        transfer.run(advance)
        if (wrong := transfer.wrong()) and resumed:  # the earlier part may be of another version, or damaged
            transfer.restart(advance)
            transfer.run(advance)
            wrong = transfer.wrong()
    with explained_disk_errors(target, CHOOSES):
        if wrong:
            transfer.drop()
            raise NetworkError(
                f"{remote.url} sent a file whose {wrong}",
                todo="run the same command again; if that does not help, the published file has changed",
            )
        partial.replace(target)
        transfer.state.unlink(missing_ok=True)


class _Transfer:
    """One download: its partial file, and beside it the version of that."""

    def __init__(self, remote: Remote, partial: Path) -> None:
        self.remote = remote
        self.partial = partial
        self.state = partial.with_name(f"{partial.name}.json")
        before = read_json(self.state)
        self.version: dict[str, Any] = before if isinstance(before, dict) else {}
        self.done = partial.stat().st_size if partial.exists() else 0
        etag = self.version.get("etag")
        if not (self.version and (remote.digest or etag)) or (remote.etag and remote.etag != etag):
            self.done = 0  # of another version, or of an unknown one
        if remote.size is not None and self.done > remote.size:
            self.done = 0

    def run(self, advance: Advance) -> None:
        """Download the missing bytes."""
        retry = retry_of(self.remote.url)
        while self.remote.size is None or self.done < self.remote.size:
            before = self.done
            try:
                if self._fetch(advance):
                    return
                raise http.client.IncompleteRead(b"")
            except _BROKEN as error:
                retry.after(error, progress=self.done > before)

    def restart(self, advance: Advance) -> None:
        advance(-self.done)
        self.done = 0

    def wrong(self) -> str:
        """How the complete file differs from its digest; empty if it does not, or has none."""
        checked = self.remote.digest or (("md5", self.version["md5"]) if self.version.get("md5") else None)
        if checked is None:
            return ""
        digits = digest_of(self.partial, checked[0])
        return "" if digits == checked[1] else f"{checked[0]} is {digits}, not {checked[1]}"

    def drop(self) -> None:
        self.partial.unlink(missing_ok=True)
        self.state.unlink(missing_ok=True)

    def _fetch(self, advance: Advance) -> bool:
        """Send one request and write the bytes of its answer; returns whether the file is complete."""
        headers = {}
        if self.done:
            headers["Range"] = f"bytes={self.done}-"
            identified = self.remote.sha256 or self.remote.git
            if self.version.get("etag") and not identified:
                headers["If-Range"] = self.version["etag"]
        with _opened(self.remote, "GET", headers) as answer:
            start, etag = _start(answer), answer.headers.get("ETag")
            if self.done and start and "If-Range" in headers and etag not in (None, self.version["etag"]):
                start = -1  # of another version, from a server without If-Range
            if start != self.done:  # another version, or a server without ranges
                self.restart(advance)
            if start not in (0, self.done) or answer.status == 416:
                return False
            if self.done == 0:
                self._begin(_described(self.remote, answer))
            total = self.version.get("size")
            with self._written() as file:
                while piece := answer.read(_PIECE):
                    self._require_announced(len(piece))
                    self._write(file, piece)
                    advance(len(piece))
        return total is None or self.done == total

    def _require_announced(self, more: int) -> None:
        """Raise NetworkError at the first byte beyond the size that was announced, or that any file here has."""
        sizes = (self.remote.size, self.version.get("size"))
        most = min([size for size in sizes if size is not None], default=LARGEST)
        if self.done + more > most:
            self.drop()
            raise NetworkError(
                f"{self.remote.url} sends more than the {most} bytes that it announced",
                todo="run the same command again; if that does not help, obtain the file elsewhere",
            )

    def _begin(self, remote: Remote) -> None:
        """Record the version of the bytes before the first of them."""
        self.version = {"url": remote.url, "size": remote.size, "etag": remote.etag, "md5": remote.md5}
        self._written().close()
        write_json(self.state, self.version)

    def _written(self) -> Any:
        with explained_disk_errors(self.partial, CHOOSES):
            file = self.partial.open("r+b", buffering=0)
            file.truncate(self.done)
            file.seek(self.done)
        return file

    def _write(self, file: Any, piece: bytes) -> None:
        with explained_disk_errors(self.partial, CHOOSES):
            view = memoryview(piece)
            while view:
                n = file.write(view)
                self.done += n
                view = view[n:]


def _opened(remote: Remote, method: str, headers: Mapping[str, str]) -> Any:
    """The server's answer; raises NetworkError for errors that a retry does not solve."""
    request = urllib.request.Request(
        remote.url, headers={"User-Agent": "leanrecon", "Accept-Encoding": "identity", **headers}, method=method
    )
    for name, value in remote.headers.items():
        request.add_unredirected_header(name, value)
    try:
        return _opener().open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416:
            return error
        error.close()
        if error.code in RETRIED:
            raise
        refused = error.code in (401, 403)
        raise NetworkError(
            f"cannot download {remote.url} ({error.code} {str(error.reason)[:100]})",
            todo="accept its terms on its page, and sign in with `hf auth login`"
            if refused
            else "check the name; if it is right, the file has moved",
        ) from None
    except ValueError as error:  # an address that is none
        raise NetworkError(f"{remote.url} can't be opened ({said_by(error)})", expected="https://…") from None


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to HTTPS, and from HTTP to HTTP: not to files, FTP, or from HTTPS to HTTP."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        before, after = urlsplit(req.full_url).scheme.lower(), urlsplit(newurl).scheme.lower()
        if after != "https" and (before, after) != ("http", "http"):
            raise NetworkError(
                f"{req.full_url} redirects to {newurl}, and leanrecon does not follow from {before} to {after}",
                expected="an address of https://",
                todo="check the name, or obtain the file elsewhere",
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)

    def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        to = headers.get("location") or headers.get("uri")
        if to:  # urllib refuses other schemes with an error that is retried
            self.redirect_request(req, fp, code, msg, headers, urljoin(req.full_url, to))
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


@functools.cache
def _opener() -> urllib.request.OpenerDirector:
    """Opens HTTP and HTTPS alone, through the proxies of the environment."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(context=_trusted()),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _SafeRedirects(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


@functools.cache
def _trusted() -> ssl.SSLContext:
    """The certificates of the system and those of certifi, as not every Python finds the former."""
    context = ssl.create_default_context()
    if importlib.util.find_spec("certifi"):
        import certifi

        context.load_verify_locations(certifi.where())
    return context


def _described(remote: Remote, answer: Any) -> Remote:
    """The file with size, version and MD5 from headers; raises NetworkError if the size contradicts the known one."""
    length = answer.headers.get("Content-Length")
    size = int(length) if length and re.fullmatch(rf"[0-9]{{1,{_DIGITS}}}", length.strip()) else None
    if None not in (size, remote.size) and size != remote.size:
        raise NetworkError(f"{remote.url} has {size} bytes", expected=f"{remote.size}")
    etag = answer.headers.get("ETag")
    md5 = answer.headers.get("Content-MD5")
    return Remote(
        remote.url,
        remote.size if size is None else size,
        remote.sha256,
        remote.git,
        _hexadecimal(md5) if md5 else None,
        etag if etag and etag.startswith('"') else None,  # a weak ETag does not identify bytes
        remote.headers,
    )


def _hexadecimal(text: str) -> str | None:
    try:
        digits = base64.b64decode(text, validate=True).hex()
    except ValueError:  # not base64, or not ASCII
        return None
    return digits if len(digits) == _MD5 else None


def _start(answer: Any) -> int:
    """The position in the file of the first byte of an answer."""
    if answer.status != 206:
        return 0
    match = re.match(rf"bytes ([0-9]{{1,{_DIGITS}}})-", answer.headers.get("Content-Range", ""))
    return int(match[1]) if match else -1


def retry_of(url: str) -> Retry:
    """The retry policy of the server of a URL."""
    return Retry(url, f"the network and {urlsplit(url).netloc.rpartition('@')[2]},")  # no password
