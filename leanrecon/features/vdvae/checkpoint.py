"""VDVAE weights from files: checked against the config, held in memory once, and never run as code."""

import shutil
import uuid
from collections.abc import Collection, Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leanrecon.errors import InputError, SettingsError
from leanrecon.features.vdvae.config import Shape, VDVAEConfig, weight_shapes
from leanrecon.memory import buffer, keep_freed
from leanrecon.places.disk import explained_disk_errors
from leanrecon.places.paths import expanded
from leanrecon.weights.libraries import require_installed
from leanrecon.weights.pickle_headers import is_archive, shapes_in
from leanrecon.weights.pickles import open_checkpoint
from leanrecon.weights.safetensors import Precision, read_header, reserved

if TYPE_CHECKING:
    from torch import Tensor

SHOWN = 8
"""Most names that an error lists for each kind of problem."""

SHOWN_BEFORE = 2
"""The same before a run, when headers alone are compared: the kind of problem says most."""

_AGAIN = "download it again and compare its size with the source's; the published imagenet64 file has 500 MB"


def itemsize(name: str, precision: Precision) -> int:
    """Bytes of each number of a weight; only the convolutions of blocks have a lower precision."""
    return 2 if precision != "float32" and "_blocks." in name else 4


def weights_nbytes(config: VDVAEConfig, precision: Precision = "float32", only: Collection[str] | None = None) -> int:
    """Bytes that loaded weights take."""
    shapes = weight_shapes(config)
    return sum(reserved(shapes[name], itemsize(name, precision)) for name in (shapes if only is None else only))


def loading_nbytes(path: Path) -> int:
    """Bytes that reading a file takes: none if it can be mapped, else (saved before PyTorch 1.6) its size."""
    if not path.is_file() or path.suffix == ".safetensors" or is_archive(path):
        return 0
    return path.stat().st_size


def require_file(path: Path) -> None:
    """Raise InputError where there is no file of weights."""
    if not path.is_file():
        raise InputError(
            f"there is no file {path}" + (", which is a folder" if path.is_dir() else ""),
            expected="VDVAE weights (.th or .safetensors)",
            todo="set checkpoint to its path, or download the published file with `leanrecon fetch-weights RECIPE`",
        )


def check_file(path: Path, config: VDVAEConfig) -> None:
    """Raise InputError where a file is not there, or names or shapes in its header are not the config's.

    Nothing is read but headers. Files of before PyTorch 1.6 have none, and are checked when they are loaded.
    """
    require_file(path)
    if path.suffix == ".safetensors":
        header: Mapping[str, Shape] | None = {name: entry.shape for name, entry in read_header(path)[0].items()}
    else:
        header = shapes_in(path, again=_AGAIN)
    if header is None:
        return
    found = {name.removeprefix("module."): shape for name, shape in header.items()}
    expected = weight_shapes(config)
    differing = [name for name in expected if name in found and found[name] != expected[name]]
    shapes = [f"{name} is {list(found[name])}, not {list(expected[name])}" for name in differing]
    problems = [
        *_listed([name for name in expected if name not in found], "missing", SHOWN_BEFORE),
        *_listed([name for name in found if name not in expected], "unknown", SHOWN_BEFORE),
        *_listed(shapes, "of another shape", SHOWN_BEFORE),
    ]
    if problems:
        raise _misfit(path, problems, config)


def _misfit(path: Path, problems: list[str], config: VDVAEConfig) -> InputError:
    return InputError(
        f"{path} does not hold the weights of this VDVAE: {'; '.join(problems)}",
        expected=f"{len(weight_shapes(config))} float32 arrays of a network of width {config.width} for images of "
        f"{config.image_size} pixels",
        todo="use the file of that network, or set config to the sizes of this one",
    )


