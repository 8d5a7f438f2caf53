"""A check of train betas before any training: whether they carry information about the images."""

import contextlib
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from leanrecon.alignment.ridge import left_out_predictions
from leanrecon.context import Context
from leanrecon.datasets.ceiling import area_ceilings
from leanrecon.datasets.reliability import Reliability, repeat_reliability, sampled_voxels
from leanrecon.errors import InputError, LeanreconWarning, StoreError
from leanrecon.evaluation.pairwise import Pairwise, pairwise
from leanrecon.memory import buffer
from leanrecon.places.files import read_record, write_json
from leanrecon.stores.images import small_images
from leanrecon.stores.matrix import ColumnSubset, RowSubset, as_matrix
from leanrecon.stores.store import Store
from leanrecon.study.layout import Study
from leanrecon.study.rows import Rows
from leanrecon.study.voxels import read_areas

Array = np.ndarray[Any, Any]

MOST_ROWS = 1000
"""The most train rows that are used; of more, whole images are drawn at random from the seed."""

MOST_VOXELS = 20_000
"""The most voxels that are used; of more, some are drawn at random from the seed."""

SIDE = 16
"""Longer side in pixels of the images that are predicted from betas."""

FEWEST = 20
"""The fewest images from which images are predicted."""

OVERHEAD = 60 * 10**6
"""Bytes that SciPy and scikit-learn take when they are first used."""


@dataclass(frozen=True)
class Match:
    """How well betas identify left-out images, and the same with betas and images paired at random."""

    images: int
    correlation: float
    """Mean Pearson's r of small predicted and true images."""
    two_way: float
    """How often a prediction is closer to its own image than to another; chance is one half."""
    low: float
    high: float
    """95 % interval of ``two_way`` over images."""
    shuffled: float
    """``two_way`` with betas and images paired at random."""

    @property
    def above_chance(self) -> bool:
        return self.low > max(0.5, self.shuffled)


@dataclass(frozen=True)
class Check:
    """The results of a check; None where the data don't allow one, with the reason in ``notes``."""

    rows: int
    pairwise: Pairwise | None
    reliability: dict[str, Reliability]
    """By area; "" is all voxels. Empty if no image was shown twice."""
    match: Match | None
    ceilings: Mapping[str, Any] | None
    """Noise ceilings of areas, as in the report; None if the noise of voxels is not known."""
    notes: list[str] = field(default_factory=list)

    @property
    def answers(self) -> list[bool]:
        """The answer of each part that could be evaluated."""
        whole = self.reliability.get("")
        found = [self.pairwise and self.pairwise.above_chance, self.match and self.match.above_chance]
        found.append(whole.above_chance if whole is not None and whole.judged else None)
        return [bool(answer) for answer in found if answer is not None]

    @property
    def verdict(self) -> str:
        """One sentence."""
        answers = self.answers
        if not answers:
            return "Nothing can be said: too few images, and none was shown twice."
        if all(answers):
            return "Yes: the betas carry information about the images."
        if any(answers):
            return "In part: some checks are above chance and others are not. Find out why before training."
        return "No: nothing is above chance. Training would learn noise; check trials, images and their order first."

    def record(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "rows": self.rows,
            "pairwise": self.pairwise and asdict(self.pairwise),
            "reliability": {area: found.as_record() for area, found in self.reliability.items()},
            "match": self.match and asdict(self.match),
            "ceilings": self.ceilings,
            "notes": self.notes,
            "verdict": self.verdict,
        }

    def lines(self) -> list[str]:
        """The report as lines of text, the verdict last."""
        lines = []
        if (p := self.pairwise) is not None:
            lines.append(
                f"pairwise classification: {100 * p.accuracy:.1f} % ({100 * p.low:.1f}–{100 * p.high:.1f}) of {p.pairs} "
                f"pairs of {p.classes} classes, runs held out; {100 * p.shuffled:.1f} % with shuffled labels, chance 50 %"
            )
        if (m := self.match) is not None:
            lines.append(
                f"images left out: r {m.correlation:.3f} with their predictions, two-way {100 * m.two_way:.1f} % "
                f"({100 * m.low:.1f}–{100 * m.high:.1f}) of {m.images}; {100 * m.shuffled:.1f} % when paired at random"
            )
        lines += [f"repeats, {area or 'all voxels'}: {found}" for area, found in self.reliability.items()]
        for area in (self.ceilings or {}).get("areas", []):
            lines.append(
                f"noise ceiling, {area['area'] or 'all voxels'}: {area['percent']:.0f} % of the variance of test rows, "
                f"median of {area['voxels']} voxels"
            )
        return [*lines, *self.notes, self.verdict]


