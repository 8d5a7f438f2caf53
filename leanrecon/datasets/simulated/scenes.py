"""Drawn scenes in the manner of children's books: as many as wanted, each from two numbers, with a sentence about it.

A scene is first composed (what is where, in which light), then painted from the back to the front. Places and
sizes are in parts of the picture, x to the right and y down, so that a scene looks alike at every size.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from leanrecon.datasets.simulated.canvas import Canvas, mix, noise
from leanrecon.datasets.simulated.things import COLOURS, KINDS, Thing, paint_thing

Array = np.ndarray[Any, Any]
Colour = tuple[float, float, float]

SKIES: dict[str, tuple[Colour, Colour]] = {  # at the top, at the horizon
    "morning": ((0.50, 0.68, 0.90), (1.00, 0.86, 0.76)),
    "day": ((0.26, 0.54, 0.90), (0.80, 0.92, 0.99)),
    "overcast": ((0.56, 0.60, 0.67), (0.82, 0.84, 0.86)),
    "dusk": ((0.32, 0.24, 0.52), (1.00, 0.63, 0.40)),
    "night": ((0.04, 0.06, 0.19), (0.17, 0.22, 0.44)),
}
LIGHT: dict[str, Colour] = {
    "morning": (1.00, 0.94, 0.88),
    "day": (1.0, 1.0, 1.0),
    "overcast": (0.78, 0.81, 0.84),
    "dusk": (0.88, 0.66, 0.62),
    "night": (0.44, 0.50, 0.74),
}
GROUNDS: dict[str, tuple[Colour, Colour]] = {  # at the horizon, in front
    "meadow": ((0.66, 0.80, 0.42), (0.30, 0.58, 0.22)),
    "sea": ((0.42, 0.70, 0.80), (0.05, 0.30, 0.52)),
    "snow": ((0.84, 0.89, 0.96), (0.96, 0.97, 1.00)),
    "desert": ((0.97, 0.86, 0.62), (0.84, 0.62, 0.36)),
}
BACKDROPS = ("plain", "hills", "mountains", "forest")
WORDS = (*SKIES, *GROUNDS, *BACKDROPS[1:], *KINDS)
"""The words that tell what a scene shows; a plain backdrop goes without."""

TEST = 1_000_000_000
"""Index of the first scene that no model may be trained on, by whatever seed."""

HELD_OUT = frozenset({
    ("house", "orange"), ("house", "purple"), ("tree", "pink"), ("boat", "red"), ("boat", "green"),
    ("duck", "brown"), ("car", "white"), ("car", "blue"), ("sheep", "brown"), ("cow", "black"),
    ("balloon", "yellow"), ("balloon", "blue"),
})  # fmt: skip
"""Kinds in colours that only scenes from ``TEST`` on show, so that whoever knows all others by heart is found out."""

KEPT = 2048
"""Scenes that are kept as they were composed: those of a small study are painted, told and answered to in turn."""

SCENE_NBYTES = 2400
"""Bytes that a kept scene takes, with its place among the others: 2,210 measured."""

MODELS_SEED = 64
"""The seed of the scenes that the models of the demo were trained on; a subject of another seed sees none of them."""


@dataclass(frozen=True)
class Scene:
    """What is to be painted."""

    time: str
    ground: str
    backdrop: str
    horizon: float
    orb: tuple[float, float, float] | None
    """x, y and radius of the sun, or of the moon at night."""
    clouds: tuple[tuple[float, float, float], ...]
    """x, y and width, the far ones first."""
    things: tuple[Thing, ...]
    """The far ones first."""
    tint: Colour
    texture: int
    """Seed of what has no name: ridges, waves, flowers, stars."""


def draw_scene(seed: int, index: int, size: int = 64) -> tuple[Array, str]:
    """Draw scene ``index`` of ``seed``: an image, uint8 [size, size, 3], and one sentence about it.

    Both numbers decide it alone; they are 0 or more. Images of another size show the same scene.
    """
    scene = compose(seed, index)
    return paint(scene, size), describe(scene)


@lru_cache(maxsize=KEPT)
def compose(seed: int, index: int) -> Scene:
    """Decide what is where in scene ``index`` of ``seed``; before ``TEST`` nothing that is ``HELD_OUT``."""
    rng = np.random.default_rng([seed, index])
    time = str(rng.choice(list(SKIES), p=(0.15, 0.38, 0.15, 0.17, 0.15)))
    ground = str(rng.choice(list(GROUNDS), p=(0.42, 0.28, 0.15, 0.15)))
    backdrop = str(rng.choice(BACKDROPS if ground in ("meadow", "snow") else BACKDROPS[:3]))
    horizon = rng.uniform(0.36, 0.72)
    low = horizon - 0.02 if time in ("dusk", "morning") else horizon * 0.55
    orb = (rng.uniform(0.08, 0.92), rng.uniform(0.09, low), rng.uniform(0.045, 0.09))
    shown = time in ("dusk", "night") or (time != "overcast" and rng.random() < 0.7)
    clouds = [
        (rng.uniform(0, 1), rng.uniform(0.06, horizon * 0.75), rng.uniform(0.14, 0.42))
        for _ in range(rng.integers(0, 4) + 2 * (time == "overcast"))
    ]
    tint = tuple(rng.uniform(0.93, 1.05, 3).tolist())
    return Scene(
        time=time, ground=ground, backdrop=backdrop, horizon=horizon, orb=orb if shown else None,
        clouds=tuple(sorted(clouds, key=lambda cloud: cloud[2])), things=_place(rng, ground, horizon, held_out=index < TEST),
        tint=(tint[0], tint[1], tint[2]), texture=int(rng.integers(2**32)),
    )  # fmt: skip


def _place(rng: np.random.Generator, ground: str, horizon: float, *, held_out: bool) -> tuple[Thing, ...]:
    """One to three things of different kinds, side by side, larger towards the front."""
    found = [kind for kind, what in KINDS.items() if ground in what.grounds]
    n = min(int(rng.choice([1, 2, 3], p=(0.3, 0.45, 0.25))), len(found))
    things = []
    for slot, kind in zip(rng.permutation(n).tolist(), rng.choice(found, n, replace=False).tolist(), strict=True):
        near, x = rng.uniform(0.12, 0.9), (slot + rng.uniform(0.25, 0.75)) / n
        floats = kind == "balloon"
        y = rng.uniform(0.55, 0.95) * horizon if floats else horizon + near * (1 - horizon)
        grown = (0.85 if floats else 0.55 + 0.75 * near) * rng.uniform(0.8, 1.3) * (1.35 - 0.12 * n)
        colours = [colour for colour in KINDS[kind].colours if not (held_out and (kind, colour) in HELD_OUT)]
        colour, shape = str(rng.choice(colours)), tuple(rng.random(6).tolist())
        things.append(Thing(kind, colour, x, y, KINDS[kind].height * grown, shape))
    return tuple(sorted(things, key=lambda thing: thing.y))


_TIMES = {"morning": "in the morning", "day": "by day", "overcast": "on an overcast day", "dusk": "at dusk", "night": "at night"}  # fmt: skip
_ON = {"meadow": "on a meadow", "sea": "on the sea", "snow": "in the snow", "desert": "in the desert"}
_BEHIND = {"plain": "", "hills": " in front of hills", "mountains": " in front of mountains", "forest": " in front of a forest"}  # fmt: skip


def describe(scene: Scene) -> str:
    """One sentence: what, in which colour, where, before what, and when."""
    named = []
    for thing in sorted(scene.things, key=lambda thing: thing.x):
        where = ("on the left", "in the middle", "on the right")[min(int(thing.x * 3), 2)]
        article = "an" if thing.colour[0] in "aeiou" else "a"
        named.append(f"{article} {thing.colour} {thing.kind} {where}")
    listed = ", ".join(named[:-1]) + " and " + named[-1] if len(named) > 1 else named[0]
    if all(thing.kind == "balloon" for thing in scene.things):
        place = _ON[scene.ground].replace("on ", "over ").replace("in ", "over ")
    else:
        place = _ON[scene.ground]
    sentence = f"{listed}, {place}{_BEHIND[scene.backdrop]} {_TIMES[scene.time]}."
    return sentence[0].upper() + sentence[1:]


def content_words(scene: Scene) -> set[str]:
    """Those of ``WORDS`` that the scene's sentence tells of: kinds of things, ground, backdrop and time."""
    return {scene.time, scene.ground, scene.backdrop, *(thing.kind for thing in scene.things)} & set(WORDS)


