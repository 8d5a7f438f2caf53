"""Batch sizes of feature spaces and the memory that they take: arithmetic only."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

FLOAT = 4
"""Bytes of a feature."""

AHEAD = 2
"""Batches of images in memory: one is encoded while the next is read."""

SLACK = 8_000_000
"""Bytes that depend on neither images nor features: a thread, Pillow, small arrays."""


@dataclass(frozen=True)
class Cost:
    """Memory that encoding or decoding takes, beside the images and features themselves."""

    held: int
    """Bytes that do not depend on the batch: weights that are still to be loaded, fixed panels."""
    per_image: int
    """Bytes per image of the batch."""
    batch: int
    """Batch size beyond which it gets no faster."""
    operations: float | None = None
    """Floating-point operations an image, a multiplication and an addition each; None: not counted."""


@dataclass(frozen=True)
class BatchPlan:
    """How features will be encoded or decoded."""

    batch: int
    """Images per batch."""
    work: int
    """Bytes at the peak, beside what the process holds."""


def plan_extract(
    images: Sequence[int],
    image_chunk_rows: int,
    chunks: tuple[int, int],
    dims: int,
    cost: Cost,
    *,
    free: int,
    batch: int | None = None,
) -> BatchPlan:
    """Plan the encoding of images [rows, height, width, channels] (uint8) into float32 rows of ``dims``.

    ``chunks`` is the chunk shape of the feature store. The batch is the largest that fits into ``free`` bytes,
    at most one group of rows; ``batch`` fixes it (as recorded by an earlier run). The smallest batch is one image:
    ``work`` may then exceed ``free``, which the caller refuses.
    """
    rows, image = images[0], math.prod(images[1:])
    group = max(min(chunks[0], rows), 1)
    fixed = (
        _chunk_nbytes(image_chunk_rows * image)
        + group * dims * FLOAT  # the group of rows that is being gathered
        + 2 * chunks[0] * chunks[1] * FLOAT  # a chunk cut out of it and padded, to be written
        + cost.held
        + SLACK
    )
    per_image = AHEAD * image + 2 * dims * FLOAT + cost.per_image  # its row, and a copy to check it
    return _largest(fixed, per_image, min(batch or cost.batch, group), free, batch)


def plan_captions(
    rows: int, chunks: tuple[int, int], dims: int, cost: Cost, *, free: int, batch: int | None = None
) -> BatchPlan:
    """Plan the encoding of the captions of ``rows`` images into float32 rows of ``dims``, as ``plan_extract`` does."""
    return plan_extract((rows, 0), 0, chunks, dims, cost, free=free, batch=batch)


def plan_decode(
    chunks: tuple[int, int],
    rows: int,
    dims: int,
    decoded: Sequence[int],
    cost: Cost,
    *,
    free: int,
    batch: int | None = None,
) -> BatchPlan:
    """Plan the decoding of a float32 store [rows, dims] with these ``chunks`` into uint8 images of shape ``decoded``."""
    group = max(min(chunks[0], rows), 1)
    fixed = _chunk_nbytes(chunks[0] * chunks[1] * FLOAT) + group * dims * FLOAT + cost.held + SLACK
    per_image = 2 * math.prod(decoded) + dims * FLOAT + cost.per_image
    return _largest(fixed, per_image, min(batch or cost.batch, group), free, batch)


def _largest(fixed: int, per_image: int, most: int, free: int, forced: int | None) -> BatchPlan:
    fitting = most if forced else min(most, (free - fixed) // max(per_image, 1))
    batch = max(fitting, 1)
    return BatchPlan(batch, fixed + batch * per_image)


def _chunk_nbytes(nbytes: int) -> int:
    return nbytes + 8192  # its checksum, and whole pages
