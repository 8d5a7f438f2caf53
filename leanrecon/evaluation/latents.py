"""Predicted and true features compared: R² of every latent, and identification."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from leanrecon.evaluation.among import retrieve
from leanrecon.evaluation.bootstrap import Scores
from leanrecon.evaluation.identification import identify
from leanrecon.evaluation.plan import latents_at_once
from leanrecon.evaluation.pool import Part
from leanrecon.memory import buffer
from leanrecon.stores.matrix import Matrix, panels

Array = np.ndarray[Any, Any]

LEAST_DIMS = 3
"""Rows of fewer features have no correlations but 1 and −1 to be identified by."""


def compare_latents(parts: Sequence[Part], names: Sequence[str]) -> tuple[Scores, Array]:
    """The scores of predicted features by test row of all parts, and R² of every latent, float64 [dims].

    R² is 1 − SSE/SST over the test rows, SST about their mean; NaN for a latent that is the same in all of them.
    ``latent_r2_mean`` is its mean over the latents. ``latent_r2_total`` weights them by SST: the share of all variance
    that is predicted. The score of a row is its part of R² with SST held fixed, so that scores average to R². Each
    part's SST is taken in its own features over the test rows of all parts. ``names`` holds the stimulus id of every row.
    """
    scores = Scores()
    m = sum(part.rows for part in parts)
    mean, total = np.full(m, np.nan), np.full(m, np.nan)
    every = max(part.stimuli.shape[1] for part in parts)
    unexplained, rows_with = np.zeros(every), np.zeros(every)
    for part in parts:
        where = slice(part.first, part.first + part.rows)
        mean[where], total[where], lost = _errors(part, where)
        known = np.isfinite(lost)
        unexplained[: len(lost)][known] += lost[known]
        rows_with[: len(lost)][known] += part.rows
    with np.errstate(divide="ignore", invalid="ignore"):
        r2 = np.where(rows_with > 0, 1 - unexplained * m / rows_with, np.nan)
    if np.isfinite(mean).all():
        scores.rows = {"latent_r2_mean": mean, "latent_r2_total": total}
        scores.chance = {"latent_r2_mean": 0.0, "latent_r2_total": 0.0}
    narrowest = min(part.stimuli.shape[1] for part in parts)
    identified = identify(parts, names, "features") if narrowest >= LEAST_DIMS else None
    if identified is not None:
        scores.add(identified)
    retrieved = retrieve(parts, names, "features") if narrowest >= LEAST_DIMS else None
    if retrieved is not None:
        scores.add(retrieved)
    return scores, r2


def correlations(predicted: Matrix, true: Matrix) -> Array:
    """Pearson's r over test rows of every feature, predicted with true [m, dims]: float64 [dims].

    NaN for a feature that is the same in all rows of either, and where there is a single row. Horikawa & Kamitani 2017
    call its mean the feature decoding accuracy.
    """
    m, dims = true.shape
    r = np.full(dims, np.nan)
    for columns in panels(dims, latents_at_once(m)) if m > 1 else []:
        y, p = (buffer((m, len(columns)), np.float64) for _ in range(2))
        true.read(range(m), columns, y)
        predicted.read(range(m), columns, p)
        varies = (y.min(axis=0) < y.max(axis=0)) & (p.min(axis=0) < p.max(axis=0))
        for values in (y, p):
            values -= values.mean(axis=0)
            values /= np.where(varies, np.sqrt(np.einsum("ij,ij->j", values, values)), 1)
        r[columns.start : columns.stop][varies] = np.einsum("ij,ij->j", y, p)[varies]
    return r


def _errors(part: Part, where: slice) -> tuple[Array, Array, Array]:
    """The R² of each row by the mean over latents and by their sum, and of each latent the rows' SSE over SST.

    NaN for the rows where no latent varies, and for the latents that don't.
    """
    m, dims = part.stimuli.shape
    lost = np.full(dims, np.nan)
    relative, total, sst_total, varying = np.zeros(part.rows), np.zeros(part.rows), 0.0, 0
    for columns in panels(dims, latents_at_once(m)) if m > 1 else []:
        y, p = (buffer((rows, len(columns)), np.float64) for rows in (m, part.rows))
        part.stimuli.read(range(m), columns, y)
        part.reconstructions.read(range(part.rows), columns, p)
        error = np.square(np.subtract(y[where], p, out=p), out=p)
        varies = y.min(axis=0) < y.max(axis=0)
        y -= y.mean(axis=0)
        sst = np.square(y, out=y).sum(axis=0)
        lost[columns.start : columns.stop][varies] = error.sum(axis=0)[varies] / sst[varies]
        relative += error[:, varies] @ (1 / sst[varies])
        total += error[:, varies].sum(axis=1)
        sst_total += float(sst[varies].sum())
        varying += int(varies.sum())
    if not varying:
        return np.full(part.rows, np.nan), np.full(part.rows, np.nan), lost
    return 1 - m * relative / varying, 1 - m * total / sst_total, lost
