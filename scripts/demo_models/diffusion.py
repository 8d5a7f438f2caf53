"""A small latent diffusion model under CLIP text embeddings (Rombach et al. 2022), in Stable Diffusion's layout."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel

from demo_models.autoencoder import pixels
from demo_models.tokens import POSITIONS, Tokens
from demo_models.training import Array, Schedule, Task, Weights, holding

CHANNELS = (64, 128, 192)
DROPPED = 0.1
"""Share of the captions that are left empty, for guidance without a classifier (Ho & Salimans 2021)."""
BLURRED, LEAST = 0.5, 0.5
"""Share of the captions whose states are mixed with another's, and the least share of the own: as predictions from a
brain are, which hold some of what was seen (conditioning augmentation, Ho et al. 2022, arXiv:2106.15282)."""
GAMMA = 5.0
"""Largest signal-to-noise ratio that counts (Hang et al. 2023, arXiv:2303.09556)."""


def build(width: int, latents: tuple[int, int, int]) -> UNet2DConditionModel:
    """The denoising network with random weights."""
    return UNet2DConditionModel(
        sample_size=latents[1],
        in_channels=latents[0],
        out_channels=latents[0],
        block_out_channels=CHANNELS,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=width,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise levels; the network predicts velocities (Salimans & Ho 2022)."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


class Described:
    """Latents and text embeddings of scenes, computed once and kept in two mapped files: float16."""

    def __init__(self, folder: Path, name: str, images: Array, captions: list[str], models: Path, device: str) -> None:
        self.latents = _kept(folder / f"latents-{name}.npy", lambda: _latents(images, models, device))
        self.states = _kept(folder / f"states-{name}.npy", lambda: text_states(captions, models, device))

    def __len__(self) -> int:
        return len(self.latents)


def _kept(path: Path, make: Callable[[], Array]) -> Array:
    if not path.exists():
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            np.save(file, make(), allow_pickle=False)
        partial.replace(path)
    return np.load(path, mmap_mode="r", allow_pickle=False)


@torch.no_grad()
def _latents(images: Array, models: Path, device: str) -> Array:
    vae = AutoencoderKL.from_pretrained(models / "diffusion" / "vae", torch_dtype=torch.float32).to(device)
    found = [
        vae.encode(pixels(images[at : at + 100], device)).latent_dist.mode().cpu() for at in range(0, len(images), 100)
    ]
    return (torch.cat(found) * vae.config.scaling_factor).half().numpy()


@torch.no_grad()
def text_states(captions: list[str], models: Path, device: str) -> Array:
    """The text embeddings: last hidden states of every token, float16 [n, 77, width]."""
    model = CLIPTextModel.from_pretrained(models / "clip", torch_dtype=torch.float32).to(device)
    tokens = Tokens(models / "clip").of(captions)
    states = np.empty((len(tokens), POSITIONS, model.config.hidden_size), np.float16)
    for at in range(0, len(tokens), 200):
        some = torch.from_numpy(tokens[at : at + 200].astype(np.int64)).to(device)
        states[at : at + 200] = model(input_ids=some).last_hidden_state.cpu().numpy()
    return states


class LearnDiffusion(Task):
    """Velocity prediction of noised latents under text embeddings."""

    name = "diffusion"

    def __init__(
        self, described: Described, held_out: Described, models: Path, schedule: Schedule, device: str
    ) -> None:
        torch.manual_seed(3)
        self.described, self.held_out, self.schedule, self.device = described, held_out, schedule, device
        latents, states = described.latents, described.states
        self.model = build(states.shape[2], latents.shape[1:]).to(device, memory_format=torch.channels_last).train()
        self.weights = dict(self.model.named_parameters())
        self.signal = scheduler().alphas_cumprod.to(device)
        self.empty = torch.from_numpy(text_states([""], models, device)).to(device).float()
        self.mean = torch.from_numpy(np.asarray(states[:5000], np.float32).mean(axis=0)).to(device)

    @property
    def rows(self) -> int:
        return len(self.described)

    def loss(self, rows: Array, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        x = torch.from_numpy(self.described.latents[rows]).to(self.device).float()
        states = torch.from_numpy(self.described.states[rows]).to(self.device).float()
        states = self._blurred(states, rng)
        dropped = torch.from_numpy(rng.random(len(rows)) < DROPPED).to(self.device)
        states = torch.where(dropped[:, None, None], self.empty, states)
        # Levels spread evenly over the batch, which lowers the variance of the loss.
        levels = (rng.permutation(len(rows)) + rng.random(len(rows))) / len(rows) * len(self.signal)
        return self._loss(self.model, x, states, levels.astype(np.int64), rng)

    def _loss(
        self, model: UNet2DConditionModel, x: Tensor, states: Tensor, levels: Array, rng: np.random.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        t = torch.from_numpy(levels).to(self.device)
        noise = torch.from_numpy(rng.standard_normal(x.shape, np.float32)).to(self.device)
        a = self.signal[t][:, None, None, None]
        noisy, velocity = a.sqrt() * x + (1 - a).sqrt() * noise, a.sqrt() * noise - (1 - a).sqrt() * x
        found = model(noisy.contiguous(memory_format=torch.channels_last), t, states).sample
        errors = (found - velocity).square().mean(dim=(1, 2, 3))
        ratio = a.flatten() / (1 - a.flatten())
        return (errors * ratio.clamp(max=GAMMA) / (ratio + 1)).mean(), {"velocity": errors.mean().item()}

    def _blurred(self, states: Tensor, rng: np.random.Generator) -> Tensor:
        """Embeddings of some rows mixed with those of two other rows, at the same mean and deviation."""
        n = len(states)
        own = np.where(rng.random(n) < BLURRED, rng.uniform(LEAST, 1, n), 1.0).astype(np.float32)
        r = torch.from_numpy(own).to(self.device)[:, None, None]
        away = states - self.mean
        others = (away.roll(1, 0) + away.roll(2, 0)) * 0.5**0.5
        return self.mean + r * away + (1 - r.square()).sqrt() * others

    @torch.no_grad()
    def measure(self, weights: Weights) -> dict[str, float]:
        """The loss on held-out scenes, at fixed levels and noise."""
        found = []
        with holding(self.model, weights):
            for at in range(0, 400, 100):
                x = torch.from_numpy(self.held_out.latents[at : at + 100]).to(self.device).float()
                states = torch.from_numpy(self.held_out.states[at : at + 100]).to(self.device).float()
                levels = (np.arange(100) + 0.5) / 100 * len(self.signal)
                loss, told = self._loss(self.model, x, states, levels.astype(np.int64), np.random.default_rng(at))
                found.append((loss.item(), told["velocity"]))
        loss_mean, velocity = np.mean(found, axis=0).tolist()
        return {"loss": loss_mean, "velocity": velocity}

    def export(self, folder: Path, weights: Weights) -> None:
        """Write network and scheduler in diffusers' format, in half precision."""
        self.model.load_state_dict(weights, strict=False)
        self.model.half().save_pretrained(folder / "unet")
        scheduler().save_pretrained(folder / "scheduler")
