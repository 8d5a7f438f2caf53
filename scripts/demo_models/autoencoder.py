"""A small AutoencoderKL, in whose latents the diffusion model works (Rombach et al. 2022, arXiv:2112.10752)."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from demo_models.data import SIZE, Scenes
from demo_models.training import Array, Schedule, Task, Weights, holding

CHANNELS = (16, 32, 64)
LATENT_CHANNELS = 4
DIVERGENCE = 2e-4
"""Weight of the posteriors' divergence from the standard normal, for each number of an image."""
EDGES = 1.0
"""Weight of the differences between neighbouring pixels, beside that of the pixels."""
MEASURED = 200


def build() -> AutoencoderKL:
    """The model with random weights; its latents are a quarter as wide as an image."""
    n = len(CHANNELS)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * n,
        up_block_types=("UpDecoderBlock2D",) * n,
        block_out_channels=CHANNELS,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=SIZE,
    )


def pixels(images: Array, device: str) -> Tensor:
    """The model's inputs: float32 [n, 3, 64, 64] from -1 to 1, of uint8 images."""
    found = torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2)
    return found.float() / 127.5 - 1


class LearnAutoencoder(Task):
    """Reconstruction of pixels and edges through latents near the standard normal."""

    name = "autoencoder"

    def __init__(self, scenes: Scenes, held_out: Scenes, schedule: Schedule, device: str) -> None:
        torch.manual_seed(2)
        self.model = build().to(device, memory_format=torch.channels_last).train()
        self.scenes, self.held_out, self.schedule, self.device = scenes, held_out, schedule, device
        self.weights = dict(self.model.named_parameters())

    @property
    def rows(self) -> int:
        return len(self.scenes)

    def loss(self, rows: Array, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        images = self.scenes.images[rows]
        if rng.random() < 0.5:
            images = images[:, :, ::-1]
        x = pixels(images, self.device)
        generator = torch.Generator(self.device).manual_seed(int(rng.integers(2**62)))
        posterior = self.model.encode(x).latent_dist
        back = self.model.decode(posterior.sample(generator)).sample
        away = (back - x).abs().mean()
        down, across = ((torch.diff(back, dim=d) - torch.diff(x, dim=d)).abs().mean() for d in (2, 3))
        edges = (down + across) / 2
        divergence = posterior.kl().mean() / (3 * SIZE**2)
        return away + EDGES * edges + DIVERGENCE * divergence, {
            "pixels": away.item(),
            "edges": edges.item(),
            "divergence": divergence.item(),
        }

    @torch.no_grad()
    def measure(self, weights: Weights) -> dict[str, float]:
        """SSIM and PixCorr of reconstructed held-out scenes, and the deviation of their latents."""
        from leanrecon.evaluation.metrics import compare, prepare

        metrics, scores, spread = ["pixcorr", "ssim"], [], []
        with holding(self.model, weights):
            for at in range(0, MEASURED, 50):
                images = self.held_out.images[at : at + 50]
                latents = self.model.encode(pixels(images, self.device)).latent_dist.mode()
                spread.append(float(latents.std()))
                back = as_bytes(self.model.decode(latents).sample)
                scores += [
                    compare(prepare(a, metrics), prepare(b, metrics), metrics)
                    for a, b in zip(back, images, strict=True)
                ]
        return {m: float(np.mean([s[m] for s in scores])) for m in metrics} | {"spread": float(np.mean(spread))}

    def export(self, folder: Path, weights: Weights) -> None:
        """Write the model in diffusers' format, in half precision, with a scaling factor of 1 / deviation of its latents."""
        self.model.load_state_dict(weights, strict=False)
        with torch.no_grad():
            latents = [
                self.model.encode(pixels(self.scenes.images[at : at + 100], self.device)).latent_dist.mode()
                for at in range(0, 2000, 100)
            ]
        self.model.register_to_config(scaling_factor=round(1 / float(torch.cat(latents).std()), 4))
        self.model.half().save_pretrained(folder)


def as_bytes(pixels: Tensor) -> Array:
    """Uint8 images [n, h, w, 3] of the model's output."""
    numbers: Array = ((pixels.clamp(-1, 1) + 1) * 127.5).round().permute(0, 2, 3, 1).to(torch.uint8).cpu().numpy()
    return numbers
