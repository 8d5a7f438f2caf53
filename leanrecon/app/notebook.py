"""leanrecon within a notebook: ``%leanrecon`` runs the command line, and a study's checks and pictures are shown in cells.

``%load_ext leanrecon`` brings the magic; ``alignment`` and ``gallery`` show a study as the value of a cell.
"""

import contextlib
import ctypes
import html
import os
import queue
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psutil

from leanrecon.errors import LeanreconError, StoreError
from leanrecon.memory import format_bytes, parse_bytes, process_memory

if TYPE_CHECKING:
    from leanrecon.places import LocationLike
    from leanrecon.study.layout import Study

EVERY = 0.5
"""Seconds between two looks at a command's memory."""

_TIME_LEFT = re.compile(r".+/s, \S+ left(, .*)?")
"""A line that tells how far a stage is, replaced by the next one rather than kept."""

_DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux's prctl

_BAR = 24  # characters
_WIDTH = 110  # characters of a line


class CommandError(LeanreconError):
    """A command that ended with an error, which it has told; later cells should not run."""

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows instead of a traceback: the command has said what was wrong."""
        return [str(self)]


def load_ipython_extension(shell: Any) -> None:
    """Give notebooks the line magic ``%leanrecon COMMAND …``, the command line as a cell."""
    shell.register_magic_function(run, "line", "leanrecon")


def run(line: str) -> None:
    """Run ``leanrecon LINE`` in a process of its own, with what it holds in memory and the time left shown live.

    The process ends with the notebook's kernel, so that a restarted notebook can go on with the same study.
    Raises CommandError where the command fails.
    """
    arguments = shlex.split(line)
    process = subprocess.Popen(
        [sys.executable, "-m", "leanrecon", *arguments],
        env=_plain(os.environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        preexec_fn=_end_with_kernel if sys.platform == "linux" else None,
    )
    meter = _Meter(process.pid, _allowed(arguments))
    try:
        for said in _lines(process):
            if said is not None and not _TIME_LEFT.fullmatch(said):
                print(said, flush=True)
            meter.look(said if said and _TIME_LEFT.fullmatch(said) else None)
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        process.wait()
        raise
    code = process.wait()
    meter.finish()
    if code:
        ended = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
        killed = "out of memory, perhaps: give --memory a smaller budget, and " if code == -signal.SIGKILL else ""
        raise CommandError(
            f"`leanrecon {line}` {ended}", todo=f"{killed}see above; run all cells again to go on from here"
        )


def _plain(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a program that writes to no terminal: kernels ask for colours, which cells would show as codes."""
    kept = {key: value for key, value in environment.items() if key not in ("FORCE_COLOR", "CLICOLOR_FORCE")}
    return kept | {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": str(_WIDTH), "PYTHONUNBUFFERED": "1"}


def _end_with_kernel() -> None:
    ctypes.CDLL(None).prctl(_DIES_WITH_PARENT, signal.SIGTERM)


def _allowed(arguments: list[str]) -> int | None:
    """The budget that a command is given, where it is given one."""
    for one, value in zip(arguments, [*arguments[1:], ""], strict=True):
        name, equals, own = one.partition("=")
        if name == "--memory":
            with contextlib.suppress(LeanreconError):  # the command itself says what is wrong
                return parse_bytes(own if equals else value)
    return None


def _lines(process: "subprocess.Popen[str]") -> Iterator[str | None]:
    """The lines that a command writes, and None whenever a while has passed without one."""
    found: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            found.put(line.rstrip("\n"))
        found.put(None)

    threading.Thread(target=read, daemon=True).start()
    while True:
        try:
            line = found.get(timeout=EVERY)
        except queue.Empty:
            yield None
            continue
        if line is None:
            return
        yield line


@dataclass
class _Meter:
    """A line below a cell: memory now and at most, beside what is allowed, and how far the stage is."""

    process: int
    allowed: int | None
    peak: int = 0
    now: int = 0
    started: float = field(default_factory=time.monotonic)
    shown: float = 0.0
    left: str = ""
    handle: Any = None

    def look(self, left: str | None) -> None:
        """Measure, and show it if there is something new to show and the last time is long enough ago."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self.now = process_memory(self.process)
        self.peak = max(self.peak, self.now)
        self.left = left or self.left
        if time.monotonic() - self.shown >= EVERY:
            self._show(f"{self._bar()} {format_bytes(self.now)} now, {self._most()}", self.left)

    def finish(self) -> None:
        seconds = time.monotonic() - self.started
        took = f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
        self._show(f"{took}, memory: {self._most()}", "")

    def _most(self) -> str:
        return f"{format_bytes(self.peak)} at most" + (f" of {format_bytes(self.allowed)}" if self.allowed else "")

    def _bar(self) -> str:
        filled = round(_BAR * min(self.now / self.allowed, 1)) if self.allowed else 0
        return "memory " + ("▮" * filled + "▯" * (_BAR - filled) if self.allowed else "")

    def _show(self, text: str, left: str) -> None:
        from IPython.display import display

        self.shown = time.monotonic()
        both = "   ".join(part for part in (text, left) if part)
        shown = {"text/plain": both, "text/html": f"<pre>{html.escape(both)}</pre>"}
        if self.handle is None:
            self.handle = display(shown, raw=True, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self.handle.update(shown, raw=True)


# A study's checks and images


@dataclass(frozen=True)
class Cell:
    """What a notebook cell shows: HTML in notebooks, text elsewhere."""

    text: str
    page: str

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return self.page


def alignment(study: "LocationLike") -> Cell:
    """Whether betas and images belong together, judged from images that were shown twice.

    Responses to repeats of an image are compared with responses to different images. Raises StoreError before the
    stage dataset has run.
    """
    from leanrecon.datasets.reliability import Reliability
    from leanrecon.places.files import read_json
    from leanrecon.study.layout import Study

    place = Study(study)
    if not place.rows.exists():
        raise StoreError(f"there is no {place.rows}", todo="run the stage dataset first")
    record = read_json(place.reliability)
    reliability = Reliability.of(record) if record else None
    if reliability is None or not reliability.judged:
        text = "Too few images were shown twice to compare repeats; the report compares with shuffled betas instead."
        return Cell(text, _paragraph(text))
    verdict = "Betas and images belong together" if reliability.above_chance else "BETAS AND IMAGES DO NOT MATCH"
    text = f"{verdict}: {reliability}."
    return Cell(text, _paragraph(text))


def gallery(study: "LocationLike") -> Cell:
    """The verdict of an evaluated study, its checks, and its best, middle and worst reconstructions.

    Raises StoreError before the study was evaluated.
    """
    from leanrecon.evaluation.report.verdict import features_alone, verdict
    from leanrecon.places.files import read_json
    from leanrecon.study.layout import Study

    place = Study(study)
    metrics = read_json(place.metrics)
    if metrics is None:
        raise StoreError(f"there is no {place.metrics}", todo="run the study to its end first")
    result = verdict(metrics)
    marks = {True: "✓", False: "✕", None: "?"}
    checks = [f"{marks[check.passed]} {check.name}: {check.evidence}" for check in result.checks]
    groups, refined = ("", False) if features_alone(metrics) else _strip(place)
    simulated = "<p><b>Simulated subject: no one was measured.</b></p>" if metrics.get("simulated") else ""
    below = " (first and final image)" if refined else ""
    how = f"<p>Above: the image seen. Below: its reconstruction{below}, with the pixel correlation.</p>"
    strip = f"{how}<table><tr>{groups}</tr></table>" if groups else ""
    page = (
        f"{simulated}<h3>{html.escape(result.headline)}</h3>"
        f"{_paragraph(result.detail[:1].upper() + result.detail[1:])}"
        f"<ul>{''.join(f'<li>{html.escape(check)}</li>' for check in checks)}</ul>"
        f"{strip}{_paragraph(f'Full report: {place.report}')}"
    )
    return Cell("\n".join([result.text, *checks, f"Full report: {place.report}"]), page)


def _strip(place: "Study") -> tuple[str, bool]:
    """The best, middle and worst rows as cells of a table, and whether final images differ from first ones."""
    from leanrecon.evaluation.report.gallery import pixcorr, strip_rows
    from leanrecon.evaluation.report.thumbnails import thumbnail
    from leanrecon.stages.refine import make_generator
    from leanrecon.stages.report import rows_of_images
    from leanrecon.stages.scores import read_scores
    from leanrecon.study.recipes import read_settings
    from leanrecon.study.variants import variants, whole_brain

    settings, _ = read_settings(place.settings)
    scores = read_scores(place)
    strip = strip_rows(scores)
    chosen = sorted(row for _, rows in strip for row in rows)
    refined = make_generator(settings).refines
    rows = rows_of_images(whole_brain(variants(place, settings)), place, refined=refined, only=set(chosen))
    images = {
        row: [thumbnail(image, len(chosen)) for image in of_row if image is not None]
        for row, of_row in zip(chosen, rows, strict=True)
    }
    cell = "<td style='vertical-align:top;text-align:left;white-space:nowrap'><b>{name}</b><br>{figures}</td>"
    groups = [
        cell.format(name=name, figures="".join(_figure(images[row], pixcorr(scores[row])) for row in rows_))
        for name, rows_ in strip
    ]
    return "".join(groups), refined


def _figure(images: list[Any], score: float | None) -> str:
    """The images of one test row, one below the other, with their pixel correlation."""
    shown = "<br>".join(
        f"<img src='{image.uri}' width=80 style='{'image-rendering:pixelated' if image.pixelated else ''}'>"
        for image in images
    )
    caption = "" if score is None else f"<figcaption>{score:.2f}</figcaption>"
    return f"<figure style='display:inline-block;margin:3px'>{shown}{caption}</figure>"


def _paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"
