"""A comparator gives the rows of its feature space or judge, and gradients go through it to the images."""

import sys

import numpy as np
import pytest

from leanrecon.decoders.decoder import DecoderShapes
from leanrecon.decoders.gan import comparator
from leanrecon.decoders.gan.gan import GAN
from leanrecon.decoders.gan.settings import GANSettings
from leanrecon.study.recipes import read_settings
from leanrecon.weights.libraries import IMPORTS_NBYTES
from leanrecon.weights.packaged import FOLDER

pytestmark = pytest.mark.slow


def tables(tmp_path):
    import torch
    from safetensors.torch import save_file
    from support.tiny_networks import Tiny

    demo = read_settings("demo")[0].features["vdvae"].model_dump()
    torch.manual_seed(0)
    save_file(Tiny().state_dict(), tmp_path / "tiny.safetensors")
    return {
        "vdvae": demo,
        "clip-vision": {"kind": "clip-vision", "model": str(FOLDER / "clip"), "form": "embedding"},
        "module": {
            "kind": "module", "builder": "support.tiny_networks:Tiny", "weights": str(tmp_path / "tiny.safetensors"),
            "layer": "second", "size": 64,
        },
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["vdvae", "clip-vision", "module"])
def test_it_gives_the_rows_of_its_kind_and_their_gradients(kind, tmp_path):
    import torch

    settings = GANSettings(comparator=tables(tmp_path)[kind])
    made = comparator.make(settings.comparator, "cpu")
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    rows = made.encode(images, range(2)) if kind != "module" else made.encode(images)
    x = torch.from_numpy(images.transpose(0, 3, 1, 2) / np.float32(255)).requires_grad_()
    found = made.rows_of(x)
    np.testing.assert_allclose(found.detach().numpy(), rows, atol=2e-4 * np.abs(rows).max())
    weights = torch.from_numpy(np.random.default_rng(1).standard_normal(found.shape[1], np.float32))
    (found @ weights).mean().backward()
    direction = torch.sign(x.grad)
    with torch.no_grad():
        there, back = ((made.rows_of(x + step * direction) @ weights).mean() for step in (2e-3, -2e-3))
    assert ((there - back) / 4e-3).item() == pytest.approx((x.grad * direction).sum().item(), rel=0.05)
    other = torch.rand(2, 3, 48, 48, requires_grad=True)  # images of another side are resized
    made.rows_of(other).sum().backward()
    assert made.rows_of(other).shape == found.shape
    assert other.grad.abs().sum() > 0
    assert made.gradient_nbytes(4) > made.gradient_nbytes(1) > 0


@pytest.mark.parametrize(("size", "bicubic"), [((20, 24), False), ((90, 70), False), ((33, 33), True)])
def test_images_are_resized_as_pillow_does_it(size, bicubic):
    import torch
    from PIL import Image

    from leanrecon.weights.libraries import resized

    image = np.random.default_rng(0).integers(70, 186, (50, 61, 3), np.uint8)  # Pillow clips between its passes
    x = torch.from_numpy(image.transpose(2, 0, 1)[None].astype(np.float32))
    found = resized(x, size, bicubic=bicubic)[0].numpy().transpose(1, 2, 0)
    how = Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR
    expected = np.asarray(Image.fromarray(image).resize(size[::-1], how), np.float32)
    assert np.abs(np.clip(found, 0, 255) - expected).max() <= 1.01


@pytest.mark.parametrize("model", ["alexnet", "vgg16"])
def test_torchvision_networks_compare_by_their_last_pooling(model):
    torchvision = pytest.importorskip("torchvision")
    import torch

    settings = GANSettings(comparator=model, size=256, crop=227).comparator
    network = getattr(torchvision.models, model)(weights=None)
    assert type(network.features[int(settings.layer.partition(".")[2])]).__name__ == "MaxPool2d"
    assert network.features(torch.zeros(1, 3, settings.size, settings.size)).shape[1] in (256, 512)


def test_the_plan_counts_the_library_that_a_comparator_brings(monkeypatch):
    autoencoder = {"kind": "autokl", "model": str(FOLDER / "diffusion"), "size": 32}
    decoder, shapes = GAN(GANSettings(size=32, comparator=autoencoder)), DecoderShapes(300, 100, 10, 300, (32, 32, 3))
    for name in ("diffusers", "transformers.modeling_utils"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    before = decoder.plan(shapes, 10**10).work
    monkeypatch.setitem(sys.modules, "diffusers", sys)  # as after it was imported
    assert before - decoder.plan(shapes, 10**10).work == IMPORTS_NBYTES["diffusers"]
