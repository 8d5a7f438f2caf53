"""Operations of networks as plans count them, against PyTorch's own counter of what runs."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from support.published_models import write_image_encoder  # noqa: E402
from support.vdvae_models import SMALL, random_images, random_weights  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from leanrecon.features.clip import CLIPVision, CLIPVisionSettings  # noqa: E402
from leanrecon.features.panels import PANEL  # noqa: E402
from leanrecon.features.vdvae import VDVAE  # noqa: E402
from leanrecon.features.vdvae.config import VDVAEConfig, decoding_weights, encoding_weights, operations  # noqa: E402

pytestmark = pytest.mark.networks


@pytest.mark.parametrize("latents", [1, 3, 6])
def test_operations_of_a_vdvae_are_those_that_run(latents):
    model = VDVAE(SMALL, random_weights())
    with FlopCounterMode(display=False) as counted:
        rows = model.encode(random_images(PANEL), latents)
    assert PANEL * operations(SMALL, encoding_weights(SMALL, latents)) == counted.get_total_flops()
    with FlopCounterMode(display=False) as counted:
        model.decode(rows)
    assert PANEL * operations(SMALL, decoding_weights(SMALL)) == counted.get_total_flops()


def test_operations_of_the_published_vdvae_are_told_without_weights():
    config = VDVAEConfig.imagenet64()
    assert 10e9 < operations(config, encoding_weights(config, 31)) < operations(config, encoding_weights(config, 75))


def test_operations_of_clip_are_those_that_run(tmp_path):
    space = CLIPVision(CLIPVisionSettings(model=str(write_image_encoder(tmp_path)), form="versatile"))
    images = np.random.default_rng(0).integers(0, 256, (PANEL, 32, 32, 3), np.uint8)
    planned = space.cost((32, 32, 3)).operations
    space._model().set_attn_implementation("eager")  # in plain products, which are counted
    with FlopCounterMode(display=False) as counted:
        space.encode(images, range(PANEL))
    assert PANEL * planned == counted.get_total_flops()
