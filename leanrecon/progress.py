"""How far a stage is: a live bar with rate and time left in a terminal or notebook, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from leanrecon.errors import plain

Advance = Callable[[int], None]
Note = Callable[[], str]

LINE_EVERY = 5.0
"""Seconds between two plain lines of one task."""


class Progress:
    """Shows nothing; the interface of those that do.

    ``with progress.task("pca, train", total=8859, unit="images", done=512) as advance: advance(64)``
    ``note`` tells what is shown beside it, as the losses of a training.
    """

    @contextmanager
    def task(self, name: str, *, total: int, unit: str, done: int = 0, note: Note | None = None) -> Iterator[Advance]:
        yield lambda n: None

    def say(self, text: str) -> None:
        """Show one line of text."""


class PlainProgress(Progress):
    """One line every few seconds and one at a task's end, for logs and pipes."""

    @contextmanager
    def task(self, name: str, *, total: int, unit: str, done: int = 0, note: Note | None = None) -> Iterator[Advance]:
        started = last = time.monotonic()
        at, resumed = done, done

        def advance(n: int) -> None:
            nonlocal at, last
            at += n
            now = time.monotonic()
            if now - last >= LINE_EVERY and at < total:
                last = now
                rate = (at - resumed) / (now - started)
                left = (total - at) / rate if rate else float("inf")
                told = f", {text}" if note and (text := note()) else ""
                self.say(f"{name}: {at}/{total} {unit}, {rate:.3g} {unit}/s, {_clock(left)} left{told}")

        yield advance
        seconds = time.monotonic() - started
        if at > resumed:
            self.say(
                f"{name}: {counted(at - resumed, unit)} in {seconds:.1f} s ({(at - resumed) / max(seconds, 1e-9):.3g}/s)"
                + (f", {text}" if note and (text := note()) else "")
            )

    def say(self, text: str) -> None:
        print(plain(text), file=sys.stderr, flush=True)


class RichProgress(Progress):
    """A live bar, in a terminal or in a notebook."""

    def __init__(self, console: Any) -> None:
        self.console = console

    @contextmanager
    def task(self, name: str, *, total: int, unit: str, done: int = 0, note: Note | None = None) -> Iterator[Advance]:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        started = time.monotonic()
        at = done
        with Bar(*columns, console=self.console, transient=False) as bar:
            row = bar.add_task(plain(name), total=total, completed=done, rate=unit, note="")

            def advance(n: int) -> None:
                nonlocal at
                at += n
                rate = (at - done) / max(time.monotonic() - started, 1e-9)
                bar.update(row, completed=at, rate=f"{rate:.3g} {unit}/s", note=note() if note else "")

            yield advance

    def say(self, text: str) -> None:
        self.console.print(plain(text), highlight=False, markup=False)


def counted(n: int, unit: str) -> str:
    """A number of things as text, from the plural of their name: ``1 image``, ``60 images``."""
    return f"{n} {unit.removesuffix('s') if n == 1 else unit}"


def format_seconds(seconds: float) -> str:
    """A time as text: ``0.31 s``, ``42 s``, ``3 min 20 s``, ``2 h 5 min``, ``12 days``; ``< 0.01 s`` below that."""
    if 0 < seconds < 0.01:
        return "< 0.01 s"
    if seconds < 10:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 100 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{seconds / 86400:.3g} days"


def _clock(seconds: float) -> str:
    if seconds == float("inf"):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
