"""A lock on a folder of a bucket, for one process at a time: a small file that its holder renews.

A conditional write creates the file, so that of two runs one is refused. A new run on the same machine sees at once
that a holder was killed. On another machine it sees that the file is not renewed any more.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from leanrecon.errors import LeanreconError, LeanreconWarning, StoreError
from leanrecon.places.bucket import Bucket, TakenError
from leanrecon.places.listing import Entry

NAME = ".hold"
"""The name of the lock file in the folder."""

RENEWED = 30.0
"""Seconds after which the holder renews its file."""

STALE = 180.0
"""Seconds without renewal after which a holder on another machine counts as gone."""


class Lease:
    """The lock of this process on a folder of a bucket."""

    def __init__(self, bucket: Bucket, prefix: str, by: str, todo: str) -> None:
        self.bucket, self.prefix = bucket, prefix
        self.name = f"{bucket.url}/{prefix}".rstrip("/")
        self.lost = False
        self._key = f"{prefix}/{NAME}" if prefix else NAME
        self._by, self._todo = by, todo
        process = psutil.Process()
        self._own = {
            "token": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "machine": _machine(),
            "process": process.pid,
            "started": process.create_time(),
            "since": _now(),
        }
        self._done = threading.Event()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder until the block ends. Raises StoreError if another process holds it."""
        self._entry = self._take()
        thread = threading.Thread(target=self._renew, name="hold", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._done.set()
            thread.join()
            if not self.lost:
                with contextlib.suppress(LeanreconError):  # it becomes stale by itself
                    self.bucket.delete(self._key)

    def check(self) -> None:
        """Raise StoreError if another run has taken over the folder."""
        if self.lost:
            raise StoreError(
                f"another run took over {self.name}, as this one had not answered for {STALE:.0f} seconds",
                todo=self._todo,
            )

    def _content(self) -> bytes:
        return json.dumps(self._own | {"renewed": _now()}).encode()

    def _take(self) -> Entry:
        content = self._content()
        for _ in range(5):
            try:
                entry = self.bucket.put(self._key, [content], only_if="create")
            except TakenError:
                found, there = self._found()
                if there is None:
                    continue  # it was released meanwhile
                if found.get("token") == self._own["token"]:  # the answer to an earlier attempt was lost
                    return there
                self._check_gone(found, there)
                with contextlib.suppress(TakenError):
                    return self.bucket.put(self._key, [content], only_if=there)
            else:
                self._check_conditions(content)
                return entry
        raise StoreError(f"{self._by} is using {self.name}", todo=self._todo)

    def _check_conditions(self, content: bytes) -> None:
        """Warn if the server ignores the condition and accepts a second file, as some do."""
        try:
            self.bucket.put(self._key, [content], only_if="create")
        except TakenError:
            return
        warnings.warn(
            f"the server of {self.bucket.url} ignores conditional writes, so that two runs of a study can't see each "
            "other: start one run at a time",
            LeanreconWarning,
            stacklevel=5,
        )

    def _found(self) -> tuple[dict[str, Any], Entry | None]:
        """The content of the lock file, and its version; None if there is none."""
        entry = self.bucket.head(self._key)
        if entry is None:
            return {}, None
        try:
            found = json.loads(b"".join(map(bytes, self.bucket.pieces(self._key, 0, entry.size))))
        except FileNotFoundError:
            return {}, None
        except ValueError:
            found = {}
        return found if isinstance(found, dict) else {}, entry

    def _check_gone(self, found: dict[str, Any], there: Entry) -> None:
        """Raise StoreError unless the holder has ended."""
        if found.get("machine") == self._own["machine"]:
            with contextlib.suppress(psutil.Error, TypeError, ValueError):
                if abs(psutil.Process(int(found["process"])).create_time() - float(found["started"])) < 2:
                    raise self._refusal(found)
            return
        if _age(found) < STALE:
            raise self._refusal(found)
        time.sleep(1.5 * RENEWED)  # the clocks of two machines may differ: a running holder renews its file meanwhile
        if self._found()[1] != there:
            raise self._refusal(found)
        warnings.warn(
            f"{self._by} held {self.name} ({_holder(found)}) and ended without releasing it: this run continues there",
            LeanreconWarning,
            stacklevel=6,
        )

    def _refusal(self, found: dict[str, Any]) -> StoreError:
        return StoreError(
            f"{self._by} is using {self.name} ({_holder(found)})",
            todo=f"{self._todo}. If its machine is gone, a run can start "
            f"{STALE / 60:.0f} minutes after the last sign of life",
        )

    def _renew(self) -> None:
        while not self._done.wait(RENEWED):
            try:
                self._entry = self.bucket.put(self._key, [self._content()], only_if=self._entry)
            except TakenError:
                found, there = self._found()
                if there is not None and found.get("token") == self._own["token"]:
                    self._entry = there  # the answer to an earlier attempt was lost
                else:
                    self.lost = True
                    return
            except LeanreconError:
                continue  # the network is down: writes of the study report it


def _machine() -> str:
    """An identifier of this machine, since its last boot, and of this container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{uuid.getnode()} {socket.gethostname()}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _age(found: dict[str, Any]) -> float:
    try:
        return (datetime.now(UTC) - datetime.fromisoformat(str(found["renewed"]))).total_seconds()
    except (KeyError, ValueError, TypeError):
        return float("inf")


def _holder(found: dict[str, Any]) -> str:
    return (
        f"process {found.get('process', '?')} on {found.get('host', '?')}, since {found.get('since', '?')}, "
        f"last sign of life {found.get('renewed', '?')}"
    )
