"""Memory that the stage evaluate takes: arithmetic on shapes; nothing is read."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from leanrecon.images import ImageShape, fitted_into

if TYPE_CHECKING:
    from leanrecon.evaluation.judges.judge import Judge
    from leanrecon.study.settings import EvaluateSettings

PRESETS: dict[str, ImageShape | None] = {"native": None, "bd2023": (425, 425, 3)}
"""The shape that images are brought to before they are compared; None: that of the stimuli.

``bd2023``: as Ozcelik & VanRullen 2023 compare pixels.
"""

SLACK = 24_000_000
"""Bytes of SciPy's filters, of Pillow, and of threads."""

RESAMPLES_AT_ONCE = 256
"""Bootstrap resamples that are drawn together."""

IDENTIFIED_SIDE = 64
"""Images are identified by their pixels at this many pixels a side at most; larger ones are averaged down."""

MISMATCHED = 256
"""The chance level is taken over this many pairs of a reconstruction and another stimulus, or over all there are."""

PANEL_NBYTES = 48_000_000
"""Most bytes of a panel of float32 rows that are correlated with another at once, if that is 16 rows or more."""

MOST_ROWS = 2560
"""Most rows of a panel: narrow rows have as many correlations with each other as wide ones."""

LATENTS = 1024
"""Most latents whose R² is computed together."""

LATENTS_NBYTES = 32_000_000
"""Most bytes of them in float64, if that is 16 latents or more."""

CORRELATED = 64_000_000
"""Bytes of correlations with all train images that are held at once, if a panel of test rows takes no more."""

EMBEDDED = 32
"""Images whose embeddings are written together: what a kill loses at most, 77 s of ViT-L/14 on one core."""

READERS = 3
"""Sources that hold a chunk of stimuli: the test stimuli, random and nearest train images."""

COMPARED_BASELINES = 4
"""Baselines that need no generator: mean, random and nearest train image, shuffled betas."""

_FLOAT32, _FLOAT64 = 4, 8


@dataclass(frozen=True)
class EvaluateShapes:
    """The shapes that decide how much memory the evaluation of one fold takes."""

    images: ImageShape
    """Height, width and channels of the stimuli."""
    test_rows: int
    train_images: int
    """Different images among the train rows."""
    dims: Mapping[str, int]
    """Features of every feature space."""
    chunk: int
    """Bytes of a chunk of stimuli."""
    block: int = 4096
    """Columns of a tile of the train features."""
    pictures: Sequence[ImageShape] = field(default=())
    """Shapes of the reconstructions, where they differ from the stimuli."""
    refined: int = 2
    """Baselines that the generator draws."""
    areas: int = 0


def plan_evaluate(shapes: EvaluateShapes, settings: "EvaluateSettings", judges: Sequence["Judge"] = ()) -> int:
    """Bytes of memory that the evaluation of one fold takes beside what the process holds already."""
    compared = PRESETS[settings.preset] or shapes.images
    m, chunk = shapes.test_rows, shapes.chunk
    embedding = [embed_nbytes(judge, (shapes.images, *shapes.pictures), m, chunk) for judge in judges]
    features = [latents_nbytes(m, dims) for dims in shapes.dims.values()]
    largest = max(
        *embedding,
        *features,
        compare_nbytes(compared, m, most_sources(shapes, settings), chunk),
        nearest_nbytes(m, shapes.train_images, shapes.block),
        math.prod(shapes.images) * 24 + 2 * chunk,  # the mean train image
    )
    staying = sum(judge.staying_nbytes for judge in judges)
    return SLACK + bootstrap_nbytes(m, settings.resamples) + staying + largest


def most_sources(shapes: EvaluateShapes, settings: "EvaluateSettings") -> int:
    """How many sets of images are compared with the test stimuli, at most."""
    reconstructions, upper_bounds = 2, 2
    return (
        reconstructions * (1 + shapes.areas)
        + COMPARED_BASELINES
        + shapes.refined
        + settings.permutations
        + upper_bounds
    )


