"""The sizes of a VDVAE: block strings, and the names and shapes of weights; arithmetic only."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from functools import cached_property
from typing import Any, Self

from leanrecon.errors import SettingsError
from leanrecon.validation import nearest

MIXTURE_NUMBERS = 10
"""Numbers of a mixture component at each pixel: a logit, and a mean, log-scale and coefficient for each colour."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class EncoderBlock:
    """A block at ``resolution`` whose output is averaged over squares of ``down`` pixels."""

    resolution: int
    down: int = 1

    @property
    def output(self) -> int:
        return self.resolution // self.down


@dataclass(frozen=True)
class DecoderBlock:
    """A block at ``resolution`` that first adds the state at the lower resolution ``mix``, where there is one."""

    resolution: int
    mix: int | None = None


@dataclass(frozen=True)
class VDVAEConfig:
    """The sizes of a very deep VAE, named as in the published code.

    Raises SettingsError that says which field or block does not fit. Source: Child 2021, arXiv:2011.10650.
    """

    image_size: int
    """Pixels on a side."""
    enc_blocks: str
    """Items separated by commas: ``64x11`` is 11 blocks at 64×64, ``64d2`` one that halves the sides afterwards."""
    dec_blocks: str
    """Items from the smallest resolution: ``8m4`` is a block at 8×8 that first adds the state at 4×4."""
    width: int
    """Channels at resolutions that ``custom_width_str`` does not list."""
    zdim: int = 16
    """Channels of each latent."""
    bottleneck_multiple: float = 0.25
    """Channels in the middle of a block, as a share of its width."""
    custom_width_str: str = ""
    """``8:768,4:1024``: other widths for some resolutions."""
    num_mixtures: int = 10
    """Components of the mixture of logistics at each pixel."""
    no_bias_above: int = 64
    """The highest resolution whose state starts from a learned map; above, it starts from zeros."""

    @classmethod
    def imagenet64(cls) -> Self:
        """The published model of 64×64 photographs: 75 latents, 125 million weights."""
        return cls(
            image_size=64,
            enc_blocks="64x11,64d2,32x20,32d2,16x9,16d2,8x8,8d2,4x7,4d4,1x5",
            dec_blocks="1x2,4m1,4x3,8m4,8x7,16m8,16x15,32m16,32x31,64m32,64x12",
            width=512,
        )

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> Self:
        """The config of a table of its fields; raises SettingsError that names unknown and missing ones."""
        known = {field.name: field for field in fields(cls)}
        problems = [f"{key} is unknown ({nearest(key, known)})" for key in table if key not in known]
        problems += [f"{key} is not given" for key, f in known.items() if f.default is MISSING and key not in table]
        if problems:
            raise SettingsError("; ".join(problems))
        return cls(**table)

    def as_table(self) -> dict[str, Any]:
        """All fields as plain values."""
        return asdict(self)

    def __post_init__(self) -> None:
        for name in ("image_size", "width", "zdim", "num_mixtures"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise SettingsError(f"{name} = {value!r}", expected="a whole number of at least 1")
        if type(self.no_bias_above) is not int or self.no_bias_above < 0:
            raise SettingsError(f"no_bias_above = {self.no_bias_above!r}", expected="a whole number of at least 0")
        if type(self.bottleneck_multiple) not in (int, float) or not 0 < self.bottleneck_multiple <= 1:
            raise SettingsError(
                f"bottleneck_multiple = {self.bottleneck_multiple!r}", expected="a number above 0 and up to 1"
            )
        for name in ("enc_blocks", "dec_blocks", "custom_width_str"):
            if not isinstance(getattr(self, name), str):
                raise SettingsError(f"{name} = {getattr(self, name)!r}", expected="a string")
        _check_encoder(self)
        _check_decoder(self)
        _check_widths(self)

    # Blocks

    @cached_property
    def encoder(self) -> tuple[EncoderBlock, ...]:
        """The blocks of the encoder in order."""
        blocks: list[EncoderBlock] = []
        for item in self.enc_blocks.split(","):
            first, kind, second = _parsed(item, "enc_blocks", "xd")
            blocks += [EncoderBlock(first, second)] if kind == "d" else [EncoderBlock(first)] * second
        return tuple(blocks)

    @cached_property
    def decoder(self) -> tuple[DecoderBlock, ...]:
        """The blocks of the decoder in order, one latent each."""
        blocks: list[DecoderBlock] = []
        for item in self.dec_blocks.split(","):
            first, kind, second = _parsed(item, "dec_blocks", "xm")
            blocks += [DecoderBlock(first, second)] if kind == "m" else [DecoderBlock(first)] * second
        return tuple(blocks)

    @cached_property
    def resolutions(self) -> frozenset[int]:
        """All resolutions that have a block."""
        return frozenset([block.resolution for block in self.encoder] + [block.resolution for block in self.decoder])

    @cached_property
    def biased(self) -> tuple[int, ...]:
        """The resolutions whose state starts from a learned map, ascending: its place is the number of the map."""
        return tuple(sorted({block.resolution for block in self.decoder if block.resolution <= self.no_bias_above}))

    @cached_property
    def _custom_widths(self) -> dict[int, int]:
        widths = {}
        for item in filter(None, self.custom_width_str.split(",")):
            resolution, _, width = item.strip().partition(":")
            if not (resolution.isdecimal() and width.isdecimal() and int(width) > 0):
                raise SettingsError(f"custom_width_str has {item!r}", expected="RESOLUTION:WIDTH, as in 8:768")
            widths[int(resolution)] = int(width)
        return widths

    def width_at(self, resolution: int) -> int:
        """Channels of the state and of the encoder's activations at a resolution."""
        return self._custom_widths.get(resolution, self.width)

    # Latents

    def latent_shape(self, block: int) -> tuple[int, int, int]:
        """Channels, rows and columns of the latent of a block."""
        resolution = self.decoder[block].resolution
        return self.zdim, resolution, resolution

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """Where each block's latent ends in a flat row."""
        ends, end = [], 0
        for block in range(len(self.decoder)):
            end += math.prod(self.latent_shape(block))
            ends.append(end)
        return tuple(ends)

    def columns(self, block: int) -> slice:
        """The columns of a flat row that hold the latent of a block."""
        return slice(self.ends[block - 1] if block else 0, self.ends[block])

    def dims(self, n_latents: int) -> int:
        """The length of a flat row of the first ``n_latents`` latents; raises SettingsError if there are not so many."""
        if not 1 <= n_latents <= len(self.decoder):
            raise SettingsError(
                f"{n_latents} latents of a VDVAE that has {len(self.decoder)}",
                expected=f"a whole number from 1 to {len(self.decoder)}",
            )
        return self.ends[n_latents - 1]


def latent_groups(config: VDVAEConfig, n_latents: int) -> list[tuple[int, slice]]:
    """The resolutions of the first ``n_latents`` latents in order, each with its columns in a flat row."""
    config.dims(n_latents)
    groups: list[tuple[int, slice]] = []
    for block in range(n_latents):
        resolution, columns = config.decoder[block].resolution, config.columns(block)
        if groups and groups[-1][0] == resolution:
            columns = slice(groups.pop()[1].start, columns.stop)
        groups.append((resolution, columns))
    return groups


# Weights


def weight_shapes(config: VDVAEConfig) -> dict[str, Shape]:
    """The names and shapes of all weights in a published checkpoint."""
    shapes: dict[str, Shape] = {}

    def convolution(name: str, inputs: int, outputs: int, kernel: int) -> None:
        shapes[f"{name}.weight"] = (outputs, inputs, kernel, kernel)
        shapes[f"{name}.bias"] = (outputs,)

    def bottleneck(name: str, resolution: int, inputs: int, outputs: int) -> None:
        middle = int(config.width_at(resolution) * config.bottleneck_multiple)
        kernel = 3 if resolution > 2 else 1
        convolution(f"{name}.c1", inputs, middle, 1)
        convolution(f"{name}.c2", middle, middle, kernel)
        convolution(f"{name}.c3", middle, middle, kernel)
        convolution(f"{name}.c4", middle, outputs, 1)

    convolution("encoder.in_conv", 3, config.width, 3)
    for i, down in enumerate(config.encoder):
        width = config.width_at(down.resolution)
        bottleneck(f"encoder.enc_blocks.{i}", down.resolution, width, width)
    shapes["decoder.gain"] = shapes["decoder.bias"] = (1, config.width, 1, 1)
    for i, up in enumerate(config.decoder):
        name, width = f"decoder.dec_blocks.{i}", config.width_at(up.resolution)
        bottleneck(f"{name}.enc", up.resolution, 2 * width, 2 * config.zdim)
        bottleneck(f"{name}.prior", up.resolution, width, 2 * config.zdim + width)
        convolution(f"{name}.z_proj", config.zdim, width, 1)
        bottleneck(f"{name}.resnet", up.resolution, width, width)
    for i, resolution in enumerate(config.biased):
        shapes[f"decoder.bias_xs.{i}"] = (1, config.width_at(resolution), resolution, resolution)
    convolution("decoder.out_net.out_conv", config.width, MIXTURE_NUMBERS * config.num_mixtures, 1)
    return shapes


def encoding_weights(config: VDVAEConfig, n_latents: int) -> list[str]:
    """The names of the weights that encode the first ``n_latents`` latents."""
    config.dims(n_latents)

    def needed(name: str) -> bool:
        _, part, *rest = name.split(".")
        if part == "dec_blocks":  # of the last block, nothing behind its posterior
            block = int(rest[0])
            return block < n_latents - 1 or (block == n_latents - 1 and rest[1] == "enc")
        if part == "bias_xs":
            return config.biased[int(rest[0])] in {block.resolution for block in config.decoder[:n_latents]}
        return name.startswith("encoder.")

    return [name for name in weight_shapes(config) if needed(name)]


def decoding_weights(config: VDVAEConfig) -> list[str]:
    """The names of the weights that decode: without the encoder and the posteriors."""
    return [name for name in weight_shapes(config) if name.startswith("decoder.") and ".enc." not in name]


def gradient_numbers(config: VDVAEConfig, names: Iterable[str]) -> int:
    """Numbers that an image keeps until its gradient is taken: the input of each convolution, before and after its GELU.

    A third state of that size stands for sums and for what autograd keeps of both; 2.7 were measured.
    """
    shapes, numbers = weight_shapes(config), 0
    for name in names:
        if name.endswith(".weight"):
            numbers += 3 * shapes[name][1] * _side(config, name) ** 2
    return numbers


def operations(config: VDVAEConfig, names: Iterable[str]) -> float:
    """Floating-point operations of the convolutions with these weights for an image."""
    shapes = weight_shapes(config)
    return sum(2.0 * math.prod(shapes[n]) * _side(config, n) ** 2 for n in names if n.endswith(".weight"))


def _side(config: VDVAEConfig, name: str) -> int:
    """The resolution that a weight works at."""
    _, part, *rest = name.split(".")
    blocks: Any = {"enc_blocks": config.encoder, "dec_blocks": config.decoder}.get(part)
    return config.image_size if blocks is None else int(blocks[int(rest[0])].resolution)


# Checks


def _parsed(item: str, where: str, kinds: str) -> tuple[int, str, int]:
    """Resolution, kind and second number of an item of a block string; a bare resolution is one block."""
    item = item.strip()
    for kind in kinds:
        first, found, second = item.partition(kind)
        if found and first.isdecimal() and second.isdecimal() and int(first) > 0 and int(second) > 0:
            return int(first), kind, int(second)
    if item.isdecimal() and int(item) > 0:
        return int(item), "x", 1
    known = {"x": "32x11 (blocks)", "d": "32d2 (a block, then averaging)", "m": "32m16 (a block that adds 16×16)"}
    raise SettingsError(f"{where} has {item!r}", expected=" or ".join(known[kind] for kind in kinds))


def state_nbytes(config: VDVAEConfig) -> int:
    """Bytes of the largest state of an image, in float32."""
    return max(config.width_at(resolution) * resolution**2 for resolution in config.resolutions) * 4


def _check_encoder(config: VDVAEConfig) -> None:
    resolution = config.image_size
    for i, block in enumerate(config.encoder):
        if block.resolution != resolution:
            raise SettingsError(
                f"enc_blocks: block {i} is at {block.resolution}, what it is given is {resolution} pixels wide",
                expected=f"a block at {resolution}",
            )
        if resolution % block.down:
            raise SettingsError(
                f"enc_blocks: block {i} divides {resolution} pixels by {block.down}, which leaves a remainder"
            )
        resolution = block.output


def _check_decoder(config: VDVAEConfig) -> None:
    encoded = {config.image_size} | {block.output for block in config.encoder}  # the first convolution counts too
    seen: set[int] = set()
    for i, block in enumerate(config.decoder):
        if block.resolution not in encoded:
            raise SettingsError(
                f"dec_blocks: block {i} is at {block.resolution}, where the encoder has no output",
                expected=f"one of {', '.join(map(str, sorted(encoded)))}",
            )
        if block.mix is not None and (block.mix not in seen or block.resolution % block.mix):
            raise SettingsError(
                f"dec_blocks: block {i} at {block.resolution} adds the state at {block.mix}",
                expected="an earlier block's resolution that divides its own",
            )
        seen.add(block.resolution)
    if config.image_size not in seen:
        raise SettingsError(f"dec_blocks end at {max(seen)}", expected=f"a block at image_size = {config.image_size}")


def _check_widths(config: VDVAEConfig) -> None:
    resolutions = config.resolutions
    if unused := config._custom_widths.keys() - resolutions:
        raise SettingsError(
            f"custom_width_str gives a width for {min(unused)}, where there is no block",
            expected=f"one of {', '.join(map(str, sorted(resolutions)))}",
        )
    if config.width_at(config.image_size) != config.width:
        raise SettingsError(
            f"custom_width_str gives {config.width_at(config.image_size)} channels at image_size",
            expected=f"{config.width}",
        )
    steps = [(block.resolution, block.output) for block in config.encoder]
    steps += [(block.resolution, block.mix) for block in config.decoder if block.mix is not None]
    for above, below in steps:
        if config.width_at(below) < config.width_at(above):
            raise SettingsError(
                f"there are {config.width_at(above)} channels at {above} and only {config.width_at(below)} at {below}",
                expected="widths that do not shrink from higher to lower resolutions",
            )
    if narrow := [r for r in resolutions if int(config.width_at(r) * config.bottleneck_multiple) < 1]:
        raise SettingsError(
            f"bottleneck_multiple = {config.bottleneck_multiple} leaves no channel in the middle of blocks at {min(narrow)}"
        )