# Painting


def paint(scene: Scene, size: int) -> Array:
    """Paint a scene: uint8 [size, size, 3]."""
    rng = np.random.default_rng(scene.texture)
    light = np.array(LIGHT[scene.time], np.float32) * np.array(scene.tint, np.float32)
    canvas = Canvas.blank(size, light)
    _sky(canvas, scene, rng)
    _backdrop(canvas, scene, rng)
    _ground(canvas, scene, rng)
    for thing in scene.things:
        paint_thing(canvas, thing, night=scene.time == "night")
    grain = 0.007 * noise(rng, canvas, 48, 48)
    return np.rint(np.clip(canvas.rgb + grain[..., None], 0, 1) * 255).astype(np.uint8, order="C")


def painting_nbytes(size: int) -> int:
    """Most bytes of memory that painting a scene takes: 92 a pixel measured, and small arrays."""
    return 94 * size**2 + 60_000


def _sky(c: Canvas, scene: Scene, rng: np.random.Generator) -> None:
    top, low = _sky_colours(scene)
    c.rgb[:] = mix(top, low, (np.clip(c.y / scene.horizon, 0, 1) ** 1.3)[..., None])
    if scene.time == "night":
        for x, y, bright in rng.random((24, 3)).tolist():
            star = c.window(x - 0.02, y * scene.horizon - 0.02, x + 0.02, y * scene.horizon + 0.02)
            star.cover(star.ellipse(x, y * scene.horizon, 0.006, 0.006), (1, 1, 0.9), opacity=bright, lit=False)
    if scene.orb is not None:
        _orb(c, scene.time, *scene.orb)
    for x, y, width in scene.clouds:
        _cloud(c, scene, rng, x, y, width)


