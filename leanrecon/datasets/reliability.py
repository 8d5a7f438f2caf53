"""Whether trials and images match: responses to one image should be more alike than responses to two images."""

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

import numpy as np

from leanrecon.errors import InputError, LeanreconWarning
from leanrecon.places.files import write_json
from leanrecon.progress import Progress
from leanrecon.study.layout import Study

Array = np.ndarray[Any, Any]

CLEAR = 3.0
"""Standard errors above chance that count as clear: unrelated data get there once in 700 times."""

FEWEST = 20
"""Repeated images below which nothing is judged."""

SAMPLE = 1000
"""Voxels at most that the reliability of repeats is taken from."""

_BLOCK = 512  # pairs that are correlated together


@dataclass(frozen=True)
class Reliability:
    """How alike the responses to repeats are."""

    pairs: int
    """Images that were shown at least twice."""
    matched: float
    """Mean correlation, over voxels, of the responses to the first and the second showing of an image."""
    mismatched: float
    """The same, of the first showing and the trial next to the second: another image at the same distance in time."""
    error: float
    """Standard error of the mean difference of the two."""

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self:
        """What ``as_record`` gave."""
        known: dict[str, Any] = {name: np.inf if value is None else value for name, value in record.items()}
        return cls(**known)

    def as_record(self) -> dict[str, Any]:
        """Plain values by name; null for a number that is not finite."""
        return {name: value if np.isfinite(value) else None for name, value in asdict(self).items()}

    @property
    def judged(self) -> bool:
        """Whether there are repeats enough to tell."""
        return self.pairs >= FEWEST

    @property
    def above_chance(self) -> bool:
        """Whether repeats are clearly more alike than responses to different images."""
        return self.matched - self.mismatched > CLEAR * self.error

    def __str__(self) -> str:
        if self.pairs == 0:
            return "no image was shown twice"
        return (
            f"responses to the same image correlate by {self.matched:.3f}, those to different images by "
            f"{self.mismatched:.3f} (difference {self.matched - self.mismatched:.3f} ± {self.error:.3f} standard error, "
            f"{self.pairs} repeated images)"
        )


def repeat_reliability(responses: Array, stimulus: Array, session: Array) -> Reliability:
    """Compare the responses to repeats with those to different images.

    ``responses`` [trials, voxels] in order of presentation, ``stimulus`` and ``session`` [trials]. Each voxel is
    z-scored within each session first, so that neither its mean nor a session's level makes trials alike; drifts
    within a session are shared by the mismatched pairs. Memory: a float32 copy of the responses.
    """
    first, second, other = repeat_pairs(stimulus)
    patterns = _standardized(responses, session)
    matched, mismatched = np.zeros(len(first)), np.zeros(len(first))
    for start in range(0, len(first), _BLOCK):
        of = slice(start, start + _BLOCK)
        a = patterns[first[of]]
        matched[of] = np.einsum("tv,tv->t", a, patterns[second[of]], dtype=np.float64)
        mismatched[of] = np.einsum("tv,tv->t", a, patterns[other[of]], dtype=np.float64)
    if len(first) < 2:
        return Reliability(len(first), float(matched.sum()), float(mismatched.sum()), float("inf"))
    error = np.std(matched - mismatched, ddof=1) / np.sqrt(len(first))
    return Reliability(len(first), float(matched.mean()), float(mismatched.mean()), float(error))


def sampled_voxels(n: int) -> Array:
    """The voxels that reliability is taken from, ascending: all of ``n``, or ``SAMPLE`` that are drawn."""
    if n <= SAMPLE:
        return np.arange(n)
    return np.sort(np.random.default_rng(0).choice(n, SAMPLE, replace=False))


def judge(found: Reliability, study: Study, progress: Progress, *, check: Literal["stop", "warn"], todo: str) -> None:
    """Say and keep how reliable repeats are; raises InputError, or warns, where they are no better than chance."""
    progress.say(f"repeat reliability: {found}")
    write_json(study.reliability, found.as_record(), indent=1)
    if not found.judged:
        progress.say("too few images were repeated to tell whether trials and images match")
    elif not found.above_chance:
        problem = InputError(
            f"trials and images don't match: {found}",
            expected="repeats that are clearly more alike than different images",
            todo=f'{todo}, or go on with dataset.check = "warn"',
        )
        if check == "stop":
            raise problem
        warnings.warn(str(problem), LeanreconWarning, stacklevel=3)


def repeat_pairs(stimulus: Array) -> tuple[Array, Array, Array]:
    """Trials of the first and of the second showing of every repeated image, and one next to the second of another."""
    order = np.argsort(stimulus, kind="stable")
    ordered = stimulus[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(stimulus) else np.zeros(0, np.int64)
    repeated = starts[np.diff(np.r_[starts, len(stimulus)]) > 1]
    first, second = order[repeated], order[repeated + 1]
    other = np.full(len(first), -1)
    for step in (1, -1, 2, -2, 3, -3):
        near = second + step
        inside = (near >= 0) & (near < len(stimulus)) & (other < 0)
        fits = inside & (stimulus[np.clip(near, 0, len(stimulus) - 1)] != stimulus[first])
        other[fits] = near[fits]
    kept = other >= 0
    return first[kept], second[kept], other[kept]


def _standardized(responses: Array, session: Array) -> Array:
    """Voxels z-scored within sessions, then trials to mean 0 and length 1 over voxels: float32; what is constant is 0."""
    patterns = np.empty(responses.shape, np.float32)
    for number in np.unique(session):
        rows = np.flatnonzero(session == number)
        block = responses[rows].astype(np.float32)
        block -= block.mean(axis=0)
        spread = block.std(axis=0)
        np.divide(block, spread, out=block, where=spread > 0)
        block -= block.mean(axis=1, keepdims=True)
        length = np.sqrt(np.einsum("tv,tv->t", block, block))[:, None]
        np.divide(block, length, out=block, where=length > 0)
        patterns[rows] = block
    return patterns