def check_study(study: Study, context: Context, *, labels: Path | None = None, pairs: int = 200) -> Check:
    """Check the train rows of a study whose stage dataset is complete.

    ``labels`` is a text file with one category for each train row, in the rows' order; without it each stimulus is a
    category.
    Raises InputError for labels that don't fit, StoreError for an incomplete dataset, BudgetError before any work.
    """
    rows = Rows.read(study)
    store = Store.open(study.betas("train"))
    train = rows["train"]
    given = None if labels is None else _labels(labels, len(train))
    chosen = _chosen(train.stimulus, context.seed)
    work = check_nbytes(len(chosen), min(store.columns, MOST_VOXELS))
    context.require("checking the data", work + store.buffer_nbytes())
    voxels = np.flatnonzero(~np.isnan(store[0:1][0]))  # outside of the mask a voxel is NaN in every row
    if len(voxels) > MOST_VOXELS:
        drawn = np.random.default_rng(context.seed).choice(len(voxels), MOST_VOXELS, replace=False)
        voxels = voxels[np.sort(drawn)]
    betas = buffer((len(chosen), len(voxels)), np.float32)
    matrix = ColumnSubset(RowSubset(as_matrix(store), chosen), voxels)
    for start in range(0, len(chosen), 256):
        part = range(start, min(start + 256, len(chosen)))
        matrix.read(part, range(len(voxels)), betas[part.start : part.stop])
    if not np.isfinite(betas).all():
        raise InputError(
            f"{store.path} holds NaN or infinite values",
            expected="finite betas, or voxels that are NaN in every row",
        )
    stimulus = train.stimulus[chosen]
    notes: list[str] = []
    session = np.array([train.session[row] for row in chosen]) if train.session is not None else np.zeros(len(chosen))
    if train.subject is not None:
        session = np.unique([train.subject[row] for row in chosen], return_inverse=True)[1]
    runs = _runs(train, chosen, stimulus)
    classes = stimulus.astype(str) if given is None else np.array(given)[chosen]
    told = _try(
        lambda: pairwise(betas, classes, runs, pairs=pairs, seed=context.seed), "pairwise classification", notes
    )
    reliability = _reliability(study, betas, stimulus, session, voxels, store.columns)
    if not reliability:
        averaged = max(train.repeats) > 1
        todo = ': set dataset.repeats = "single", which keeps trials apart' if averaged else ""
        notes.append(f"repeats were not compared, as no image has two train rows{todo}")
    match = _try(lambda: _match(study, betas, stimulus, context.seed), "matching images", notes)
    return Check(len(chosen), told, reliability, match, area_ceilings(study), notes)


def keep_check(study: Study, found: Check) -> None:
    """Write the results into the study, for its report."""
    betas = Store.open(study.betas("train")).content
    write_json(study.check, {"betas": betas, "lines": found.lines()[:-1], "verdict": found.verdict}, indent=1)


def kept_check(study: Study) -> dict[str, Any] | None:
    """The results for the present train rows; None if they were not checked. Warns of a damaged file."""
    try:
        known = read_record(study.check)
    except StoreError as error:
        warnings.warn(f"{error.found}: the report leaves it out", LeanreconWarning, stacklevel=2)
        return None
    if known is None or known.get("betas") != Store.open(study.betas("train")).content:
        return None
    return {"verdict": str(known.get("verdict", "")), "lines": [str(line) for line in known.get("lines", [])]}


def check_nbytes(rows: int, voxels: int) -> int:
    """The most bytes that a check takes, besides a chunk of betas."""
    return OVERHEAD + 3 * rows * voxels * 4 + 8 * rows * rows * 8 + rows * SIDE * SIDE * 3 * 8 * 6


def _try(what: Any, name: str, notes: list[str]) -> Any:
    """The result, or None with the reason among the notes if the data don't allow it."""
    try:
        return what()
    except InputError as error:
        notes.append(f"{name} was left out: {error.found}")
        return None


def _labels(path: Path, rows: int) -> list[str]:
    try:
        found = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} can't be read ({error})", expected="a text file of one label a line") from None
    found = [line.strip() for line in found if line.strip()]
    if len(found) != rows:
        raise InputError(f"{path} has {len(found)} labels for {rows} train rows", expected="one line a train row")
    return found


