"""Predicted and true features compared: R² of every latent, and identification."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from leanrecon.evaluation.bootstrap import Scores
from leanrecon.evaluation.identification import identify
from leanrecon.evaluation.plan import latents_at_once
from leanrecon.memory import buffer
from leanrecon.stores.matrix import Matrix, panels

Array = np.ndarray[Any, Any]

LEAST_DIMS = 3
"""Rows of fewer features have no correlations but 1 and −1 to be identified by."""


def compare_latents(predicted: Matrix, true: Matrix, names: Sequence[str]) -> tuple[Scores, Array]:
    """The scores of predicted features [m, dims] by test row, and R² of every latent, float64 [dims].

    R² is 1 − SSE/SST over the test rows, SST about their mean; NaN for a latent that is the same in all of them.
    ``latent_r2_mean`` is its mean over the latents. ``latent_r2_total`` weights them by SST: the share of all variance
    that is predicted. The score of a row is its part of R² with SST held fixed, so that scores average to R².
    ``names`` holds the stimulus id of every row.
    """
    scores = Scores()
    m, dims = true.shape
    r2 = np.full(dims, np.nan)
    relative, total, sst_total, varying = np.zeros(m), np.zeros(m), 0.0, 0
    for columns in panels(dims, latents_at_once(m)) if m > 1 else []:
        y, p = (buffer((m, len(columns)), np.float64) for _ in range(2))
        true.read(range(m), columns, y)
        predicted.read(range(m), columns, p)
        error = np.square(np.subtract(y, p, out=p), out=p)
        varies = y.min(axis=0) < y.max(axis=0)
        y -= y.mean(axis=0)
        sst = np.square(y, out=y).sum(axis=0)
        r2[columns.start : columns.stop][varies] = 1 - error.sum(axis=0)[varies] / sst[varies]
        relative += error[:, varies] @ (1 / sst[varies])
        total += error[:, varies].sum(axis=1)
        sst_total += float(sst[varies].sum())
        varying += int(varies.sum())
    if varying:
        scores.rows = {"latent_r2_mean": 1 - m * relative / varying, "latent_r2_total": 1 - m * total / sst_total}
        scores.chance = {"latent_r2_mean": 0.0, "latent_r2_total": 0.0}
    identified = identify(predicted, true, names, "features") if dims >= LEAST_DIMS else None
    if identified is not None:
        scores.add(identified)
    return scores, r2
