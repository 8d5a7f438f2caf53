"""The way down a grid of alphas to the least error."""

from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def descend(error: Callable[[int], float], slope: Callable[[], float], count: int, first: int) -> Array:
    """Errors of ``count`` points of a grid on the way down from ``first`` to the least; infinite where they are not asked for.

    ``slope`` is that of the point whose error was asked for last, 0 where it can't be told. The way ends where it goes
    up, or is known to before the next point. An end of the grid is believed only if the middle of it is no better.
    """
    errors = np.full(count, np.inf)
    _walk(error, slope, errors, first)
    best, middle = int(np.argmin(errors)), count // 2
    if best in (0, count - 1) and np.isinf(errors[middle]):  # a plateau may hide the valley
        _walk(error, slope, errors, middle, below=float(errors[best]))
    return errors


def _walk(
    error: Callable[[int], float], slope: Callable[[], float], errors: Array, first: int, below: float = np.inf
) -> None:
    """Fill in errors from ``first`` to the least that is reached; no further than ``first`` if its error isn't ``below``."""
    errors[first] = error(first)
    if np.isfinite(below) and errors[first] >= below:
        return
    tilt = slope() if np.isfinite(errors[first]) else -1.0
    for step in (1, -1):
        at = first
        while tilt * step <= 0 and 0 <= at + step < len(errors):
            errors[at + step] = error(at + step)
            if errors[at + step] > errors[at]:
                break
            at += step
            tilt = slope() if np.isfinite(errors[at]) else -1.0
        if at != first:
            break
