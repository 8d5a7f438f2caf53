"""Latent diffusion from image to image: started from a first image, conditioned on predicted embeddings.

Sources: Rombach et al. 2022, arXiv:2112.10752; Meng et al. 2021, arXiv:2108.01073 (SDEdit: the start from an image);
Luo et al. 2023, arXiv:2310.04378 and 2311.05556 (LCM, LCM-LoRA). The arithmetic and the order of random numbers are
those of diffusers' StableDiffusionImg2ImgPipeline with one generator an image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from leanrecon.errors import SettingsError
from leanrecon.images import Array
from leanrecon.refinement.diffusion.offload import Placed
from leanrecon.refinement.diffusion.schedule import DISTILLED, problem_of, schedule_length

if TYPE_CHECKING:
    import torch

SCHEDULERS = {"lcm": "LCMScheduler", "ddim": "DDIMScheduler", "ddpm": "DDPMScheduler"}


@dataclass(frozen=True)
class Networks:
    """The two networks where they run, and the precision of their arithmetic (PyTorch's name)."""

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
        """What latents of the autoencoder are multiplied by for the UNet."""
        return float(self.vae.network.config.scaling_factor)


def generators(seed: int, rows: Sequence[int]) -> "list[torch.Generator]":
    """One generator an image, from the seed and its row alone, on the CPU so that every device draws the same."""
    import torch

    words = [np.random.SeedSequence([seed, row]).generate_state(1, np.uint64)[0] for row in rows]
    return [torch.Generator("cpu").manual_seed(int(word)) for word in words]


def scheduled(kind: str, config: dict[str, Any], steps: int, strength: float) -> tuple[Any, Any]:
    """A sampler and the noise levels [steps] that it visits, from the strongest, for the scheduler of a model.

    LCM takes its levels from those below ``strength``, as Luo et al. do; ddim and ddpm cut a longer schedule, as
    diffusers does. Raises SettingsError where ``steps`` of them can't run.
    """
    import diffusers

    trained = int(config.get("num_train_timesteps", 1000))
    distilled = int(config.get("original_inference_steps", DISTILLED))
    if problem := problem_of(kind, steps, strength, trained=trained, distilled=distilled):
        raise SettingsError(problem)
    # Schedulers of pixels clip by default; latents have no bounds.
    latents = {} if kind == "lcm" else {"clip_sample": False, "thresholding": False}
    scheduler = getattr(diffusers, SCHEDULERS[kind]).from_config(config, **latents)
    if kind == "lcm":
        scheduler.set_timesteps(steps, strength=strength)
    else:
        scheduler.set_timesteps(schedule_length(steps, strength))
    return scheduler, scheduler.timesteps[-steps:]


def encoded(networks: Networks, images: Array, drawn: "list[torch.Generator]") -> "torch.Tensor":
    """Latents float32 [images, channels, height, width] of uint8 images, each drawn from its posterior and scaled."""
    import torch

    latents = []
    for image, generator in zip(images, drawn, strict=True):  # one by one: the autoencoder's states are the largest
        pixels = torch.from_numpy(image.astype(np.float32) / 255).permute(2, 0, 1)[None] * 2 - 1
        # Channels last, as diffusers lays images out: another layout is another order of sums, and slower.
        pixels = pixels.clone(memory_format=torch.channels_last)
        with torch.inference_mode():
            found = networks.vae.network.encode(pixels.to(networks.device, networks.dtype))
        if hasattr(found, "latent_dist"):
            mean, std = found.latent_dist.mean.float().cpu(), found.latent_dist.std.float().cpu()
            latent = mean + std * torch.randn(mean.shape, generator=generator)
        else:  # a tiny autoencoder has one answer
            latent = found.latents.float().cpu()
        latents.append(latent * networks.scaling)
    networks.vae.rest()
    return torch.cat(latents)


def denoised(
    networks: Networks,
    sampler: tuple[Any, Any],
    latents: "torch.Tensor",
    conditions: "torch.Tensor",
    drawn: "list[torch.Generator]",
    *,
    guidance: float = 1.0,
    negative: "torch.Tensor | None" = None,
) -> "torch.Tensor":
    """Noise latents [images, …] to the sampler's first level and remove it under ``conditions`` [images, tokens, width].

    With guidance w > 1: ε = ε(negative) + w (ε(conditions) - ε(negative)). The sampler's own arithmetic is float32 in
    every precision.
    """
    import torch

    scheduler, levels = sampler
    noise = torch.cat([torch.randn(latents[:1].shape, generator=generator) for generator in drawn])
    latents = latents.clone(memory_format=torch.channels_last)
    latents = scheduler.add_noise(latents, noise, levels[:1].repeat(len(latents)))
    if negative is not None:
        conditions = torch.cat([negative.expand_as(conditions), conditions])
    conditions = conditions.to(networks.device, networks.dtype)
    stochastic = {} if type(scheduler).__name__ == SCHEDULERS["ddim"] else {"generator": drawn}
    with torch.inference_mode():
        for level in levels:
            inputs = latents if negative is None else torch.cat([latents, latents])
            inputs = scheduler.scale_model_input(inputs, level).to(networks.device, networks.dtype)
            found = networks.unet.network(inputs, level.to(networks.device), encoder_hidden_states=conditions).sample
            found = found.float().cpu()
            if negative is not None:
                away, towards = found.chunk(2)
                found = away + guidance * (towards - away)
            latents = scheduler.step(found, level, latents, **stochastic, return_dict=False)[0]
    networks.unet.rest()
    return latents


def decoded(networks: Networks, latents: "torch.Tensor") -> Array:
    """Images float32 [images, height, width, 3] from 0 to 1 of scaled latents; not finite where the networks failed."""
    import torch

    images = []
    for k in range(len(latents)):
        latent = latents[k : k + 1]
        with torch.inference_mode():
            scaled = (latent / networks.scaling).to(networks.device, networks.dtype)
            image = networks.vae.network.decode(scaled).sample.float().cpu()
        images.append((image / 2 + 0.5).clamp(0, 1)[0].permute(1, 2, 0).numpy())
    networks.vae.rest()
    return np.stack(images)
