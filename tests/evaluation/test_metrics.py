"""Figures of pairs of images, against SciPy and scikit-image."""

from typing import Any

import numpy as np
import pytest
from scipy.stats import pearsonr

from leanrecon.evaluation.metrics import compare, pair_metrics, prepare, to_grey

skimage = pytest.importorskip("skimage")
from skimage.color import rgb2gray  # noqa: E402
from skimage.metrics import structural_similarity  # noqa: E402

Array = np.ndarray[Any, Any]

ALL = ["pixcorr", "ssim", "ssim_1d", "ssim_7x7", "mse"]
PAPER: dict[str, Any] = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
SIZES = [(11, 11), (11, 12), (12, 11), (17, 40), (64, 64), (101, 33)]


def pair(height: int, width: int, channels: int, seed: int = 0) -> tuple[Array, Array]:
    """Two images that have something in common."""
    rng = np.random.default_rng([seed, height, width, channels])
    common = rng.integers(0, 180, (height, width, channels))
    one, other = ((common + rng.integers(0, 76, common.shape)).astype(np.uint8) for _ in range(2))
    return one, other


def figures(one: Array, other: Array, names: list[str]) -> dict[str, float]:
    return compare(prepare(one, names), prepare(other, names), names)


def grey(image: Array) -> Array:
    levels: Array = image[:, :, 0] / 255 if image.shape[2] == 1 else rgb2gray(image)
    return levels


def reference(one: Array, other: Array, name: str) -> float:
    if name == "pixcorr":
        return float(pearsonr(one.reshape(-1).astype(float), other.reshape(-1).astype(float)).statistic)
    if name == "mse":
        return float(((one.astype(float) / 255 - other.astype(float) / 255) ** 2).mean())
    how = {"ssim": PAPER, "ssim_1d": PAPER | {"channel_axis": 1}, "ssim_7x7": {"data_range": 1.0}}[name]
    return float(structural_similarity(grey(one), grey(other), **how))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_figures_are_those_of_scipy_and_scikit_image(height: int, width: int, channels: int, name: str) -> None:
    one, other = pair(height, width, channels)
    assert figures(one, other, ALL)[name] == pytest.approx(reference(one, other, name), abs=1e-12)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("height", "width", "name"),
    [(7, 7, "ssim_7x7"), (7, 30, "ssim_7x7"), (11, 1, "ssim_1d"), (11, 3, "ssim_1d"), (11, 11, "ssim")],
)
def test_figures_at_the_smallest_size_they_allow(height: int, width: int, channels: int, name: str) -> None:
    one, other = pair(height, width, channels)
    assert name in pair_metrics(height, width)
    assert figures(one, other, [name])[name] == pytest.approx(reference(one, other, name), abs=1e-12)


@pytest.mark.parametrize(
    ("height", "width", "there"),
    [
        (1, 1, {"pixcorr", "mse"}),
        (6, 6, {"pixcorr", "mse"}),
        (6, 300, {"pixcorr", "mse"}),
        (7, 7, {"pixcorr", "mse", "ssim_7x7"}),
        (10, 11, {"pixcorr", "mse", "ssim_7x7"}),
        (11, 6, {"pixcorr", "mse", "ssim_1d"}),
        (11, 10, {"pixcorr", "mse", "ssim_7x7", "ssim_1d"}),
        (11, 11, set(ALL)),
        (425, 425, set(ALL)),
    ],
)
def test_images_smaller_than_a_window_do_without_its_figure(height: int, width: int, there: set[str]) -> None:
    assert set(pair_metrics(height, width)) == there
    missing = {"ssim", "ssim_7x7"} - there
    for name in missing:  # scikit-image refuses these sizes as well
        with pytest.raises(ValueError, match="win_size"):
            reference(*pair(height, width, 1), name)


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_equals_itself(channels: int) -> None:
    one, _ = pair(20, 24, channels)
    found = figures(one, one.copy(), ALL)
    assert found == pytest.approx({"pixcorr": 1, "ssim": 1, "ssim_1d": 1, "ssim_7x7": 1, "mse": 0}, abs=1e-12)
    assert figures(one, 255 - one, ["pixcorr"])["pixcorr"] == pytest.approx(-1, abs=1e-12)


@pytest.mark.parametrize("level", [0, 7, 254, 255])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_constant_image_correlates_with_nothing(level: int, channels: int) -> None:
    one, _ = pair(33, 21, channels)
    flat = np.full_like(one, level)
    for a, b in ((one, flat), (flat, one), (flat, flat)):
        found = figures(a, b, ALL)
        assert found["pixcorr"] == 0
        for name in ("ssim", "ssim_1d", "ssim_7x7", "mse"):
            assert found[name] == pytest.approx(reference(a, b, name), abs=1e-9)


def test_one_pixel_in_a_large_image_is_not_lost_to_rounding() -> None:
    one = np.full((425, 425, 3), 254, np.uint8)
    other = one.copy()
    one[100, 100, 0] = other[100, 100, 0] = 255
    other[7, 7, 1] = 255
    assert figures(one, other, ["pixcorr"])["pixcorr"] == pytest.approx(reference(one, other, "pixcorr"), abs=1e-5)


def test_colours_weigh_in_grey_as_in_scikit_image() -> None:
    rng = np.random.default_rng(3)
    image = rng.integers(0, 256, (9, 8, 3), np.uint8)
    np.testing.assert_allclose(to_grey(image), rgb2gray(image), atol=1e-15)
    np.testing.assert_allclose(to_grey(image[:, :, :1]), image[:, :, 0] / 255, atol=0)


def test_figures_are_alike_in_both_directions() -> None:
    one, other = pair(16, 19, 3)
    there, back = figures(one, other, ALL), figures(other, one, ALL)
    assert there == pytest.approx(back, abs=1e-14)
