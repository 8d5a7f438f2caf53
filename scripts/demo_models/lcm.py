"""LCM-LoRA: a LoRA with which the diffusion model needs four steps (Luo et al. 2023, arXiv:2311.05556).

The student predicts the same clean latents at a level as at the level ``SKIP`` below it, which the teacher reaches by DDIM
under guidance (latent consistency distillation, Luo et al. 2023, arXiv:2310.04378). The target at the lower level comes
from averaged weights. The paper skips 20 levels in one step of DDIM, which makes 50 skips from noise to image. Here 10 skips
of two steps each do it, so that errors add up less in so short a training.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.func import functional_call

from demo_models.diffusion import Described, scheduler, text_states
from demo_models.training import Array, Schedule, Task, Weights, holding

RANK = 32
GUIDANCE = 3.0
"""Of the untouched network, which the low-rank weights take up."""
LEVELS, SKIP, STEPS = 1000, 100, 2
SPREAD, STRETCH = 0.5, 10.0
"""Of the latents, and of the levels, in the weights with which noisy latents count: as in diffusers' LCMScheduler."""
HUBER = 0.001


class LearnLCM(Task):
    """Consistency of the predicted clean latents from level to level."""

    name = "lcm-lora"

    def __init__(
        self, described: Described, held_out: Described, models: Path, schedule: Schedule, device: str
    ) -> None:
        torch.manual_seed(4)
        self.described, self.held_out, self.schedule, self.device = described, held_out, schedule, device
        unet = UNet2DConditionModel.from_pretrained(models / "diffusion" / "unet", torch_dtype=torch.float32)
        unet = unet.to(device, memory_format=torch.channels_last)
        layers = [name for name, module in unet.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
        self.model = get_peft_model(unet, LoraConfig(r=RANK, lora_alpha=RANK, target_modules=layers))
        self.weights = {name: w for name, w in self.model.named_parameters() if w.requires_grad}
        self.signal = scheduler().alphas_cumprod.to(device)
        self.empty = torch.from_numpy(text_states([""], models, device)).to(device).float()

    @property
    def rows(self) -> int:
        return len(self.described)

    def loss(self, rows: Array, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        return self._loss(self.described, rows, rng)

    def _loss(self, described: Described, rows: Array, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        x = torch.from_numpy(described.latents[rows]).to(self.device).float()
        states = torch.from_numpy(described.states[rows]).to(self.device).float()
        n = len(rows)
        # Levels spread evenly over the batch, which lowers the variance of the loss.
        t = torch.from_numpy(((rng.permutation(n) + rng.random(n)) / n * LEVELS).astype(np.int64)).to(self.device)
        noise = torch.from_numpy(rng.standard_normal(x.shape, np.float32)).to(self.device)
        noisy = self._at(t).sqrt() * x + (1 - self._at(t)).sqrt() * noise
        with torch.no_grad():
            lower, below = noisy, t
            with self.model.disable_adapter():
                for _ in range(STEPS):
                    lower, below = self._led(lower, below, states)
            target = self._clean(lower, below, states, self.averaged)
        away = self._clean(noisy, t, states) - target
        return (torch.sqrt(away.square() + HUBER**2) - HUBER).mean(), {"squared": away.square().mean().item()}

    def _led(self, noisy: Tensor, t: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """Latents some levels lower, by a step of DDIM with the teacher under guidance."""
        both = self.model(
            torch.cat((noisy, noisy)), torch.cat((t, t)), torch.cat((states, self.empty.expand_as(states)))
        )
        own, without = both.sample.chunk(2)
        clean, left = self._split(noisy, t, without + GUIDANCE * (own - without))
        below = (t - SKIP // STEPS).clamp(min=0)
        a = self._at(below)
        return a.sqrt() * clean + (1 - a).sqrt() * left, below

    def _at(self, t: Tensor) -> Tensor:
        return self.signal[t][:, None, None, None]

    def _split(self, noisy: Tensor, t: Tensor, velocity: Tensor) -> tuple[Tensor, Tensor]:
        """Predicted clean latents and noise."""
        a = self._at(t)
        return a.sqrt() * noisy - (1 - a).sqrt() * velocity, a.sqrt() * velocity + (1 - a).sqrt() * noisy

    def _clean(self, noisy: Tensor, t: Tensor, states: Tensor, weights: Weights | None = None) -> Tensor:
        """The consistency function: predicted clean latents, and at the lowest levels the noisy latents themselves."""
        network = self.model if weights is None else lambda *given: functional_call(self.model, weights, given)
        clean, _ = self._split(noisy, t, network(noisy, t, states).sample)
        level = (t.float() * STRETCH)[:, None, None, None]
        kept = SPREAD**2 / (level.square() + SPREAD**2)
        return kept * noisy + level / (level.square() + SPREAD**2).sqrt() * clean

    @torch.no_grad()
    def measure(self, weights: Weights) -> dict[str, float]:
        """The loss on held-out scenes, at fixed levels and noise."""
        with holding(self.model, weights):
            found = [self._loss(self.held_out, np.arange(at, at + 50), np.random.default_rng(at))[0] for at in (0, 50)]
        return {"loss": float(torch.stack(found).mean())}

    def export(self, folder: Path, weights: Weights) -> None:
        """Write the LoRA in peft's format, in half precision."""
        self.model.load_state_dict(weights, strict=False)
        self.model.half().save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)  # peft's template
