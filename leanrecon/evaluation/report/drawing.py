"""The report's plots for papers: each as an SVG that stands alone, and drawn to a PNG, by Pillow and no plotting library.

Within the report, the page's style sheet gives colours by class. Here each mark carries its own, of the light theme.
"""

import io
import re
from collections.abc import Iterator
from functools import cache, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

_SVG = "http://www.w3.org/2000/svg"
_FONT = "Helvetica, Arial, sans-serif"

SCALE = 3
"""Pixels of a PNG a unit of a plot: 1,020 across, which is 300 dpi in a column of 86 mm."""

_FINER = 2  # times that each side is drawn larger, and then shrunk, for smooth edges

_MARKS: dict[str, dict[str, str]] = {
    "line.grid": {"stroke": "line", "stroke-width": "1"},
    "line.axis": {"stroke": "soft", "stroke-width": "1"},
    "line.zero": {"stroke": "soft", "stroke-width": "1"},
    "line.chance": {"stroke": "bad", "stroke-width": "1.2", "stroke-dasharray": "3 3"},
    "line.interval": {"stroke": "hue", "stroke-width": "2.4", "opacity": ".55"},
    "line": {"stroke": "hue", "stroke-width": "1.6"},
    "circle": {"fill": "hue"},
    "rect.bar": {"fill": "second", "opacity": ".75"},
    "polygon.area": {"fill": "accent", "opacity": ".14"},
    "polyline.held": {"fill": "none", "stroke": "accent", "stroke-width": "1.8", "stroke-dasharray": "4 3", "opacity": ".6"},
    "polyline": {"fill": "none", "stroke": "accent", "stroke-width": "1.8"},
    "text.note": {"fill": "soft", "font-size": "10"},
    "text": {"fill": "ink", "font-size": "11"},
}  # fmt: skip
"""How a mark looks by its element and class, as ``report.css`` has it; colours are named as there."""

_HUES = {"final": "accent", "group": "accent", "stage1": "second", "bound": "bound", "region": "second"}
"""The colour that marks of a group take; grey in all others."""


@cache
def colours() -> dict[str, str]:
    """The colours of the report's light theme by name."""
    sheet = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", sheet.partition("@media")[0]))


