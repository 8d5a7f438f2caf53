"""Pixel figures of every preset, against independent scripts over Pillow, PyTorch and scikit-image, on fifty images."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from leanrecon.context import Context
from leanrecon.evaluation.comparison import Fitting, compare_images
from leanrecon.evaluation.image_sources import Blended
from leanrecon.evaluation.metrics import SSIM_RGB
from leanrecon.evaluation.pool import Spool
from leanrecon.study.protocols import PROTOCOLS

skimage = pytest.importorskip("skimage")
from skimage.color import rgb2gray  # noqa: E402
from skimage.metrics import structural_similarity  # noqa: E402

Array = np.ndarray[Any, Any]

M = 50
PAPER: dict[str, Any] = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}


class Images:
    content = "x"

    def __init__(self, images: Array) -> None:
        self.images = images

    def read(self, row: int) -> Array:
        image: Array = self.images[row]
        return image

    def numbers(self, m: int) -> Array:
        return np.arange(m)


def smooth(m: int, side: int, seed: int) -> Array:
    rng = np.random.default_rng([seed, m])
    coarse = rng.integers(0, 256, (m, 7, 7, 3), np.uint8)
    return np.stack(
        [np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)) for image in coarse]
    )


def scores(preset: str, drawn: Array, seen: Array, size: int) -> dict[str, Array]:
    protocol = PROTOCOLS[preset]
    fit = Fitting((size, size, 3), protocol.resample, protocol.through, protocol.ssim == SSIM_RGB)
    with tempfile.TemporaryDirectory() as folder, Spool(Path(folder)) as spool:
        names = [str(k) for k in range(len(seen))]
        found, _ = compare_images({"x": Images(drawn)}, Images(seen), names, fit, Context.of(), spool)
    rows: dict[str, Array] = found["x"].scores.rows
    return rows


def pixcorr(a: Array, b: Array) -> float:
    return float(np.corrcoef(a.reshape(-1), b.reshape(-1))[0, 1])


@pytest.mark.slow
def test_brain_diffuser_s() -> None:
    seen, drawn = smooth(M, 425, 0), smooth(M, 512, 1)
    drawn = (drawn // 2 + np.stack([np.asarray(Image.fromarray(i).resize((512, 512))) for i in seen]) // 2).astype(
        np.uint8
    )
    found = scores("bd2023", drawn, seen, 425)
    for k in range(M):
        resized = np.asarray(Image.fromarray(drawn[k]).resize((425, 425)))  # bicubic by default
        assert found["pixcorr"][k] == pytest.approx(pixcorr(resized / 255, seen[k] / 255), abs=1e-9)
        ssim = structural_similarity(rgb2gray(seen[k]), rgb2gray(resized), channel_axis=1, **PAPER)
        assert found["ssim_1d"][k] == pytest.approx(ssim, abs=1e-9)


@pytest.mark.slow
@pytest.mark.networks
@pytest.mark.parametrize("preset", ["mindeye2", "brainit"])
def test_mindeye2_s(preset: str) -> None:
    torch = pytest.importorskip("torch")
    seen, drawn = smooth(M, 425, 2), smooth(M, 300, 3)

    def resized(image: Array) -> Array:
        tensor = torch.from_numpy(image.transpose(2, 0, 1).copy()).float()[None] / 255
        for side in (256, 425):
            tensor = torch.nn.functional.interpolate(tensor, (side, side), mode="bilinear", align_corners=False)
        result: Array = tensor[0].numpy().transpose(1, 2, 0)
        return result

    rows = 10 if preset == "brainit" else M
    found = scores(preset, drawn[:rows], seen[:rows], 425)
    for k in range(rows):
        a, b = resized(drawn[k]), resized(seen[k])
        assert found["pixcorr"][k] == pytest.approx(pixcorr(a, b), abs=1e-4)  # levels are rounded
        ssim = structural_similarity(rgb2gray(b), rgb2gray(a), **PAPER)
        assert found["ssim"][k] == pytest.approx(ssim, abs=2e-3)


@pytest.mark.slow
def test_kamitani_s() -> None:
    seen, drawn = smooth(M, 300, 4), smooth(M, 112, 5)
    found = scores("kamitani", drawn, seen, 112)
    for k in range(M):
        resized = np.asarray(Image.fromarray(seen[k]).resize((112, 112), Image.Resampling.BILINEAR))
        ssim = structural_similarity(resized / 255, drawn[k] / 255, channel_axis=2, **PAPER)
        assert found["ssim_rgb"][k] == pytest.approx(ssim, abs=1e-9)
        assert found["pixcorr"][k] == pytest.approx(pixcorr(resized, drawn[k]), abs=1e-9)


def test_a_share_of_first_images_is_mixed_in() -> None:
    final, first = smooth(3, 20, 6), smooth(3, 10, 7)
    mixed = Blended(Images(final), Images(first), 0.25)
    for k in range(3):
        larger = np.asarray(Image.fromarray(first[k]).resize((20, 20), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(mixed.read(k), np.rint(0.75 * final[k] + 0.25 * larger))
    assert mixed.content != Blended(Images(final), Images(first), 0.5).content
