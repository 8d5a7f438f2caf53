"""First images that are blurred, flat and noisy copies of true ones, as decoders draw them."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from support.images import store_at

from leanrecon.calibration.calibration import CalibrationData


def blobs(n, height, width, channels, seed=0):
    """uint8 images of a few bright shapes on dark ground."""
    rng = np.random.default_rng(seed)
    smooth = gaussian_filter(rng.standard_normal((n, height, width, channels)), (0, 2, 2, 0))
    return np.where(smooth > smooth.std(), 230, 20).astype(np.uint8)


def flattened(true, seed=1):
    """What a decoder makes of them: blurred, at half the contrast, with noise."""
    rng = np.random.default_rng(seed)
    blurred = gaussian_filter(true.astype(float), (0, 1.2, 1.2, 0))
    return np.clip(60 + 0.5 * blurred + 8 * rng.standard_normal(true.shape), 0, 255).astype(np.uint8)


@pytest.fixture
def data_of(tmp_path):
    """Makes ``CalibrationData`` of so many rows and images."""

    def make(rows=60, images=48, shape=(14, 12, 1), chunk=20_000):
        shown = np.concatenate([np.arange(images), np.arange(rows - images)])
        true = blobs(images, *shape)[shown]
        folder = tmp_path / f"{rows}-{images}-{'x'.join(map(str, shape))}-{chunk}"
        stores = (
            store_at(folder / f"{name}.zarr", one, chunk) for name, one in (("first", flattened(true)), ("true", true))
        )
        return CalibrationData(*stores, shown)

    return make
