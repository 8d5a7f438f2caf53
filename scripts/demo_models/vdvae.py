"""A small VDVAE (Child 2021, arXiv:2011.10650): leanrecon's class, trained on its evidence lower bound."""

import math
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from demo_models.data import SIZE, Scenes
from demo_models.training import Array, Schedule, Task, Weights
from leanrecon.features.vdvae.config import VDVAEConfig, weight_shapes
from leanrecon.features.vdvae.mixture import LEAST_LOG_SCALE
from leanrecon.features.vdvae.network import VDVAE

CONFIG = VDVAEConfig(
    image_size=SIZE,
    enc_blocks="64d2,32d2,16x2,16d2,8x2,8d2,4x1,4d4,1x1",
    dec_blocks="1x1,4m1,4x1,8m4,8x2,16m8,16x2,32m16,64m32",
    width=32,
    custom_width_str="32:64,16:96,8:128,4:128,1:128",
    bottleneck_multiple=0.5,
    zdim=8,
    num_mixtures=4,
)
"""Eleven latents: 8 numbers, 2 times 128, 3 times 512, 3 times 2048, one of 8192 and one of 32768."""

AWAY = 50.0
"""Weight of the distance between colours and the mixture's means, beside bits: likelihood alone looks at smooth skies
first and at outlines last."""

NARROW = -2.0
"""Log standard deviation of posteriors where training begins."""

DIMENSIONS = SIZE * SIZE * 3
MEASURED = 200


