"""The files of a training: its checkpoint, the best weights so far, and in the end the network.

``checkpoint.safetensors`` holds weights, both moments of AdamW and the place in the data; ``best.safetensors`` the weights
of the least validation loss; ``network.safetensors`` the weights that predict. All are written whole or not at all.
Random numbers are drawn from (seed, step), so there is no generator to keep.
"""

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leanrecon.errors import LeanreconWarning, StoreError
from leanrecon.places import as_location, seals
from leanrecon.stores.fingerprint import differences
from leanrecon.weights.tensors import TensorFile, write_tensors

if TYPE_CHECKING:
    import torch
    from torch import nn

Array = np.ndarray[Any, Any]

_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class History:
    """The training curve: losses by epoch, entry 0 before any training, and the epoch of the least validation loss."""

    train: list[float | None] = field(default_factory=list)
    validation: list[float | None] = field(default_factory=list)
    best: int = 0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Place:
    """The state of a training: ``step`` steps into ``epoch``; ``total`` is the sum of the losses of these steps."""

    epoch: int = 0
    step: int = 0
    total: float = 0.0
    history: History = field(default_factory=History)
    scaler: dict[str, Any] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)
    """What else a training has to know, as plain values."""


class Folder:
    """The files of one training; ``made_of`` holds everything that decides its weights.

    Files made with other settings raise StoreError with the difference; with ``overwrite`` they are removed.
    """

    def __init__(self, path: Path, made_of: Mapping[str, Any], *, overwrite: bool = False) -> None:
        self.path, self.made_of, self.overwrite = path, dict(made_of), overwrite
        for partial in path.glob("*.partial"):  # of a run that was killed
            partial.unlink(missing_ok=True)

    def file(self, name: str) -> Path:
        return self.path / f"{name}.safetensors"

    def find(self, name: str) -> TensorFile | None:
        """An existing file, made with the same settings."""
        path = self.file(name)
        if not path.exists():
            return None
        try:
            if seals.state(path) is seals.State.DAMAGED:
                raise seals.damaged(as_location(path))
            found = TensorFile(path)
        except StoreError as error:
            if seals.sealing_root(as_location(path)) is None:
                raise
            # As a power cut leaves it: what it held is trained again.
            warnings.warn(f"{error.found}: it is trained again", LeanreconWarning, stacklevel=2)
            path.unlink()
            return None
        changed = list(differences(found.record["made_of"], self.made_of))
        if not changed:
            return found
        if not self.overwrite:
            raise StoreError(
                f"{path} was trained with other settings: {'; '.join(changed)}",
                todo="go back to those settings, choose another --study, or replace what was made with --overwrite",
            )
        path.unlink()
        return None

    def write(self, name: str, arrays: Mapping[str, Array], **record: Any) -> None:
        write_tensors(self.file(name), arrays, {"made_of": self.made_of, **record})

    def forget(self, *names: str) -> None:
        for name in names:
            self.file(name).unlink(missing_ok=True)


def weights_of(network: "nn.Module") -> dict[str, Array]:
    """The weights as arrays, which share their memory on a CPU."""
    return {name: tensor.detach().cpu().numpy() for name, tensor in network.state_dict().items()}


def load_weights(network: "nn.Module", file: TensorFile) -> None:
    """Read weights into the network's own memory, one by one."""
    import torch

    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            _read_into(file, name, tensor)


def save_place(folder: Folder, place: Place, network: "nn.Module", optimizer: "torch.optim.Optimizer") -> None:
    """Write a checkpoint whole, replacing the last one."""
    import torch

    arrays = weights_of(network)
    steps = {}  # of each parameter: those of a network that waits for another stay behind
    for name, parameter in network.named_parameters():
        state = optimizer.state.get(parameter) or {}  # none while half precision has only skipped steps
        for moment in _MOMENTS:
            tensor = state[moment] if state else torch.zeros_like(parameter)
            arrays[f"{name}:{moment}"] = tensor.detach().cpu().numpy()
        steps[name] = float(state.get("step", 0.0))
    folder.write("checkpoint", arrays, place=asdict(place), steps=steps)


def load_place(folder: Folder, network: "nn.Module", optimizer: "torch.optim.Optimizer") -> Place | None:
    """Load a checkpoint into network and optimizer; None where there is none."""
    import torch

    file = folder.find("checkpoint")
    if file is None:
        return None
    load_weights(network, file)
    steps = file.record["steps"]
    for name, parameter in network.named_parameters():
        state = {moment: torch.empty_like(parameter, requires_grad=False) for moment in _MOMENTS}
        for moment, tensor in state.items():
            _read_into(file, f"{name}:{moment}", tensor)
        step = steps[name] if isinstance(steps, dict) else steps  # one for all, as they were written before
        state["step"] = torch.tensor(step, dtype=torch.float32, device=parameter.device)
        optimizer.state[parameter] = state
    place = file.record["place"]
    return Place(**(place | {"history": History(**place["history"])}))


def _read_into(file: TensorFile, name: str, tensor: "torch.Tensor") -> None:
    import torch

    if tensor.device.type == "cpu":
        file.read(name, tensor.detach().numpy())
    else:
        tensor.detach().copy_(torch.from_numpy(file.read(name)))
