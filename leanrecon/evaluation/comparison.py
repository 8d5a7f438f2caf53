"""Pixel metrics of all reconstructions and baselines, in one pass over the test rows."""

from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from leanrecon.context import Context
from leanrecon.evaluation.bootstrap import Scores
from leanrecon.evaluation.image_sources import ConstantImage, ImageSource, ReadsImages
from leanrecon.evaluation.metrics import Prepared, compare, pair_metrics, prepare
from leanrecon.evaluation.plan import identified_shape, shifts, workers
from leanrecon.evaluation.pool import Spool, SpooledRows
from leanrecon.images import Array, ImageShape, resize, resize_tensor, with_channels
from leanrecon.study.protocols import Resample


@dataclass(frozen=True)
class Fitting:
    """How images are brought to the channels and the size in which they are compared."""

    shape: ImageShape
    resample: Resample = "bilinear"
    through: int | None = None
    """Sides that they are brought to before that."""
    colours: bool = False
    """Whether SSIM is taken of every colour too."""

    def __call__(self, image: Array) -> Array:
        image = with_channels(image, self.shape[2])
        if self.resample != "tensor":
            return resize(image, self.shape, bicubic=self.resample == "bicubic")
        if self.through is not None:
            image = resize_tensor(image, (self.through, self.through, self.shape[2]))
        image = resize_tensor(image, self.shape)
        return image if image.dtype == np.uint8 else np.rint(image).astype(np.uint8)


@dataclass(frozen=True)
class Others:
    """The test rows of all folds, of which this fold's are a run: where it takes the stimuli of wrong pairs from."""

    images: ImageSource
    names: Sequence[str]
    first: int = 0
    """The row among them that is this fold's first."""


class Compared:
    """One set of images on its way through the test rows."""

    def __init__(self, images: ReadsImages, m: int, fit: Fitting, spool: Spool, metrics: Sequence[str]) -> None:
        self.metrics = metrics
        self.scores = Scores({name: np.empty(m) for name in self.metrics})
        self.small_shape = identified_shape(fit.shape)
        self.small = spool.rows(m, int(np.prod(self.small_shape)))
        """The images, small enough to identify them by their pixels, uint8 [m, height × width × channels]."""
        self.pairs = 0
        """How many pairs of a reconstruction and another stimulus the chance levels are taken over."""
        self._images, self._fit = images, fit
        self._wrong = dict.fromkeys(self.metrics, 0.0)
        self._constant: Prepared | None = None

    def prepared(self, row: int) -> Prepared:
        """The image of a row with what its metrics need; kept small for its identification."""
        image = self._fit(self._images.read(row))
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
    stimuli: ImageSource,
    names: Sequence[str],
    fit: Fitting,
    context: Context,
    spool: Spool,
    others: Others | None = None,
    *,
    patterns: bool = False,
) -> tuple[dict[str, Compared], SpooledRows]:
    """Pixel metrics of every source's images, all brought to the shape of ``fit``; and the stimuli as small as ``Compared.small``.

    ``names`` holds the stimulus id of each of the m test rows. The chance level of a pixel metric is its mean over
    pairs of a reconstruction and another stimulus. The small images wait in ``spool``. ``patterns``: images are black and
    white patterns, whose pixels are right or wrong.
    """
    m = len(names)
    others = others or Others(stimuli, names)
    n, distances = len(others.names), shifts(len(others.names), fit.shape[0] * fit.shape[1])
    metrics = pair_metrics(*fit.shape[:2], colours=fit.colours, patterns=patterns)
    seen = Compared(stimuli, m, fit, spool, metrics)
    found = {source: Compared(images, m, fit, spool, metrics) for source, images in sources.items()}

    def other(at: int) -> tuple[str, Prepared]:
        return others.names[at % n], prepare(fit(others.images.read(at % n)), metrics)

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
