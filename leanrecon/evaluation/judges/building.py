"""Networks of judges: built without weights to see their shapes, then loaded from a file that runs no code."""

import functools
import importlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from leanrecon.errors import InputError, LeanreconError, SettingsError, installing, said_by
from leanrecon.validation import nearest
from leanrecon.weights.folders import SHOWN
from leanrecon.weights.pickles import open_checkpoint

OWN = "leanrecon.evaluation.judges.torchvision:build"
"""The one function here that builds networks: torchvision's, without weights."""

_COUNTED = "num_batches_tracked"  # of batch normalisation, which old files lack and inference does not use


@dataclass(frozen=True)
class Blueprint:
    """How a network is built: a callable, its arguments as plain values."""

    builder: str
    """``module:callable``; dots lead to what is inside, as in ``package.module:Class.method``."""
    arguments: str = "{}"
    """JSON of its keyword arguments."""


@dataclass(frozen=True)
class Description:
    """The shapes of a network up to a layer."""

    dims: int
    """Numbers that the layer gives an image."""
    weights: int
    """Bytes of the weights in float32 that the layer needs."""
    largest: int
    """Numbers of the largest input and output of a module together, an image."""
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict, compare=False)
    """The shape of every weight of the network; empty where they were not asked for."""


def require_library(setting: str, packages: Collection[str]) -> None:
    """Raise SettingsError that names the extra which installs what a judge needs."""
    if missing := [name for name in packages if importlib.util.find_spec(name.partition(".")[0]) is None]:
        extra = "models" if missing == ["torch"] else "judges"
        known = set(missing) <= {"torch", "torchvision"}
        raise SettingsError(
            f"[{setting}] needs {' and '.join(missing)}, which is not installed",
            todo=installing(extra) if known else "install it",
        )


# Shapes


def description(blueprint: Blueprint, layer: str, size: int, setting: str) -> Description:
    """The shapes of a network, which is built without weights to see them.

    Where PyTorch is not imported yet, a process of its own does it: so a plan imports no PyTorch, and holds none of its
    memory. Raises SettingsError for what can't be built, and for a
    layer that is not there, with the nearest one.
    """
    if isinstance(found := _described(blueprint, layer, size), Description):
        return found
    raise SettingsError(f"{setting}: {found['found']}", expected=found.get("expected"), todo=found.get("todo"))


@functools.lru_cache(maxsize=64)
def _described(blueprint: Blueprint, layer: str, size: int) -> Description | dict[str, Any]:
    if "torch" in sys.modules:
        return _answer(blueprint, layer, size)
    command = [sys.executable, "-m", __name__, blueprint.builder, blueprint.arguments, layer, str(size)]
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        last = done.stderr.strip().splitlines()[-1:] or ["no answer"]
        return {"found": f"the network of {blueprint.builder} can't be built: {last[0]}"}
    return answer if "found" in answer else Description(**answer)


def _answer(blueprint: Blueprint, layer: str, size: int) -> Description | dict[str, Any]:
    """The description, or what is wrong, as the parts of an error."""
    try:
        return _describe(blueprint, layer, size)
    except LeanreconError as error:
        return {"found": error.found, "expected": error.expected, "todo": error.todo}
    except RuntimeError as error:
        found = f"images of {size} pixels are too small for this network: {said_by(error)}"
        return {"found": found, "todo": "set a larger size"}


def _describe(blueprint: Blueprint, layer: str, size: int) -> Description:
    import torch

    network = build(blueprint, layer)
    largest = 0
    used = dict(network.layer_of.named_parameters()) if not layer else {}

    def seen(module: Any, inputs: Any, output: Any) -> None:
        nonlocal largest
        tensors = [t for t in (*inputs, output) if isinstance(t, torch.Tensor)]
        largest = max(largest, sum(t.numel() for t in tensors))
        used.update({f"{id(module)}.{name}": value for name, value in module.named_parameters(recurse=False)})

    for module in network.network.modules():
        module.register_forward_hook(seen, prepend=True)  # before the one that ends at the layer
    with torch.inference_mode():
        dims = network(torch.zeros((1, 3, size, size), device="meta")).numel()
    weights = sum(value.numel() for value in {id(v): v for v in used.values()}.values()) * 4
    shapes = {name: tuple(value.shape) for name, value in network.network.state_dict().items()}
    return Description(dims, weights, largest, shapes)


# Building and loading