def _sky_colours(scene: Scene) -> tuple[Array, Array]:
    top, low = (np.array(colour, np.float32) * np.array(scene.tint, np.float32) for colour in SKIES[scene.time])
    return top, low


def _orb(c: Canvas, time: str, x: float, y: float, r: float) -> None:
    """The sun with its glow, or the moon, full or waning as it lies further left."""
    colour = {"night": (0.97, 0.96, 0.86), "dusk": (1.0, 0.80, 0.50)}.get(time, (1.0, 0.95, 0.68))
    glow = 0.32 if time == "night" else 0.55
    c.cover(c.ellipse(x, y, 1.9 * r, 1.9 * r), colour, opacity=glow, lit=False, blur=3.6 * r)
    disc = c.ellipse(x, y, r, r)
    if time == "night" and x < 0.5:
        disc = np.maximum(disc, -c.ellipse(x + (1.1 - 1.2 * x) * r, y - 0.15 * r, r, r))
    c.cover(disc, colour, lit=False)


def _cloud(c: Canvas, scene: Scene, rng: np.random.Generator, x: float, y: float, width: float) -> None:
    """Puffs in a row, larger in the middle, flat and darker below."""
    puffs = [
        (x + (k - 2) / 4 * width * 0.75, (0.09, 0.15, 0.20, 0.16, 0.10)[k] * rng.uniform(0.8, 1.2)) for k in range(5)
    ]
    c = c.window(x - width, y - 0.5 * width, x + width, y + 0.1 * width)
    top, low = _sky_colours(scene)
    white = mix((1.0, 1.0, 1.0), low, {"day": 0.1, "night": 0.85, "overcast": 0.45}.get(scene.time, 0.35))
    shape = np.minimum.reduce([c.ellipse(at, y - 0.5 * r * width, r * width, r * width) for at, r in puffs])
    shape = np.maximum(shape, c.y - y)
    shade = np.clip((c.y - y) / (0.25 * width) + 1, 0, 1)[..., None]
    opacity = 0.5 if scene.time == "night" else 0.92
    c.cover(shape, mix(white, mix(top, low, 0.5), 0.55 * shade**2), opacity=opacity, lit=False, blur=0.02)


