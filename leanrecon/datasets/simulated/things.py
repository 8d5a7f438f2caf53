"""The main things of drawn scenes: houses, trees, boats, animals; one function paints each, standing on its foot."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from leanrecon.datasets.simulated.canvas import Canvas, mix

Array = np.ndarray[Any, Any]
Colour = tuple[float, float, float]

COLOURS: dict[str, Colour] = {
    "red": (0.83, 0.18, 0.16),
    "orange": (0.95, 0.52, 0.14),
    "yellow": (0.98, 0.81, 0.24),
    "green": (0.26, 0.56, 0.24),
    "blue": (0.17, 0.38, 0.76),
    "purple": (0.50, 0.26, 0.62),
    "pink": (0.95, 0.55, 0.67),
    "white": (0.95, 0.94, 0.90),
    "brown": (0.52, 0.33, 0.19),
    "black": (0.20, 0.19, 0.21),
}
DARK: Colour = (0.16, 0.14, 0.16)
_WOOD: Colour = (0.40, 0.26, 0.16)
_GLASS: Colour = (0.62, 0.80, 0.90)
_LAMP: Colour = (1.0, 0.86, 0.45)


@dataclass(frozen=True)
class Thing:
    """One main thing of a scene; ``x`` and ``y`` are where its foot stands, ``size`` its height."""

    kind: str
    colour: str
    x: float
    y: float
    size: float
    shape: tuple[float, ...]
    """Six numbers from 0 to 1 that decide its details."""


def paint_thing(c: Canvas, thing: Thing, *, night: bool) -> None:
    """Paint a thing on a window of the canvas that holds it; lamps are lit at night."""
    kind = KINDS[thing.kind]
    s = thing.size
    window = c.window(thing.x - 1.1 * s, thing.y - 1.2 * s, thing.x + 1.1 * s, thing.y + 0.3 * s)
    kind.paint(window, thing, np.array(COLOURS[thing.colour], np.float32), night)


def _shadow(c: Canvas, t: Thing, half: float) -> None:
    c.cover(c.ellipse(t.x + 0.08 * t.size, t.y, half * t.size, 0.05 * t.size), DARK, opacity=0.28, blur=0.04 * t.size)


def _round(c: Canvas, hue: Array, x: float, y: float, rx: float, ry: float) -> None:
    """An ellipse with the light on its upper left."""
    shade = np.clip(0.55 + 0.35 * ((c.x - x) / rx + (c.y - y) / ry), 0, 1)[..., None]
    c.cover(c.ellipse(x, y, rx, ry), mix(mix(hue, (1, 1, 1), 0.18), hue * 0.66, shade))


def _house(c: Canvas, t: Thing, hue: Array, night: bool) -> None:
    s, half, eaves = t.size, t.size * (0.36 + 0.22 * t.shape[0]), t.y - t.size * (0.48 + 0.14 * t.shape[1])
    left, right, top = t.x - half, t.x + half, t.y - s
    _shadow(c, t, half / s + 0.1)
    chimney = t.x + half * (0.45 if t.shape[2] < 0.5 else -0.6)
    c.cover(c.box(chimney, top + 0.02 * s, chimney + 0.11 * s, eaves), (0.50, 0.30, 0.26))
    c.cover(
        c.box(left, eaves - 0.02 * s, right, t.y), mix(hue * 1.05, hue * 0.74, ((c.x - left) / (2 * half))[..., None])
    )
    slope = 0.0 if t.shape[3] < 0.55 else 0.45 * half
    tiles: Colour = ((0.66, 0.28, 0.20), (0.36, 0.30, 0.34), (0.46, 0.32, 0.22), (0.28, 0.36, 0.46))[
        int(t.shape[4] * 4)
    ]
    over = 0.09 * s
    ridge = ((t.x - slope, top), (t.x + slope, top)) if slope else ((t.x, top),)
    roof = c.polygon(*ridge, (right + over, eaves), (left - over, eaves))
    c.cover(roof, mix(np.array(tiles) * 1.12, np.array(tiles) * 0.82, ((c.y - top) / (eaves - top))[..., None]))
    door = t.x + half * (-0.55, 0.0, 0.5)[int(t.shape[5] * 3)]
    c.cover(c.box(door - 0.085 * s, t.y - 0.30 * s, door + 0.085 * s, t.y, 0.02 * s), mix(hue * 0.35, _WOOD, 0.6))
    for x in (-0.58, 0.0, 0.58):
        if abs(t.x + x * half - door) > 0.2 * s:
            pane = c.box(t.x + x * half - 0.09 * s, eaves + 0.1 * s, t.x + x * half + 0.09 * s, eaves + 0.27 * s)
            c.cover(pane - 0.022 * s, (0.96, 0.95, 0.92))
            c.cover(pane, _LAMP if night else _GLASS, lit=not night)


def _tree(c: Canvas, t: Thing, hue: Array, night: bool) -> None:
    s, width = t.size, 0.8 + 0.5 * t.shape[0]
    _shadow(c, t, 0.32 * width)
    c.cover(c.polygon((t.x - 0.035 * s, t.y - 0.6 * s), (t.x + 0.035 * s, t.y - 0.6 * s),
                      (t.x + 0.065 * s, t.y), (t.x - 0.065 * s, t.y)), _WOOD)  # fmt: skip
    puffs = ((0.0, 0.52, 0.27), (-0.19, 0.56, 0.20), (0.19, 0.55, 0.20), (-0.10, 0.76, 0.20), (0.11, 0.76, 0.19))
    for k, (x, y, r) in enumerate(puffs):
        lean = 0.06 * (t.shape[1 + k % 5] - 0.5)
        _round(
            c, hue * (0.92 + 0.2 * t.shape[1 + k % 5]), t.x + (x + lean) * width * s, t.y - y * s, r * width * s, r * s
        )
    if t.shape[5] < 0.3:  # apples, or what passes for them
        for x, y in ((-0.16, 0.52), (0.05, 0.66), (0.18, 0.50), (-0.08, 0.82), (0.0, 0.42)):
            c.cover(c.ellipse(t.x + x * width * s, t.y - y * s, 0.032 * s, 0.032 * s), (0.86, 0.16, 0.14))


def _pine(c: Canvas, t: Thing, hue: Array, night: bool) -> None:
    s, width = t.size, 0.24 + 0.12 * t.shape[0]
    _shadow(c, t, 0.25)
    c.cover(c.box(t.x - 0.04 * s, t.y - 0.2 * s, t.x + 0.04 * s, t.y), _WOOD)
    shade = np.clip((c.x - t.x) / (0.5 * s) + 0.5, 0, 1)[..., None]
    for k, foot in enumerate((0.12, 0.36, 0.58)):
        half, top = width * (1 - 0.24 * k) * s, min(foot + 0.46, 1.0)
        tier = c.polygon((t.x, t.y - top * s), (t.x + half, t.y - foot * s), (t.x - half, t.y - foot * s))
        green = mix(hue * (0.82 + 0.1 * k), hue * (0.5 + 0.1 * k), shade)
        c.cover(tier, green)
        if t.shape[1] < 0.25:  # snow on the branches
            c.cover(np.maximum(tier, c.y - (t.y - (top - 0.16) * s)), (0.95, 0.96, 1.0))


def _cactus(c: Canvas, t: Thing, hue: Array, night: bool) -> None:
    s, r = t.size, 0.075 * t.size
    _shadow(c, t, 0.18)
    body = c.box(t.x - r, t.y - s, t.x + r, t.y, r)
    for side, low in ((-1, 0.30 + 0.2 * t.shape[0]), (1, 0.35 + 0.25 * t.shape[1])):
        x, y, up = t.x + side * 0.25 * s, t.y - low * s, (0.2 + 0.2 * t.shape[2]) * s
        body = np.minimum(body, c.box(min(x, t.x), y - 0.055 * s, max(x, t.x), y + 0.055 * s))
        body = np.minimum(body, c.box(x - 0.055 * s, y - up, x + 0.055 * s, y + 0.055 * s, 0.055 * s))
    stripes = 0.85 + 0.2 * np.cos((c.x - t.x) * 55 / s)
    c.cover(body, hue * np.broadcast_to(stripes, body.shape)[..., None])
    if t.shape[3] < 0.5:
        c.cover(c.ellipse(t.x, t.y - s, 0.06 * s, 0.045 * s), COLOURS["pink"])


def _boat(c: Canvas, t: Thing, hue: Array, night: bool) -> None:
    s, half = t.size, t.size * (0.40 + 0.15 * t.shape[0])
    deck, side = t.y - 0.2 * s, 1.0 if t.shape[1] < 0.5 else -1.0
    mast = t.x - side * 0.08 * s
    c.cover(c.ellipse(t.x, t.y + 0.05 * s, 0.85 * half, 0.07 * s), hue * 0.4, opacity=0.4, blur=0.05 * s)
    c.cover(c.box(mast - 0.018 * s, t.y - s, mast + 0.018 * s, deck), _WOOD)
    cloth = COLOURS[("white", "yellow", "orange", "white")[int(t.shape[2] * 4)]]
    for toward, width, top, colour in ((side, 0.42, 0.97, cloth), (-side, 0.28, 0.82, np.array(cloth) * 0.86)):
        x = mast + 0.03 * s * toward
        corners = [(x, t.y - top * s), (x + toward * width * s, deck - 0.05 * s), (x, deck - 0.05 * s)]
        c.cover(c.polygon(*(corners if toward > 0 else corners[::-1])), colour)
    shade = np.clip((c.y - deck) / (t.y - deck), 0, 1)[..., None]
    hull = c.polygon((t.x - half, deck), (t.x + half, deck), (t.x + 0.66 * half, t.y + 0.03 * s), (t.x - 0.66 * half, t.y + 0.03 * s))  # fmt: skip
    c.cover(hull, mix(hue, hue * 0.6, shade))
    c.cover(np.maximum(hull, c.y - deck - 0.045 * s), (0.96, 0.95, 0.92))
    if night:
        c.cover(c.ellipse(mast, t.y - s, 0.05 * s, 0.05 * s), _LAMP, lit=False, blur=0.04 * s)


def _car(c: Canvas, t: Thing, hue: Array, night: bool) -> None:
    s, half, side = t.size, 0.85 * t.size, 1.0 if t.shape[0] < 0.5 else -1.0
    _shadow(c, t, 0.9)
    cabin, flat = t.x - side * half * 0.12, 0.30 + 0.15 * t.shape[1]
    top = [(cabin - flat * s, t.y - s), (cabin + flat * s, t.y - s), (cabin + 0.58 * s, t.y - 0.55 * s), (cabin - 0.58 * s, t.y - 0.55 * s)]  # fmt: skip
    roof = c.polygon(*top)
    c.cover(roof - 0.02 * s, hue)
    pane = np.maximum(roof + 0.075 * s, 0.035 * s - np.abs(c.x - cabin))
    c.cover(pane, _LAMP if night else _GLASS, lit=not night)
    body = c.box(t.x - half, t.y - 0.60 * s, t.x + half, t.y - 0.14 * s, 0.14 * s)
    c.cover(body, mix(hue * 1.08, hue * 0.68, np.clip((c.y - t.y) / (0.5 * s) + 1.1, 0, 1)[..., None]))
    for x in (-0.52, 0.52):
        wheel = c.ellipse(t.x + x * half, t.y - 0.15 * s, 0.19 * s, 0.19 * s)
        c.cover(wheel, DARK)
        c.cover(wheel + 0.10 * s, (0.75, 0.75, 0.78))
    lamp = c.ellipse(t.x + side * 0.93 * half, t.y - 0.40 * s, 0.06 * s, 0.07 * s)
    c.cover(lamp, _LAMP, lit=False, blur=0.15 * s if night else 0.0)


def _sheep(c: Canvas, t: Thing, hue: Array, night: bool) -> None:
    s, side = t.size, 1.0 if t.shape[0] < 0.5 else -1.0
    _shadow(c, t, 0.5)
    for x in (-0.28, -0.14, 0.14, 0.28):
        c.cover(c.box(t.x + x * s - 0.035 * s, t.y - 0.32 * s, t.x + x * s + 0.035 * s, t.y), DARK)
    for x, y, r in ((-0.3, 0.5, 0.2), (0.3, 0.52, 0.2), (-0.15, 0.66, 0.22), (0.15, 0.66, 0.22), (0.0, 0.46, 0.27)):
        _round(c, hue * 0.97, t.x + x * s, t.y - y * s, r * s * 1.1, r * s)
    head = t.x + side * 0.50 * s
    face = (0.24, 0.21, 0.23) if hue.mean() > 0.5 else (0.82, 0.78, 0.72)
    c.cover(c.ellipse(head, t.y - 0.68 * s, 0.13 * s, 0.17 * s), face)
    c.cover(c.ellipse(head - side * 0.10 * s, t.y - 0.82 * s, 0.10 * s, 0.08 * s), hue)


def _cow(c: Canvas, t: Thing, hue: Array, night: bool) -> None:
    s, side = t.size, 1.0 if t.shape[0] < 0.5 else -1.0
    _shadow(c, t, 0.6)
    for x in (-0.42, -0.27, 0.24, 0.39):
        c.cover(c.box(t.x + x * s - 0.05 * s, t.y - 0.4 * s, t.x + x * s + 0.05 * s, t.y), hue * 0.72)
    body = c.box(t.x - 0.52 * s, t.y - 0.85 * s, t.x + 0.5 * s, t.y - 0.3 * s, 0.16 * s)
    c.cover(body, mix(hue * 1.05, hue * 0.72, np.clip((c.y - t.y) / (0.55 * s) + 1.5, 0, 1)[..., None]))
    spot = (0.95, 0.94, 0.90) if hue.mean() < 0.7 else DARK
    for x, y, r in ((-0.26, 0.7, 0.15), (0.08, 0.56, 0.18), (0.3, 0.76, 0.1)):
        wander = 0.2 * (t.shape[2] - 0.5)
        patch = c.ellipse(t.x + (x + wander) * s, t.y - y * s, r * s, 0.8 * r * s)
        c.cover(np.maximum(patch, body), spot)
    head, up = t.x + side * 0.62 * s, t.y - (0.70 + 0.2 * t.shape[1]) * s
    for ear in (-0.15, 0.15):
        c.cover(c.ellipse(head + ear * s, up - 0.12 * s, 0.07 * s, 0.04 * s), hue * 0.7)
    c.cover(c.box(head - 0.13 * s, up - 0.2 * s, head + 0.13 * s, up + 0.2 * s, 0.1 * s), hue)
    c.cover(c.ellipse(head + side * 0.03 * s, up + 0.13 * s, 0.12 * s, 0.09 * s), (0.93, 0.70, 0.66))


def _duck(c: Canvas, t: Thing, hue: Array, night: bool) -> None:
    s, side = t.size, 1.0 if t.shape[0] < 0.5 else -1.0
    c.cover(c.ellipse(t.x, t.y + 0.06 * s, 0.6 * s, 0.08 * s), hue * 0.4, opacity=0.4, blur=0.05 * s)
    tail = [(t.x - side * 0.66 * s, t.y - 0.52 * s), (t.x, t.y - 0.46 * s), (t.x - side * 0.2 * s, t.y - 0.1 * s)]
    c.cover(c.polygon(*(tail if side > 0 else tail[::-1])), hue * 0.9)
    body = np.maximum(c.ellipse(t.x, t.y - 0.16 * s, 0.55 * s, 0.32 * s), c.y - t.y - 0.04 * s)
    c.cover(body, mix(hue * 1.05, hue * 0.72, np.clip((c.y - t.y) / (0.5 * s) + 1, 0, 1)[..., None]))
    c.cover(c.ellipse(t.x - side * 0.1 * s, t.y - 0.2 * s, 0.28 * s, 0.14 * s), hue * 0.78)
    head = t.x + side * 0.36 * s
    beak = [(head + side * 0.12 * s, t.y - 0.82 * s), (head + side * 0.46 * s, t.y - 0.70 * s), (head + side * 0.12 * s, t.y - 0.62 * s)]  # fmt: skip
    c.cover(c.polygon(*(beak if side > 0 else beak[::-1])), (0.96, 0.52, 0.12))
    _round(c, hue, head, t.y - 0.74 * s, 0.24 * s, 0.24 * s)
    c.cover(c.ellipse(head + side * 0.09 * s, t.y - 0.80 * s, 0.04 * s, 0.04 * s), DARK)


def _balloon(c: Canvas, t: Thing, hue: Array, night: bool) -> None:
    s, r = t.size, 0.34 * t.size
    x, y = t.x, t.y - 0.66 * s
    for side in (-1, 1):
        rope = [(x + side * 0.22 * s, y + 0.2 * s), (x + side * 0.25 * s, y + 0.2 * s), (x + side * 0.08 * s, t.y - 0.1 * s), (x + side * 0.06 * s, t.y - 0.1 * s)]  # fmt: skip
        c.cover(c.polygon(*(rope if side > 0 else rope[::-1])), _WOOD)
    c.cover(c.box(x - 0.09 * s, t.y - 0.14 * s, x + 0.09 * s, t.y, 0.02 * s), (0.60, 0.42, 0.24))
    cone = c.polygon((x - 0.93 * r, y + 0.36 * r), (x + 0.93 * r, y + 0.36 * r), (x + 0.2 * r, y + 1.45 * r), (x - 0.2 * r, y + 1.45 * r))  # fmt: skip
    bag = np.minimum(c.ellipse(x, y, r, r), cone)
    wave = np.sin((3 + 2 * round(t.shape[0] * 2)) * np.arcsin(np.clip((c.x - x) / (1.02 * r), -1, 1)) + 0.5)
    second = COLOURS[("white", "yellow", "red", "blue")[int(t.shape[1] * 4)]]
    striped = mix(hue, second, np.clip(wave * 4 + 0.5, 0, 1)[..., None])
    shade = np.clip(0.5 + 0.5 * (c.x - x) / r, 0, 1)[..., None]
    c.cover(bag, np.broadcast_to(striped * (1.08 - 0.4 * shade), (*bag.shape, 3)))


@dataclass(frozen=True)
class Kind:
    """How a kind of thing is painted, how high it is in front, in which colours, and where it is found."""

    paint: Callable[[Canvas, Thing, Array, bool], None]
    height: float
    colours: tuple[str, ...]
    grounds: tuple[str, ...]


_PAINTS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
_LAND = ("meadow", "snow", "desert")

KINDS: dict[str, Kind] = {
    "house": Kind(_house, 0.36, _PAINTS, _LAND),
    "tree": Kind(_tree, 0.42, ("green", "green", "orange", "yellow", "red", "pink"), ("meadow",)),
    "pine": Kind(_pine, 0.46, ("green",), ("meadow", "snow")),
    "cactus": Kind(_cactus, 0.36, ("green",), ("desert",)),
    "boat": Kind(_boat, 0.40, _PAINTS, ("sea",)),
    "duck": Kind(_duck, 0.20, ("yellow", "white", "brown"), ("sea",)),
    "car": Kind(_car, 0.17, (*_PAINTS, "black"), _LAND),
    "sheep": Kind(_sheep, 0.20, ("white", "white", "black", "brown"), ("meadow", "snow")),
    "cow": Kind(_cow, 0.24, ("brown", "black", "white"), ("meadow",)),
    "balloon": Kind(_balloon, 0.36, _PAINTS, (*_LAND, "sea")),
}
