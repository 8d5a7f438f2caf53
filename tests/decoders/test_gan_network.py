"""The generator and the discriminator have the published layers, at the published size and at smaller ones."""

import math

import pytest

from leanrecon.decoders.gan.network import (
    discriminator,
    discriminator_layers,
    discriminator_weights,
    generator,
    generator_layers,
    generator_weights,
)

PUBLISHED = [
    # name, kernel, stride, channels, side, numbers of its kernel (net_templates/generator.prototxt)
    ("deconv5", 4, 2, 256, 8, 256 * 256 * 16),
    ("conv5_1", 3, 1, 512, 8, 256 * 512 * 9),
    ("deconv4", 4, 2, 256, 16, 512 * 256 * 16),
    ("conv4_1", 3, 1, 256, 16, 256 * 256 * 9),
    ("deconv3", 4, 2, 128, 32, 256 * 128 * 16),
    ("conv3_1", 3, 1, 128, 32, 128 * 128 * 9),
    ("deconv2", 4, 2, 64, 64, 128 * 64 * 16),
    ("deconv1", 4, 2, 32, 128, 64 * 32 * 16),
    ("deconv0", 4, 2, 3, 256, 32 * 3 * 16),
]
LINEAR = (9919 + 1) * 4096 + 2 * (4096 + 1) * 4096  # defc7, defc6, defc5 and their biases


def test_the_generator_has_the_published_layers():
    found = [(la.name, la.kernel, la.stride, la.out, la.side, la.weights) for la in generator_layers(256, 256)]
    assert found == PUBLISHED
    assert generator_weights(9919, 4096, 256, 256) == LINEAR + sum(weights for *_, weights in PUBLISHED)


def test_the_discriminator_has_the_published_layers():
    found = [(la.name, la.kernel, la.stride, la.out, la.side) for la in discriminator_layers(227, 32)]
    assert found == [
        ("Dconv1", 7, 4, 32, 56), ("Dconv2", 5, 1, 64, 52), ("Dconv3", 3, 2, 128, 25), ("Dconv4", 3, 1, 256, 23),
        ("Dconv5", 3, 2, 256, 11),
    ]  # fmt: skip
    kernels = 3 * 32 * 49 + 32 * 64 * 25 + 64 * 128 * 9 + 128 * 256 * 9 + 256 * 256 * 9
    assert discriminator_weights(227, 32) == kernels + 32 + 64 + 128 + 256 + 256 + 257 * 256 + 257 * 2


@pytest.mark.parametrize(("size", "doublings", "count"), [(32, 3, 5), (64, 4, 7), (128, 5, 8), (256, 6, 9)])
def test_smaller_generators_leave_out_the_last_layers(size, doublings, count):
    layers = generator_layers(size, 64)
    assert sum(layer.stride == 2 for layer in layers) == doublings
    assert (len(layers), layers[-1].side, layers[-1].out) == (count, size, 3)
    assert [layer.given for layer in layers[1:]] == [layer.out for layer in layers[:-1]]


@pytest.mark.parametrize("side", [24, 28, 32, 48, 59, 64, 100, 128, 224])
def test_every_side_leaves_the_discriminator_something(side):
    assert all(layer.side >= 1 for layer in discriminator_layers(side, 8))


@pytest.mark.slow
@pytest.mark.parametrize(("size", "side"), [(32, 32), (32, 24), (64, 64), (128, 113), (256, 227)])
def test_the_networks_are_as_the_arithmetic_says(size, side):
    import torch

    made = generator(50, hidden=16, size=size, width=32)
    told = discriminator(side, 8)
    assert sum(p.numel() for p in made.parameters()) == generator_weights(50, 16, size, 32)
    assert sum(p.numel() for p in told.parameters()) == discriminator_weights(side, 8)
    sides = {}
    for name, module in [*made.named_children(), *told.named_children()]:
        module.register_forward_hook(lambda m, i, output, name=name: sides.update({name: output.shape}))
    images = made(torch.randn(2, 50))
    assert images.shape == (2, 3, size, size)
    assert told(images[:, :, :side, :side]).shape == (2, 2)
    for layer in [*generator_layers(size, 32), *discriminator_layers(side, 8)]:
        assert sides[layer.name] == (2, layer.out, layer.side, layer.side)
    slopes = {module.negative_slope for module in made.modules() if hasattr(module, "negative_slope")}
    assert slopes == {0.3}
    assert not any("bias" in name for name, _ in made.named_parameters() if "conv" in name)


@pytest.mark.slow
def test_weights_begin_as_published():
    import torch

    torch.manual_seed(0)
    made, told = generator(400, hidden=300, size=64, width=64, voxels=900), discriminator(64, 16)
    expected = {
        "defc7": math.sqrt(2 / 900), "defc6": math.sqrt(2 / 300), "deconv5": 1.8 * math.sqrt(2 / (64 * 16)),
        "conv5_1": 0.9 * math.sqrt(2 / (64 * 9)), "Dconv1": 0.1 * math.sqrt(2 / (3 * 49)),
        "Dconv4": math.sqrt(2 / (64 * 9)), "Dfc6": 0.1 * math.sqrt(2 / 128),
    }  # fmt: skip
    named = {**dict(made.named_children()), **dict(told.named_children())}
    for name, deviation in expected.items():
        assert named[name].weight.std().item() == pytest.approx(deviation, rel=0.05), name
    assert all(
        module.bias.abs().max() == 0
        for name, module in named.items()
        if name.startswith(("defc", "Dfc")) and hasattr(module, "bias")
    )
