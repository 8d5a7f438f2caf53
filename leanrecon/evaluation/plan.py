"""Memory that the stage evaluate takes: arithmetic on shapes; nothing is read."""

import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from leanrecon.images import ImageShape, fitted_into
from leanrecon.study.protocols import PROTOCOLS

if TYPE_CHECKING:
    from leanrecon.evaluation.judges.judge import Judge
    from leanrecon.study.evaluate_settings import EvaluateSettings

CANDIDATES_AT_ONCE = 2048
"""Random patterns that are drawn together, among which reconstructions of patterns are identified; decides their numbers."""

SLACK = 30_000_000
"""Bytes of SciPy's filters, of Pillow, and of threads."""

RESAMPLES_AT_ONCE = 256
"""Bootstrap resamples that are drawn together, at most."""

DRAWN_AT_ONCE = 1_000_000
"""Draws of test images that are held at once, if a single resample takes no more."""

PATTERN_SIDE = 32
"""Images of more pixels a side are never taken as patterns."""

IDENTIFIED_SIDE = 64
"""Images are identified by their pixels at this many pixels a side at most; larger ones are averaged down."""

MISMATCHED = 256
"""The chance level is taken over this many pairs of a reconstruction and another stimulus, or over all there are."""

MISMATCHED_PIXELS = 4_000_000
"""Pixels of these pairs at most, unless one pair for each row takes more: large images cost 25 ms a pair and metric."""

POOLED = 64
"""Rows of a panel at least, where a fold of few rows is compared with the test rows of all folds."""

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

PATTERN_CONSTANTS = 3
"""Constant images that patterns are compared with as well."""

COMPARED_BASELINES = 4
"""Baselines that need no generator: mean, random and nearest train image, shuffled betas."""

_FLOAT32, _FLOAT64 = 4, 8
_IDENTIFIED = 4  # scores of identification by one description of images


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
    final: ImageShape | None = None
    """The shape of the final images; None: that of the stimuli."""
    areas: int = 0
    pooled_rows: int = 0
    """Test rows of all folds; 0: there is one split."""


def compared_shape(preset: str, images: ImageShape, final: ImageShape | None) -> ImageShape:
    """The shape that images are brought to before pixels are compared."""
    protocol = PROTOCOLS[preset]
    if protocol.size is not None:
        return protocol.size, protocol.size, 3
    if protocol.of_reconstruction and final is not None:
        return *final[:2], images[2]
    return images


def plan_evaluate(shapes: EvaluateShapes, settings: "EvaluateSettings", judges: Sequence["Judge"] = ()) -> int:
    """Bytes of memory that the evaluation of one fold takes beside what the process holds already."""
    compared = compared_shape(settings.preset, shapes.images, shapes.final)
    m, chunk = shapes.test_rows, shapes.chunk
    together = max(m, min(shapes.pooled_rows, POOLED))
    every = max(m, shapes.pooled_rows)
    embedding = [embed_nbytes(judge, (shapes.images, *shapes.pictures), together, chunk) for judge in judges]
    if shapes.pooled_rows:  # the stimuli of all folds are read too
        embedding = [nbytes + chunk for nbytes in embedding]
    features = [latents_nbytes(together, dims, every) for dims in shapes.dims.values()]
    sources = most_sources(shapes, settings)
    largest = max(
        *embedding,
        *features,
        compare_nbytes(compared, m, sources, chunk, together, colours=PROTOCOLS[settings.preset].ssim == "ssim_rgb"),
        nearest_nbytes(m, shapes.train_images, shapes.block),
        math.prod(shapes.images) * 24 + 2 * chunk,  # the mean train image
        pattern_nbytes(m, shapes.images),
    )
    staying = staying_nbytes(judges) + scores_nbytes(every, sources, shapes.dims, judges)
    if settings.blend:  # a final and a first image in float64, for every thread that reads them
        largest += (workers() + 1) * math.prod(shapes.final or shapes.images) * 3 * _FLOAT64
    return SLACK + bootstrap_nbytes(every, settings.resamples) + staying + largest


def plan_features(dims: Mapping[str, int], m: int, total: int, every: int, areas: int, resamples: int) -> int:
    """Bytes of memory that comparing features alone takes beside what the process holds already.

    ``dims`` are the features of every space, ``m`` the test rows of the largest fold, ``total`` those of all folds and
    ``every`` how many are compared with each other; ``areas`` counts all voxels as one.
    """
    together = max(m, min(every, POOLED))
    compared = max(latents_nbytes(together, width, every) for width in dims.values())
    scores = areas * len(dims) * (2 + _IDENTIFIED) * _FLOAT64 * total
    vectors = 4 * areas * sum(dims.values()) * _FLOAT64
    lines = total * (250 + 120 * len(dims) * (2 + _IDENTIFIED))  # of the table of scores, as dicts
    return SLACK + bootstrap_nbytes(total, resamples) + compared + scores + vectors + lines


def pattern_nbytes(m: int, shape: ImageShape) -> int:
    """Bytes for identifying ``m`` patterns among random ones; 0 for images that are none."""
    if not may_be_patterns(shape):
        return 0
    pixels, drawn = math.prod(shape), CANDIDATES_AT_ONCE
    return drawn * (pixels * 4 * _FLOAT32 + min(m, drawn) * (_FLOAT32 + 1)) + m * (pixels * 20 + 200)


