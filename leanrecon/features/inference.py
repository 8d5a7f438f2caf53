"""Running pretrained networks: loading weights into memory of a known size, and exact inference."""

import contextlib
import math
from collections.abc import Mapping, Sequence
from io import BufferedReader
from typing import TYPE_CHECKING, Any

import numpy as np

from leanrecon.devices import choose
from leanrecon.errors import InputError, SettingsError
from leanrecon.features.space import Array, FixedSpace
from leanrecon.memory import buffer, keep_freed
from leanrecon.weights.folders import SHOWN, Weights
from leanrecon.weights.libraries import exact_inference as exact_inference  # for the rooms above
from leanrecon.weights.libraries import resized as resized
from leanrecon.weights.safetensors import AGAIN, FLOATS, Entry, Precision, itemsize, reserved

if TYPE_CHECKING:
    from torch import Tensor, nn

    from leanrecon.features.gradients import Use
    from leanrecon.features.plan import Cost


class PretrainedSpace(FixedSpace):
    """The base of feature spaces with pretrained weights, which are loaded when they are first needed."""

    library: str | None = "torch"
    _loaded: Any = None
    """The network, once it is loaded."""

    def __init__(self, settings: Any, *, name: str = "", seed: int = 0, device: str = "cpu") -> None:
        super().__init__(settings, name=name, seed=seed, device=choose(device))

    def setting(self, key: str) -> str:
        """The full name of one of its settings, for messages."""
        return f"features.{self.name}.{key}"

    def gradient_nbytes(self, batch: int) -> int:
        """Bytes that ``rows_of`` takes for a batch of images, with what is kept until their gradients."""
        cost = self.gradient_cost("encode")
        return cost.held + batch * cost.per_image

    def gradient_cost(self, use: "Use") -> "Cost":
        """Memory of one direction with gradients, for spaces that are ``differentiable``."""
        raise NotImplementedError

    def release(self) -> None:
        """Free the weights; they are loaded again when they are needed."""
        self._loaded = None


def runs_in(precision: Precision, device: str, setting: str) -> Precision:
    """The precision itself; raises SettingsError that names ``setting`` if the device should not run it."""
    if precision == "float16" and device == "cpu":
        raise SettingsError(
            f"{setting} = 'float16' on a CPU, where it is slower than float32", expected="float32 or bfloat16"
        )
    return precision


def load_weights(
    module: "nn.Module", weights: Weights, parts: Sequence[str], *, precision: Precision, device: str
) -> "nn.Module":
    """Load these parts of a module on PyTorch's device "meta", and set it up for inference.

    Its other parts stay on "meta". Raises InputError that names weights that are missing or of another shape.
    """
    import torch

    shapes = {name: tuple(v.shape) for name, v in module.state_dict().items() if name.startswith(tuple(parts))}
    _check(weights, shapes)
    keep_freed()
    # One allocation, so that all of it returns to the system when the model is dropped.
    memory = buffer((weights.nbytes(parts, precision) if device == "cpu" else 0,), np.uint8)
    loaded: dict[str, Tensor] = {}
    start = 0
    with contextlib.ExitStack() as stack:
        files = sorted({weights.entries[name].file for name in shapes})
        opened = {file: stack.enter_context(file.open("rb")) for file in files}
        for name, shape in shapes.items():
            entry = weights.entries[name]
            if device != "cpu":
                loaded[name] = _read(entry, opened[entry.file]).view(shape).to(device, getattr(torch, precision))
                continue
            piece = memory[start : start + math.prod(shape) * itemsize(precision)]
            start += reserved(shape, itemsize(precision))
            place = _laid_out(torch.from_numpy(piece).view(getattr(torch, precision)), shape)
            if entry.is_read_as_it_is(precision):
                _read_into(entry, opened[entry.file], piece)
            else:
                place.copy_(_read(entry, opened[entry.file]).view(shape))
            loaded[name] = place
    module.load_state_dict(loaded, strict=False, assign=True)
    return module.eval().requires_grad_(False)


def _read(entry: Entry, file: BufferedReader) -> "Tensor":
    """A tensor, read rather than mapped: mapped pages count as memory of the process until the file is closed."""
    import torch

    memory = buffer((entry.nbytes,), np.uint8)
    _read_into(entry, file, memory)
    return torch.from_numpy(memory).view(getattr(torch, FLOATS[entry.dtype][0]))


def _read_into(entry: Entry, file: BufferedReader, memory: Array) -> None:
    file.seek(entry.start)
    view = memory.data
    while view:
        n = file.readinto(view)
        if not n:
            raise InputError(f"{entry.file} ends before its header says", todo=AGAIN)
        view = view[n:]


def _laid_out(piece: "Tensor", shape: tuple[int, ...]) -> "Tensor":
    """Memory as a tensor; convolutions with channels last, which take less memory and time on a CPU."""
    if len(shape) != 4:
        return piece.view(shape)
    o, i, h, w = shape
    return piece.view(o, h, w, i).permute(0, 3, 1, 2)


def _check(weights: Weights, shapes: Mapping[str, tuple[int, ...]]) -> None:
    missing = [name for name in shapes if name not in weights.entries]
    misshapen, others = [], []
    for name in shapes.keys() & weights.entries.keys():
        entry = weights.entries[name]
        if entry.dtype not in FLOATS:
            others.append(f"{name} is {entry.dtype}")
        elif _sides(entry.shape) != _sides(shapes[name]):
            misshapen.append(f"{name} is {list(entry.shape)}, not {list(shapes[name])}")
    problems = [
        f"{len(names)} {what} ({', '.join(sorted(names)[:SHOWN])}{', …' if len(names) > SHOWN else ''})"
        for names, what in ((missing, "missing"), (misshapen, "of another shape"), (others, "of another type"))
        if names
    ]
    if problems:
        raise InputError(
            f"{weights.files[0]} does not hold the weights of the config.json beside it: {'; '.join(problems)}",
            expected="the weights and the config.json of one model, in floating-point numbers",
            todo=AGAIN,
        )


def _sides(shape: Sequence[int]) -> list[int]:
    return [side for side in shape if side != 1]  # old autoencoders keep linear layers as 1 × 1 convolutions
