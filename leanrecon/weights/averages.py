"""The moving average of a network's weights, beside the network, so that a checkpoint holds both."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def averaged(network: "nn.Module") -> "nn.Module":
    """A network beside the moving average of its weights, as one module, so that a checkpoint holds both."""
    import torch
    from torch import nn

    class Averaged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network
            self.names = [name for name, _ in network.named_parameters()]
            for k, parameter in enumerate(network.parameters()):
                self.register_buffer(f"average_{k}", parameter.detach().clone())

        def averages(self) -> dict[str, torch.Tensor]:
            return {name: getattr(self, f"average_{k}") for k, name in enumerate(self.names)}

        def forward(self, x: torch.Tensor) -> Any:
            """What the averaged weights give."""
            return torch.func.functional_call(self.network, self.averages(), (x,))

        @torch.no_grad()
        def update(self, stays: float) -> None:
            for average, parameter in zip(self.averages().values(), self.network.parameters(), strict=True):
                average.lerp_(parameter.detach(), 1 - stays)

    return Averaged()
