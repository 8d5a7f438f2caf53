"""All reconstructions and baselines beside their stimuli, in one pass over the test rows."""

import os
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from leanrecon.evaluation.bootstrap import Scores
from leanrecon.evaluation.identification import identify, identify_nbytes
from leanrecon.evaluation.metrics import Looked, compare, look, pair_metrics
from leanrecon.evaluation.sources import Source
from leanrecon.images import Array, ImageShape, fitted_into, resize, with_channels
from leanrecon.memory import buffer
from leanrecon.progress import Progress
from leanrecon.stores.matrix import as_matrix

IDENTIFIED_SIDE = 64
"""Images are identified at this many pixels a side at most; larger ones are averaged down."""

MISMATCHED = 256
"""Chance is taken over this many pairs of a reconstruction and another stimulus, or over all there are."""

_FLOAT = 8


def fitted(image: Array, shape: ImageShape) -> Array:
    """An image in the channels and at the size in which images are compared."""
    return resize(with_channels(image, shape[2]), shape)


def shifts(m: int) -> int:
    """With how many other stimuli each reconstruction is paired for the level of chance."""
    return min(max(m - 1, 0), -(-MISMATCHED // m))


def compare_nbytes(shape: ImageShape, m: int, sources: int, chunk: int) -> int:
    """Memory that ``compare_images`` takes, in bytes; ``chunk`` is a chunk of stimuli."""
    pixels = shape[0] * shape[1]
    looked = pixels * (shape[2] + 7 * _FLOAT)
    work = pixels * (3 * shape[2] + 10) * _FLOAT
    small = int(np.prod(_small(shape)))
    rows = (shifts(m) + 2) * looked + _workers() * (looked + work) + 4 * (chunk + pixels * shape[2])
    return rows + (sources + 1) * m * small + identify_nbytes(m, small)


def compare_images(
    sources: Mapping[str, Source],
    stimuli: Source,
    names: Sequence[str],
    shape: ImageShape,
    *,
    progress: Progress,
    label: str = "evaluate",
) -> dict[str, Scores]:
    """The figures of every source's images beside the stimuli, all brought to ``shape``.

    ``names`` says which stimulus each of the m test rows shows. The chance level of a figure of pairs is its mean over
    reconstructions and stimuli of other rows.
    """
    m = len(names)
    metrics = pair_metrics(*shape[:2])
    scores = {source: {name: np.empty(m) for name in metrics} for source in sources}
    chance: dict[str, list[dict[str, float]]] = {source: [] for source in sources}
    small_shape = _small(shape)
    small = {name: buffer((m, int(np.prod(small_shape))), np.uint8) for name in (*sources, "")}

    def seen(row: int) -> Looked:
        return look(_shrunk(fitted(stimuli.read(row), shape), row, ""), metrics)

    def _shrunk(image: Array, row: int, source: str) -> Array:
        small[source][row] = resize(image, small_shape).reshape(-1)
        return image

    def judge(source: str, row: int, own: Looked, others: list[Looked]) -> None:
        image = look(_shrunk(fitted(sources[source].read(row), shape), row, source), metrics)
        for name, value in compare(image, own, metrics).items():
            scores[source][name][row] = value
        chance[source].extend(compare(image, other, metrics) for other in others)

    before = deque(((row, seen(row)) for row in range(m - shifts(m), m)), maxlen=shifts(m))
    with (
        ThreadPoolExecutor(_workers(), thread_name_prefix="evaluate") as workers,
        progress.task(label, total=m, unit="images") as advance,
    ):
        for row in range(m):
            own = seen(row)
            others = [other for k, other in before if names[k] != names[row]]
            list(workers.map(partial(judge, row=row, own=own, others=others), sources))
            before.append((row, own))
            advance(1)
    return {source: _scores(scores[source], chance[source], small[source], small[""], names) for source in sources}


def _scores(
    rows: dict[str, Array], chance: list[dict[str, float]], images: Array, stimuli: Array, names: Sequence[str]
) -> Scores:
    found = Scores(rows)
    found.chance |= {name: float(np.mean([pair[name] for pair in chance])) for name in rows if chance}
    if identified := identify(as_matrix(images), as_matrix(stimuli), names, "pixels"):
        found.add(identified)
    return found


def _small(shape: ImageShape) -> ImageShape:
    return fitted_into(shape, IDENTIFIED_SIDE) if max(shape[:2]) > IDENTIFIED_SIDE else shape


def _workers() -> int:
    return min(os.cpu_count() or 1, 4)
