"""The very deep VAE of Child 2021 (arXiv:2011.10650), for inference: images to latents, and latents to images.

The network is a table of weights and the functions below; nothing is trained, so there is no module to build.
Everything that adds up from block to block stays in float32, whatever the precision of the convolutions.
"""

import contextlib
from collections.abc import Iterator, Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from leanrecon.devices import together_on_cpu
from leanrecon.errors import InputError, SettingsError
from leanrecon.features.panels import PANEL, Panel, panels
from leanrecon.features.space import Array, Rows
from leanrecon.features.vdvae import mixture, noise
from leanrecon.features.vdvae.checkpoint import read_weights
from leanrecon.features.vdvae.config import VDVAEConfig, decoding_weights, encoding_weights, state_nbytes
from leanrecon.weights.safetensors import Precision

if TYPE_CHECKING:
    from collections.abc import Collection

    from torch import Tensor

MEAN, SCALE = 115.92961967, 69.37404
"""Mean and standard deviation of ImageNet's pixels (0 to 255) at 64×64, as published for models of all sizes."""

AT_ONCE_ON_GPU = 32


class VDVAE:
    """A very deep VAE with its weights.

    ``weights`` may be those of one direction alone (``encoding_weights``, ``decoding_weights``); the other one then
    raises SettingsError.
    """

    def __init__(self, config: VDVAEConfig, weights: "Mapping[str, Tensor]", *, device: str = "cpu") -> None:
        self.config = config
        self.weights = weights
        self.device = device

    @classmethod
    def from_checkpoint(
        cls,
        path: str | PathLike[str],
        config: VDVAEConfig | None = None,
        *,
        device: str = "cpu",
        precision: Precision = "float32",
        only: "Collection[str] | None" = None,
    ) -> Self:
        """The model of a published checkpoint (``.th``) or of a ``.safetensors`` file, imagenet64 without a config.

        ``only`` names the weights to take; all are checked. Raises InputError that names every array of the file
        that does not fit.
        """
        config = config or VDVAEConfig.imagenet64()
        return cls(config, read_weights(path, config, device=device, precision=precision, only=only), device=device)

    def encode(
        self,
        images: Array,
        n_latents: int,
        *,
        latents: Literal["mean", "sample"] = "mean",
        seed: int = 0,
        rows: Rows | None = None,
    ) -> Array:
        """Float32 rows [n, dims] of the first ``n_latents`` latents of uint8 images [n, size, size, 3].

        Each latent is flattened by channel, row and column, and they follow each other in the order of the blocks. A
        latent depends on the earlier ones: means follow from means, samples from samples. The noise of a sample is
        drawn from ``seed``, the image's number in ``rows`` (by default its place) and the block.
        """
        dims, size = self.config.dims(n_latents), self.config.image_size
        if images.dtype != np.uint8 or images.shape[1:] != (size, size, 3):
            raise InputError(
                f"images are {images.dtype} of shape {images.shape}", expected=f"uint8 [n, {size}, {size}, 3]"
            )
        if latents not in ("mean", "sample"):
            raise SettingsError(f"latents = {latents!r}", expected='"mean" or "sample"')
        self._require(encoding_weights(self.config, n_latents))
        out = np.empty((len(images), dims), np.float32)
        for panel in self._panels(len(images), rows):
            sampled = (seed, panel.rows) if latents == "sample" else None
            with _exact_inference():
                out[panel.asked] = self._encode(panel.filled(images), n_latents, sampled)[panel.places]
        return out

    def decode(
        self,
        flat: Array,
        *,
        temperature: float = 0.0,
        sample_pixels: bool = False,
        seed: int = 0,
        rows: Rows | None = None,
    ) -> Array:
        """Uint8 images [n, size, size, 3] of float32 rows [n, dims] that hold the first latents of the network.

        The remaining latents are the prior's means, or drawn around them with ``temperature`` times the prior's
        standard deviation (1 as published). Colours are the mean of the most probable component, or drawn with
        ``sample_pixels`` (as published). Noise comes from ``seed``, the number in ``rows`` and the block.
        """
        config = self.config
        if flat.ndim != 2 or flat.shape[1] not in config.ends:
            near = sorted(config.ends, key=lambda end: abs(end - flat.shape[-1]))[:2]
            raise InputError(
                f"rows of shape {flat.shape} don't end where a latent ends",
                expected=f"a number of columns such as {' or '.join(map(str, sorted(near)))}",
            )
        if not np.isfinite(flat).all():
            raise InputError("latents are NaN or infinite", todo="look at the predictions that they come from")
        if not 0 <= temperature < np.inf:
            raise SettingsError(f"temperature = {temperature}", expected="a number of at least 0")
        self._require(decoding_weights(config))
        out = np.empty((len(flat), config.image_size, config.image_size, 3), np.uint8)
        for panel in self._panels(len(flat), rows):
            with _exact_inference():
                state = self._state(panel.filled(flat), temperature, seed, panel.rows)
                pixels = self._pixels(state, sample_pixels, seed, panel.rows)
            out[panel.asked] = pixels.cpu().numpy()[panel.places]
        return out

    # With gradients, for searches

    def latents(self, pixels: "Tensor", n_latents: int) -> "Tensor":
        """Means [b, dims] of the first latents of pixels [b, 3, size, size] from 0 to 255, differentiable by them."""
        import torch

        return torch.cat([z.flatten(1) for _, z in self._latents(pixels, n_latents)], 1)

    def colours(self, flat: "Tensor") -> "Tensor":
        """Colours [b, 3, size, size] from -1 to 1 of rows [b, dims] of latents, differentiable by them."""
        state = self._state(flat, 0.0, 0, np.arange(len(flat)))
        numbers = self._convolution(state, "decoder.out_net.out_conv")
        return mixture.pixel_values(numbers).permute(0, 3, 1, 2)

    # Bottom-up

    def _encode(self, images: Array, n: int, sampled: tuple[int, Array] | None) -> Array:
        """The latents of some images; ``sampled`` holds seed and row numbers."""
        out = np.empty((len(images), self.config.dims(n)), np.float32)
        pixels = self._tensor(images).permute(0, 3, 1, 2).float()
        for i, z in self._latents(pixels, n, sampled):
            out[:, self.config.columns(i)] = z.flatten(1).cpu().numpy()
        return out

    def _latents(
        self, pixels: "Tensor", n: int, sampled: tuple[int, Array] | None = None
    ) -> "Iterator[tuple[int, Tensor]]":
        """Yield the number and the value of each of the first ``n`` latents of pixels [b, 3, size, size] from 0 to 255."""
        import torch

        blocks = self.config.decoder[:n]
        activations = self._activations(pixels, {block.resolution for block in blocks})
        states: dict[int, Tensor] = {}
        for i, block in enumerate(blocks):
            x = self._start(i, states, len(pixels))
            mean, log_std = self._posterior(i, x, activations[block.resolution])
            z = mean
            if sampled:
                z = mean + torch.exp(log_std) * self._normals(*sampled, i, noise.POSTERIOR)
            yield i, z
            if i + 1 == n:
                return
            if all(later.resolution != block.resolution for later in blocks[i + 1 :]):
                del activations[block.resolution]
            _, _, x = self._prior(i, x)
            states[block.resolution] = self._with_latent(i, x, z)

    def _activations(self, pixels: "Tensor", wanted: set[int]) -> "dict[int, Tensor]":
        """The last output of the encoder at each of the ``wanted`` resolutions."""
        from torch.nn import functional

        x = self._convolution((pixels + -MEAN) * (1 / SCALE), "encoder.in_conv").float()
        kept = {self.config.image_size: x}
        for i, block in enumerate(self.config.encoder):
            x = self._residual(x, f"encoder.enc_blocks.{i}")
            if block.down > 1:
                x = functional.avg_pool2d(x, block.down)
                if more := self.config.width_at(block.output) - x.shape[1]:
                    x = functional.pad(x, (0, 0, 0, 0, 0, more))
            kept[block.output] = x
            if block.output != block.resolution and block.resolution not in wanted:
                del kept[block.resolution]
        return kept

    # Top-down

    def _state(self, flat: "Array | Tensor", temperature: float, seed: int, rows: Array) -> "Tensor":
        """The last state [b, width, size, size] of the decoder, from the first latents."""
        import torch

        config = self.config
        given = config.ends.index(flat.shape[1]) + 1
        states: dict[int, Tensor] = {}
        for i, block in enumerate(config.decoder):
            mean, log_std, x = self._prior(i, self._start(i, states, len(flat)))
            z = mean
            if i < given:
                z = self._tensor(flat[:, config.columns(i)]).float().reshape(-1, *config.latent_shape(i))
            elif temperature:
                z = mean + torch.exp(log_std) * temperature * self._normals(seed, rows, i, noise.PRIOR)
            states[block.resolution] = self._with_latent(i, x, z)
        return states[config.image_size] * self.weights["decoder.gain"] + self.weights["decoder.bias"]

    def _pixels(self, state: "Tensor", sample: bool, seed: int, rows: Array) -> "Tensor":
        numbers = self._convolution(state, "decoder.out_net.out_conv")
        if not sample:
            return mixture.as_bytes(mixture.pixel_values(numbers))
        size = (self.config.image_size, self.config.image_size)
        eps = self._tensor(noise.uniforms(seed, rows, (*size, self.config.num_mixtures), noise.MIXTURE))
        u = self._tensor(noise.uniforms(seed, rows, (*size, 3), noise.PIXELS))
        return mixture.as_bytes(mixture.pixel_values(numbers, eps, u))

    def _start(self, i: int, states: "dict[int, Tensor]", n: int) -> "Tensor":
        """The input state of a block: the previous one, a learned one, or zeros; plus the lower one, if it mixes."""
        import torch
        from torch.nn import functional

        config, block = self.config, self.config.decoder[i]
        r = block.resolution
        if r in states:
            x = states.pop(r)  # the block leaves another one there
        elif r in config.biased:
            x = self.weights[f"decoder.bias_xs.{config.biased.index(r)}"].expand(n, -1, -1, -1)
        else:
            x = torch.zeros((n, config.width_at(r), r, r), device=self.device)
        if block.mix is not None:
            lower = states[block.mix][:, : x.shape[1]]
            x = x + functional.interpolate(lower, scale_factor=r // block.mix, mode="nearest")
        return x

    def _posterior(self, i: int, x: "Tensor", activation: "Tensor") -> "tuple[Tensor, Tensor]":
        """Mean and log standard deviation of a latent, given the image."""
        import torch

        found = self._bottleneck(torch.cat((x, activation), 1), f"decoder.dec_blocks.{i}.enc")
        mean, log_std = found.chunk(2, 1)
        return mean, log_std

    def _prior(self, i: int, x: "Tensor") -> "tuple[Tensor, Tensor, Tensor]":
        """Mean and log standard deviation of the prior of a latent, and the state with the features of the prior."""
        zdim = self.config.zdim
        found = self._bottleneck(x, f"decoder.dec_blocks.{i}.prior")
        mean, log_std = found[:, :zdim].clone(), found[:, zdim : 2 * zdim].clone()  # not views that hold it all
        return mean, log_std, x + found[:, 2 * zdim :]

    def _with_latent(self, i: int, x: "Tensor", z: "Tensor") -> "Tensor":
        x = self._convolution(z, f"decoder.dec_blocks.{i}.z_proj").float() + x
        return self._residual(x, f"decoder.dec_blocks.{i}.resnet")

    # Pieces

    def _residual(self, x: "Tensor", name: str) -> "Tensor":
        return self._bottleneck(x, name).add_(x)

    def _bottleneck(self, x: "Tensor", name: str) -> "Tensor":
        """Four convolutions, each after an exact GELU; the output is float32."""
        from torch.nn import functional

        for convolution in ("c1", "c2", "c3", "c4"):
            x = self._convolution(functional.gelu(x), f"{name}.{convolution}")
        return x.float()

    def _convolution(self, x: "Tensor", name: str) -> "Tensor":
        from torch.nn import functional

        weight = self.weights[f"{name}.weight"]
        return functional.conv2d(
            x.to(weight.dtype), weight, self.weights[f"{name}.bias"], padding=weight.shape[-1] // 2
        )

    # Rows

    def _panels(self, n: int, rows: Rows | None) -> Iterator[Panel]:
        """What goes through the network together, of ``n`` images with these row numbers."""
        numbers = np.arange(n) if rows is None else np.asarray(rows, np.int64)
        if len(numbers) != n:
            raise InputError(f"{len(numbers)} row numbers for {n} rows")
        if self.device == "cpu":
            yield from panels(numbers, at_once_on_cpu(self.config))
            return
        for start in range(0, n, AT_ONCE_ON_GPU):
            some = numbers[start : start + AT_ONCE_ON_GPU]
            yield Panel(slice(start, start + len(some)), some, np.arange(len(some)))

    def _normals(self, seed: int, rows: Array, block: int, stream: int) -> "Tensor":
        return self._tensor(noise.normals(seed, rows, block, self.config.latent_shape(block), stream))

    def _tensor(self, numbers: "Array | Tensor") -> "Tensor":
        import torch

        if isinstance(numbers, torch.Tensor):
            return numbers
        return torch.tensor(np.ascontiguousarray(numbers)).to(self.device)  # a copy: the array may be read-only

    def _require(self, names: list[str]) -> None:
        missing = [name for name in names if name not in self.weights]
        if missing:
            raise SettingsError(
                f"{len(missing)} needed weights were not loaded ({missing[0]}, …)",
                todo="load the model without `only`, or for this direction and number of latents",
            )


def at_once_on_cpu(config: VDVAEConfig) -> int:
    """How many images go through a network together on a CPU, which follows from its sizes alone.

    One of imagenet64 is as fast as more (31 latents, float32, two cores: 0.60 s an image, 0.54 to 0.66 s with 2, 4 or 8).
    """
    return together_on_cpu(state_nbytes(config), PANEL)


@contextlib.contextmanager
def _exact_inference() -> Iterator[None]:
    """Inference without gradients; on CUDA without TF32, whose ten bits of mantissa change latents, and deterministic."""
    import torch

    flags: Any = torch.backends.cudnn.flags
    with torch.inference_mode(), flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield
