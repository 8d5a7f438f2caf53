"""The report's plots as inline SVG: dots with intervals, a histogram, a sorted curve.

Colours come from the page's style sheet by class, so that plots follow its light and dark theme.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Write = Callable[[float], str]

WIDTH = 340
"""Units across a plot: about its width in CSS pixels, so that text keeps its size."""

_LABELS = 122  # units for the labels of dots, at most
_LETTERS = 19  # letters of a label that fit into them at full size
_VALUES = 50  # units for their values
_ROW, _TALL_ROW = 22, 27  # units a row of dots takes, and where a label has two lines
_BINS = 24
_POINTS = 160
"""Points of a curve at most: more can't be seen, and a feature space can have 347,680."""

_LETTER = 6.0  # units a letter of a mark's label takes, about


@dataclass(frozen=True)
class Dot:
    """One value with its interval; ``kind`` is its class in the style sheet."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    kind: str = "baseline"


@dataclass(frozen=True)
class Mark:
    """A labelled line at one value."""

    label: str
    value: float
    kind: str = "baseline"


def dots(title: str, rows: Sequence[Dot], write: Write, *, chance: float | None = None) -> str:
    """A row a value: a dot at it, a line over its interval, and a dashed line at chance."""
    ends = [x for row in rows for x in (row.value, row.low, row.high) if x is not None]
    ticks = _ticks(
        min([*ends, *([] if chance is None else [chance])]), max([*ends, *([] if chance is None else [chance])])
    )
    labels = [_wrapped(row.label) for row in rows]
    left = min(_LABELS, 16 + 6 * max(len(line) for lines in labels for line in lines))
    height = _TALL_ROW if any(len(lines) > 1 for lines in labels) else _ROW
    right = WIDTH - _VALUES
    top = 18 if chance is not None else 6
    bottom = top + height * len(rows)

    def at(x: float) -> float:
        return left + (right - left) * (x - ticks[0]) / (ticks[-1] - ticks[0])

    parts = _axis(ticks, at, top, bottom, write)
    if chance is not None:
        parts.append(_line(at(chance), top - 3, at(chance), bottom, "chance"))
        parts.append(_text(min(max(at(chance), left + 16), right - 16), top - 7, "chance", "note middle"))
    for i, (row, lines) in enumerate(zip(rows, labels, strict=True)):
        y = top + height * (i + 0.5)
        interval = "" if row.low is None or row.high is None else f" ({write(row.low)} to {write(row.high)})"
        parts.append(
            f'<g class="{escape(row.kind)}"><title>{escape(f"{row.label}: {write(row.value)}{interval}")}</title>'
        )
        first = y + 3.8 - 5.8 * (len(lines) - 1)
        parts += [_label(left - 8, first + 11.6 * k, line) for k, line in enumerate(lines)]
        if row.low is not None and row.high is not None:
            parts.append(_line(at(row.low), y, at(row.high), y, "interval"))
        parts.append(f'<circle cx="{at(row.value):.1f}" cy="{y:.1f}" r="4.2"/>')
        parts.append(_text(right + 10, y + 3.8, write(row.value), "value") + "</g>")
    return _svg(title, bottom + 18, parts)


def _wrapped(label: str) -> list[str]:
    """A label on one line, or on two of about the same length."""
    if len(label) <= _LETTERS or " " not in label:
        return [label]
    breaks = [i for i, letter in enumerate(label) if letter == " "]
    at = min(breaks, key=lambda i: max(i, len(label) - i - 1))
    return [label[:at], label[at + 1 :]]


def _label(x: float, y: float, text: str) -> str:
    """A label that ends at ``x``, in smaller letters where it is too long."""
    if len(text) <= _LETTERS:
        return _text(x, y, text, "label end")
    size = max(11 * _LETTERS / len(text), 5)
    return f'<text class="label end" x="{x:.1f}" y="{y:.1f}" style="font-size:{size:.1f}px">{escape(text)}</text>'


def histogram(title: str, values: Sequence[float] | Array, write: Write, marks: Sequence[Mark] = ()) -> str:
    """How many values lie where, with lines at the marks."""
    values = np.asarray(values, dtype=np.float64)
    points = [float(values.min()), float(values.max()), *(mark.value for mark in marks)]
    ticks = _ticks(min(points), max(points))
    counts, edges = np.histogram(
        values, bins=min(_BINS, max(4, 2 * math.isqrt(len(values)))), range=(ticks[0], ticks[-1])
    )
    left, right = 8, WIDTH - 8

    def at(x: float) -> float:
        return left + (right - left) * (x - ticks[0]) / (ticks[-1] - ticks[0])

    lanes = _lanes([(at(mark.value), len(mark.label) * _LETTER + 4) for mark in marks])
    top = 10 + 14 * (max(lanes, default=-1) + 1)
    bottom = top + 110
    parts = _axis(ticks, at, top, bottom, write, grid=False)
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        if count:
            height = (bottom - top) * float(count) / float(counts.max())
            images = "1 image" if count == 1 else f"{count} images"
            parts.append(
                f'<rect class="bar" x="{at(low) + 0.6:.1f}" y="{bottom - height:.1f}" width="{at(high) - at(low) - 1.2:.1f}" '
                f'height="{height:.1f}"><title>{escape(f"{images}, {write(low)} to {write(high)}")}</title></rect>'
            )
    # Lines first: a label that a line must cross then stands clear of it.
    for mark, lane in zip(marks, lanes, strict=True):
        kind, x = f"mark {mark.kind}", at(mark.value)
        parts.append(f'<g class="{escape(kind)}">{_line(x, 6 + 14 * (max(lanes) - lane), x, bottom, "")}</g>')
    for mark, lane in zip(marks, lanes, strict=True):
        kind, x, y = f"mark {mark.kind}", at(mark.value), 14 + 14 * (max(lanes) - lane)
        flipped = _flipped(x, len(mark.label) * _LETTER + 4)
        parts.append(f'<g class="{escape(kind)}"><title>{escape(f"{mark.label}: {write(mark.value)}")}</title>')
        parts.append(_text(x - 4 if flipped else x + 4, y, mark.label, "note end" if flipped else "note") + "</g>")
    return _svg(title, bottom + 18, parts)


def curve(title: str, values: Sequence[float] | Array, write: Write) -> str:
    """Values from the highest to the lowest, over the share of them that is at least as high."""
    ordered = np.sort(np.asarray(values, dtype=np.float64))[::-1]
    picked = np.unique(np.linspace(0, len(ordered) - 1, min(_POINTS, len(ordered))).round().astype(int))
    # A few features far below zero would press all others into a line at the top.
    lowest = float(np.quantile(ordered, 0.01))
    ticks = _ticks(min(lowest, 0.0), max(float(ordered[0]), 0.01))
    left, right, top, bottom = 34, WIDTH - 8, 8, 128

    def y_at(value: float) -> float:
        return bottom - (bottom - top) * (min(max(value, ticks[0]), ticks[-1]) - ticks[0]) / (ticks[-1] - ticks[0])

    def x_at(i: int) -> float:
        return left + (right - left) * (i / max(len(ordered) - 1, 1))

    parts = []
    for tick in ticks:
        parts.append(_line(left, y_at(tick), right, y_at(tick), "zero" if abs(tick) < 1e-12 else "grid"))
        parts.append(_text(left - 5, y_at(tick) + 3.5, _short(tick), "note end"))
    for share in (0, 50, 100):
        x = left + (right - left) * share / 100
        anchor = {0: "", 50: " middle", 100: " end"}[share]
        parts.append(_text(x, bottom + 14, f"{share} %" + (" of features" if share == 50 else ""), "note" + anchor))
    path = " ".join(f"{x_at(int(i)):.1f},{y_at(float(ordered[i])):.1f}" for i in picked)
    zero = y_at(0.0)
    parts.append(f'<polygon class="area" points="{left},{zero:.1f} {path} {x_at(int(picked[-1])):.1f},{zero:.1f}"/>')
    parts.append(f'<polyline class="curve" points="{path}"/>')
    parts.append(f"<title>{escape(f'{title}: {write(float(ordered[0]))} to {write(float(ordered[-1]))}')}</title>")
    return _svg(title, bottom + 20, parts)


def losses(title: str, train: Sequence[float | None], validation: Sequence[float | None], best: int) -> str:
    """Losses by epoch, of what was learned from and of what was held out, and the epoch whose weights were kept."""
    known = [value for value in (*train, *validation) if value is not None]
    ticks = _ticks(min(known), max(known))
    left, right, top, bottom = 40, WIDTH - 8, 18, 138
    last = max(len(train), len(validation)) - 1

    def x_at(epoch: int) -> float:
        return left + (right - left) * epoch / max(last, 1)

    def y_at(value: float) -> float:
        return bottom - (bottom - top) * (value - ticks[0]) / (ticks[-1] - ticks[0])

    parts = []
    for tick in ticks:
        parts.append(_line(left, y_at(tick), right, y_at(tick), "grid"))
        parts.append(_text(left - 5, y_at(tick) + 3.5, _short(tick), "note end"))
    for epoch in sorted({0, last}):
        parts.append(_text(x_at(epoch), bottom + 14, f"epoch {epoch}", "note" + (" end" if epoch else "")))
    parts.append(_line(x_at(best), top - 4, x_at(best), bottom, "chance"))
    parts.append(_text(min(max(x_at(best), left + 12), right - 12), top - 7, "kept", "note middle"))
    for values, kind in ((train, "curve held"), (validation, "curve")):
        points = " ".join(f"{x_at(i):.1f},{y_at(v):.1f}" for i, v in enumerate(values) if v is not None)
        if points:
            parts.append(f'<polyline class="{kind}" points="{points}"/>')
    return _svg(title, bottom + 20, parts)


def _axis(
    ticks: Sequence[float], at: Callable[[float], float], top: float, bottom: float, write: Write, *, grid: bool = True
) -> list[str]:
    parts = []
    percent = write(1.0).endswith("%")
    for tick in ticks:
        if grid:
            parts.append(_line(at(tick), top, at(tick), bottom, "grid"))
        parts.append(
            _text(at(tick), bottom + 14, (_short(100 * tick) + " %" if percent else _short(tick)), "note middle")
        )
    if not grid:
        parts.append(_line(at(ticks[0]), bottom, at(ticks[-1]), bottom, "axis"))
    return parts


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers from at most ``low`` to at least ``high``."""
    if high - low < 1e-9:
        low, high = low - 0.05, high + 0.05
    step = 10 ** math.floor(math.log10((high - low) / 2))
    for factor in (1, 2, 2.5, 5, 10):
        first, last = math.floor(low / (step * factor) + 1e-9), math.ceil(high / (step * factor) - 1e-9)
        if last - first <= 5:
            break
    return [i * step * factor for i in range(first, last + 1)]


def _lanes(lines: Sequence[tuple[float, float]]) -> list[int]:
    """The lane above the plot for the label of each line, given as (x, width of the label).

    A label stands to the right of its line, or to the left where there is no room. From the right, each goes
    into the lowest lane in which no line or label further right is in its way.
    """
    lanes = [0] * len(lines)
    placed: list[tuple[float, int]] = []
    for i in sorted(range(len(lines)), key=lambda i: -lines[i][0]):
        x, width = lines[i]
        flipped = _flipped(x, width)
        end = x if flipped else x + width
        lanes[i] = max((lane + 1 for left, lane in placed if left <= end + 4), default=0)
        placed.append((x - width if flipped else x, lanes[i]))
    return lanes


def _flipped(x: float, width: float) -> bool:
    return x + width > WIDTH - 2


def _short(value: float) -> str:
    return f"{value:.4g}".replace("-", "−") if abs(value) > 1e-12 else "0"


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _svg(title: str, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}" class="plot">'
        + "".join(parts)
        + "</svg>"
    )