def standalone(svg: str) -> str:
    """A plot of the report as an SVG document that needs no style sheet."""
    ElementTree.register_namespace("", _SVG)
    root = _parsed(svg)
    width, height = _size(root)
    root.attrib |= {"width": f"{width:g}", "height": f"{height:g}", "font-family": _FONT}
    background = ElementTree.Element(
        f"{{{_SVG}}}rect", {"width": f"{width:g}", "height": f"{height:g}", "fill": "#ffffff"}
    )
    for mark, own in _marks(root):
        if mark is not root:
            mark.attrib |= own
    for mark in root.iter():
        for key in ("class", "style"):
            mark.attrib.pop(key, None)
    root.insert(0, background)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def png(svg: str) -> bytes:
    """The same plot as the bytes of a PNG."""
    from PIL import Image, ImageDraw

    root = _parsed(svg)
    width, height = _size(root)
    at = SCALE * _FINER
    picture = Image.new("RGB", (round(width * at), round(height * at)), "white")
    draw = ImageDraw.Draw(picture, "RGBA")
    for mark, own in _marks(root):
        _draw(draw, mark, own, at)
    small = picture.resize((round(width * SCALE), round(height * SCALE)), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    small.save(out, "PNG", dpi=(300, 300))
    return out.getvalue()


def _parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(str(svg).replace("<svg ", f'<svg xmlns="{_SVG}" ', 1))


def _size(root: ElementTree.Element) -> tuple[float, float]:
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    return width, height


def _marks(root: ElementTree.Element, hue: str = "grey") -> Iterator[tuple[ElementTree.Element, dict[str, str]]]:
    """Every mark with its own look."""
    for child in list(root):
        kind, classes = child.tag.removeprefix(f"{{{_SVG}}}"), child.get("class", "").split()
        if kind == "g":
            yield from _marks(child, next((_HUES[name] for name in classes if name in _HUES), "grey"))
        elif kind != "title":
            yield child, _look(kind, classes, child.get("style", ""), hue)


def _look(kind: str, classes: list[str], style: str, hue: str) -> dict[str, str]:
    found = next((_MARKS[key] for name in classes if (key := f"{kind}.{name}") in _MARKS), _MARKS.get(kind, {}))
    if kind == "polyline" and "held" in classes:
        found = _MARKS["polyline.held"]
    named = colours() | {"hue": colours()[hue]}
    own = {key: named.get(value, value) for key, value in found.items()}
    own |= dict(re.findall(r"([\w-]+):\s*([\d.]+)", style))
    anchor = next((name for name in classes if name in ("middle", "end")), "")
    return own | ({"text-anchor": anchor} if anchor else {})


# Drawing by Pillow


def _draw(draw: Any, mark: ElementTree.Element, own: dict[str, str], at: float) -> None:
    kind = mark.tag.removeprefix(f"{{{_SVG}}}")
    alpha = round(255 * float(own.get("opacity", 1)) * float(mark.get("fill-opacity", 1)))
    stroke, fill = (_rgba(own.get(key, "none"), alpha) for key in ("stroke", "fill"))

    def number(name: str) -> float:
        return float(mark.get(name, 0)) * at

    if kind == "line":
        _line(draw, [(number("x1"), number("y1")), (number("x2"), number("y2"))], stroke, own, at)
    elif kind in ("polyline", "polygon"):
        pairs = (pair.split(",") for pair in mark.get("points", "").split())
        points = [(float(x) * at, float(y) * at) for x, y in pairs]
        if kind == "polygon":
            draw.polygon(points, fill=fill)
        else:
            _line(draw, points, stroke, own, at)
    elif kind == "circle":
        x, y, r = number("cx"), number("cy"), number("r")
        draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)
    elif kind == "rect":
        x, y = number("x"), number("y")
        draw.rectangle((x, y, x + number("width"), y + number("height")), fill=fill)
    elif kind == "text":
        anchor = {"middle": "ms", "end": "rs"}.get(own.get("text-anchor", ""), "ls")
        font = _font(round(float(own["font-size"]) * at))
        draw.text((number("x"), number("y")), _written(mark.text or ""), fill=fill, font=font, anchor=anchor)


def _line(draw: Any, points: list[tuple[float, float]], stroke: Any, own: dict[str, str], at: float) -> None:
    """A line through points, in dashes where it has any."""
    width = max(round(float(own["stroke-width"]) * at), 1)
    if "stroke-dasharray" not in own:
        draw.line(points, fill=stroke, width=width, joint="curve")
        return
    on, off = (float(part) * at for part in own["stroke-dasharray"].split())
    walked = 0.0
    for (x1, y1), (x2, y2) in pairwise(points):
        length = ((x2 - x1) ** 2 + (y2 - y1) ** 2) ** 0.5
        done = 0.0
        while done < length:
            phase = walked % (on + off)
            step = min((on if phase < on else on + off) - phase, length - done) or length - done
            if phase < on:
                a, b = done / length, (done + step) / length
                ends = [(x1 + share * (x2 - x1), y1 + share * (y2 - y1)) for share in (a, b)]
                draw.line(ends, fill=stroke, width=width)
            done, walked = done + step, walked + step


def _rgba(colour: str, alpha: int) -> tuple[int, int, int, int] | None:
    if colour == "none":
        return None
    red, green, blue = (int(colour[k : k + 2], 16) for k in (1, 3, 5))
    return red, green, blue, alpha


@lru_cache(maxsize=32)
def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _written(text: str) -> str:
    """A text in letters that Pillow's own font has."""
    return text.translate(_ASCII)


_ASCII = str.maketrans({"−": "-", "–": "-", "×": "x", "²": "2", "\u00a0": " ", "…": "...", "’": "'"})
"""Letters of labels that the font lacks."""
