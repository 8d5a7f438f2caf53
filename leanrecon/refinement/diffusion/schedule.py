"""Samplers of diffusion models, and how long their schedules are so that a stated number of steps runs: arithmetic only."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import ceil
from typing import Any

TRAINED = 1000
"""Noise levels that Stable Diffusion was trained on."""

DISTILLED = 50
"""Noise levels that LCM was distilled on (Luo et al. 2023)."""


@dataclass(frozen=True)
class Sampler(ABC):
    """A way to remove noise step by step."""

    name: str
    scheduler: str
    """Its class in diffusers."""
    stochastic: bool
    """Whether each step draws noise."""

    @abstractmethod
    def problem(self, steps: int, strength: float, *, trained: int = TRAINED, distilled: int = DISTILLED) -> str:
        """Why ``steps`` evaluations of the network can't run at a strength; empty if they can."""

    @abstractmethod
    def set_timesteps(self, scheduler: Any, steps: int, strength: float) -> None:
        """Set the noise levels of diffusers' ``scheduler``; the last ``steps`` of them are run."""

    @property
    def config(self) -> dict[str, Any]:
        """What replaces the model's own settings of its scheduler."""
        return {}


@dataclass(frozen=True)
class DistilledSampler(Sampler):
    """LCM: levels among those that a model was distilled on, below ``strength``, as Luo et al. choose them."""

    def problem(self, steps: int, strength: float, *, trained: int = TRAINED, distilled: int = DISTILLED) -> str:
        levels = int(distilled * strength)
        if levels >= steps:
            return ""
        return (
            f"{self.name} has {levels} of its {distilled} noise levels at strength {strength:g}, fewer than {steps} "
            f"steps: raise strength to {steps / distilled:g} or more"
            + (f", or lower steps to {levels} or less" if levels else "")
        )

    def set_timesteps(self, scheduler: Any, steps: int, strength: float) -> None:
        scheduler.set_timesteps(steps, strength=strength)


@dataclass(frozen=True)
class TruncatedSampler(Sampler):
    """DDIM and DDPM: the last part of a longer schedule, as diffusers cuts it."""

    def problem(self, steps: int, strength: float, *, trained: int = TRAINED, distilled: int = DISTILLED) -> str:
        if (n := schedule_length(steps, strength)) <= trained:
            return ""
        return (
            f"{steps} steps at strength {strength:g} are part of a schedule of {n}, more than the {trained} noise "
            f"levels that there are: raise strength to {steps / trained:g} or more"
        )

    def set_timesteps(self, scheduler: Any, steps: int, strength: float) -> None:
        scheduler.set_timesteps(schedule_length(steps, strength))

    @property
    def config(self) -> dict[str, Any]:
        # Schedulers of pixels clip by default; latents have no bounds.
        return {"clip_sample": False, "thresholding": False}


LCM = DistilledSampler("lcm", "LCMScheduler", stochastic=True)
DDIM = TruncatedSampler("ddim", "DDIMScheduler", stochastic=False)
DDPM = TruncatedSampler("ddpm", "DDPMScheduler", stochastic=True)


def schedule_length(steps: int, strength: float) -> int:
    """The least N of which a strength leaves ``steps`` to run: int(N · strength) = steps, as diffusers counts.

    ``strength`` lies in (0, 1], so each further N adds at most one and no number is left out.
    """
    n = max(ceil(steps / strength) - 1, 1)
    while int(n * strength) < steps:
        n += 1
    return n
