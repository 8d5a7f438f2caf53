"""The search itself: Adam over the latents of some images, each by its own loss."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from leanrecon.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
"""Of Adam, as published (Kingma & Ba 2015, arXiv:1412.6980)."""

Visit = Callable[[int, "Tensor"], None]
"""Is told the number of steps so far and the latents [b, d] after them."""


@dataclass(frozen=True)
class Problem:
    """What is searched: images [b, 3, height, width] from 0 to 1 by latents [b, d]."""

    image: Callable[["Tensor"], "Tensor"]
    """The images of latents."""
    distance: Callable[["Tensor"], "Tensor"]
    """How far each image is from what the brain says, [b]."""
    centre: "Tensor"
    """Where the prior has its mean, [b, d] or [d]."""
    scale: "Tensor"
    """Standard deviations of the latents, [d]."""
    gradients: Callable[[], Any]
    """The context in which gradients are taken."""


@dataclass(frozen=True)
class Found:
    """Where a search ended."""

    latents: "Tensor"
    distance: "Tensor"
    """From what the brain says, without the prior, [b]."""
    curve: "list[list[float]]"
    """That distance before every step and after the last one: of each image."""


def search(
    problem: Problem, start: "Tensor", *, steps: int, rate: float, penalty: float, visit: Visit | None = None
) -> Found:
    """Minimise distance + penalty · mean(((z − centre) / scale)²) over the latents z of each image, from ``start``.

    A step of Adam is ``rate`` times ``scale``. Losses of images are summed, so that none depends on the others. Raises
    InputError where a loss or a gradient is not finite.
    """
    import torch

    moved, mean, square = (torch.zeros_like(start) for _ in range(3))
    curve: list[Tensor] = []
    for step in range(steps + 1):
        last = step == steps
        with problem.gradients():
            moved.requires_grad_(not last)
            latents = start + moved * problem.scale
            distance = problem.distance(problem.image(latents))
            prior = ((latents - problem.centre) / problem.scale).square().mean(1)
            gradient = None if last else torch.autograd.grad((distance + penalty * prior).sum(), moved)[0]
        moved = moved.detach()
        _check(step, distance, gradient)
        curve.append(distance.detach().cpu())
        if visit is not None:
            visit(step, latents.detach())
        if gradient is not None:
            mean = BETA1 * mean + (1 - BETA1) * gradient
            square = BETA2 * square + (1 - BETA2) * gradient.square()
            corrected = mean / (1 - BETA1 ** (step + 1))
            moved = moved - rate * corrected / ((square / (1 - BETA2 ** (step + 1))).sqrt() + EPSILON)
    by_image = torch.stack(curve, 1).tolist()
    return Found(latents.detach(), distance.detach(), by_image)


def _check(step: int, distance: "Tensor", gradient: "Tensor | None") -> None:
    import torch

    faulty = [] if bool(torch.isfinite(distance).all()) else ["the distance from what was predicted"]
    if gradient is not None and not bool(torch.isfinite(gradient).all()):
        faulty.append("its gradient")
    if faulty:
        raise InputError(
            f"{' and '.join(faulty)} is not finite after {step} steps",
            expected="a decoder and a feature space that give finite numbers",
            todo="set a smaller refine.rate, or look at their weights",
        )
