"""Metrics of one reconstruction and one stimulus: free functions on arrays.

Images are uint8 [height, width, channels] of one shape.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from leanrecon.images import GREY

Array = np.ndarray[Any, Any]

_K1, _K2 = 0.01, 0.03  # Wang et al. 2004, section III-B, with a data range of 1
_SIGMA, _RADIUS = 1.5, 5  # their Gaussian window, cut off as scikit-image does at 3.5 sigma


LIT = 128
"""Grey levels from which a pixel counts as lit."""


@dataclass(frozen=True)
class Window:
    """One definition of SSIM: how local means are taken, and the edge that they leave out."""

    radius: tuple[int, ...]
    """Pixels left out at either end of each axis, where the window is not whole."""
    gaussian: bool
    sample: bool
    """Whether variances are divided by one less than the number of pixels."""

    def steps(self) -> list[tuple[bool, int, int]]:
        """What is done one after the other to take local means: Gaussian or not, along which axis, and the radius."""
        return [(self.gaussian, axis, radius) for axis, radius in enumerate(self.radius) if radius]

    @property
    def correction(self) -> float:
        n = int(np.prod([2 * radius + 1 for radius in self.radius]))
        return n / (n - 1) if self.sample else 1.0

    def inner(self, x: Array) -> Array:
        cut = tuple(slice(radius, -radius if radius else None) for radius in self.radius)
        return x[cut]


SSIM = {
    "ssim": Window((_RADIUS, _RADIUS), gaussian=True, sample=False),
    "ssim_1d": Window((_RADIUS, 0), gaussian=True, sample=False),
    "ssim_7x7": Window((3, 3), gaussian=False, sample=True),
}
"""SSIM on grey images (Wang et al. 2004), in the definitions that are in use.

``ssim``: a Gaussian window of sigma 1.5, as the paper has it. ``ssim_1d``: the same along columns alone, which is what
scikit-image up to 0.19 made of ``multichannel=True`` on grey images, and so of published tables. ``ssim_7x7``: a
square window of 7 pixels and sample covariances, scikit-image's default.
"""


SSIM_RGB = "ssim_rgb"
"""``ssim`` of red, green and blue alone, averaged: as torchmetrics has it, and so evaluations of Kamitani's lab."""


def local_means(x: Array, names: Iterable[str]) -> dict[str, Array]:
    """Weighted means over the window around every pixel, by definition of SSIM; a step that two share is taken once."""
    from scipy.ndimage import gaussian_filter1d, uniform_filter1d

    taken: dict[tuple[tuple[bool, int, int], ...], Array] = {(): x}
    for name in names:
        steps = SSIM[name].steps()
        for k, (gaussian, axis, radius) in enumerate(steps):
            before, now = taken[tuple(steps[:k])], tuple(steps[: k + 1])
            if now in taken:
                continue
            if gaussian:
                taken[now] = gaussian_filter1d(before, _SIGMA, axis=axis, radius=radius)
            else:
                taken[now] = uniform_filter1d(before, 2 * radius + 1, axis=axis)
    return {name: taken[tuple(SSIM[name].steps())] for name in names}


def to_grey(image: Array) -> Array:
    """Grey levels from 0 to 1, float64 [height, width]."""
    if image.shape[2] == 1:
        return image[:, :, 0] / 255
    red, green, blue = (weight / 255 for weight in GREY)
    return image[:, :, 0] * red + image[:, :, 1] * green + image[:, :, 2] * blue


@dataclass(frozen=True)
class Plane:
    """One colour of an image, with what SSIM needs of it."""

    grey: Array
    """Its levels from 0 to 1."""
    local: dict[str, tuple[Array, Array]]
    """For each definition of SSIM the local means and variances."""


@dataclass(frozen=True)
class Prepared:
    """An image with all that its metrics need of it alone, so that nothing is computed twice."""

    pixels: Array
    """int64, flat: sums of their products are exact, and start no threads of a library."""
    total: int
    squares: int
    grey: Array
    local: dict[str, tuple[Array, Array]]
    """For each definition of SSIM the local means and variances."""
    colours: tuple[Plane, ...] = ()
    """Red, green and blue, where SSIM is taken of them."""


