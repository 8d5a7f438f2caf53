"""Feature spaces with gradients: the same rows and images as without, right derivatives, and what they keep."""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import torch
from support.vdvae_models import SMALL, random_weights

from leanrecon.features.space import make_space
from leanrecon.weights.libraries import exact_gradients
from leanrecon.weights.packaged import FOLDER

pytestmark = pytest.mark.networks

SPACES = {
    "autokl": {"model": str(FOLDER / "diffusion"), "size": 64},
    "clip-vision": {"model": str(FOLDER / "clip"), "form": "embedding"},
    "vdvae": {"n_latents": 5, "latents": "mean", "config": SMALL.as_table()},
}


@pytest.fixture(params=SPACES)
def space(request, tmp_path):
    table = dict(SPACES[request.param])
    if request.param == "vdvae":
        torch.save(random_weights(), tmp_path / "vdvae.pth")
        table["checkpoint"] = str(tmp_path / "vdvae.pth")
    return make_space(request.param, table)


def images(side):
    rng = np.random.default_rng(2)
    return np.kron(rng.integers(40, 210, (2, 4, 4, 3)), np.ones((1, side // 4, side // 4, 1))).astype(np.uint8)


def pixels(images):
    return torch.tensor(images.transpose(0, 3, 1, 2) / np.float32(255), dtype=torch.float32)


def kept(call):
    """What a call gives, and the bytes of the states that autograd keeps of it beside weights."""
    storages = {}

    def pack(tensor):
        if tensor.requires_grad or tensor.grad_fn is not None:
            storages[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = call()
    return out, sum(tensor.untyped_storage().nbytes() for tensor in storages.values())


def test_rows_and_images_are_those_without_gradients(space):
    side = 8 if space.name == "vdvae" else 64
    found = images(side)
    rows = space.encode(found, range(2))
    with exact_gradients("cpu"):
        assert space.rows_of(pixels(found)).numpy() == pytest.approx(rows, abs=2e-5 * float(np.abs(rows).max()))
    if space.decodes:
        decoded = space.decode(rows, range(2), (side, side, 3)).astype(int)
        with exact_gradients("cpu"):
            again = space.pixels_of(torch.tensor(rows)).permute(0, 2, 3, 1).numpy() * 255
        assert np.abs(again - decoded).max() <= 1.01


def test_derivatives_are_those_of_finite_differences(space):
    side = 8 if space.name == "vdvae" else 64
    seen, rng = pixels(images(side)), np.random.default_rng(4)
    directions = torch.tensor(rng.standard_normal(seen.shape), dtype=torch.float32)
    with exact_gradients("cpu"):
        seen.requires_grad_(True)
        rows = space.rows_of(seen)
        weights = torch.tensor(rng.standard_normal(rows.shape), dtype=torch.float32)
        gradient = torch.autograd.grad((rows * weights).sum(), seen)[0]
        expected = float((gradient * directions).sum())
        step = 1e-3
        ends = [float((space.rows_of(seen.detach() + sign * step * directions) * weights).sum()) for sign in (1, -1)]
    assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(expected, rel=0.05, abs=0.02 * float(gradient.norm()))


def test_states_that_wait_for_a_gradient_are_planned(space):
    side = 8 if space.name == "vdvae" else 64
    with exact_gradients("cpu"):
        seen = pixels(images(side)).requires_grad_(True)
        rows, encoding = kept(lambda: space.rows_of(seen))
    assert 0.3 <= encoding / 2 / space.gradient_cost("encode").per_image <= 1
    if space.decodes:
        latents = rows.detach().requires_grad_(True)
        with exact_gradients("cpu"):
            _, decoding = kept(lambda: space.pixels_of(latents))
        assert 0.3 <= decoding / 2 / space.gradient_cost("decode").per_image <= 1


def test_larger_images_are_seen_as_pillow_shrinks_them(space):
    if space.name != "vdvae":
        pytest.skip("its resize is the same function")
    large = images(64)
    rows = space.encode(large, range(2))
    with exact_gradients("cpu"):
        again = space.rows_of(pixels(large)).numpy()
    assert np.abs(again - rows).max() < 0.05 * np.abs(rows).max()  # Pillow rounds to levels
