"""The shared response model: orthonormal maps W_i of every subject to one response S of k dimensions.

Deterministic: min Σ ‖X_i − W_i·S‖² (Chen et al. 2015, "A reduced-dimension fMRI shared response model", eq. 2).
Probabilistic: X_i = W_i·s + noise of variance ρ_i², s ~ N(0, Σ), by expectation maximisation (the same, section 3).
Subjects are given as ``Turn``s: what the update of one subject's map needs and returns, in whatever way it is held.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from leanrecon.alignment.grams import Gram

Array = np.ndarray[Any, Any]

CUTOFF = 1e-13
"""Eigenvalues below this share of the largest are rounding errors of a matrix that was squared."""


class Turn(Protocol):
    """One subject of a shared response model."""

    voxels: int
    norm: float
    """Squared norm of its centred betas."""

    def turn(self, shared: Array) -> tuple[Array, float]:
        """For a shared response S [k, n]: W'X [k, n] with the orthonormal W that is nearest X·S', and trace(W'X·S')."""


@dataclass
class SharedResponse:
    """What was learned, beside the maps."""

    shared: Array
    """S, float64 [k, n], which the last maps were turned to."""
    objective: list[float] = field(default_factory=list)
    """By iteration: the log-likelihood less a constant (it grows), or the mean squared residual (it falls)."""
    noise: list[float] = field(default_factory=list)
    """ρ² of each subject, a voxel: the noise variance; empty for the deterministic model."""


class GramTurn:
    """A subject by its Gram matrix."""

    def __init__(self, gram: Gram) -> None:
        self.gram = gram
        self.voxels = gram.voxels
        self.norm = gram.norm

    def turn(self, shared: Array) -> tuple[Array, float]:
        through = self.gram.times(shared)
        root, overlap = inverse_root(through @ shared.T)
        return root @ through, overlap


def inverse_root(square: Array) -> tuple[Array, float]:
    """(A'A)^(−1/2) of a positive matrix A'A [k, k], and the sum of A's singular values; zero where A has none."""
    values, vectors = np.linalg.eigh((square + square.T) / 2)
    kept = values > CUTOFF * max(values[-1], 0)
    values, vectors = values[kept], vectors[:, kept]
    return (vectors / np.sqrt(values)) @ vectors.T, float(np.sqrt(values).sum())


def deterministic(subjects: Sequence[Turn], first: Sequence[Array], n_iter: int) -> SharedResponse:
    """Alternate S = mean of W_i'X_i with each W_i; ``first`` are the W_i'X_i [k, n] to start from."""
    n, total = first[0].shape[1], sum(subject.norm for subject in subjects)
    aligned, found = list(first), SharedResponse(first[0])
    for _ in range(n_iter):
        found.shared = shared = np.mean(aligned, axis=0)
        overlaps = 0.0
        for k, subject in enumerate(subjects):
            aligned[k], overlap = subject.turn(shared)
            overlaps += overlap
        residual = total - 2 * overlaps + len(subjects) * float(np.square(shared).sum())
        found.objective.append(residual / 2 / n)
    return found


def probabilistic(subjects: Sequence[Turn], first: Sequence[Array], n_iter: int) -> SharedResponse:
    """Expectation maximisation of the probabilistic model; ``first`` are the W_i'X_i [k, n] to start from.

    The noise ρ² follows from the norms that the subjects state: those of centred betas, as betas are centred.
    """
    k, n = first[0].shape
    aligned, found = list(first), SharedResponse(first[0], noise=[1.0] * len(subjects))
    sigma = np.eye(k)
    for _ in range(n_iter):
        precision = float(sum(1 / noise for noise in found.noise))
        pooled = np.sum([part / noise for part, noise in zip(aligned, found.noise, strict=True)], axis=0)
        spread = np.linalg.inv(np.linalg.inv(sigma) + precision * np.eye(k))
        found.objective.append(_log_likelihood(subjects, found.noise, sigma, spread, pooled))
        found.shared = shared = sigma @ (pooled - precision * (spread @ pooled))
        sigma = spread + shared @ shared.T / n
        expected = n * float(np.trace(sigma))
        for i, subject in enumerate(subjects):
            aligned[i], overlap = subject.turn(shared)
            found.noise[i] = (subject.norm - 2 * overlap + expected) / (n * subject.voxels)
    return found


def _log_likelihood(subjects: Sequence[Turn], noise: list[float], sigma: Array, spread: Array, pooled: Array) -> float:
    """The log-likelihood of all betas under the current maps, Σ and ρ², less the constant of 2π."""
    k, n = pooled.shape
    precision = sum(1 / rho for rho in noise)
    volume = sum(subject.voxels * np.log(rho) for subject, rho in zip(subjects, noise, strict=True))
    volume += np.linalg.slogdet(np.eye(k) + precision * sigma)[1]
    distance = sum(subject.norm / rho for subject, rho in zip(subjects, noise, strict=True))
    distance -= float(np.sum(pooled * (spread @ pooled)))
    return float(-(n * volume + distance) / 2)
