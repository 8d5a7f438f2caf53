"""The form of a decoder: its kernel, γ of an rbf kernel, and the weights of voxels. Loads no SciPy."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Kernel = Literal["linear", "rbf"]
Source = Literal["accuracy", "reliability"]

KERNELS = ("linear", "rbf", "auto")
VOXEL_WEIGHTS = ("none", "accuracy", "reliability", "auto")

FLOOR = 1e-4
"""The least share of variance that weighs a voxel."""

GAMMAS = (0.25, 0.5, 1.0, 2.0)
"""γ of an rbf kernel that "loo" chooses from."""

POWERS = (0.5, 1.0)
"""Powers of the shares of variance that "loo" chooses from."""

MOST_POWER = 16
"""The largest power: shares of variance to a larger one are soon 0 for all voxels."""


@dataclass(frozen=True)
class Form:
    """One form of a decoder."""

    kernel: Kernel = "linear"
    gamma: float | None = None
    source: Source | None = None
    power: float | None = None

    def __str__(self) -> str:
        kernel = self.kernel if self.gamma is None else f"{self.kernel} kernel of gamma {self.gamma:g}"
        return kernel if self.source is None else f"{kernel}, voxels weighed by {self.source}^{self.power:g}"

    def as_dict(self) -> dict[str, Any]:
        """The form as run.json records it."""
        found = {"kernel": self.kernel, "gamma": self.gamma, "voxel_weights": self.source, "voxel_power": self.power}
        return {name: value for name, value in found.items() if value is not None}


def forms(kernel: str, gamma: float | str, voxel_weights: str, voxel_power: float | str) -> Sequence[Form]:
    """The forms that the parameters allow, the simplest first."""
    kernels = ["linear", "rbf"] if kernel == "auto" else [kernel]
    gammas = GAMMAS if gamma == "loo" else (float(gamma),)
    powers = POWERS if voxel_power == "loo" else (float(voxel_power),)
    source: Any = "accuracy" if voxel_weights == "auto" else voxel_weights
    weighed: list[tuple[Any, float | None]] = [(None, None)] if voxel_weights in ("none", "auto") else []
    weighed += [(source, power) for power in powers] if voxel_weights != "none" else []
    return [
        Form(k, g, by, power)  # type: ignore[arg-type]
        for k in kernels
        for g in (gammas if k == "rbf" else (None,))
        for by, power in weighed
    ]
