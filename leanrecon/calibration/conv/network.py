"""A small U-Net (Ronneberger et al. 2015) whose output is added to its input."""

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

SMALL = 40
"""Pixels of the longer side at which the network works at most: larger images are folded into channels first."""

LEVELS = 3


def fold_of(height: int, width: int) -> int:
    """The side of the squares of pixels that are folded into channels, a power of two."""
    return 1 << max(math.ceil(math.log2(max(height, width) / SMALL)), 0)


def n_weights(channels: int, width: int, fold: int) -> int:
    """The number of weights."""
    folded, w = channels * fold**2, width

    def conv(i: int, o: int, k: int = 3) -> int:
        return i * o * k * k + o

    def block(i: int, o: int) -> int:
        return 2 * i + conv(i, o) + 2 * o + conv(o, o) + (conv(i, o, 1) if i != o else 0)

    down = conv(folded, w) + block(w, w) + conv(w, 2 * w) + block(2 * w, 2 * w) + conv(2 * w, 4 * w)
    up = conv(4 * w, 2 * w, 1) + block(4 * w, 2 * w) + conv(2 * w, w, 1) + block(2 * w, w) + conv(w, folded)
    return down + block(4 * w, 4 * w) + up


def residual_unet(channels: int, width: int, fold: int) -> "nn.Module":
    """The network, with weights from PyTorch's present seed; its last layer is zero, so that it begins as the identity.

    Takes and gives float32 [b, channels, height, width] in 0 to 1, of any height and width.
    """
    import torch
    from torch import nn
    from torch.nn import functional

    class Block(nn.Module):
        """Two convolutions beside a skip (He et al. 2016, with the norm first)."""

        def __init__(self, given: int, out: int) -> None:
            super().__init__()
            self.first = nn.Sequential(nn.GroupNorm(8, given), nn.SiLU(), nn.Conv2d(given, out, 3, padding=1))
            self.second = nn.Sequential(nn.GroupNorm(8, out), nn.SiLU(), nn.Conv2d(out, out, 3, padding=1))
            self.skip = nn.Conv2d(given, out, 1) if given != out else nn.Identity()

        def forward(self, x: "torch.Tensor") -> Any:
            return self.skip(x) + self.second(self.first(x))

    class UNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            folded, w = channels * fold**2, width
            self.enter = nn.Conv2d(folded, w, 3, padding=1)
            self.down = nn.ModuleList([nn.Conv2d(k * w, 2 * k * w, 3, stride=2, padding=1) for k in (1, 2)])
            self.left = nn.ModuleList([Block(w, w), Block(2 * w, 2 * w), Block(4 * w, 4 * w)])
            self.up = nn.ModuleList([nn.Conv2d(2 * k * w, k * w, 1) for k in (1, 2)])
            self.right = nn.ModuleList([Block(2 * w, w), Block(4 * w, 2 * w)])
            self.leave = nn.Conv2d(w, folded, 3, padding=1)
            for parameter in self.leave.parameters():
                nn.init.zeros_(parameter)

        def forward(self, x: "torch.Tensor") -> Any:
            height, width = x.shape[2:]
            step = fold << (LEVELS - 1)
            padded = functional.pad(x, (0, -width % step, 0, -height % step), mode="replicate")
            a = self.left[0](self.enter(functional.pixel_unshuffle(padded - 0.5, fold)))
            b = self.left[1](self.down[0](a))
            c = self.left[2](self.down[1](b))
            b = self.right[1](torch.cat([b, functional.interpolate(self.up[1](c), scale_factor=2.0)], 1))
            a = self.right[0](torch.cat([a, functional.interpolate(self.up[0](b), scale_factor=2.0)], 1))
            added = functional.pixel_shuffle(self.leave(functional.silu(a)), fold)
            return x + added[:, :, :height, :width]

    return UNet()
