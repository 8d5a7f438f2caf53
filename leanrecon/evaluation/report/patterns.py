"""The report's section on black and white patterns: identification among many, where decoding works, weights of scales."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from leanrecon.evaluation.report import plots
from leanrecon.evaluation.report.names import label, metric, number

_LEFT, _RIGHT, _TOP, _BOTTOM = 40, plots.WIDTH - 10, 10, 140
_MAP = 132  # units of a side of a map
_GAP = 24

_REMARKS = (
    "How often a reconstruction is nearer to the image seen than to all of N − 1 random patterns, whose pixels are lit as "
    "often as in the test images; the band is the 95 % interval, dashed is chance",
    "How often each pixel is right, from half of the rows (dark) to all of them (bright)",
    "Pixels by their distance from the centre of the image; lines are 95 % intervals",
)


@dataclass(frozen=True)
class Drawing:
    """A title, a remark on how to read it, and an SVG."""

    title: str
    remark: str
    svg: str


def pattern_plots(metrics: Mapping[str, Any]) -> Iterator[Drawing]:
    """The drawings of the section; none where images are not patterns."""
    patterns = metrics.get("patterns") or {}
    curve = [row for row in patterns.get("identification") or [] if number(row.get("value")) is not None]
    if len(curve) > 1:
        yield Drawing("Identification among N patterns", _REMARKS[0], _curve(curve))
    if maps := patterns.get("accuracy_by_pixel"):
        yield Drawing("Where pixels are right", _REMARKS[1], _maps(maps))
    if rows := patterns.get("eccentricity"):
        dots = [
            plots.Dot(f"{row['pixels']} to {row['pixels'] + 1} pixels", row["value"], row["low"], row["high"], "group")
            for row in rows
        ]
        accuracy = metric("accuracy")
        yield Drawing(
            "Accuracy by eccentricity", _REMARKS[2], plots.dots("Accuracy by eccentricity", dots, _whole(accuracy))
        )


def scale_weights(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Each scale of patches and its weight in the images, as text."""
    weights = (metrics.get("patterns") or {}).get("weights") or {}
    return [(name, f"{weight:.3f}") for name, weight in weights.items()]


def _whole(shown_as: Any) -> plots.Write:
    return lambda x: str(shown_as.write(x, 0))


def _curve(rows: Sequence[Mapping[str, Any]]) -> str:
    """Identification over the number of candidates, on a logarithmic axis."""
    last = math.log10(rows[-1]["candidates"])

    def x_at(n: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * math.log10(n) / last

    def y_at(value: float) -> float:
        return _BOTTOM - (_BOTTOM - _TOP) * value

    def line(key: str) -> list[str]:
        return [f"{x_at(row['candidates']):.1f},{y_at(row[key]):.1f}" for row in rows if row.get(key) is not None]

    parts = []
    for share in (0, 0.5, 1):
        parts.append(f'<line class="grid" x1="{_LEFT}" y1="{y_at(share):.1f}" x2="{_RIGHT}" y2="{y_at(share):.1f}"/>')
        parts.append(f'<text class="note end" x="{_LEFT - 5}" y="{y_at(share) + 3.5:.1f}">{100 * share:.0f} %</text>')
    for row in rows:
        n, value = row["candidates"], row["value"]
        kind = "note end" if row is rows[-1] else "note middle"
        parts.append(f'<text class="{kind}" x="{x_at(n):.1f}" y="{_BOTTOM + 14}">{_count(n)}</text>')
        parts.append(f"<g><title>{escape(f'{100 * value:.1f} % among {n:,}')}</title></g>")
    if len(band := [*line("low"), *reversed(line("high"))]) > 2:
        parts.append(f'<polygon class="area" points="{" ".join(band)}"/>')
    parts.append(f'<polyline class="curve held" points="{" ".join(line("chance"))}"/>')
    parts.append(f'<polyline class="curve" points="{" ".join(line("value"))}"/>')
    return _svg("Identification among N patterns", _BOTTOM + 20, parts)


def _count(n: int) -> str:
    return f"{n:,}" if n < 1000 else f"{n // 1000}k"


def _maps(maps: Mapping[str, Sequence[Sequence[float]]]) -> str:
    """A square for every pixel, brighter where it is right more often; one map beside the other."""
    parts, height = [], 0.0
    for k, (name, rows) in enumerate(list(maps.items())[:2]):
        side = _MAP / max(len(rows), len(rows[0]))
        left = 10 + k * (_MAP + _GAP)
        for i, row in enumerate(rows):
            for j, share in enumerate(row):
                strength = min(max(2 * share - 1, 0), 1)
                parts.append(
                    f'<rect class="bar" x="{left + j * side:.1f}" y="{6 + i * side:.1f}" width="{side:.2f}" height="{side:.2f}" '
                    f'fill-opacity="{strength:.2f}" opacity="{strength:.2f}"><title>{100 * share:.0f} %</title></rect>'
                )
        below = 6 + side * len(rows)
        height = max(height, below)
        title = "Reconstructions" if name == "final" else label(name).name
        parts.append(f'<text class="note" x="{left}" y="{below + 14:.1f}">{escape(title)}</text>')
    return _svg("Where pixels are right", height + 22, parts)


def _svg(title: str, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {plots.WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}" class="plot">'
        + "".join(parts)
        + "</svg>"
    )
