"""The figures and letters of a simulated figure session: 10 × 10 patterns, as Miyawaki et al. (2008) showed them in kind."""

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

SIDE = 10

KINDS = ("shapes", "thin", "shapes", "thin", "small", "long")
"""What the runs of a figure session show, in turn: in twelve runs four of shapes and of thin letters, two of each other."""

_LETTERS = {
    "n": ("#..#.", "##.#.", "#.##.", "#..#.", "#..#."),
    "e": ("####.", "#....", "###..", "#....", "####."),
    "u": ("#..#.", "#..#.", "#..#.", "#..#.", "####."),
    "r": ("###..", "#..#.", "###..", "#.#..", "#..#."),
    "o": (".##..", "#..#.", "#..#.", "#..#.", ".##.."),
}


def figures(kind: str) -> list[Array]:
    """The five patterns of a kind, bool [10, 10] each."""
    if kind == "shapes":
        return _shapes()
    return [_letter(rows, kind) for rows in _LETTERS.values()]


def _shapes() -> list[Array]:
    """A square, a small and a large frame, a plus and a cross."""
    square, small, large, plus = (np.zeros((SIDE, SIDE), bool) for _ in range(4))
    square[3:7, 3:7] = True
    small[2:8, 2:8] = True
    small[4:6, 4:6] = False
    large[1:9, 1:9] = True
    large[3:7, 3:7] = False
    plus[4:6, 1:9] = plus[1:9, 4:6] = True
    y, x = np.mgrid[:SIDE, :SIDE]
    inside = (np.minimum(y, x) >= 1) & (np.maximum(y, x) <= 8)
    cross = ((np.abs(y - x) <= 1) | (np.abs(y + x - SIDE + 1) <= 1)) & inside
    return [square, small, large, plus, cross]


def _letter(rows: tuple[str, ...], kind: str) -> Array:
    """A letter: thin lines in the middle, small with broad lines, or long from top to bottom with broad lines."""
    strokes = np.array([[mark == "#" for mark in row[:4]] for row in rows])
    if kind == "thin":
        strokes = np.pad(strokes, ((0, 0), (0, 0)))
    elif kind == "small":
        strokes = np.repeat(strokes, 2, axis=1)[:, [0, 1, 3, 4, 6, 7]]
    else:
        strokes = np.repeat(np.repeat(strokes, 2, axis=0)[:8], 2, axis=1)[:, [0, 1, 3, 4, 6, 7]]
    result = np.zeros((SIDE, SIDE), bool)
    top, left = ((SIDE - n) // 2 for n in strokes.shape)
    result[top : top + strokes.shape[0], left : left + strokes.shape[1]] = strokes
    return result
