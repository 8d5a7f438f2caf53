"""What a search learns from train rows: spreads, weights or an encoding model, and how many steps serve."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from leanrecon.context import Context
from leanrecon.images import Array
from leanrecon.refinement.inputs import read_rows
from leanrecon.refinement.inversion.batch import Look, Searcher
from leanrecon.refinement.inversion.distance import whitened
from leanrecon.refinement.inversion.moments import carried, moments
from leanrecon.refinement.inversion.responses import encode_responses
from leanrecon.refinement.inversion.settings import InversionSettings
from leanrecon.refinement.learning import TrainRows

_TUNED = 42  # stream of the random choice of train images

GRID = (0, 1, 2, 3, 5, 7, 10, 15, 20, 30, 40)
"""Numbers of steps that are compared; above, every further half of the one before."""

MakeSearcher = Callable[[Mapping[str, Array]], Searcher]


@dataclass(frozen=True)
class Learned:
    """What was learned."""

    arrays: dict[str, Array]
    record: dict[str, Any]

    def steps(self, settings: InversionSettings) -> int:
        """How many steps a search takes."""
        return int(self.record["steps"]) if settings.steps == "auto" else int(settings.steps)


def learn(
    settings: InversionSettings, train: TrainRows, make: MakeSearcher, batch: int, seed: int, context: Context
) -> Learned:
    """Learn all of it from train rows.

    Steps are chosen by the likeness of train images to those found from predictions without them. An encoding model
    that finds them is learned without them too, and again with all for test rows.
    """
    images = np.arange(train.features[settings.features].shape[0])
    tuned = np.empty(0, np.int64)
    if settings.steps == "auto":
        count = min(settings.tuned_on, len(images) // 2)
        tuned = np.sort(np.random.default_rng([seed, _TUNED]).permutation(images)[:count])
    arrays = _statistics(settings, train, images)
    if settings.steps != "auto":
        return Learned(arrays, {"steps": settings.steps})
    blind = arrays if settings.match == "features" else _statistics(settings, train, np.setdiff1d(images, tuned))
    likeness = _tune(settings, train, make(blind), blind, tuned, batch, context)
    best = max(likeness, key=lambda steps: (likeness[steps], -steps))
    return Learned(arrays, {"steps": best, "likeness": {str(k): round(v, 6) for k, v in likeness.items()}})


def grid(most: int) -> list[int]:
    """The numbers of steps that are compared, up to ``most``."""
    steps = list(GRID)
    while steps[-1] < most:
        steps.append(steps[-1] * 3 // 2)
    return [step for step in steps if step <= most]


def _statistics(settings: InversionSettings, train: TrainRows, images: Array) -> dict[str, Array]:
    """Arrays of the distance, and mean and spread of latents, with what some train images tell."""
    features = train.features[settings.features]
    centre, scale = moments(train.features[settings.decoder])
    arrays = {"centre": centre, "scale": np.maximum(scale, np.float32(1e-6) + scale.max() * np.float32(1e-4))}
    if settings.match == "responses":
        return arrays | encode_responses(features, train.betas, train.stimulus, images, settings.voxels)
    mean, deviation = moments(features)
    share = carried(features, train.predicted[settings.features], train.stimulus)
    return arrays | {"mean": mean, "deviation": deviation, "carried": np.where(deviation > 0, share, 0)}


def _tune(
    settings: InversionSettings,
    train: TrainRows,
    searcher: Searcher,
    arrays: Mapping[str, Array],
    images: Array,
    batch: int,
    context: Context,
) -> dict[int, float]:
    """The mean likeness of train images to those found, by the number of steps."""
    rows = np.sort([int(np.flatnonzero(train.stimulus == image)[0]) for image in images])
    first, shown = train.first(rows.tolist()), train.shown(rows.tolist())
    steps = grid(settings.most)
    totals = dict.fromkeys(steps, 0.0)
    with context.task(total=len(rows), unit="train images") as advance:
        for start in range(0, len(rows), batch):
            some = range(start, min(start + batch, len(rows)))

            def see(step: int, found: list[Array], some: range = some) -> None:
                for place, image in zip(some, found, strict=True):
                    totals[step] += train.likeness(image, shown[place]) / len(rows)

            target = np.concatenate([_target(settings, train, arrays, int(rows[place])) for place in some])
            these = [first[place] for place in some]
            searcher([int(rows[place]) for place in some], these, target, steps[-1], Look(steps, see))
            advance(len(some))
    return totals


def _target(settings: InversionSettings, train: TrainRows, arrays: Mapping[str, Array], row: int) -> Array:
    if settings.match == "responses":
        return whitened(arrays, read_rows(train.betas, range(row, row + 1)))
    return read_rows(train.predicted[settings.features], range(row, row + 1))
