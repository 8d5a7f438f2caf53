"""Latent diffusion from image to image: started from a first image, conditioned on predicted embeddings.

Sources: Rombach et al. 2022, arXiv:2112.10752; Meng et al. 2021, arXiv:2108.01073 (SDEdit: the start from an image);
Luo et al. 2023, arXiv:2310.04378 and 2311.05556 (LCM, LCM-LoRA). The arithmetic and the order of random numbers are
those of diffusers' StableDiffusionImg2ImgPipeline with one generator an image.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from leanrecon.errors import SettingsError
from leanrecon.images import Array
from leanrecon.refinement.diffusion import bfloat16
from leanrecon.refinement.diffusion.codes import Codes
from leanrecon.refinement.diffusion.offload import Placed
from leanrecon.refinement.diffusion.schedule import DISTILLED, TRAINED, Sampler

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Networks:
    """The two networks on their device, and the precision of their arithmetic (PyTorch's name)."""

    unet: Placed
    vae: Placed
    precision: str
    device: str

    @property
    def dtype(self) -> Any:
        import torch

        return getattr(torch, self.precision)

    @property
    def scaling(self) -> float:
        """The factor between latents of the autoencoder and those of the UNet."""
        return float(self.vae.network.config.scaling_factor)

    def faster(self) -> AbstractContextManager[Any]:
        """A context for running the networks."""
        return bfloat16.faster(self.precision, self.device)


def generators(seed: int, rows: Sequence[int]) -> "list[torch.Generator]":
    """One generator an image, from the seed and its row alone, on the CPU so that every device draws the same."""
    import torch

    words = [np.random.SeedSequence([seed, row]).generate_state(1, np.uint64)[0] for row in rows]
    return [torch.Generator("cpu").manual_seed(int(word)) for word in words]


@dataclass(frozen=True)
class Schedule:
    """A scheduler of diffusers, and the noise levels [steps] that are run, from the strongest."""

    scheduler: Any
    levels: Any
    stochastic: bool
    """Whether each step draws noise."""


@dataclass(frozen=True)
class Conditions:
    """What conditions a batch: embeddings [images, tokens, width], and the unconditional one [1, tokens, width]."""

    embeddings: "torch.Tensor"
    unconditional: "torch.Tensor | None" = None
    """None without classifier-free guidance."""
    guidance: float = 1.0


def schedule(sampler: Sampler, config: dict[str, Any], steps: int, strength: float) -> Schedule:
    """The schedule of a sampler for a model whose scheduler has this ``config``.

    Raises SettingsError where ``steps`` can't run.
    """
    import diffusers

    trained = int(config.get("num_train_timesteps", TRAINED))
    distilled = int(config.get("original_inference_steps", DISTILLED))
    if problem := sampler.problem(steps, strength, trained=trained, distilled=distilled):
        raise SettingsError(problem)
    scheduler = getattr(diffusers, sampler.scheduler).from_config(config, **sampler.config)
    sampler.set_timesteps(scheduler, steps, strength)
    return Schedule(scheduler, scheduler.timesteps[-steps:], sampler.stochastic)


def encoded(
    networks: Networks, images: Array, generators: "list[torch.Generator]", codes: Codes | None = None
) -> "torch.Tensor":
    """Latents float32 [images, channels, height, width] of uint8 images, each drawn from its posterior and scaled.

    An image whose code is among ``codes`` is not encoded again; new codes are kept there.
    """
    import torch

    codes, latents = codes or Codes(), []
    for image, generator in zip(images, generators, strict=True):
        key = codes.key(image, networks.precision)
        if (code := codes.find(key)) is None:  # one by one: the autoencoder's states are the largest
            codes.keep(key, code := _code(networks, image))
        latent = code[0]
        if len(code) > 1:  # a tiny autoencoder is deterministic
            latent = latent + code[1] * torch.randn(latent.shape, generator=generator)
        latents.append(latent * networks.scaling)
    networks.vae.release()
    return torch.cat(latents)


def _code(networks: Networks, image: Array) -> "tuple[torch.Tensor, ...]":
    """Mean and standard deviation of an image's posterior, or its latents by a tiny autoencoder; float32 on the CPU."""
    import torch

    pixels = torch.from_numpy(image.astype(np.float32) / 255).permute(2, 0, 1)[None] * 2 - 1
    # Channels last, as diffusers lays images out: another layout is another order of sums, and slower.
    pixels = pixels.clone(memory_format=torch.channels_last)
    with torch.inference_mode(), networks.faster():
        code = networks.vae.network.encode(pixels.to(networks.device, networks.dtype))
    if not hasattr(code, "latent_dist"):
        return (code.latents.float().cpu(),)
    mean, std = code.latent_dist.mean, code.latent_dist.std
    return mean.float().cpu().clone(), std.float().cpu()  # the mean alone: it is a part of what else the encoder told


def denoised(
    networks: Networks,
    schedule: Schedule,
    latents: "torch.Tensor",
    conditions: Conditions,
    generators: "list[torch.Generator]",
) -> "torch.Tensor":
    """Noise latents [images, …] to the schedule's first level and remove the noise under the conditions.

    Classifier-free guidance with scale w > 1: ε = ε(unconditional) + w (ε(conditional) - ε(unconditional)). The
    scheduler's own arithmetic is float32 in every precision.
    """
    import torch

    scheduler, levels, unconditional = schedule.scheduler, schedule.levels, conditions.unconditional
    noise = torch.cat([torch.randn(latents[:1].shape, generator=generator) for generator in generators])
    latents = latents.clone(memory_format=torch.channels_last)
    latents = scheduler.add_noise(latents, noise, levels[:1].repeat(len(latents)))
    states = conditions.embeddings
    if unconditional is not None:
        states = torch.cat([unconditional.expand_as(states), states])
    states = states.to(networks.device, networks.dtype)
    options = {"generator": generators} if schedule.stochastic else {}
    with torch.inference_mode(), networks.faster():
        for level in levels:
            inputs = latents if unconditional is None else torch.cat([latents, latents])
            inputs = scheduler.scale_model_input(inputs, level).to(networks.device, networks.dtype)
            predicted = networks.unet.network(inputs, level.to(networks.device), encoder_hidden_states=states).sample
            predicted = predicted.float().cpu()
            if unconditional is not None:
                without, under = predicted.chunk(2)
                predicted = without + conditions.guidance * (under - without)
            latents = scheduler.step(predicted, level, latents, **options, return_dict=False)[0]
    networks.unet.release()
    return latents


def decoded(networks: Networks, latents: "torch.Tensor", together: int = 1) -> Array:
    """Images float32 [images, height, width, 3] from 0 to 1 of scaled latents; not finite where the networks failed.

    The autoencoder decodes as many images ``together``.
    """
    import torch

    images = []
    for k in range(0, len(latents), together):
        some = latents[k : k + together]
        with torch.inference_mode(), networks.faster():
            scaled = (some / networks.scaling).to(networks.device, networks.dtype)
            found = networks.vae.network.decode(scaled).sample.float().cpu()
        images.append((found / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy())
    networks.vae.release()
    return np.concatenate(images)
