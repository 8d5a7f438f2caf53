"""What a generator may learn from: train rows alone, never a test image or a response to one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from leanrecon.images import Array, ImageShape
from leanrecon.stores.matrix import Matrix


@dataclass(frozen=True)
class LearningShapes:
    """Shapes of what a generator learns from, known before anything is read."""

    rows: int
    """Train rows."""
    images: int
    """Different images among them."""
    voxels: int
    dims: Mapping[str, int]
    """Features of each space."""
    first: ImageShape
    """The shape of first images."""
    tile: int = 0
    """Bytes that reading a block of rows takes beside the block."""


@dataclass(frozen=True)
class TrainRows:
    """The train rows of a variant, and what was predicted of each without its own image."""

    features: Mapping[str, Matrix]
    """True features of the train images by space, each image once, [s, dims]."""
    predicted: Mapping[str, Matrix]
    """Predictions of the train rows by the spaces that the generator asks for, [n, dims]."""
    betas: Matrix
    """[n, voxels]"""
    stimulus: Array
    """Which of the s images each row shows, int [n]."""
    first: Callable[[list[int]], Array]
    """First images uint8 [k, height, width, channels] of some rows, ascending, from predictions without their images."""
    shown: Callable[[list[int]], Array]
    """The images that some rows show, at the size of first images."""
    first_shape: ImageShape
    likeness: Callable[[Array, Array], float]
    """How alike an image that was made and the true one are: the mean of their pixel correlation and SSIM."""