def build(blueprint: Blueprint, layer: str) -> Any:
    """A network on PyTorch's device "meta", which gives a layer's output and computes nothing after it."""
    import torch

    module_name, _, path = blueprint.builder.partition(":")
    try:
        module: Any = importlib.import_module(module_name)
        builder = functools.reduce(getattr, path.split("."), module)
        if blueprint.builder != OWN and not _makes_networks(builder, module_name):
            raise SettingsError(
                f"{blueprint.builder} is neither a network nor a method of one: a settings file may run nothing else",
                expected="a class that derives from torch.nn.Module, or its class method",
            )
        with torch.device("meta"):
            network: Any = builder(**json.loads(blueprint.arguments))
    except (LeanreconError, MemoryError):
        raise
    except Exception as error:  # other people's code raises errors of many types
        raise SettingsError(
            f"the network {blueprint.builder} can't be built ({type(error).__name__}: {said_by(error)})",
            expected="module:callable that returns a torch.nn.Module",
        ) from error
    if not isinstance(network, torch.nn.Module):
        raise SettingsError(f"{blueprint.builder} gives a {type(network).__name__}", expected="a torch.nn.Module")
    modules = dict(network.named_modules())
    if layer not in modules:
        raise SettingsError(
            f"the layer {layer!r} is not in {type(network).__name__} ({nearest(layer, modules)})",
            todo='name one of its modules, or "" for its output',
        )
    return _until(network.eval().requires_grad_(False), layer)


def _makes_networks(builder: Any, module: str) -> bool:
    """Whether a callable is a class of networks, its class method, or a function of torchvision.models."""
    import torch

    owner = builder if isinstance(builder, type) else getattr(builder, "__self__", None)
    is_network = isinstance(owner, type) and issubclass(owner, torch.nn.Module)
    return is_network or module.split(".")[:2] == ["torchvision", "models"]


def _until(network: Any, layer: str) -> Any:
    """The network cut off after a layer: a module that gives rows [b, dims]."""
    import torch

    class _ReachedError(Exception):
        pass

    class Until(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network
            self.layer_of = dict(network.named_modules())[layer]
            self._output: Any = None
            if layer:
                self.layer_of.register_forward_hook(self._keep)

        def _keep(self, module: Any, inputs: Any, output: Any) -> None:
            self._output = output
            raise _ReachedError

        def forward(self, images: Any) -> Any:
            try:
                output = self.network(images)
            except _ReachedError:
                output, self._output = self._output, None
            if not isinstance(output, torch.Tensor):
                raise SettingsError(
                    f"the layer {layer!r} gives a {type(output).__name__}", expected="a layer that gives one tensor"
                )
            return output.flatten(1)

    return Until()


def load(
    blueprint: Blueprint,
    layer: str,
    path: Path,
    setting: str,
    renamed: Callable[[str], str | None],
    lacking: tuple[str, ...] = (),
) -> Any:
    """The network with the weights of a file, which are mapped where its format allows.

    Raises InputError for a file whose names or shapes are not the network's. Weights that begin as ``lacking`` says
    may be missing; they belong to layers after the one that is used.
    """
    import torch

    network = build(blueprint, layer)
    found: dict[str, Any] = {}
    for name, value in open_checkpoint(path).items():
        new = renamed(str(name))
        if new is not None and isinstance(value, torch.Tensor):
            found[new] = value.float() if value.is_floating_point() else value
    expected = {name: tuple(value.shape) for name, value in network.network.state_dict().items()}
    compare({name: tuple(v.shape) for name, v in found.items()}, expected, path, lacking, setting)
    for name in expected:
        if name not in found:
            found[name] = torch.zeros(expected[name], dtype=torch.long if name.endswith(_COUNTED) else torch.float32)
    network.network.load_state_dict(found, assign=True)
    return network.eval().requires_grad_(False)


def compare(
    found: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]],
    path: Path,
    lacking: tuple[str, ...],
    what: str,
) -> None:
    """Raise InputError unless a file's weights have the names and shapes of the network's."""
    may_lack = tuple(lacking)
    groups = {
        "missing": [
            n
            for n in expected
            if n not in found and not n.endswith(_COUNTED) and not (may_lack and n.startswith(may_lack))
        ],
        "unknown": [n for n in found if n not in expected],
        "of another shape": [
            f"{n} is {list(found[n])}, not {list(expected[n])}"
            for n in expected
            if n in found and found[n] != expected[n]
        ],
    }
    problems = [
        f"{len(names)} {problem} ({', '.join(names[:SHOWN])}{', …' if len(names) > SHOWN else ''})"
        for problem, names in groups.items()
        if names
    ]
    if problems:
        raise InputError(
            f"{path} does not hold the weights of {what}: {'; '.join(problems)}",
            expected="a state_dict of this network",
            todo="set the weights, or the model, to the other's",
        )


if __name__ == "__main__":
    _found = _answer(Blueprint(*sys.argv[1:3]), sys.argv[3], int(sys.argv[4]))
    print(json.dumps(asdict(_found) if isinstance(_found, Description) else _found))
