"""Betas that tell what was seen: noisy linear responses to the pixels of images of a few shapes."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from support.images import store_at

from leanrecon.decoders.decoder import DecoderData
from leanrecon.stores.matrix import ArrayMatrix


def blobs(n, side, channels, seed=0):
    """uint8 images [n, side, side, channels] of bright shapes on dark ground."""
    rng = np.random.default_rng(seed)
    smooth = gaussian_filter(rng.standard_normal((n, side, side, channels)), (0, side / 6, side / 6, 0))
    return np.where(smooth > smooth.std() / 2, 220, 30).astype(np.uint8)


def responses(images, voxels, noise=0.3, seed=1):
    """float32 [n, voxels]"""
    rng = np.random.default_rng(seed)
    pixels = images.reshape(len(images), -1) / 255 - 0.5
    mixing = rng.standard_normal((pixels.shape[1], voxels)) / pixels.shape[1] ** 0.5
    return (pixels @ mixing + noise * rng.standard_normal((len(images), voxels)) + 3).astype(np.float32)


@pytest.fixture
def data_of(tmp_path):
    """Makes ``DecoderData``; every image is shown as often."""

    def make(images=40, voxels=30, side=16, channels=3, repeats=1, chunk=20_000):
        true = blobs(images, side, channels)
        shown = np.repeat(np.arange(images), repeats)
        store = store_at(tmp_path / f"{images}-{side}-{channels}-{chunk}.zarr", true, chunk)
        betas = ArrayMatrix(responses(true[shown], voxels))
        return DecoderData(betas, store, shown, [f"image {k}" for k in shown], "these data")

    return make
