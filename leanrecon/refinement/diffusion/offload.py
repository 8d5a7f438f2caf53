"""The five modes of holding the weights of a network that is not in use; all give the same images."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leanrecon.memory import keep_freed
from leanrecon.refinement.diffusion.networks import WeightSource, build, only_needed
from leanrecon.refinement.diffusion.plan import Mode
from leanrecon.weights.safetensors import MappedWeights, ReadWeights

_AUTOENCODERS = ("AutoencoderKL", "AutoencoderTiny")


@dataclass(frozen=True)
class Placed:
    """A network that can be called, and a call that frees its device once it is not needed for a while."""

    network: Any
    release: Callable[[], None]


def place(source: WeightSource, mode: Mode, *, device: str, scratch: Path, content: str) -> Placed:
    """Build the network of ``source`` and load its weights in one of the modes.

    Weights are merged and cast one by one; disk and stream read a file, written to ``scratch`` where the model's own
    holds other numbers (see WeightSource.on_disk). model, sequential and disk are accelerate's hooks; on a CPU, model
    moves nothing.
    """
    import torch

    keep_freed()
    # accelerate casts the weights that it loads to the dtype of those that they replace
    network = torch.nn.Module.to(build(source.part), getattr(torch, source.dtype))
    if source.part.kind in _AUTOENCODERS:
        _activate_in_place(network)
    source = WeightSource(only_needed(source.part, network), source.dtype, source.lora)
    names = list(source.part.entries)
    if mode in ("none", "model"):
        target = device if mode == "none" else "cpu"
        network.load_state_dict({name: source.read(name).to(target) for name in names}, assign=True)
        return Placed(network, _stay) if mode == "none" else _moved_as_one(network, device)
    if mode == "stream":
        weights = MappedWeights(source.on_disk(scratch, content))
        network.load_state_dict(dict(weights), assign=True)
        _release_pages(network, weights)
        return Placed(network, _stay)
    from accelerate import cpu_offload

    if mode == "sequential":
        held: Any = {name: source.read(name) for name in names}
    else:
        held = ReadWeights(source.on_disk(scratch, content))
    return Placed(cpu_offload(network, execution_device=device, state_dict=held), _stay)


def _activate_in_place(network: Any) -> None:
    """Let activations overwrite their input: in an autoencoder nothing else reads it, and its states are the largest."""
    import torch

    for layer in network.modules():
        if isinstance(layer, torch.nn.ReLU | torch.nn.SiLU):
            layer.inplace = True


def _moved_as_one(network: Any, device: str) -> Placed:
    from accelerate import cpu_offload_with_hook

    network, hook = cpu_offload_with_hook(network, execution_device=device)
    return Placed(network, hook.offload)


def _release_pages(network: Any, weights: MappedWeights) -> None:
    """Release each layer's pages as soon as it has run, so that one layer at a time is resident."""
    for path, layer in network.named_modules():
        names = [f"{path}.{name}" if path else name for name, _ in layer.named_parameters(recurse=False)]
        if names:
            layer.register_forward_hook(_releaser(weights, names))


def _releaser(weights: MappedWeights, names: list[str]) -> Callable[[Any, Any, Any], None]:
    def release(layer: Any, inputs: Any, output: Any) -> None:
        for name in names:
            weights.release(name)

    return release


def _stay() -> None:
    """Leave the weights where they are."""