def bootstrap_nbytes(m: int, resamples: int) -> int:
    """Bytes for the figures of one fold: the draws, and the means of some twenty figures twice over."""
    return RESAMPLES_AT_ONCE * m * _FLOAT64 * 4 + resamples * 20 * _FLOAT64 * 4


def compare_nbytes(shape: ImageShape, m: int, sources: int, chunk: int) -> int:
    """Bytes for ``compare_images``; ``chunk`` is a chunk of stimuli in bytes."""
    pixels = shape[0] * shape[1]
    prepared = pixels * (shape[2] + 7 * _FLOAT64)
    work = pixels * (3 * shape[2] + 10) * _FLOAT64
    small = math.prod(identified_shape(shape))
    rows = (shifts(m) + 2) * prepared + workers() * (prepared + work) + 4 * (chunk + pixels * shape[2])
    return rows + (sources + 1) * m * small + identify_nbytes(m, small)


def shifts(m: int) -> int:
    """With how many other stimuli each of ``m`` reconstructions is paired for the chance level."""
    return min(max(m - 1, 0), -(-MISMATCHED // m))


def identified_shape(shape: ImageShape) -> ImageShape:
    """The shape at which images are identified by their pixels."""
    return fitted_into(shape, IDENTIFIED_SIDE) if max(shape[:2]) > IDENTIFIED_SIDE else shape


def workers() -> int:
    """Threads that compare images."""
    return min(os.cpu_count() or 1, 4)


def identify_nbytes(m: int, columns: int) -> int:
    """Bytes for ``identify``: two panels of rows, their correlations, and what reading one takes."""
    rows = panel_rows(m, columns)
    return 3 * rows * columns * _FLOAT32 + rows * rows * (_FLOAT32 + 3) + 16 * m * _FLOAT64


def panel_rows(m: int, columns: int) -> int:
    """Rows of a panel: arithmetic on the shape alone, so that no budget changes a product."""
    return min(m, MOST_ROWS, max(PANEL_NBYTES // (_FLOAT32 * columns), 16))


def latents_nbytes(m: int, dims: int) -> int:
    """Bytes for ``compare_latents``."""
    return max(min(latents_at_once(m), dims) * m * _FLOAT64 * 4, identify_nbytes(m, dims)) + dims * _FLOAT64


def latents_at_once(m: int) -> int:
    """Latents whose R² over ``m`` test rows is computed together."""
    return min(LATENTS, max(LATENTS_NBYTES // (_FLOAT64 * m), 16))


def nearest_nbytes(m: int, n: int, block: int) -> int:
    """Bytes for ``nearest_rows`` of ``m`` predictions among ``n`` train images; ``block`` is the columns of a tile."""
    from leanrecon.stores.matrix import PANEL

    rows = nearest_at_once(m, n)
    return 2 * rows * n * _FLOAT32 + (rows + 3 * PANEL) * block * _FLOAT32 * 2 + (m + n) * 32


def nearest_at_once(m: int, n: int) -> int:
    """Predictions whose correlations with all ``n`` train images are held together."""
    return min(m, max(CORRELATED // (_FLOAT32 * n), 1))


def embed_nbytes(judge: "Judge", shapes: Sequence[ImageShape], m: int, chunk: int) -> int:
    """Bytes for ``embed`` and ``judge_scores`` of images of these shapes; ``chunk`` is a chunk of stimuli in bytes."""
    encoding = max(
        judge.work_nbytes(shape) + (2 * min(judge.batch, EMBEDDED) + 2) * math.prod(shape) for shape in shapes
    )
    comparing = 4 * m * judge.dims * _FLOAT32 + identify_nbytes(m, judge.dims)
    return max(encoding + 4 * EMBEDDED * judge.dims * _FLOAT32, comparing) + READERS * chunk