def _backdrop(c: Canvas, scene: Scene, rng: np.random.Generator) -> None:
    """Hills, mountains or a forest along the horizon, paler the farther they are."""
    h, haze = scene.horizon, _sky_colours(scene)[1]
    if scene.backdrop == "plain":
        return
    near = {"snow": (0.62, 0.70, 0.82), "desert": (0.72, 0.46, 0.30)}.get(scene.ground, (0.26, 0.48, 0.30))
    for k in range(2 if scene.backdrop != "forest" else 1):
        far = 0.62 - 0.32 * k
        if scene.backdrop == "hills":
            a, b, phase = rng.uniform(0.03, 0.09), rng.uniform(0.01, 0.03), rng.uniform(0, 6, 2)
            ridge = (
                h - 0.07 + 0.04 * k - a * np.sin(rng.uniform(3, 7) * c.x + phase[0]) - b * np.sin(13 * c.x + phase[1])
            )
            c.cover(np.maximum(ridge - c.y, c.y - h - 0.02), mix(near * c.light, haze, far), lit=False)
        elif scene.backdrop == "mountains":
            for x in rng.permutation(4).tolist():
                _mountain(c, (x + rng.uniform(0, 1)) / 4, h + 0.02, rng.uniform(0.12, 0.36 - 0.12 * k), far, haze)
        else:
            heights = h - 0.05 - 0.07 * rng.random(26)
            trunks = np.linspace(-0.02, 1.02, 26) + rng.uniform(-0.012, 0.012, 26)
            for x, top in zip(trunks.tolist(), heights.tolist(), strict=True):
                tree = c.window(x - 0.06, top, x + 0.06, h + 0.03)
                colour = np.array((0.14, 0.36, 0.24)) * rng.uniform(0.8, 1.25)
                point = tree.polygon((x, top), (x + 0.045, h + 0.02), (x - 0.045, h + 0.02))
                tree.cover(point, mix(colour * c.light, haze, 0.22), lit=False)


def _mountain(c: Canvas, x: float, foot: float, height: float, far: float, haze: Array) -> None:
    top, half = foot - height, 0.85 * height
    c = c.window(x - half, top, x + half, foot)
    peak = c.polygon((x, top), (x + half, foot), (x - half, foot))
    rock = np.where(((c.x - x) < 0.18 * (c.y - top))[..., None], (0.50, 0.50, 0.60), (0.36, 0.37, 0.48))
    snow = np.clip((top + 0.32 * height + 0.04 * height * np.sin(50 * c.x / (height + 0.1)) - c.y) / c.pixel, 0, 1)
    rock = mix(rock, (0.97, 0.97, 1.0), snow[..., None] * (0.8 if far < 0.5 else 0.95))
    c.cover(peak, mix(rock * c.light, haze, far), lit=False)


def _ground(c: Canvas, scene: Scene, rng: np.random.Generator) -> None:
    """The ground in perspective: its texture is stretched and grows towards the front."""
    dim = 0.75 if scene.time == "night" else 1.0  # so that things stand out against it
    far, near = (np.array(colour, np.float32) * c.light * dim for colour in GROUNDS[scene.ground])
    sky = _sky_colours(scene)[1]
    depth = np.clip((c.y - scene.horizon) / (1 - scene.horizon), 0, 1)
    coarse, fine = noise(rng, c, 5, 14), noise(rng, c, 12, 60)
    if scene.ground == "sea":
        colour = mix(mix(far, sky, 0.45), near, depth[..., None] ** 0.7)
        waves = (0.025 + 0.04 * depth) * fine + 0.02 * coarse
        if scene.orb is not None:
            glitter = np.exp(-(((c.x - scene.orb[0]) / (0.05 + 0.12 * depth)) ** 2)) * np.clip(fine + 0.4, 0, 1.5)
            colour = mix(colour, (1.0, 0.95, 0.8), (0.38 * glitter * (1 - 0.5 * depth))[..., None])
    else:
        colour = mix(mix(far, sky, 0.15), near, depth[..., None])
        waves = (0.015 + 0.02 * depth) * fine + {"meadow": 0.035, "desert": 0.04}.get(scene.ground, 0.02) * coarse
    edge = scene.horizon - c.y
    if scene.ground != "sea":
        edge = edge + rng.uniform(0, 0.02) * np.sin(rng.uniform(2, 6) * c.x + rng.uniform(0, 6))
    c.cover(np.broadcast_to(edge, fine.shape), colour + (waves * c.light.mean())[..., None], lit=False)
    blossoms = rng.random((int(rng.integers(0, 30)), 3))
    if scene.ground == "meadow":
        hue = COLOURS[("white", "yellow", "red", "pink")[int(rng.integers(4))]]
        for x, d, bright in blossoms.tolist():
            y, r = scene.horizon + (0.15 + 0.85 * d) * (1 - scene.horizon), 0.004 + 0.006 * d
            bloom = c.window(x - r, y - r, x + r, y + r)
            bloom.cover(bloom.ellipse(x, y, r, r), hue, opacity=0.5 + 0.5 * bright)
