"""The generator and the discriminator of Shen et al. 2019, at sizes from 32 to 256 and of any width.

Source: KamitaniLab/End2EndDeepImageReconstruction (MIT), net_templates; Front. Comput. Neurosci. 13:21.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

SLOPE = 0.3
"""Slope of the generator's activations below zero."""

FIRST_SIDE = 4
"""Side of the generator's first map."""

COLOURS = 3

DROPOUT = 0.5
"""Share of the discriminator's units that are left out before each of its linear layers."""


@dataclass(frozen=True)
class Layer:
    """A convolution, its channels and the side of what it gives."""

    name: str
    given: int
    out: int
    kernel: int
    stride: int
    side: int

    @property
    def weights(self) -> int:
        """Numbers of its kernel."""
        return self.given * self.out * self.kernel**2

    @property
    def numbers(self) -> int:
        """Numbers that it gives an image."""
        return self.out * self.side**2


def generator_layers(size: int, width: int) -> list[Layer]:
    """The transposed convolutions; smaller sizes leave out the last ones before the last.

    None has a bias, as the published ones are frozen at 0.
    """
    steps = [
        ("deconv5", 2, width), ("conv5_1", 1, 2 * width), ("deconv4", 2, width), ("conv4_1", 1, width),
        ("deconv3", 2, width // 2), ("conv3_1", 1, width // 2), ("deconv2", 2, width // 4), ("deconv1", 2, width // 8),
    ]  # fmt: skip
    layers, given, side = [], width, FIRST_SIDE
    for name, stride, out in steps:
        if stride == 2 and 2 * side == size:
            break
        side *= stride
        layers.append(Layer(name, given, out, 4 if stride == 2 else 3, stride, side))
        given = out
    return [*layers, Layer("deconv0", given, COLOURS, 4, 2, size)]


def discriminator_layers(side: int, width: int) -> list[Layer]:
    """The convolutions, without padding; the first one has a smaller stride where images are too small for 4."""
    found: list[Layer] = []
    for first in (4, 2, 1):
        given, found, now = COLOURS, [], side
        for name, out, kernel, stride in (
            ("Dconv1", width, 7, first), ("Dconv2", 2 * width, 5, 1), ("Dconv3", 4 * width, 3, 2),
            ("Dconv4", 8 * width, 3, 1), ("Dconv5", 8 * width, 3, 2),
        ):  # fmt: skip
            now = -(-(now - kernel + 1) // stride)  # Caffe and PyTorch agree where there is no padding
            found.append(Layer(name, given, out, kernel, stride, now))
            given = out
        if now >= 1:
            break
    return found


def linear_sizes(inputs: int, hidden: int, width: int) -> list[tuple[str, int, int]]:
    """Name, inputs and outputs of the generator's linear layers."""
    return [("defc7", inputs, hidden), ("defc6", hidden, hidden), ("defc5", hidden, width * FIRST_SIDE**2)]


def generator_weights(inputs: int, hidden: int, size: int, width: int) -> int:
    """The number of weights of a generator."""
    linear = sum((given + 1) * out for _, given, out in linear_sizes(inputs, hidden, width))
    return linear + sum(layer.weights for layer in generator_layers(size, width))


def discriminator_weights(side: int, width: int) -> int:
    """The number of weights of a discriminator."""
    last = 8 * width
    convolutions = sum(layer.weights + layer.out for layer in discriminator_layers(side, width))
    return convolutions + (last + 1) * last + (last + 1) * 2


def generator(
    inputs: int, *, hidden: int, size: int, width: int, dropout: float = 0.0, voxels: int | None = None
) -> "nn.Sequential":
    """The generator: float32 [b, inputs] to [b, 3, size, size], with weights from PyTorch's present seed.

    ``voxels`` is how many numbers a row had before it was reduced: directions are orthonormal, so that weights of the
    same deviation give the same network as those of all voxels. Activations overwrite what they are of, as their gradients
    follow from their signs: half the memory, and the same numbers.
    """
    from torch import nn

    named: dict[str, nn.Module] = {}
    for name, given, out in linear_sizes(inputs, hidden, width):
        linear = nn.Linear(given, out)
        _initialise(linear, 1.0, (voxels or given) if name == "defc7" else given)
        named |= {name: linear, f"{name}_relu": nn.LeakyReLU(SLOPE, inplace=True)}
        if dropout:
            named[f"{name}_dropout"] = nn.Dropout(dropout)
    named["map"] = nn.Unflatten(1, (width, FIRST_SIDE, FIRST_SIDE))
    for layer in generator_layers(size, width):
        convolution = nn.ConvTranspose2d(layer.given, layer.out, layer.kernel, layer.stride, 1, bias=False)
        _initialise(convolution, 1.8 if layer.stride == 2 else 0.9, layer.given * layer.kernel**2)
        named[layer.name] = convolution
        if layer.name != "deconv0":
            named[f"{layer.name}_relu"] = nn.LeakyReLU(SLOPE, inplace=True)
    return _in_order(named)


def discriminator(side: int, width: int) -> "nn.Sequential":
    """The discriminator: float32 [b, 3, side, side] to two numbers, for a real image and for a generated one."""
    from torch import nn

    named: dict[str, nn.Module] = {}
    for layer in discriminator_layers(side, width):
        convolution = nn.Conv2d(layer.given, layer.out, layer.kernel, layer.stride)
        _initialise(convolution, 0.1 if layer.name == "Dconv1" else 1.0, layer.given * layer.kernel**2)
        named |= {layer.name: convolution, f"{layer.name}_relu": nn.ReLU()}
    last = 8 * width
    named |= {"pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten()}
    for name, out in (("Dfc6", last), ("Dfc7", 2)):
        linear = nn.Linear(last, out)
        _initialise(linear, 0.1, last)
        named |= {f"{name}_dropout": nn.Dropout(DROPOUT), name: linear}
        if name == "Dfc6":
            named["Dfc6_relu"] = nn.ReLU()
    return _in_order(named)


def _initialise(module: "nn.Module", coefficient: float, fan_in: int) -> None:
    """Weights of deviation coefficient · √(2 / fan_in), and biases of 0."""
    from torch import nn

    weight, bias = module.weight, module.bias
    nn.init.normal_(weight, std=coefficient * math.sqrt(2 / fan_in))  # type: ignore[arg-type]
    if bias is not None:
        nn.init.zeros_(bias)  # type: ignore[arg-type]


def _in_order(named: "dict[str, nn.Module]") -> "nn.Sequential":
    from collections import OrderedDict

    from torch import nn

    return nn.Sequential(OrderedDict(named))
