"""Retrieval among some images, and n-way identification by class: shares over all draws, not over some of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from leanrecon.evaluation.bootstrap import Scores
from leanrecon.evaluation.identification import wins_of
from leanrecon.evaluation.pool import Part
from leanrecon.memory import buffer
from leanrecon.stores.matrix import panels

Array = np.ndarray[Any, Any]

POOL = 300
"""Images that retrieval is among, as MindEye draws them (Scotti et al. 2023, arXiv:2305.18274)."""

RANKS = (1, 5)

WAYS = 50
"""Classes that n-way identification is among, as MinD-Vis draws them (Chen et al. 2023, arXiv:2211.06956)."""

AT_ONCE = 256  # rows


def share_within(better: Array, others: Array, drawn: int, rank: int) -> Array:
    """The share of draws of ``drawn`` out of ``others`` rows that hold fewer than ``rank`` of the ``better`` ones, float64.

    It is taken over all draws without replacement: a hypergeometric sum. Drawing thirty times estimates it.
    """
    from scipy.special import gammaln

    def log_choose(n: Array, k: Array | float) -> Array:
        with np.errstate(invalid="ignore"):
            log: Array = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
        return np.where((k >= 0) & (k <= n), log, -np.inf)

    better, others = np.asarray(better, np.float64), np.asarray(others, np.float64)
    total = np.zeros(np.broadcast(better, others).shape)
    every = log_choose(others, float(drawn))
    for among in range(rank):
        log = log_choose(better, float(among)) + log_choose(others - better, float(drawn - among)) - every
        total += np.exp(log)
    return np.minimum(total, 1.0)


def retrieve(parts: Sequence[Part], names: Sequence[str], suffix: str) -> Scores | None:
    """Retrieval among ``POOL`` images by the cosine of rows, as MindEye's.

    ``top1_of_300_SUFFIX``: how often a row finds its own image among it and 299 others, drawn at random; ``top5``: how
    often among the first five; ``…_reverse``: the same for an image among the rows. Ties lose. None where there are
    fewer other images than that.
    """
    stimulus = np.unique(np.asarray(names), return_inverse=True)[1]
    if int(stimulus.max()) + 1 < POOL:
        return None
    wins, wins_reverse, others = wins_of(parts, names, centred=False)
    scores = Scores()
    for rank in RANKS:
        for key, won in (("", wins), ("_reverse", wins_reverse)):
            name = f"top{rank}_of_{POOL}_{suffix}{key}"
            scores.rows[name] = share_within(others - won, others, POOL - 1, rank)
            scores.chance[name] = rank / POOL
    return scores


def n_way(parts: Sequence[Part], names: Sequence[str], suffix: str) -> Scores:
    """N-way identification by a classifier's output, as MinD-Vis'.

    The class of a stimulus is that of its own largest output. ``way50_SUFFIX``: how often the reconstruction's output
    for that class is larger than those for 49 other classes, drawn at random. Ties lose. With fewer classes: among all.
    """
    classes = min(part.stimuli.shape[1] for part in parts)
    ways = min(WAYS, classes)
    better = np.empty(sum(part.rows for part in parts))
    for part in parts:
        columns = range(part.stimuli.shape[1])
        size = min(AT_ONCE, part.rows)
        one, two = (buffer((size, len(columns)), np.float32) for _ in range(2))
        for rows in panels(part.rows, size):
            own = range(part.first + rows.start, part.first + rows.stop)
            drawn, seen = one[: len(rows)], two[: len(rows)]
            part.reconstructions.read(rows, columns, drawn)
            part.stimuli.read(own, columns, seen)
            of_class = drawn[np.arange(len(rows)), seen.argmax(axis=1)]
            better[own.start : own.stop] = np.count_nonzero(drawn >= of_class[:, None], axis=1) - 1
    key = f"way{ways}_{suffix}"
    return Scores({key: share_within(better, np.full(len(better), classes - 1), ways - 1, 1)}, {key: 1 / ways})
