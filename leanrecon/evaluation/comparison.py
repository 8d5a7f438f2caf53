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


class Compared:
    """One set of images on its way through the test rows."""

    def __init__(self, images: ReadsImages, m: int, shape: ImageShape, spool: Spool, *, patterns: bool = False) -> None:
        self.metrics = pair_metrics(*shape[:2], patterns=patterns)
        self.scores = Scores({name: np.empty(m) for name in self.metrics})
        self.small_shape = identified_shape(shape)
        self.small = spool.rows(m, int(np.prod(self.small_shape)))
        """The images, small enough to identify them by their pixels, uint8 [m, height × width × channels]."""
        self.pairs = 0
        """How many pairs of a reconstruction and another stimulus the chance levels are taken over."""
        self._images, self._shape = images, shape
        self._wrong = dict.fromkeys(self.metrics, 0.0)
        self._constant: Prepared | None = None

    def prepared(self, row: int) -> Prepared:
        """The image of a row with what its metrics need; kept small for its identification."""
        image = fitted(self._images.read(row), self._shape)
        self.small.write(row, resize(image, self.small_shape))
        if not isinstance(self._images, ConstantImage):
            return prepare(image, self.metrics)
        self._constant = self._constant or prepare(image, self.metrics)
        return self._constant

    def score(self, row: int, stimulus: Prepared, wrong: Sequence[Prepared]) -> None:
        """Compare the image of a row with its stimulus and with others."""
        image = self.prepared(row)
        for name, value in compare(image, stimulus, self.metrics).items():
            self.scores.rows[name][row] = value
        for other in wrong:
            self.pairs += 1
            for name, value in compare(image, other, self.metrics).items():
                self._wrong[name] += value
        if self.pairs:
            self.scores.chance = {name: total / self.pairs for name, total in self._wrong.items()}


def compare_images(
    sources: Mapping[str, ReadsImages],
    stimuli: ReadsImages,
    names: Sequence[str],
    shape: ImageShape,
    context: Context,
    spool: Spool,
    others: Others | None = None,
    *,
    patterns: bool = False,
) -> tuple[dict[str, Compared], SpooledRows]:
    """Pixel metrics of every source's images, all brought to ``shape``; and the stimuli as small as ``Compared.small``.

    ``names`` holds the stimulus id of each of the m test rows. The chance level of a pixel metric is its mean over
    pairs of a reconstruction and another stimulus. The small images wait in ``spool``. ``patterns``: images are black and
    white patterns, whose pixels are right or wrong.
    """
    m = len(names)
    others = others or Others(stimuli, names)
    n, distances = len(others.names), shifts(len(others.names), shape[0] * shape[1])
    seen = Compared(stimuli, m, shape, spool, patterns=patterns)
    found = {source: Compared(images, m, shape, spool, patterns=patterns) for source, images in sources.items()}

    def other(at: int) -> tuple[str, Prepared]:
        return others.names[at % n], prepare(fitted(others.images.read(at % n), shape), seen.metrics)

    recent = deque((other(others.first + at) for at in range(-distances, 0)), maxlen=distances)
    with (
        ThreadPoolExecutor(workers(), thread_name_prefix="evaluate") as pool,
        context.task(total=m, unit="images") as advance,
    ):
        for row in range(m):
            stimulus = seen.prepared(row)
            wrong = [image for name, image in recent if name != names[row]]
            list(pool.map(partial(Compared.score, row=row, stimulus=stimulus, wrong=wrong), found.values()))
            recent.append((names[row], stimulus))
            advance(1)
    return found, seen.small
