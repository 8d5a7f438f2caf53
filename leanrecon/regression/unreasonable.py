"""Betas beyond reason: voxels, rows and whole test sets whose standardised values no measurement gives, in sentences.

They are used as they are: only a person can tell an artefact from a strong response, or a forgotten factor from
another scanner. Thresholds lie far outside of what repeats, averages and heavy tails do.
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from leanrecon.regression.normalise import Moments
from leanrecon.stores.matrix import Matrix, column_blocks, panels, tile_memories

Array = np.ndarray[Any, Any]

FAR = 100.0
"""Train standard deviations from the train mean beyond which a test value is named."""

WIDE, NARROW = 10.0, 1 / 30
"""Spread of test betas, in train standard deviations, beyond which both seem to be of different scales. Means of k
trials vary down to 1/√k as much as single trials do, and k is below 100 in every published set."""

LONE = 0.9
"""Share of a voxel's train variance that lies in one row, beyond which the voxel tells of that row alone."""

FEWEST = 20
"""Train rows below which one row may well hold most of a voxel's variance."""

_PIECE = 32  # rows of a tile that are standardised together


def left_out(train: Moments) -> str:
    """Which voxels a regression leaves out, and why; empty where there are none."""
    constant = np.flatnonzero(~train.absent & ~train.usable)
    absent = np.flatnonzero(train.absent)
    parts = []
    for voxels, what in ((constant, "constant"), (absent, "NaN in every row")):
        if len(voxels):
            parts.append(f"{len(voxels)} {what} (voxel {voxels[0]}{' first' if len(voxels) > 1 else ''})")
    return f"voxels are left out of {len(train.std)}: {' and '.join(parts)}" if parts else ""


def of_train(betas: Matrix, train: Moments) -> list[str]:
    """What is odd about train betas [n, p] with these moments: voxels of mere rounding, and those of a lone row."""
    found, n, p = [], betas.shape[0], betas.shape[1]
    rounded = np.flatnonzero(train.within_rounding)
    if len(rounded):
        voxel = int(rounded[0])
        found.append(
            f"{len(rounded)} of {p} voxels vary by no more than the rounding of their numbers: voxel {voxel} first, by "
            f"{train.std[voxel]:.3g} about {train.mean[voxel]:.6g}. Leave them out, unless this is meant"
        )
    reach = np.maximum(train.high - train.mean, train.mean - train.low)
    share = np.zeros(p)
    alone = train.usable & ~train.within_rounding
    np.divide(np.square(reach), (n - 1) * np.square(train.std), out=share, where=alone)
    lone = np.flatnonzero(share > LONE)
    if len(lone) and n >= FEWEST:
        voxel = int(lone[0])
        column = np.empty((n, 1), np.float64)
        betas.read(range(n), range(voxel, voxel + 1), column)
        row = int(np.abs(column[:, 0] - train.mean[voxel]).argmax())
        found.append(
            f"in {len(lone)} of {p} voxels a single train row holds more than {LONE:.0%} of the variance: voxel "
            f"{voxel} in row {row} first, with {column[row, 0]:.4g} where the mean is {train.mean[voxel]:.4g}"
        )
    return found


def of_test(test: Matrix, train: Moments) -> list[str]:
    """What is odd about test betas [m, p] in units of the train moments: their scale, then rows, then voxels."""
    sums = _Standardised.of(test, train)
    usable, m = np.flatnonzero(train.usable), test.shape[0]
    if not len(usable) or not m:
        return []
    rows = np.sqrt(sums.rows / len(usable))
    all_far = np.median(rows) > WIDE
    distance = float(np.median(np.sqrt(sums.squares[usable] / m)))
    own = np.maximum(sums.squares - np.square(sums.sums) / m, 0) / max(m - 1, 1)
    spread = float(np.median(np.sqrt(own[usable])))
    if all_far or (spread < NARROW and m > 1):
        how = f"{distance:.3g}" if all_far else f"1/{1 / max(spread, 1e-300):.3g} of"
        about = "train" if all_far else "own"
        return [
            f"test betas and train betas seem to be of different scale: the spread of test betas about the {about} mean is "
            f"{how} train standard deviations (median over voxels). Was one of them divided, averaged or z-scored alone?"
        ]
    found = []
    if len(far := np.flatnonzero(rows > WIDE)):
        row = int(rows.argmax())
        found.append(
            f"{len(far)} of {m} test rows lie far from all train betas: row {row} by {rows[row]:.3g} train standard "
            f"deviations (root mean square over voxels), the middle row by {np.median(rows):.3g}"
        )
    if len(odd := usable[sums.largest[usable] > FAR]):
        voxel = int(odd[sums.largest[odd].argmax()])
        found.append(
            f"{len(odd)} of {test.shape[1]} voxels have test betas more than {FAR:.0f} train standard deviations from "
            f"their train mean: voxel {voxel} {sums.largest[voxel]:.3g} of them, with a train standard deviation of "
            f"{train.std[voxel]:.3g} about {train.mean[voxel]:.4g}"
        )
    return found


@dataclass(frozen=True)
class _Standardised:
    """Sums over test betas z in units of the train moments; what is left out, NaN or infinite counts nothing."""

    sums: Array
    """Of z, by voxel."""
    squares: Array
    """Of z², by voxel."""
    largest: Array
    """The largest |z| of every voxel."""
    rows: Array
    """Sums over voxels of z², by row; a voxel counts as 3 · ``WIDE`` at most, so that no lone one makes a row far."""

    @classmethod
    def of(cls, test: Matrix, train: Moments) -> Self:
        m, p = test.shape
        found = cls(np.zeros(p), np.zeros(p), np.zeros(p), np.zeros(m))
        memory, usable = tile_memories(test, count=1)[0], train.usable
        std = np.where(usable, train.std, np.inf)
        for rows in panels(m):
            for j, columns in enumerate(column_blocks(test)):
                part = slice(columns.start, columns.stop)
                tile = test.read_tile(rows, j, memory)[:, : len(columns)]
                for start in range(0, len(rows), _PIECE):
                    z = tile[start : start + _PIECE].astype(np.float64)
                    z -= train.mean[part]
                    z /= std[part]
                    z[~np.isfinite(z)] = 0
                    found.sums[part] += z.sum(axis=0)
                    np.abs(z, out=z)
                    found.largest[part] = np.maximum(found.largest[part], z.max(axis=0))
                    found.squares[part] += np.einsum("ij,ij->j", z, z)
                    np.minimum(z, 3 * WIDE, out=z)
                    found.rows[rows.start + start : rows.start + start + len(z)] += np.einsum("ij,ij->i", z, z)
        return found