def prepare(image: Array, metrics: Sequence[str]) -> Prepared:
    """Compute all that the metrics named need of one image alone."""
    pixels = image.reshape(-1).astype(np.int64)
    grey = to_grey(image)
    local = _local(grey, [name for name in metrics if name in SSIM])
    colours: tuple[Plane, ...] = ()
    if SSIM_RGB in metrics:
        planes = (image[:, :, k] / 255 for k in range(image.shape[2]))
        colours = tuple(Plane(plane, _local(plane, ["ssim"])) for plane in planes)
    return Prepared(pixels, int(pixels.sum()), _product(pixels, pixels), grey, local, colours)


def _local(plane: Array, names: Sequence[str]) -> dict[str, tuple[Array, Array]]:
    means, squares = local_means(plane, names), local_means(plane * plane, names)
    return {name: (means[name], SSIM[name].correction * (squares[name] - means[name] ** 2)) for name in names}


def _product(a: Array, b: Array) -> int:
    return int(np.einsum("i,i", a, b))


def pixcorr(a: Prepared, b: Prepared) -> float:
    """Pearson correlation over all pixels and channels; 0 where either image is constant."""
    n = a.pixels.size
    variance_a, variance_b = n * a.squares - a.total**2, n * b.squares - b.total**2
    if variance_a == 0 or variance_b == 0:
        return 0.0
    return (n * _product(a.pixels, b.pixels) - a.total * b.total) / math.sqrt(variance_a * variance_b)


def mse(a: Prepared, b: Prepared) -> float:
    """Mean squared difference over all pixels and channels, from 0 to 1."""
    return (a.squares + b.squares - 2 * _product(a.pixels, b.pixels)) / (a.pixels.size * 255**2)


def accuracy(a: Prepared, b: Prepared) -> float:
    """The share of pixels that are lit in both images or dark in both, where lit is half of the range or more."""
    return float(np.mean((a.pixels >= LIT) == (b.pixels >= LIT)))


def ssim(a: Prepared | Plane, b: Prepared | Plane, name: str, products: Array | None = None) -> float:
    """Structural similarity (Wang et al. 2004, equation 13), averaged over the image, by one of its definitions.

    ``products`` are the local means of the product of both images, where they are known.
    """
    window = SSIM[name]
    products = local_means(a.grey * b.grey, [name])[name] if products is None else products
    (mean_a, var_a), (mean_b, var_b) = a.local[name], b.local[name]
    both = mean_a * mean_b
    covariance = window.correction * (products - both)
    c1, c2 = _K1**2, _K2**2
    top = (2 * both + c1) * (2 * covariance + c2)
    bottom = (mean_a * mean_a + mean_b * mean_b + c1) * (var_a + var_b + c2)
    return float(window.inner(top / bottom).mean())


def pair_metrics(height: int, width: int, *, colours: bool = False, patterns: bool = False) -> list[str]:
    """The metrics that images of a size have: SSIM needs a whole window, and accuracy black and white patterns.

    With ``colours``, SSIM of each colour too.
    """
    names = [name for name, window in SSIM.items() if _holds(window, height, width)]
    names = ["pixcorr", *names, *([SSIM_RGB] if colours and "ssim" in names else []), "mse"]
    return [*names, "accuracy"] if patterns else names


def _holds(window: Window, height: int, width: int) -> bool:
    return all(side > 2 * radius for side, radius in zip((height, width), window.radius, strict=True))


_PLAIN = {"pixcorr": pixcorr, "mse": mse, "accuracy": accuracy}


def compare(reconstruction: Prepared, stimulus: Prepared, metrics: Sequence[str]) -> dict[str, float]:
    """The metrics named, of a reconstruction and a stimulus."""
    products = local_means(reconstruction.grey * stimulus.grey, [name for name in metrics if name in SSIM])
    values = {}
    for name in metrics:
        if name in SSIM:
            values[name] = ssim(reconstruction, stimulus, name, products[name])
        elif name == SSIM_RGB:
            pairs = zip(reconstruction.colours, stimulus.colours, strict=True)
            values[name] = float(np.mean([ssim(ours, theirs, "ssim") for ours, theirs in pairs]))
        else:
            values[name] = _PLAIN[name](reconstruction, stimulus)
    return values