def read_weights(
    path: str | PathLike[str],
    config: VDVAEConfig,
    *,
    device: str = "cpu",
    precision: Precision = "float32",
    only: Collection[str] | None = None,
) -> "dict[str, Tensor]":
    """The weights of a checkpoint by name, all or ``only`` some, on a device and with convolutions in a precision.

    All arrays of the file are checked, even those that are not loaded. Raises InputError, and SettingsError without
    PyTorch.
    """
    path = expanded(str(path))
    found = _checked(path, config)
    import torch

    taken = set(found if only is None else only)
    names = [name for name in found if name in taken]
    keep_freed()
    # One allocation, so that all of it returns to the system when the model is dropped.
    memory = torch.from_numpy(buffer((weights_nbytes(config, precision, names),), np.uint8))
    weights, start = {}, 0
    for name in names:
        tensor = found.pop(name)
        size = itemsize(name, precision)
        dtype = getattr(torch, precision) if size < 4 else torch.float32
        piece = memory[start : start + tensor.numel() * size].view(dtype)
        start += reserved(tuple(tensor.shape), size)
        if tensor.ndim == 4:  # channels last: measured 1.3 times as fast on a CPU as channels first
            o, i, h, w = tensor.shape
            piece = piece.view(o, h, w, i).permute(0, 3, 1, 2)
        weights[name] = piece.copy_(tensor).to(device)
    return weights


def convert(checkpoint: str | PathLike[str], safetensors_path: str | PathLike[str], config: VDVAEConfig) -> None:
    """Write a checkpoint's weights, unchanged, as a ``.safetensors`` file, whole or not at all.

    Raises InputError if the checkpoint does not fit the config, SettingsError if the new name does not end in
    .safetensors, StoreError if it can't be written.
    """
    source, target = expanded(str(checkpoint)), expanded(str(safetensors_path))
    if target.suffix != ".safetensors":
        raise SettingsError(f"{target} is the name for safetensors", expected="a name that ends in .safetensors")
    require_installed("safetensors")
    tensors = {name: tensor.contiguous() for name, tensor in _checked(source, config).items()}
    from safetensors.torch import save_file

    partial = target.with_name(f"{target.name}.{uuid.uuid4().hex}.partial")
    with explained_disk_errors(target):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, partial, metadata={"format": "pt"})
            shutil.copymode(source, partial)  # save_file makes it readable by its owner alone
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)


def _checked(path: Path, config: VDVAEConfig) -> "dict[str, Tensor]":
    """All tensors of a file in the config's order, with names, shapes and numbers checked."""
    require_installed("torch")
    found: dict[str, Any] = {}
    doubled = []
    for key, value in _opened(path).items():
        name = str(key).removeprefix("module.")  # prefix of models trained on several devices
        if name in found:
            doubled.append(name)
        found[name] = value
    expected = weight_shapes(config)
    problems = _problems(found, expected) + _listed(doubled, "duplicated")
    if problems:
        raise _misfit(path, problems, config)
    return {name: found[name] for name in expected}


def _problems(found: Mapping[str, Any], expected: Mapping[str, Shape]) -> list[str]:
    import torch

    misshapen, others, broken = [], [], []
    for name in expected.keys() & found.keys():
        value = found[name]
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            others.append(f"{name} is {value.dtype if isinstance(value, torch.Tensor) else type(value).__name__}")
        elif tuple(value.shape) != expected[name]:
            misshapen.append(f"{name} is {list(value.shape)}, not {list(expected[name])}")
        elif not bool(torch.isfinite(value).all()):
            broken.append(name)
    return (
        _listed([name for name in expected if name not in found], "missing")
        + _listed([name for name in found if name not in expected], "unknown")
        + _listed(sorted(misshapen), "of another shape")
        + _listed(sorted(others), "not floating-point arrays")
        + _listed(sorted(broken), "with NaN or infinite numbers")
    )


def _listed(names: list[str], what: str, most: int = SHOWN) -> list[str]:
    if not names:
        return []
    return [f"{len(names)} {what} ({', '.join(names[:most])}{', …' if len(names) > most else ''})"]


def _opened(path: Path) -> Mapping[Any, Any]:
    """The arrays of a file, mapped into memory where its format allows; no code in it is run."""
    require_file(path)
    return open_checkpoint(path, again=_AGAIN)
