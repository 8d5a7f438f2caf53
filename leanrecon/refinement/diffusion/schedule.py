"""How many steps a sampler is asked for so that a stated number of them runs: arithmetic only."""

from math import ceil

TRAINED = 1000
"""Noise levels that Stable Diffusion was trained on."""

DISTILLED = 50
"""Noise levels that LCM was distilled on (Luo et al. 2023)."""


def schedule_length(steps: int, strength: float) -> int:
    """The least N of which a strength leaves ``steps`` to run: int(N · strength) = steps, as diffusers counts.

    ``strength`` lies in (0, 1], so each further N adds at most one and no number is left out.
    """
    n = max(ceil(steps / strength) - 1, 1)
    while int(n * strength) < steps:
        n += 1
    return n


def problem_of(kind: str, steps: int, strength: float, *, trained: int = TRAINED, distilled: int = DISTILLED) -> str:
    """Why a number of evaluations can't run at a strength; empty if it can."""
    if kind == "lcm":
        levels = int(distilled * strength)
        if levels < steps:
            return (
                f"lcm has {levels} of its {distilled} noise levels at strength {strength:g}, fewer than {steps} steps: "
                f"raise strength to {steps / distilled:g} or more"
                + (f", or lower steps to {levels} or less" if levels else "")
            )
    elif (n := schedule_length(steps, strength)) > trained:
        return (
            f"{steps} steps at strength {strength:g} are part of a schedule of {n}, more than the {trained} noise "
            f"levels that there are: raise strength to {steps / trained:g} or more"
        )
    return ""
