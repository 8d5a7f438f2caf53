"""Memory that local decoders take: arithmetic on shapes."""

import os
import sys

from leanrecon.regression.local.settings import BATCHED, STACKED, LocalSettings
from leanrecon.regression.regressor import RegressionShapes

BLOCK = 32
"""Targets that are predicted together: what a kill loses at most, times the number of threads."""

SLACK = 30_000_000
"""Bytes of threads, of LAPACK's buffers and of small arrays."""

IMPORTED = 90_000_000
"""Bytes of scikit-learn once it was imported."""

COPIES = 6
"""Copies of its betas that an estimator of scikit-learn holds while it is fitted, about."""

MOST_WORKERS = 8

_DOUBLE = 8


def held_nbytes(shapes: RegressionShapes, settings: LocalSettings) -> int:
    """Bytes that all threads share: train and test betas, their moments, and a second copy while they are read."""
    betas = (shapes.n + shapes.m) * shapes.p * _DOUBLE
    turning = 3 * shapes.n * shapes.n * _DOUBLE + betas if settings.voxels is None and shapes.n < shapes.p else 0
    reading = 3 * 256 * max(shapes.x_block, 1) * 4 + 256 * shapes.p * _DOUBLE
    writing = 3 * shapes.m * shapes.y_block * 4
    return betas + max(turning, reading) + writing + 12 * shapes.p * _DOUBLE + SLACK + import_nbytes(settings)


def block_nbytes(shapes: RegressionShapes, settings: LocalSettings) -> int:
    """Bytes that one thread takes for one block of targets."""
    n, m, p = shapes.n, shapes.m, shapes.p
    targets = (2 * shapes.s + 4 * n + 2 * m) * BLOCK * _DOUBLE
    scores = 4 * p * BLOCK * _DOUBLE
    if settings.estimator in (*BATCHED, "auto"):
        stacked = max(member.get("nonzero", 1) for member in STACKED.values())
        nonzero = stacked if settings.estimator == "auto" else settings.nonzero
        chosen = 2 * BLOCK * nonzero * (n + nonzero) * _DOUBLE
        return targets + scores + chosen + n * p * _DOUBLE
    voxels = settings.voxels or p
    width = min(voxels, n) if settings.voxels is None else voxels
    return targets + scores + COPIES * ((n + m) * voxels + min(width, n) ** 2) * _DOUBLE


def workers_of(shapes: RegressionShapes, settings: LocalSettings, free: int) -> int:
    """Threads that fit into ``free`` bytes; at least one."""
    wanted = settings.workers or min(os.cpu_count() or 1, MOST_WORKERS)
    wanted = min(wanted, -(-shapes.t // BLOCK))
    fitting = (free - held_nbytes(shapes, settings)) // max(block_nbytes(shapes, settings), 1)
    return max(min(wanted, fitting), 1)


def import_nbytes(settings: LocalSettings) -> int:
    """Bytes of scikit-learn, where it is used and not there yet."""
    used = settings.estimator not in (*BATCHED, "auto") or settings.select == "f"
    return IMPORTED if used and "sklearn.linear_model" not in sys.modules else 0


def plan_local(shapes: RegressionShapes, settings: LocalSettings, free: int) -> tuple[int, int]:
    """Bytes of work beside what the process holds, and the threads at work."""
    workers = workers_of(shapes, settings, free)
    return held_nbytes(shapes, settings) + workers * block_nbytes(shapes, settings), workers
