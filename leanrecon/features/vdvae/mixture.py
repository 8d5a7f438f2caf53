"""Pixels from a mixture of discretised logistics, as PixelCNN++ has them (Salimans et al. 2017, arXiv:1701.05517)."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

LEAST_LOG_SCALE = -7.0


def pixel_values(numbers: "Tensor", eps: "Tensor | None" = None, u: "Tensor | None" = None) -> "Tensor":
    """Colours [b, h, w, 3] from -1 to 1 of the network's output [b, 10·M, h, w].

    At each pixel come M logits, then for each colour M means, M log-scales and M coefficients. ``eps`` [b, h, w, M]
    picks the component (the most probable one without), ``u`` [b, h, w, 3] the place within its logistic (its mean
    without); both between 0 and 1. Green is moved by red, and blue by red and green.
    """
    import torch

    numbers = numbers.float().permute(0, 2, 3, 1)
    b, h, w, channels = numbers.shape
    m = channels // 10
    logits = numbers[..., :m]
    if eps is not None:
        logits = logits - torch.log(-torch.log(eps))
    chosen = logits.argmax(-1)[..., None, None].expand(b, h, w, 3, 1)
    colours = numbers[..., m:].reshape(b, h, w, 3, 3, m)
    means, log_scales, coefficients = (colours[..., k, :].gather(-1, chosen)[..., 0] for k in range(3))
    coefficients = torch.tanh(coefficients)
    if u is not None:
        means = means + torch.exp(log_scales.clamp(min=LEAST_LOG_SCALE)) * (torch.log(u) - torch.log(1 - u))
    red = means[..., 0].clamp(-1, 1)
    green = (means[..., 1] + coefficients[..., 0] * red).clamp(-1, 1)
    blue = (means[..., 2] + coefficients[..., 1] * red + coefficients[..., 2] * green).clamp(-1, 1)
    return torch.stack((red, green, blue), -1)


def as_bytes(values: "Tensor") -> "Tensor":
    """Colours from -1 to 1 as uint8, truncated and not rounded, as published."""
    import torch

    return ((values + 1) * 127.5).clamp(0, 255).to(torch.uint8)
