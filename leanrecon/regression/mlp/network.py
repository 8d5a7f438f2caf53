"""The residual network and its losses.

h = dropout(GELU(LayerNorm(W₀ x + b₀)))
h ← h + dropout(GELU(W_l LayerNorm(h) + b_l))      for each block l
out = W LayerNorm(h) + b
"""

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


def weight_shapes(inputs: int, outputs: int, hidden: int, blocks: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all weights of the network, in its own order."""
    shapes: dict[str, tuple[int, ...]] = {
        "enter.weight": (hidden, inputs),
        "enter.bias": (hidden,),
        "enter_norm.weight": (hidden,),
        "enter_norm.bias": (hidden,),
    }
    for block in range(blocks):
        shapes |= {
            f"blocks.{block}.norm.weight": (hidden,),
            f"blocks.{block}.norm.bias": (hidden,),
            f"blocks.{block}.linear.weight": (hidden, hidden),
            f"blocks.{block}.linear.bias": (hidden,),
        }
    return shapes | {
        "head_norm.weight": (hidden,),
        "head_norm.bias": (hidden,),
        "head.weight": (outputs, hidden),
        "head.bias": (outputs,),
    }


def n_weights(inputs: int, outputs: int, hidden: int, blocks: int) -> int:
    return sum(math.prod(shape) for shape in weight_shapes(inputs, outputs, hidden, blocks).values())


def residual_mlp(
    inputs: int, outputs: int, *, hidden: int, blocks: int, dropout: float, zero_head: bool = False
) -> "nn.Module":
    """The network with PyTorch's initial weights, drawn from its present seed.

    With ``zero_head`` its outputs are 0 until it is trained. ``features`` computes all layers but the head.
    """
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(hidden)
            self.linear = nn.Linear(hidden, hidden)

        def forward(self, h: "Tensor") -> "Tensor":
            inner = nn.functional.gelu(self.linear(self.norm(h)))
            return h + nn.functional.dropout(inner, dropout, self.training)

    class ResidualMLP(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter = nn.Linear(inputs, hidden)
            self.enter_norm = nn.LayerNorm(hidden)
            self.blocks = nn.ModuleList(Block() for _ in range(blocks))
            self.head_norm = nn.LayerNorm(hidden)
            self.head = nn.Linear(hidden, outputs)
            if zero_head:
                nn.init.zeros_(self.head.weight)
                nn.init.zeros_(self.head.bias)

        def features(self, x: "Tensor") -> "Tensor":
            h = nn.functional.gelu(self.enter_norm(self.enter(x)))
            h = nn.functional.dropout(h, dropout, self.training)
            for block in self.blocks:
                h = block(h)
            normed: torch.Tensor = self.head_norm(h)
            return normed

        def forward(self, x: "Tensor") -> "Tensor":
            out: torch.Tensor = self.head(self.features(x))
            return out

    return ResidualMLP()


def soft_clip(predicted: "Tensor", true: "Tensor", temperature: float) -> "Tensor":
    """The SoftCLIP loss of a batch of rows [b, d]: cross-entropy from similarities among true rows to those with predicted ones.

    With rows of length one, S = T Tᵀ / τ and B = P Tᵀ / τ it is the mean over rows of −Σ softmax(S) log softmax(B), and of
    the same with Bᵀ, halved (MindEye, Scotti et al. 2023, equation 4).
    """
    from torch.nn.functional import log_softmax, normalize, softmax

    p, t = normalize(predicted, dim=1), normalize(true, dim=1)
    like = softmax(t @ t.T / temperature, dim=1)
    answers = p @ t.T / temperature
    forward = -(like * log_softmax(answers, dim=1)).sum(dim=1).mean()
    backward = -(like * log_softmax(answers.T, dim=1)).sum(dim=1).mean()
    return (forward + backward) / 2


def loss_of(name: str, spread: Any, *, temperature: float, contrast: float) -> Any:
    """The loss of a batch: mean squared error, plus ``contrast`` times SoftCLIP.

    ``spread`` [outputs] brings outputs to the units of the targets, in which SoftCLIP compares directions.
    """
    from torch.nn.functional import mse_loss

    def loss(predicted: "Tensor", true: "Tensor") -> "Tensor":
        predicted = predicted.float()
        error = mse_loss(predicted, true)
        if name == "mse":
            return error
        return error + contrast * soft_clip(predicted * spread, true * spread, temperature)

    return loss
