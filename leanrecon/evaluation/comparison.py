"""Pixel metrics of all reconstructions and baselines, in one pass over the test rows."""

from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from leanrecon.context import Context
from leanrecon.evaluation.bootstrap import Scores
from leanrecon.evaluation.image_sources import ConstantImage, ReadsImages
from leanrecon.evaluation.metrics import Prepared, compare, pair_metrics, prepare
from leanrecon.evaluation.plan import identified_shape, shifts, workers
from leanrecon.evaluation.pool import Spool, SpooledRows
from leanrecon.images import Array, ImageShape, resize, with_channels


def fitted(image: Array, shape: ImageShape) -> Array:
    """An image in the channels and at the size in which images are compared."""
    return resize(with_channels(image, shape[2]), shape)


@dataclass(frozen=True)
class Others:
    """The test rows of all folds, of which this fold's are a run: where it takes the stimuli of wrong pairs from."""

    images: ReadsImages
    names: Sequence[str]
    first: int = 0
    """The row among them that is this fold's first."""


@dataclass
class Compared:
    """What one pass over the test rows gives of one set of images."""

    scores: Scores
    small: SpooledRows
    """The images, small enough to identify them by their pixels, uint8 [m, height × width × channels]."""
    pairs: int
    """How many pairs of a reconstruction and another stimulus the chance levels are taken over."""


def compare_images(
    sources: Mapping[str, ReadsImages],
    stimuli: ReadsImages,
    names: Sequence[str],
    shape: ImageShape,
    context: Context,
    spool: Spool,
    others: Others | None = None,
) -> tuple[dict[str, Compared], SpooledRows]:
    """Pixel metrics of every source's images, all brought to ``shape``; and the stimuli as small as ``Compared.small``.

    ``names`` holds the stimulus id of each of the m test rows. The chance level of a pixel metric is its mean over
    pairs of a reconstruction and another stimulus. The small images wait in ``spool``.
    """
    m = len(names)
    others = others or Others(stimuli, names)
    n, metrics, small_shape = len(others.names), pair_metrics(*shape[:2]), identified_shape(shape)
    distances = shifts(n, shape[0] * shape[1])
    columns = int(np.prod(small_shape))
    small_stimuli = spool.rows(m, columns)
    found = {
        source: Compared(Scores({k: np.empty(m) for k in metrics}), spool.rows(m, columns), 0) for source in sources
    }
    sums = {source: dict.fromkeys(metrics, 0.0) for source in sources}
    constant: dict[str, tuple[Prepared, Array]] = {}

    def prepared(images: ReadsImages, row: int, small: SpooledRows) -> Prepared:
        image = fitted(images.read(row), shape)
        small.write(row, resize(image, small_shape))
        return prepare(image, metrics)

    def prepared_once(source: str, row: int) -> Prepared:
        images, small = sources[source], found[source].small
        if not isinstance(images, ConstantImage):
            return prepared(images, row, small)
        if source not in constant:
            whole = fitted(images.image, shape)
            constant[source] = prepare(whole, metrics), resize(whole, small_shape)
        small.write(row, constant[source][1])
        return constant[source][0]

    def score(source: str, row: int, stimulus: Prepared, wrong: list[Prepared]) -> None:
        of_source = found[source]
        image = prepared_once(source, row)
        for name, value in compare(image, stimulus, metrics).items():
            of_source.scores.rows[name][row] = value
        for other in wrong:
            of_source.pairs += 1
            for name, value in compare(image, other, metrics).items():
                sums[source][name] += value

    def other(at: int) -> tuple[str, Prepared]:
        return others.names[at % n], prepare(fitted(others.images.read(at % n), shape), metrics)

    recent = deque((other(others.first + at) for at in range(-distances, 0)), maxlen=distances)
    with (
        ThreadPoolExecutor(workers(), thread_name_prefix="evaluate") as pool,
        context.task(total=m, unit="images") as advance,
    ):
        for row in range(m):
            stimulus = prepared(stimuli, row, small_stimuli)
            wrong = [image for name, image in recent if name != names[row]]
            list(pool.map(partial(score, row=row, stimulus=stimulus, wrong=wrong), sources))
            recent.append((names[row], stimulus))
            advance(1)
    for source, of_source in found.items():
        if of_source.pairs:
            of_source.scores.chance |= {name: total / of_source.pairs for name, total in sums[source].items()}
    return found, small_stimuli