def may_be_patterns(shape: ImageShape) -> bool:
    """Whether images of a shape may be black and white patterns: small and grey."""
    return shape[2] == 1 and max(shape[:2]) <= PATTERN_SIDE


def staying_nbytes(judges: Sequence["Judge"]) -> int:
    """Bytes that stay in the process once these judges were used: a library that several share counts once."""
    libraries: dict[str, int] = {}
    for judge in judges:
        for name, nbytes in (getattr(judge, "libraries", None) or {judge.name: judge.staying_nbytes}).items():
            libraries[name] = max(libraries.get(name, 0), nbytes)
    return sum(libraries.values())


def scores_nbytes(m: int, sources: int, spaces: Collection[str], judges: Sequence["Judge"]) -> int:
    """Bytes of all scores of ``m`` test rows, of their stimulus ids, and of the checksums of reconstructions."""
    figures = sources * (5 + _IDENTIFIED + 2 + _IDENTIFIED + _IDENTIFIED * len(judges))
    figures += (sources // 2) * len(spaces) * (2 + 2 * _IDENTIFIED)  # with retrieval
    return m * (figures * _FLOAT64 + 200 + 150 * sources)


def spool_nbytes(shapes: EvaluateShapes, settings: "EvaluateSettings") -> int:
    """Bytes on disk, for a while, of the images that are identified by their pixels."""
    small = math.prod(identified_shape(compared_shape(settings.preset, shapes.images, shapes.final)))
    return (most_sources(shapes, settings) + 1) * max(shapes.test_rows, shapes.pooled_rows) * small


def most_sources(shapes: EvaluateShapes, settings: "EvaluateSettings") -> int:
    """How many sets of images are compared with the test stimuli, at most."""
    reconstructions, upper_bounds = 2, 2
    return (
        reconstructions * (1 + shapes.areas)
        + COMPARED_BASELINES
        + shapes.refined
        + settings.permutations
        + upper_bounds
        + (PATTERN_CONSTANTS if may_be_patterns(shapes.images) else 0)
    )


def bootstrap_nbytes(m: int, resamples: int) -> int:
    """Bytes for the figures of ``m`` test rows: the draws, and the means of some twenty figures twice over."""
    return resamples_at_once(m) * m * _FLOAT64 * 4 + 20 * (m + 4 * resamples) * _FLOAT64


def resamples_at_once(m: int) -> int:
    """Resamples of ``m`` test images that are drawn together: arithmetic on the shape, so that no budget changes a draw."""
    return min(RESAMPLES_AT_ONCE, max(DRAWN_AT_ONCE // m, 1))


def compare_nbytes(shape: ImageShape, m: int, sources: int, chunk: int, together: int, *, colours: bool) -> int:
    """Bytes for ``compare_images`` of ``sources`` sets of images, and for identifying them by their pixels.

    ``chunk`` is a chunk of stimuli in bytes; ``together`` are the rows of a panel at least, where rows are pooled;
    ``colours`` says whether SSIM is taken of every colour.
    """
    pixels = shape[0] * shape[1]
    prepared = pixels * (shape[2] + 7 * _FLOAT64 + (3 * shape[2] * _FLOAT64 if colours else 0))
    work = pixels * (3 * shape[2] + 13) * _FLOAT64
    small = math.prod(identified_shape(shape))
    at_work = min(workers(), sources)
    rows = (shifts(m, pixels) + 3) * prepared + at_work * (prepared + work) + 4 * (chunk + pixels * shape[2])
    return max(rows, identify_nbytes(max(m, together), small))


def shifts(m: int, pixels: int = 1) -> int:
    """With how many other stimuli each of ``m`` reconstructions of so many pixels is paired for the chance level."""
    pairs = min(MISMATCHED, MISMATCHED_PIXELS // pixels)
    return min(m - 1, max(-(-pairs // m), 1))


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


def latents_nbytes(m: int, dims: int, every: int) -> int:
    """Bytes for ``compare_latents``, of ``m`` rows at once and of ``every`` row there is."""
    every = max(m, every)
    errors = min(latents_at_once(every), dims) * every * _FLOAT64 * 4
    return max(errors, identify_nbytes(m, dims)) + 4 * dims * _FLOAT64


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
    encoding = max(encode_nbytes(judge, shape) for shape in shapes)
    # Rows are gathered from chunks of EMBEDDED rows, a panel at a time.
    read = (2 * panel_rows(m, judge.dims) + 2 * min(m, EMBEDDED)) * judge.dims * _FLOAT32
    comparing = read + identify_nbytes(m, judge.dims)
    return max(encoding, comparing) + READERS * chunk


def encode_nbytes(judge: "Judge", shape: ImageShape) -> int:
    """Bytes for the embeddings of images of a shape, beside the chunks that these are read from."""
    images = (2 * min(judge.batch, EMBEDDED) + 2) * math.prod(shape)
    return judge.work_nbytes(shape) + images + 4 * EMBEDDED * judge.dims * _FLOAT32
