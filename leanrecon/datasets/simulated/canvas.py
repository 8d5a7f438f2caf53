"""A picture that shapes are painted on, each by the distance to its outline, so that edges are smooth at any size.

Width and height are 1, x to the right and y down. Distances are signed, negative inside; the distance in pixels
is what blurs an edge over one pixel.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Canvas:
    """A picture, or a window of it that is painted on alike."""

    rgb: Array
    """float32 [height, width, 3], 0 to 1; in memory one colour follows the other, which NumPy adds up faster"""
    x: Array
    """float32 [1, width]"""
    y: Array
    """float32 [height, 1]"""
    light: Array
    """float32 [3]: what colours are multiplied by"""
    pixel: float
    """Side of a pixel."""

    @classmethod
    def blank(cls, size: int, light: Array) -> "Canvas":
        at = ((np.arange(size) + 0.5) / size).astype(np.float32)
        rgb = np.zeros((3, size, size), np.float32).transpose(1, 2, 0)
        return cls(rgb, at[None], at[:, None], light, 1 / size)

    def window(self, left: float, top: float, right: float, bottom: float) -> "Canvas":
        """The part between these sides, and a pixel more."""
        n, pixel = len(self.rgb), self.pixel
        x0, x1 = _place(left - pixel, n), _place(right + 2 * pixel, n)
        y0, y1 = _place(top - pixel, n), _place(bottom + 2 * pixel, n)
        return Canvas(self.rgb[y0:y1, x0:x1], self.x[:, x0:x1], self.y[y0:y1], self.light, self.pixel)

    def cover(self, distance: Array, colour: Any, *, opacity: Any = 1.0, lit: bool = True, blur: float = 0.0) -> None:
        """Paint where ``distance`` is negative; ``colour`` is [3] or one a pixel, ``blur`` the width of the edge."""
        share = 0.5 - distance / max(self.pixel, blur)
        np.minimum(np.maximum(share, 0, out=share), 1, out=share)
        share *= np.float32(opacity)
        paint = np.asarray(colour, np.float32) * (self.light if lit else np.float32(1))
        self.rgb[:] += share[..., None] * (paint - self.rgb)

    def ellipse(self, x: float, y: float, rx: float, ry: float) -> Array:
        distance: Array = (np.sqrt(((self.x - x) / rx) ** 2 + ((self.y - y) / ry) ** 2) - 1) * min(rx, ry)
        return distance

    def box(self, left: float, top: float, right: float, bottom: float, corner: float = 0.0) -> Array:
        dx = np.abs(self.x - (left + right) / 2) - (right - left) / 2 + corner
        dy = np.abs(self.y - (top + bottom) / 2) - (bottom - top) / 2 + corner
        outside = np.sqrt(np.maximum(dx, 0) ** 2 + np.maximum(dy, 0) ** 2)
        distance: Array = outside + np.minimum(np.maximum(dx, dy), 0) - corner
        return distance

    def polygon(self, *points: tuple[float, float]) -> Array:
        """A convex one, its corners clockwise as seen."""
        inside = np.full((1, 1), -np.inf, np.float32)
        for (x0, y0), (x1, y1) in zip(points, [*points[1:], points[0]], strict=True):
            length = math.hypot(x1 - x0, y1 - y0)
            inside = np.maximum(inside, ((self.x - x0) * (y1 - y0) - (self.y - y0) * (x1 - x0)) / length)
        return inside


def _place(at: float, n: int) -> int:
    """The pixel of ``n`` that a place lies in, or the nearest edge."""
    return min(max(math.floor(at * n), 0), n)


def noise(rng: np.random.Generator, canvas: Canvas, across: int, down: int) -> Array:
    """Smooth noise of standard deviation near 1: random values on a grid of so many cells, blended in between."""
    grid = rng.standard_normal((down + 1, across + 1)).astype(np.float32) * 1.5
    (y, ty), (x, tx) = _blend(canvas.y[:, 0], down), _blend(canvas.x[0], across)
    rows = grid[y] * (1 - ty)[:, None] + grid[y + 1] * ty[:, None]
    blended: Array = rows[:, x] * (1 - tx) + rows[:, x + 1] * tx
    return blended


def _blend(at: Array, cells: int) -> tuple[Array, Array]:
    """The cell that each place lies in, and the share of the next one."""
    scaled = at * cells
    cell = np.minimum(scaled.astype(np.int64), cells - 1)
    t = (scaled - cell).astype(np.float32)
    return cell, t * t * (3 - 2 * t)


def mix(a: Any, b: Any, share: Any) -> Array:
    """Colours between ``a`` and ``b``: a share of 0 is a, one of 1 is b."""
    first, second, part = (np.asarray(value, np.float32) for value in (a, b, share))
    if part.ndim < 3:
        mixed: Array = first + part * (second - first)
        return mixed
    first, second, part = (
        value.reshape(value.shape[-1:] + (1, 1)) if value.ndim == 1 else value.transpose(2, 0, 1)
        for value in (first, second, part)
    )
    planes: Array = first + part * (second - first)
    return planes.transpose(1, 2, 0)
