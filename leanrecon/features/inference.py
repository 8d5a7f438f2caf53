"""Running published models: what feature spaces with given weights share, from loading to the memory that it takes."""

import contextlib
import importlib.util
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from leanrecon.errors import InputError, SettingsError
from leanrecon.features.space import Array, Given
from leanrecon.memory import buffer
from leanrecon.weights.folders import SHOWN, Weights
from leanrecon.weights.safetensors import AGAIN, FLOATS, Entry, Precision, itemsize, reserved

if TYPE_CHECKING:
    from torch import Tensor, nn

LIBRARY_NBYTES = 40_000_000
"""Kernels that PyTorch prepares when it first runs, and the heap's gaps between states."""

IMPORTS_NBYTES = {"torch": 140_000_000, "transformers": 160_000_000, "diffusers": 200_000_000}
"""Importing the CPU build of PyTorch 2.13, then CLIP of transformers 5.23 (142 MB measured), or an autoencoder of
diffusers 0.42, which imports transformers too (188 MB)."""

CUDA_NBYTES = 330_000_000
"""What importing a CUDA build of PyTorch takes more than a CPU build: 325 MB measured."""


class FromWeights(Given):
    """What all feature spaces with given weights have in common: there is nothing to learn, but much to hold."""

    _loaded: Any = None
    """The network, once it is needed."""

    def release(self) -> None:
        """Give the memory of the weights back; they are loaded again when they are needed."""
        self._loaded = None


def require(*packages: str) -> None:
    """Raise SettingsError if a library is not installed."""
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise SettingsError(
            f"this feature space needs {' and '.join(missing)}, which is not installed",
            todo=f"install it with: pip install {' '.join(missing)}",
        )


def runs_in(precision: Precision, device: str, setting: str) -> Precision:
    """The precision, if the device is good for it; ``setting`` names it in the SettingsError."""
    if precision == "float16" and device == "cpu":
        raise SettingsError(
            f"{setting} = 'float16' on a CPU, where it is slower than float32", expected="float32 or bfloat16"
        )
    return precision


def imports_nbytes(library: Literal["transformers", "diffusers"] | None = None) -> int:
    """Memory that importing PyTorch, and a library beside it, will take, if they are not there yet."""
    held = 0 if library is None or library in sys.modules else IMPORTS_NBYTES[library]
    if "torch" not in sys.modules:
        held += IMPORTS_NBYTES["torch"]
        spec = importlib.util.find_spec("torch")
        if spec and spec.origin and (Path(spec.origin).parent / "lib" / "libtorch_cuda.so").exists():
            held += CUDA_NBYTES
    return held


def load_weights(
    module: "nn.Module", weights: Weights, parts: Sequence[str], *, precision: Precision, device: str
) -> "nn.Module":
    """Fill these parts of a module that was made without memory (on PyTorch's device "meta"), ready for inference.

    Its other parts stay without memory. Raises InputError that names what is missing or of another shape.
    """
    import torch

    shapes = {name: tuple(v.shape) for name, v in module.state_dict().items() if name.startswith(tuple(parts))}
    _check(weights, shapes)
    # One stretch of pages of its own, so that all of it goes back to the system when the model is dropped.
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
    """The numbers of a tensor, read rather than mapped: mapped pages count as the process's until the file is closed."""
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
    """A stretch of memory as a tensor; convolutions with channels last, which a CPU takes less memory and time for."""
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


@contextlib.contextmanager
def exact_inference(device: str) -> Iterator[None]:
    """No gradients; on CUDA no TF32, whose ten bits of mantissa would move features, and no search among algorithms."""
    import torch

    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        if device.startswith("cuda"):
            flags: Any = torch.backends.cudnn.flags
            stack.enter_context(flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False))
        yield
