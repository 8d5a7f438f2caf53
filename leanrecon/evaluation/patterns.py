"""Figures of black and white patterns: constants that know no brain, identification among many patterns, a map by pixel.

Where few pixels are lit, an image that is all dark is right in most of them; so pixel accuracy stands beside such constants.
Identification follows Miyawaki et al. (2008): a reconstruction is compared with the image seen and with N - 1 random ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from leanrecon.context import Context
from leanrecon.evaluation.bootstrap import Resampling, Scores, figures
from leanrecon.evaluation.fold import Fold
from leanrecon.evaluation.identification import TIE
from leanrecon.evaluation.image_sources import ConstantImage
from leanrecon.evaluation.metrics import LIT
from leanrecon.evaluation.plan import CANDIDATES_AT_ONCE, may_be_patterns
from leanrecon.stores.images import ImageReader
from leanrecon.stores.matrix import Matrix, panels
from leanrecon.stores.store import Store

Array = np.ndarray[Any, Any]

DARK, BEST, MAJORITY = "all_dark", "best_constant_image", "train_majority_image"
CONSTANTS = (DARK, BEST, MAJORITY)
"""Baselines that show one image for every test row: all dark, each pixel as most test images have it, as most train images."""

CANDIDATES = (2, 10, 100, 1000, 10_000, 100_000)
"""Numbers of images among which a reconstruction is identified."""

_CANDIDATES = 31  # stream of random numbers


@dataclass(frozen=True)
class Patterns:
    """What is known of the images of a study that are black and white patterns."""

    lit: Array
    """The share of the distinct test images of all folds in which each pixel is lit, float64 [pixels]."""

    @property
    def best(self) -> Array:
        """The constant image that is right in most pixels of the test images, uint8 [pixels]: it knows them."""
        constant: Array = np.where(self.lit > 0.5, np.uint8(255), np.uint8(0))
        return constant


@dataclass
class PatternScores:
    """The scores of one fold beyond those that all images have."""

    rows: Scores = field(default_factory=Scores)
    """``among_N``: the probability that a row is identified among N images; ``ring_K``: the accuracy at eccentricity K."""
    right: Array = field(default_factory=lambda: np.empty(0))
    """How often each pixel is right in final images, float64 [height, width]; and of the train majority."""
    right_majority: Array = field(default_factory=lambda: np.empty(0))
    n: int = 0


def find_patterns(folds: Sequence[Fold]) -> Patterns | None:
    """The patterns of a study; None unless all its images are small, grey, and of black and white pixels only."""
    if not may_be_patterns(folds[0].image_shape):
        return None
    seen: dict[str, list[Array]] = {}
    stores: dict[str, Store] = {}
    for fold in folds:
        for shown in (fold.test, fold.train):
            stores[str(shown.store.path)] = shown.store
        seen.setdefault(str(fold.test.store.path), []).append(fold.test.index)
    total, count = np.zeros(int(np.prod(folds[0].image_shape))), 0
    for path, store in stores.items():
        tested = np.unique(np.concatenate(seen.get(path, [np.empty(0, np.int64)])))
        for place, images in ImageReader(store).runs(np.arange(store.rows)):
            if not np.isin(images, (0, 255)).all():
                return None
            own = np.isin(np.arange(place.start, place.stop), tested)
            total += (images[own] == 255).sum(axis=0).reshape(-1)
            count += int(own.sum())
    return Patterns(total / count)


def constants(patterns: Patterns, fold: Fold) -> dict[str, ConstantImage]:
    """The constant images of a fold, by name."""
    shape = fold.image_shape
    majority = np.where(_train_share(fold) > 0.5, np.uint8(255), np.uint8(0))
    return {
        DARK: ConstantImage(np.zeros(shape, np.uint8)),
        BEST: ConstantImage(patterns.best.reshape(shape)),
        MAJORITY: ConstantImage(majority.reshape(shape)),
    }


def _train_share(fold: Fold) -> Array:
    """The share of train rows in which each pixel is lit, float64 [pixels]."""
    different, counts = np.unique(np.asarray(fold.train.index), return_counts=True)
    total = np.zeros(int(np.prod(fold.image_shape)))
    for place, images in ImageReader(fold.train.store).runs(different):
        total += counts[place] @ (images.reshape(len(images), -1) == 255)
    return total / len(fold.train.index)


def score_patterns(
    patterns: Patterns, fold: Fold, final: Matrix, stimuli: Matrix, majority: Array, context: Context
) -> PatternScores:
    """All scores of the final images ``final`` uint8 [m, pixels] of one fold, which show ``stimuli``."""
    height, width, _ = fold.image_shape
    m, pixels = stimuli.shape
    drawn, seen = (_read(matrix) for matrix in (final, stimuli))
    right = (drawn >= LIT) == (seen >= LIT)
    result = PatternScores(n=m)
    result.right = right.mean(axis=0).reshape(height, width)
    result.right_majority = ((majority.reshape(1, pixels) >= LIT) == (seen >= LIT)).mean(axis=0).reshape(height, width)
    for name, own in rings(height, width).items():
        result.rows.rows[name] = right[:, own].mean(axis=1)
    beaten = _beaten(_unit(drawn), _unit(seen), patterns.lit, context.seed)
    for among in CANDIDATES:
        result.rows.rows[f"among_{among}"] = identified(beaten, among, CANDIDATES[-1])
        result.rows.chance[f"among_{among}"] = 1 / among
    return result


def rings(height: int, width: int) -> dict[str, Array]:
    """Pixels by their distance from the centre of the image, in whole pixels: bool [pixels] by name, inner ring first."""
    y, x = (np.arange(n) - (n - 1) / 2 for n in (height, width))
    distance = np.hypot(y[:, None], x[None, :]).reshape(-1)
    return {
        f"ring_{k}": distance.astype(int) == k
        for k in range(int(distance.max()) + 1)
        if (distance.astype(int) == k).any()
    }


def identified(beaten: Array, among: int, drawn: int) -> Array:
    """The probability that none of ``among - 1`` of the ``drawn - 1`` candidates beats the image seen, float64 [m].

    ``beaten`` [m] says how many of all candidates do; those compared with are drawn without replacement.
    """
    others, taken = drawn - 1, among - 1
    left = others - beaten
    result = np.zeros(len(beaten))
    possible = left >= taken
    # C(left, taken) / C(others, taken), as a product of `beaten` or of `taken` factors in logarithms
    from scipy.special import gammaln

    a, b = left[possible].astype(float), float(others)
    logarithm = gammaln(a + 1) - gammaln(a - taken + 1) - gammaln(b + 1) + gammaln(b - taken + 1)
    result[possible] = np.exp(np.minimum(logarithm, 0))
    return result


def _beaten(drawn: Array, seen: Array, lit: Array, seed: int) -> Array:
    """How many of 99,999 random patterns correlate with each reconstruction as well as the image seen, or better: int [m].

    A pixel of a random pattern is lit as often as in the test images. Patterns come in blocks that are never kept.
    """
    own = np.einsum("ij,ij->i", drawn, seen) - TIE
    beaten = np.zeros(len(drawn), np.int64)
    for block in panels(CANDIDATES[-1] - 1, CANDIDATES_AT_ONCE):
        rng = np.random.default_rng([seed, _CANDIDATES, block.start])
        candidates = _unit(rng.random((len(block), len(lit)), np.float32) < lit.astype(np.float32))
        for rows in panels(len(drawn), CANDIDATES_AT_ONCE):
            part = slice(rows.start, rows.stop)
            beaten[part] += np.count_nonzero(drawn[part] @ candidates.T >= own[part, None], axis=1)
    return beaten


def _unit(rows: Array) -> Array:
    """Rows less their mean, of length 1, float32; constant rows are zero."""
    result = rows.astype(np.float32)
    result -= result.mean(axis=1, keepdims=True)
    constant = rows.min(axis=1) == rows.max(axis=1)
    length = np.sqrt(np.einsum("ij,ij->i", result, result, dtype=np.float64)).astype(np.float32)
    result[constant] = 0
    result /= np.where(constant, 1, length)[:, None]
    return result


def _read(matrix: Matrix) -> Array:
    rows = np.empty(matrix.shape, np.uint8)
    matrix.read(range(matrix.shape[0]), range(matrix.shape[1]), rows)
    return rows


def pattern_figures(
    folds: Sequence[PatternScores], drawn: Sequence[Resampling], weights: Sequence[Mapping[str, float]]
) -> dict[str, Any]:
    """What metrics.json holds of patterns, averaged over the folds, with intervals over distinct test images."""
    every = figures([fold.rows for fold in folds], drawn)
    counts = np.array([fold.n for fold in folds], float)
    maps = {
        name: np.average([getattr(fold, key) for fold in folds], axis=0, weights=counts)
        for name, key in (("final", "right"), (MAJORITY, "right_majority"))
    }
    learned = [table for table in weights if table]
    return {
        "identification": [{"candidates": n} | every[f"among_{n}"] for n in CANDIDATES if f"among_{n}" in every],
        "eccentricity": [{"pixels": _distance(name)} | every[name] for name in every if name.startswith("ring_")],
        "accuracy_by_pixel": {name: np.round(of, 6).tolist() for name, of in maps.items()},
        "weights": {
            name: float(np.mean([table[name] for table in learned])) for name in (learned[0] if learned else {})
        },
    }


def _distance(name: str) -> int:
    return int(name.removeprefix("ring_"))
