"""Pixel metrics of all reconstructions and baselines, in one pass over the test rows."""

from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from leanrecon.context import Context
from leanrecon.evaluation.bootstrap import Scores
from leanrecon.evaluation.identification import identify
from leanrecon.evaluation.image_sources import ReadsImages
from leanrecon.evaluation.metrics import Prepared, compare, pair_metrics, prepare
from leanrecon.evaluation.plan import identified_shape, shifts, workers
from leanrecon.images import Array, ImageShape, resize, with_channels
from leanrecon.memory import buffer
from leanrecon.stores.matrix import as_matrix


def fitted(image: Array, shape: ImageShape) -> Array:
    """An image in the channels and at the size in which images are compared."""
    return resize(with_channels(image, shape[2]), shape)


def compare_images(
    sources: Mapping[str, ReadsImages],
    stimuli: ReadsImages,
    names: Sequence[str],
    shape: ImageShape,
    context: Context,
) -> dict[str, Scores]:
    """Pixel metrics and identification by pixels of every source's images, all brought to ``shape``.

    ``names`` holds the stimulus id of each of the m test rows. The chance level of a pixel metric is its mean over
    pairs of a reconstruction and another stimulus.
    """
    m = len(names)
    metrics = pair_metrics(*shape[:2])
    scores = {source: {name: np.empty(m) for name in metrics} for source in sources}
    chance: dict[str, list[dict[str, float]]] = {source: [] for source in sources}
    small_shape = identified_shape(shape)
    small = {name: buffer((m, int(np.prod(small_shape))), np.uint8) for name in (*sources, "")}

    def prepared(images: ReadsImages, row: int, source: str) -> Prepared:
        image = fitted(images.read(row), shape)
        small[source][row] = resize(image, small_shape).reshape(-1)
        return prepare(image, metrics)

    def score(source: str, row: int, stimulus: Prepared, others: list[Prepared]) -> None:
        image = prepared(sources[source], row, source)
        for name, value in compare(image, stimulus, metrics).items():
            scores[source][name][row] = value
        chance[source].extend(compare(image, other, metrics) for other in others)

    recent = deque(((row, prepared(stimuli, row, "")) for row in range(m - shifts(m), m)), maxlen=shifts(m))
    with (
        ThreadPoolExecutor(workers(), thread_name_prefix="evaluate") as pool,
        context.task(total=m, unit="images") as advance,
    ):
        for row in range(m):
            stimulus = prepared(stimuli, row, "")
            others = [other for k, other in recent if names[k] != names[row]]
            list(pool.map(partial(score, row=row, stimulus=stimulus, others=others), sources))
            recent.append((row, stimulus))
            advance(1)
    return {source: _scores(scores[source], chance[source], small[source], small[""], names) for source in sources}


def _scores(
    rows: dict[str, Array], chance: list[dict[str, float]], images: Array, stimuli: Array, names: Sequence[str]
) -> Scores:
    scores = Scores(rows)
    scores.chance |= {name: float(np.mean([pair[name] for pair in chance])) for name in rows if chance}
    if identified := identify(as_matrix(images), as_matrix(stimuli), names, "pixels"):
        scores.add(identified)
    return scores
