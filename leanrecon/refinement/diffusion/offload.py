"""Where the weights of a network wait while they are not in use: five ways, all of which give the same images."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from leanrecon.refinement.diffusion.networks import Source, build, only_needed
from leanrecon.weights.safetensors import MappedWeights, ReadWeights

Mode = Literal["none", "model", "sequential", "disk", "stream"]

EXPLAINED = {
    "none": "weights in memory",
    "model": "one network on the device at a time",
    "sequential": "one layer on the device at a time, weights in memory",
    "disk": "one layer in memory at a time, weights on disk",
    "stream": "weights mapped from disk, each layer's pages given back once used",
}


@dataclass(frozen=True)
class Placed:
    """A network that can be called, and what to do once it is not needed for a while."""

    network: Any
    rest: Callable[[], None]


def place(source: Source, mode: Mode, *, device: str, scratch: Path, content: str) -> Placed:
    """Build the network of ``source`` and give it its weights by one of the modes.

    Weights are merged and cast one by one; disk and stream read a file, written to ``scratch`` where the model's own
    holds other numbers (see Source.on_disk). model, sequential and disk are accelerate's hooks; on a CPU, model
    moves nothing, as there is nowhere else to be.
    """
    import torch

    # accelerate casts what it loads to what was there before
    network = torch.nn.Module.to(build(source.part), getattr(torch, source.dtype))
    source = Source(only_needed(source.part, network), source.dtype, source.lora)
    names = list(source.part.entries)
    if mode in ("none", "model"):
        where = device if mode == "none" else "cpu"
        network.load_state_dict({name: source.read(name).to(where) for name in names}, assign=True)
        return Placed(network, _rests) if mode == "none" else _moved_as_one(network, device)
    if mode == "stream":
        weights = MappedWeights(source.on_disk(scratch, content))
        network.load_state_dict(dict(weights), assign=True)
        _give_back_pages(network, weights)
        return Placed(network, _rests)
    from accelerate import cpu_offload

    if mode == "sequential":
        held: Any = {name: source.read(name) for name in names}
    else:
        held = ReadWeights(source.on_disk(scratch, content))
    return Placed(cpu_offload(network, execution_device=device, state_dict=held), _rests)


def _moved_as_one(network: Any, device: str) -> Placed:
    from accelerate import cpu_offload_with_hook

    network, hook = cpu_offload_with_hook(network, execution_device=device)
    return Placed(network, hook.offload)


def _give_back_pages(network: Any, weights: MappedWeights) -> None:
    """Give each layer's pages back as soon as it has run: what is resident is one layer, whatever the network's size."""
    for path, layer in network.named_modules():
        own = [f"{path}.{name}" if path else name for name, _ in layer.named_parameters(recurse=False)]
        if own:
            layer.register_forward_hook(_releaser(weights, own))


def _releaser(weights: MappedWeights, names: list[str]) -> Callable[[Any, Any, Any], None]:
    def release(layer: Any, inputs: Any, output: Any) -> None:
        for name in names:
            weights.release(name)

    return release


def _rests() -> None:
    """Weights that stay where they are."""