class LearnVDVAE(Task):
    """The likelihood of pixels under posterior samples, and their divergence from the prior."""

    name = "vdvae"

    def __init__(self, scenes: Scenes, held_out: Scenes, schedule: Schedule, device: str) -> None:
        self.scenes, self.held_out, self.schedule, self.device = scenes, held_out, schedule, device
        self.weights = {name: w.to(device).requires_grad_() for name, w in first_weights(CONFIG).items()}
        self.model = VDVAE(CONFIG, self.weights, device=device)

    @property
    def rows(self) -> int:
        return len(self.scenes)

    def loss(self, rows: Array, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        images = self.scenes.images[rows]
        if rng.random() < 0.5:
            images = images[:, :, ::-1]
        generator = torch.Generator(self.device).manual_seed(int(rng.integers(2**62)))
        rate, distortion, away = self.bound(self.model, images, generator)
        bits = (rate + distortion) / (DIMENSIONS * math.log(2))
        told = {"rate": rate.item() / (DIMENSIONS * math.log(2)), "bits": bits.item(), "away": away.item()}
        return bits + AWAY * away, told

    def bound(self, model: VDVAE, images: Array, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Divergence from the prior and negative log-likelihood of pixels, in nats per image, mean over the batch.

        Also the distance of colours from the mixture's means, and of neighbours' differences from theirs.
        """
        activations = model._activations(images, {block.resolution for block in CONFIG.decoder})
        states: dict[int, Tensor] = {}
        rate = torch.zeros((), device=self.device)
        for i, block in enumerate(CONFIG.decoder):
            x = model._start(i, states, len(images))
            mean, log_std = model._posterior(i, x, activations[block.resolution])
            prior_mean, prior_log_std, x = model._prior(i, x)
            noise = torch.randn(mean.shape, generator=generator, device=self.device)
            z = mean + log_std.exp() * noise
            rate = rate + divergence(mean, log_std, prior_mean, prior_log_std).sum() / len(images)
            states[block.resolution] = model._with_latent(i, x, z)
        state = states[CONFIG.image_size] * model.weights["decoder.gain"] + model.weights["decoder.bias"]
        numbers = model._convolution(state, "decoder.out_net.out_conv")
        return rate, negative_log_likelihood(images, numbers) / len(images), distance(images, numbers)

    @torch.no_grad()
    def measure(self, weights: Weights) -> dict[str, float]:
        """Bits per dimension, and SSIM of reconstructions from the means of all latents and of the first ones."""
        from leanrecon.evaluation.metrics import compare, prepare

        model = VDVAE(CONFIG, weights, device=self.device)
        images = np.ascontiguousarray(self.held_out.images[:MEASURED])
        generator = torch.Generator(self.device).manual_seed(0)
        bounds = [sum(self.bound(model, images[at : at + 50], generator)[:2]).item() for at in range(0, MEASURED, 50)]
        found = {"bits": float(np.mean(bounds)) / (DIMENSIONS * math.log(2))}
        for n in (6, 9, len(CONFIG.decoder)):
            decoded = model.decode(model.encode(images[:50], n))
            scores = [compare(prepare(a, ["ssim"]), prepare(b, ["ssim"]), ["ssim"])["ssim"] for a, b in zip(decoded, images, strict=False)]  # fmt: skip
            found[f"ssim_{n}"] = float(np.mean(scores))
        return found

    def export(self, folder: Path, weights: Weights) -> None:
        """Write the weights in half precision as safetensors."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: w.half().contiguous().cpu() for name, w in weights.items()}, folder / "vdvae.safetensors")


def first_weights(config: VDVAEConfig) -> Weights:
    """Initial weights: as published, the blocks' outputs are small, and priors are standard normal.

    Posteriors begin narrow, so that latents depend on the image from the first step on.
    """
    generator = torch.Generator().manual_seed(1)
    weights = {}
    for name, shape in weight_shapes(config).items():
        if name == "decoder.gain":
            weight = torch.ones(shape)
        elif name.endswith("weight"):
            bound = 1 / math.sqrt(math.prod(shape[1:]))
            weight = (torch.rand(shape, generator=generator) * 2 - 1) * bound
            if ".prior.c4" in name:
                weight = torch.zeros(shape)
            elif (".resnet.c4" in name) or "z_proj" in name:
                weight /= math.sqrt(len(config.decoder))
            elif "enc_blocks" in name and ".c4" in name:
                weight /= math.sqrt(len(config.encoder))
        else:
            weight = torch.zeros(shape)
            if ".enc.c4" in name:
                weight[config.zdim :] = NARROW
        weights[name] = weight
    return weights


def distance(images: Array, numbers: Tensor) -> Tensor:
    """Mean distance of colours (-1 to 1) from the mixture's means, and of neighbours' differences from theirs."""
    m = numbers.shape[1] // 10
    x = torch.from_numpy(np.ascontiguousarray(images)).to(numbers.device).float().permute(0, 3, 1, 2) / 127.5 - 1
    share = functional.softmax(numbers[:, :m], 1)[:, None]
    colours = numbers[:, m:].unflatten(1, (3, 3, m))
    red, green, blue = (colours[:, :, 0] * share).sum(2).unbind(1)
    of_green, by_red, by_green = (torch.tanh(colours[:, :, 2]) * share).sum(2).unbind(1)
    green = green + of_green * x[:, 0]
    blue = blue + by_red * x[:, 0] + by_green * x[:, 1]
    away = torch.stack((red, green, blue), 1) - x
    down, across = (torch.diff(away, dim=d).abs().mean() for d in (2, 3))
    return away.abs().mean() + (down + across) / 2


def divergence(mean: Tensor, log_std: Tensor, prior_mean: Tensor, prior_log_std: Tensor) -> Tensor:
    """KL divergence of one diagonal Gaussian from another, in nats per number."""
    ratio = (2 * (log_std - prior_log_std)).exp()
    away = (mean - prior_mean).square() * (-2 * prior_log_std).exp()
    return prior_log_std - log_std - 0.5 + 0.5 * (ratio + away)


def negative_log_likelihood(images: Array, numbers: Tensor) -> Tensor:
    """Nats of uint8 ``images`` [n, h, w, 3] under a mixture of discretised logistics, summed (Salimans et al. 2017)."""
    numbers = numbers.float().permute(0, 2, 3, 1)
    n, h, w, channels = numbers.shape
    m = channels // 10
    target = torch.from_numpy(np.ascontiguousarray(images)).to(numbers.device).float() / 127.5 - 1
    colours = numbers[..., m:].reshape(n, h, w, 3, 3, m)
    means, log_scales, coefficients = (colours[..., k, :] for k in range(3))
    coefficients = torch.tanh(coefficients)
    x = target[..., None]  # [n, h, w, 3, 1]
    moved = torch.stack(
        (
            means[..., 0, :],
            means[..., 1, :] + coefficients[..., 0, :] * x[..., 0, :],
            means[..., 2, :] + coefficients[..., 1, :] * x[..., 0, :] + coefficients[..., 2, :] * x[..., 1, :],
        ),
        -2,
    )
    scale = torch.exp(-log_scales.clamp(min=LEAST_LOG_SCALE))
    above, below = scale * (x - moved + 1 / 255), scale * (x - moved - 1 / 255)
    inside = torch.sigmoid(above) - torch.sigmoid(below)
    middle = scale * (x - moved)
    density = middle - log_scales.clamp(min=LEAST_LOG_SCALE) - 2 * functional.softplus(middle) - math.log(127.5)
    log_p = torch.where(inside > 1e-5, inside.clamp(min=1e-12).log(), density)
    log_p = torch.where(x < -0.999, above - functional.softplus(above), log_p)
    log_p = torch.where(x > 0.999, -functional.softplus(below), log_p)
    mixture = log_p.sum(-2) + functional.log_softmax(numbers[..., :m], -1)
    return -torch.logsumexp(mixture, -1).sum()