def _chosen(stimulus: Array, seed: int) -> Array:
    """All rows, ascending; of more than ``MOST_ROWS``, all rows of some images, drawn at random from the seed."""
    if len(stimulus) <= MOST_ROWS:
        return np.arange(len(stimulus))
    counts = np.bincount(stimulus)
    order = np.random.default_rng(seed).permutation(len(counts))
    kept = order[np.cumsum(counts[order]) <= MOST_ROWS]
    return np.flatnonzero(np.isin(stimulus, kept))


def _runs(train: Any, chosen: Array, stimulus: Array) -> Array:
    """The run of every row; if runs are not known, the number of its repeat, so that repeats are held out."""
    if train.run is not None:
        session = train.session or [0] * len(train)
        subject = train.subject or [""] * len(train)
        names = [f"{subject[row]} {session[row]} {train.run[row]}" for row in chosen]
        return np.unique(names, return_inverse=True)[1]
    seen: dict[int, int] = {}
    repeat = np.empty(len(stimulus), np.int64)
    for row, image in enumerate(stimulus.tolist()):
        repeat[row] = seen[image] = seen.get(image, -1) + 1
    return repeat


def _reliability(
    study: Study, betas: Array, stimulus: Array, session: Array, voxels: Array, columns: int
) -> dict[str, Reliability]:
    """The reliability of repeats in each area, and in all voxels last."""
    if len(np.unique(stimulus)) == len(stimulus):
        return {}
    masks: dict[str, Array] = {}
    with contextlib.suppress(InputError):  # voxels without areas: only all voxels
        masks = {name: mask[voxels] for name, mask in read_areas(study).items() if len(mask) == columns}
    masks[""] = np.ones(len(voxels), bool)
    found = {}
    for name, mask in masks.items():
        own = np.flatnonzero(mask)
        if len(own) > 1:
            own = own[sampled_voxels(len(own))]
            found[name] = repeat_reliability(betas[:, own], stimulus, session)
    return found


def _match(study: Study, betas: Array, stimulus: Array, seed: int) -> Match:
    """Predict small images from betas, each image left out in turn, and identify it among the others."""
    shown, image_of_row = np.unique(stimulus, return_inverse=True)
    if len(shown) < FEWEST:
        raise InputError(f"{len(shown)} train images are too few to tell apart", expected=f"{FEWEST} or more")
    if not study.stimuli("train").exists():
        raise InputError("the study has no images", expected="a dataset with images, whose match with betas is checked")
    means = np.zeros((len(shown), betas.shape[1]), np.float32)
    np.add.at(means, image_of_row, betas)
    means /= np.bincount(image_of_row)[:, None].astype(np.float32)
    means -= means.mean(axis=0)
    deviation = means.std(axis=0)
    means *= np.where(deviation > 0, 1 / np.where(deviation > 0, deviation, 1), 0).astype(np.float32)
    gram = (means @ means.T).astype(np.float64)
    images = small_images(Store.open(study.stimuli("train")), shown, SIDE).astype(np.float64)
    folds = np.random.default_rng(seed).permutation(len(shown)) % 5
    told = _two_way(left_out_predictions(gram, images, folds, seed), images)
    order = np.random.default_rng([seed, 3]).permutation(len(shown))
    by_chance = _two_way(left_out_predictions(gram, images[order], folds, seed), images[order])
    drawn = np.random.default_rng([seed, 4]).integers(0, len(shown), (1000, len(shown)))
    low, high = np.percentile(told[0][drawn].mean(axis=1), [2.5, 97.5])
    return Match(
        len(shown), float(told[1].mean()), float(told[0].mean()), float(low), float(high), float(by_chance[0].mean())
    )


def _two_way(predicted: Array, true: Array) -> tuple[Array, Array]:
    """For each image: how often its prediction correlates more with it than with another one, and its correlation."""
    a = predicted - predicted.mean(axis=1, keepdims=True)
    b = true - true.mean(axis=1, keepdims=True)
    a /= np.maximum(np.linalg.norm(a, axis=1, keepdims=True), 1e-12)
    b /= np.maximum(np.linalg.norm(b, axis=1, keepdims=True), 1e-12)
    r = a @ b.T
    own = np.diag(r)
    wins = (own[:, None] > r).sum(axis=1) + 0.5 * ((own[:, None] == r).sum(axis=1) - 1)
    return wins / (len(r) - 1), own
