"""Small VDVAEs for the tests: random ones, and ones whose outputs were recorded from the published code."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from leanrecon.features.vdvae import VDVAEConfig
from leanrecon.features.vdvae.config import weight_shapes

SHARED = Path(os.environ.get("LEANRECON_SHARED", Path(__file__).parents[2].parent / "shared"))

SMALL = VDVAEConfig(
    image_size=8,
    enc_blocks="8x1,8d2,4x1,4d4,1x1",
    dec_blocks="1x2,4m1,4x1,8m4,8x1",
    width=8,
    zdim=2,
    num_mixtures=3,
    no_bias_above=4,
)
"""Six latents of 2, 2, 32, 32, 128 and 128 numbers."""


def recorded(name):
    """A file of recorded arrays; skips the test with the reason where it is not there."""
    path = SHARED / "data" / "vdvae" / name
    if not path.exists():
        pytest.skip(f"the recorded arrays of the published code are not at {path} (set LEANRECON_SHARED)")
    return path


def recorded_config(name):
    sizes = json.loads(recorded(name).read_text())
    return VDVAEConfig(**{key: sizes[key] for key in VDVAEConfig.__dataclass_fields__})


def random_weights(config=SMALL, seed=0):
    """Weights that keep activations at a scale of about 1; no two are equal."""
    import torch

    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in weight_shapes(config).items():
        scale = 1 / math.sqrt(math.prod(shape[1:])) if name.endswith("weight") else 0.1
        if "_blocks." in name and ("c4" in name or "z_proj" in name):
            scale /= math.sqrt(len(config.decoder))  # outputs of the blocks, as in the published initialisation
        numbers = rng.standard_normal(shape, np.float32) * np.float32(scale)
        weights[name] = torch.from_numpy(numbers + np.float32(name == "decoder.gain"))
    return weights


def random_images(n, size=8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), np.uint8)
