"""Memory that the decoder takes: arithmetic on shapes."""

from dataclasses import dataclass

from leanrecon.alignment.grams import gram_nbytes, reading_nbytes
from leanrecon.alignment.ridge import eigen_nbytes
from leanrecon.decoders.gan.network import (
    discriminator_layers,
    discriminator_weights,
    generator_layers,
    generator_weights,
)
from leanrecon.stores.layout import PANEL
from leanrecon.stores.windows import window_rows

FLOAT, DOUBLE = 4, 8

CHUNK_NBYTES = 8_000_000
"""Bytes of a chunk of images that is read at once."""

TORCH_NBYTES = 230_000_000
"""Bytes that PyTorch and SciPy keep in the process once a network was trained: 218 MB measured with a tiny one."""

FOLDED = 512
"""Rows of the first layer that are brought back to voxels together."""

COPIES = 4
"""Copies of weights while they learn: with gradients and both moments."""

ACTIVATIONS = 2.0
"""Numbers that are held for each number that a layer gives: it, and gradients. Activations overwrite what they are of."""


MOST_HELD = 1024
"""Rows that are held out at most."""


def count_held(n: int, share: float) -> int:
    """How many train rows are held out at least."""
    return min(max(round(share * n), 2), MOST_HELD) if share else 0


def takes_rows(n: int, p: int) -> bool:
    """Whether directions are found from products of rows: there are fewer rows to learn from than voxels."""
    return n < p


@dataclass(frozen=True)
class Sizes:
    """What decides the memory of a training."""

    n: int
    """Train rows."""
    p: int
    """Voxels."""
    image_nbytes: int
    """Bytes of an image as it is stored, with those of a chunk."""
    size: int
    side: int
    framed: int
    width: int
    hidden: int
    discriminator: int | None
    """Channels of the discriminator's first layer; None: there is none."""
    batch: int
    at_once: int
    recomputes: bool
    """Whether the generator's activations are let go until its gradients are computed."""
    averages: bool
    reduction: str
    held: int
    """Train rows that are held out."""
    compare: int
    """Bytes of the comparator: weights, and what an image takes times the images at once."""

    @property
    def fit(self) -> int:
        return max(self.n - self.held, 1)

    @property
    def reduces(self) -> bool:
        """Whether coordinates are kept in memory."""
        return self.reduction == "pca" or (self.reduction == "exact" and takes_rows(self.fit, self.p))

    @property
    def dims(self) -> int:
        """Most numbers of an input."""
        return min(self.fit, self.p) if self.reduces else self.p

    @property
    def weights(self) -> int:
        """Weights of the generator that learns."""
        return generator_weights(self.dims, self.hidden, self.size, self.width)

    @property
    def kept(self) -> int:
        """Weights of the generator over voxels, which is kept."""
        return generator_weights(self.p, self.hidden, self.size, self.width)


def phases(sizes: Sizes) -> dict[str, int]:
    """Bytes of each phase, beside what the process holds."""
    coordinates = sizes.n * sizes.dims * FLOAT if sizes.reduces else 0
    axes = sizes.p * sizes.dims * FLOAT if sizes.reduces and not takes_rows(sizes.fit, sizes.p) else 0
    moments = 3 * sizes.p * DOUBLE + PANEL * sizes.p * FLOAT
    learned = TORCH_NBYTES + coordinates + axes + moments
    fold = 0
    if sizes.reduces:
        fold = sizes.hidden * sizes.p * FLOAT + (FOLDED * sizes.p * DOUBLE * 2) + sizes.fit * sizes.hidden * FLOAT
        fold += sizes.fit * sizes.dims * FLOAT
    return {
        "reduce": moments + coordinates + axes + (reducing_nbytes(sizes) if sizes.reduces else 0),
        "train": learned + training_nbytes(sizes) + sizes.compare,
        "fold": learned + sizes.weights * FLOAT + fold,
        "decode": TORCH_NBYTES + 2 * sizes.kept * FLOAT + _activations(sizes, discriminates=False),
    }


def reducing_nbytes(sizes: Sizes) -> int:
    """Bytes of products of rows or of voxels, their eigenvectors, and what LAPACK works in."""
    if not takes_rows(sizes.fit, sizes.p):
        return eigen_nbytes(sizes.p) + 2 * PANEL * sizes.p * FLOAT
    return gram_nbytes(sizes.n, kept=True) + reading_nbytes(sizes.n, sizes.p) + eigen_nbytes(sizes.fit)


def training_nbytes(sizes: Sizes) -> int:
    """Bytes of weights, a window of rows, and the activations of the rows at once."""
    other = 0 if sizes.discriminator is None else discriminator_weights(sizes.side, sizes.discriminator)
    weights = (sizes.weights + other) * COPIES + (sizes.weights if sizes.averages else 0)
    row = 3 * sizes.framed**2 + FLOAT * sizes.dims
    window = min(window_rows(row, sizes.batch), sizes.fit) * row
    batch = sizes.batch * (2 * sizes.dims + 3 * 3 * sizes.side**2) * FLOAT
    activations = sizes.at_once * _activations(sizes, discriminates=sizes.discriminator is not None)
    return weights * FLOAT + window + batch + activations + 2 * sizes.image_nbytes


def _activations(sizes: Sizes, *, discriminates: bool) -> int:
    """Bytes of the activations of an image."""
    made = sum(layer.numbers for layer in generator_layers(sizes.size, sizes.width)) + 3 * sizes.hidden
    told = 0
    if discriminates and sizes.discriminator is not None:
        told = 2 * sum(layer.numbers for layer in discriminator_layers(sizes.side, sizes.discriminator))
    numbers = max(made, told) if sizes.recomputes else made + told
    return int(ACTIVATIONS * (numbers + 6 * sizes.side**2) * FLOAT)


def summary(sizes: Sizes, epochs: int) -> str:
    """What is done, in words."""
    inputs = f"{sizes.dims:,} directions of {sizes.p:,} voxels" if sizes.reduces else f"{sizes.p:,} voxels"
    beside = "" if sizes.discriminator is None else " beside a discriminator"
    return (
        f"generator of {sizes.weights:,} weights from {inputs} to {sizes.side} pixels{beside}, "
        f"{epochs} epochs of {sizes.fit:,} rows at most"
    )
