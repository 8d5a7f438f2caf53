"""An encoding model: how the voxels that features explain best respond to an image, and how noisy they are."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from leanrecon.errors import InputError
from leanrecon.images import Array
from leanrecon.memory import buffer, scratch
from leanrecon.refinement.inversion.moments import moments
from leanrecon.refinement.inversion.plan import COLUMNS
from leanrecon.stores.gather import gathered
from leanrecon.stores.matrix import ColumnSubset, Matrix, panels

ALPHAS = 10.0 ** np.arange(-4, 4.5, 0.5)
"""Penalties that are tried, in units of the mean eigenvalue of the features' Gram matrix."""

SHRINKAGE = 0.5
"""Share of the diagonal in the noise covariance: with the other half it is well conditioned."""


@dataclass(frozen=True)
class Spectrum:
    """The eigenvectors of z-scored features of some images."""

    values: Array
    """[r]"""
    scores: Array
    """Of unit norm, float64 [s, r]."""

    def shrink(self, alpha: float) -> Array:
        """λ / (λ + α), [r]."""
        found: Array = self.values / (self.values + alpha)
        return found

    def residuals(self, responses: Array, alpha: float) -> Array:
        """Leave-one-out residuals of centred responses [s, v] (Allen 1974; the intercept counts)."""
        fitted = self.scores @ (self.shrink(alpha)[:, None] * (self.scores.T @ responses))
        leverage = np.square(self.scores) @ self.shrink(alpha) + 1 / len(self.scores)
        found: Array = (responses - fitted) / np.maximum(1 - leverage, 1e-9)[:, None]
        return found


def encode_responses(features: Matrix, betas: Matrix, stimulus: Array, images: Array, voxels: int) -> dict[str, Array]:
    """Learn responses of the best ``voxels`` from the features of some train ``images``, ascending.

    A ridge from z-scored features [s, t] to z-scored betas [n, p], averaged over the rows of an image. Its penalty has
    the least leave-one-out error over all voxels. Voxels are those of the highest leave-one-out R². The result maps
    features to responses that are whitened by the covariance of these residuals. Raises InputError where no voxel is
    explained.
    """
    shown = gathered(features, images)
    mean, deviation = moments(shown)
    spectrum = _spectrum(shown, mean, deviation)
    by_image = ByImage.of(betas, stimulus, images)
    alpha, r2 = _choose(spectrum, by_image)
    best = np.sort(np.argsort(-np.nan_to_num(r2, nan=-1), kind="stable")[: min(voxels, int((r2 > 0).sum()))])
    if not len(best):
        raise InputError("the features explain no voxel of train rows", todo="match another feature space")
    responses, beta_mean, beta_deviation = by_image.read(best)
    residuals = spectrum.residuals(responses, alpha)
    covariance = residuals.T @ residuals / len(residuals)
    covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * np.diag(np.diag(covariance))
    whiten = np.linalg.inv(np.linalg.cholesky(covariance)).T
    dual = spectrum.scores @ ((spectrum.scores.T @ responses) / (spectrum.values + alpha)[:, None])
    weights: Array = buffer((features.shape[1], len(best)), np.float32)
    offset = np.zeros(len(best))
    for columns, z in _blocks(shown, mean, deviation):
        part = slice(columns.start, columns.stop)
        raw = (z.T @ dual) @ whiten
        scale = np.divide(1, deviation[part], out=np.zeros(len(columns)), where=deviation[part] > 0)
        weights[part] = raw * scale[:, None]
        offset -= (mean[part] * scale) @ raw
    return {
        "map": weights, "offset": offset.astype(np.float32), "voxels": best.astype(np.int64),
        "beta_mean": beta_mean.astype(np.float32), "beta_deviation": beta_deviation.astype(np.float32),
        "whiten": whiten.astype(np.float32), "r2": r2[best].astype(np.float32),
    }  # fmt: skip


@dataclass(frozen=True)
class ByImage:
    """Betas averaged over the rows that show each image."""

    betas: Matrix
    """Rows of an image side by side, [n, p]."""
    starts: Array
    """The first row of each image, int [s]."""

    @classmethod
    def of(cls, betas: Matrix, stimulus: Array, images: Array) -> "ByImage":
        """The rows of ``images``, ascending, of betas whose row i shows image ``stimulus[i]``."""
        place = np.searchsorted(images, stimulus)
        place[place == len(images)] = 0
        rows = np.flatnonzero(images[place] == stimulus)
        order = rows[np.argsort(place[rows], kind="stable")]
        counts = np.bincount(place[rows], minlength=len(images))
        return cls(gathered(betas, order), np.cumsum(counts) - counts)

    def read(self, voxels: Array) -> tuple[Array, Array, Array]:
        """Z-scored responses float64 [s, v] of some voxels, their mean and their deviation; 0 where one does not vary."""
        n = self.betas.shape[0]
        block = scratch((n, len(voxels)), np.float32)
        ColumnSubset(self.betas, voxels).read(range(n), range(len(voxels)), block)
        sums = np.add.reduceat(block, self.starts, axis=0, dtype=np.float64)
        means = sums / np.diff(np.append(self.starts, n))[:, None]
        mean, deviation = means.mean(0), means.std(0)
        usable = np.isfinite(deviation) & (deviation > 1e-12 * np.abs(mean))
        scores = np.divide(means - mean, deviation, out=np.zeros(means.shape), where=usable)
        return scores, np.where(usable, mean, 0), np.where(usable, deviation, 1)


def _blocks(features: Matrix, mean: Array, deviation: Array) -> Iterator[tuple[range, Array]]:
    """Yield columns and the z-scored features in them, float64 [s, c]."""
    s, t = features.shape
    for columns in panels(t, COLUMNS):
        part = slice(columns.start, columns.stop)
        block = scratch((s, len(columns)), np.float32)
        features.read(range(s), columns, block)
        varies = deviation[part] > 0
        z = np.divide(block - mean[part], deviation[part], out=np.zeros(block.shape), where=varies)
        yield columns, z - z.mean(0)


def _spectrum(features: Matrix, mean: Array, deviation: Array) -> Spectrum:
    s, t = features.shape
    if t >= s:
        gram = np.zeros((s, s))
        for _, z in _blocks(features, mean, deviation):
            gram += z @ z.T
        values, vectors = np.linalg.eigh(gram)
        kept = values > 1e-10 * max(float(values[-1]), 1e-30)
        return Spectrum(values[kept], vectors[:, kept])
    every = np.concatenate([z for _, z in _blocks(features, mean, deviation)], axis=1)
    values, vectors = np.linalg.eigh(every.T @ every)
    kept = values > 1e-10 * max(float(values[-1]), 1e-30)
    return Spectrum(values[kept], every @ vectors[:, kept] / np.sqrt(values[kept]))


def _choose(spectrum: Spectrum, betas: ByImage) -> tuple[float, Array]:
    """The penalty of least leave-one-out error, and the leave-one-out R² of each voxel under it; NaN where it is constant."""
    alphas = ALPHAS * float(spectrum.values.mean())
    p = betas.betas.shape[1]
    errors = np.empty((len(alphas), p))
    for voxels in map(np.array, panels(p, COLUMNS)):
        responses = betas.read(voxels)[0]
        for k, alpha in enumerate(alphas):
            errors[k, voxels] = np.square(spectrum.residuals(responses, float(alpha))).mean(0)
        errors[:, voxels[~responses.any(0)]] = np.nan
    best = int(np.argmin(np.nansum(errors, axis=1)))
    return float(alphas[best]), 1 - errors[best]
