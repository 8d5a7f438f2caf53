"""Attention and convolutions in bfloat16 beside the same in float64 and beside PyTorch's own."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from torch.nn import functional  # noqa: E402

from leanrecon.refinement.diffusion import bfloat16  # noqa: E402
from leanrecon.refinement.diffusion.networks import (  # noqa: E402
    WeightSource,
    build,
    read_part,
)
from leanrecon.refinement.diffusion.offload import place  # noqa: E402

pytestmark = pytest.mark.networks


def of(*shape, spread=1.0, seed=0):
    """Normal numbers in bfloat16."""
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * spread).bfloat16()


def error(found, exact):
    """The root mean square of the error over that of the exact numbers."""
    return float(((found.double() - exact).pow(2).mean() / exact.pow(2).mean()).sqrt())


@pytest.fixture
def everywhere(monkeypatch):
    """Any machine, and networks of any size."""
    monkeypatch.setattr(bfloat16, "multiplies_bfloat16_in_vectors", lambda: True)
    monkeypatch.setattr(bfloat16, "KEYS", 1)
    monkeypatch.setattr(bfloat16, "WEIGHTS_PER_PIXEL", 1)


@pytest.mark.parametrize(("queries", "keys", "width"), [(700, 1100, 40), (64, 2048, 80), (512, 1024, 17)])
@pytest.mark.parametrize(("spread", "most"), [(0.3, 0.003), (1.0, 0.005), (2.0, 0.008), (3.0, 0.009)])
def test_attention_is_exact_up_to_rounding(queries, keys, width, spread, most):
    # From spread 2 on, scores differ by 4 and more: a few keys have all the weight.
    query, key = of(2, queries, 2, width, spread=spread), of(2, keys, 2, width, spread=spread, seed=1) + spread
    value = of(2, keys, 2, width, seed=2)
    query, key, value = (states.transpose(1, 2) for states in (query, key, value))  # as networks split heads
    exact = functional.scaled_dot_product_attention(query.double(), key.double(), value.double())
    found = bfloat16.attention(query, key, value)
    assert found.shape == exact.shape
    assert found.dtype is torch.bfloat16
    assert error(found, exact) < most


def test_centred_scores_lose_less_than_scores_as_they_are():
    query, key, value = (of(1, 1, 1024, 64, spread=spread, seed=k) for k, spread in enumerate((3, 3, 1)))
    exact = functional.scaled_dot_product_attention(query.double(), key.double(), value.double())
    scores = (query @ key.transpose(2, 3)).float() / 8
    assert error(bfloat16.attention(query, key, value), exact) < 0.5 * error(
        scores.bfloat16().softmax(-1) @ value, exact
    )


@pytest.mark.parametrize(("stride", "padding", "kernel"), [(1, 1, 3), (2, 1, 3), (1, 0, 3), ((1, 2), (2, 1), (5, 3))])
@pytest.mark.parametrize("images", [1, 3])
def test_a_convolution_is_exact_up_to_rounding(images, stride, padding, kernel):
    kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
    states = of(images, 24, 9, 8).contiguous(memory_format=torch.channels_last)
    weight, bias = of(40, 24, *kernel, seed=1), of(40, seed=2)
    exact = functional.conv2d(states.double(), weight.double(), bias.double(), stride, padding)
    found = bfloat16.convolution(states, weight, bias, stride, padding)
    assert found.shape == exact.shape
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert error(found, exact) < 0.003  # one rounding to eight bits


@pytest.mark.usefixtures("everywhere")
def test_the_context_takes_what_it_may_and_leaves_the_rest_to_pytorch(monkeypatch):
    taken = []
    for name in ("attention", "convolution"):
        monkeypatch.setattr(bfloat16, name, lambda *_, name=name, **__: taken.append(name))
    q, states, weight = of(1, 2, 8, 4), of(1, 3, 8, 8), of(5, 3, 3, 3)
    mask = torch.ones(8, 8, dtype=torch.bool)
    with bfloat16.faster("bfloat16", "cpu"):
        left = [
            functional.scaled_dot_product_attention(q, q, q, attn_mask=mask),
            functional.scaled_dot_product_attention(q, q, q, is_causal=True),
            functional.scaled_dot_product_attention(q, q, q, scale=0.5),
            functional.scaled_dot_product_attention(q.float(), q.float(), q.float()),
            functional.conv2d(states.float(), weight.float(), torch.zeros(5)),
            functional.conv2d(states, weight[:, :1].repeat(3, 1, 1, 1)[:3], of(3), groups=3),
            functional.conv2d(states, weight, of(5), dilation=2),
            functional.conv2d(states, weight, of(5), padding="same"),
            functional.conv2d(states, weight[..., :1, :1], of(5)),
            functional.conv2d(of(1, 3, 40, 40), weight, of(5)),
        ]
        assert not taken
        assert all(isinstance(found, torch.Tensor) for found in left)
        functional.scaled_dot_product_attention(q, key=q, value=q, attn_mask=None, dropout_p=0.0, is_causal=False)
        functional.conv2d(states, weight, of(5), padding=1)
    assert taken == ["attention", "convolution"]
    for precision, device in (("float32", "cpu"), ("float16", "cuda"), ("bfloat16", "cuda")):
        with bfloat16.faster(precision, device):
            functional.scaled_dot_product_attention(q, q, q)
    assert taken == ["attention", "convolution"]


def test_images_stay_those_of_pytorchs_functions(make, drawn, monkeypatch):
    monkeypatch.setattr(bfloat16, "multiplies_bfloat16_in_vectors", lambda: False)
    expected = drawn(make(precision="bfloat16")).astype(int)
    monkeypatch.setattr(bfloat16, "multiplies_bfloat16_in_vectors", lambda: True)
    assert (drawn(make(precision="bfloat16")) == expected).all()  # the networks are small
    monkeypatch.setattr(bfloat16, "KEYS", 1)
    monkeypatch.setattr(bfloat16, "WEIGHTS_PER_PIXEL", 1)
    called, original = [], bfloat16.attention
    monkeypatch.setattr(bfloat16, "attention", lambda *a, **k: (called.append(1), original(*a, **k))[1])
    found = drawn(make(precision="bfloat16")).astype(int)
    assert called
    assert np.abs(found - expected).mean() < 1
    assert np.abs(found - expected).max() < 20


@pytest.mark.parametrize("which", ["base", "taesd"])
def test_activations_in_place_change_no_number(which, request, tmp_path):
    folder = request.getfixturevalue(which)
    part = read_part(folder, (".", "vae") if which == "taesd" else ("vae",), ("AutoencoderKL", "AutoencoderTiny"), "")
    ours = place(WeightSource(part, "float32"), "none", device="cpu", scratch=tmp_path, content="").network
    plain = build(part)
    plain.load_state_dict(ours.state_dict(), assign=True)
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    kept = image.clone()
    with torch.inference_mode():
        codes = [network.encode(image) for network in (ours, plain)]
        codes = [code.latent_dist.mean if hasattr(code, "latent_dist") else code.latents for code in codes]
        images = [network.decode(codes[1]).sample for network in (ours, plain)]
    assert torch.equal(image, kept)
    assert torch.equal(*codes)
    assert torch.equal(*images)
