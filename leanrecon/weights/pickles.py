"""Weights that are published as pickles: read without running their code, and converted to safetensors."""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leanrecon.errors import InputError, LeanreconError, said_by
from leanrecon.weights.libraries import require_installed
from leanrecon.weights.pickle_headers import is_archive
from leanrecon.weights.safetensors import AGAIN, read_header, write_weights


def open_checkpoint(path: Path, *, again: str = AGAIN) -> Mapping[Any, Any]:
    """The arrays of a file (pickled by PyTorch, or .safetensors), mapped where possible, without running its code.

    Raises InputError for a file that is damaged or holds more than arrays; ``again`` is the advice for a damaged one.
    """
    import pickle

    import torch

    try:
        if path.suffix == ".safetensors":
            require_installed("safetensors")
            from safetensors.torch import load_file

            try:
                read_header(path)
            except InputError as error:
                raise InputError(f"{path} can't be read: {error.found}", todo=again) from None
            return load_file(path)
        archive = is_archive(path)
        if archive:
            _require_stored(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except pickle.UnpicklingError as error:
        if not (named := re.search(r"GLOBAL (\S+)", str(error))):
            raise InputError(
                f"{path} can't be read as weights: it is damaged, or not a checkpoint", todo=again
            ) from None
        raise InputError(
            f"{path} holds more than weights ({named[1]}), and leanrecon runs no code from weight files",
            expected="a state_dict of tensors",
            todo="download the file from its published source, or save only the tensors",
        ) from None
    except (LeanreconError, MemoryError):
        raise
    except Exception as error:  # damaged files raise errors of many types
        raise InputError(f"{path} can't be read: {said_by(error)}", todo=again) from error
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds a {type(content).__name__}", expected="a state_dict: names and tensors")
    for name, value in content.items():
        if isinstance(value, torch.Tensor):
            _require_numbers(path, str(name), value)
    return content


def _require_stored(path: Path) -> None:
    """Refuse archives whose entries are compressed or larger than the file: PyTorch writes none."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    claimed = sum(entry.file_size for entry in entries)
    if claimed > path.stat().st_size or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise InputError(
            f"{path} is an archive that unpacks to {claimed} bytes, which PyTorch does not write",
            expected="weights that torch.save has written, uncompressed",
        )


def _require_numbers(path: Path, name: str, value: Any) -> None:
    """Refuse a tensor without numbers of its own: one of the meta device, sparse, or one number many times."""
    import torch

    if value.device.type == "meta" or value.layout != torch.strided or value.is_quantized:
        found = f"{path} holds {name} without plain numbers ({value.device.type}, {value.layout})"
        raise InputError(found, expected="a state_dict of dense tensors")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise InputError(
            f"{path} holds {name} of {list(value.shape)}, which repeats {value.untyped_storage().nbytes()} bytes",
            expected="tensors with all their numbers in the file",
        )


def convert(pickled: Path, target: Path) -> None:
    """Write the weights of a pickle as a ``.safetensors`` file, which appears whole or not at all.

    Weights of several precisions are written in the widest one. Raises InputError unless the pickle is a state_dict of
    floating-point tensors. The position_ids of old versions of transformers are left out.
    """
    require_installed("torch")
    import torch

    found = {
        str(name): value for name, value in open_checkpoint(pickled).items() if not str(name).endswith("position_ids")
    }
    others = [n for n, value in found.items() if not isinstance(value, torch.Tensor) or not value.is_floating_point()]
    if others or not found:
        what = f"{others[0]}, which is not a floating-point array" if others else "no weights"
        raise InputError(f"{pickled} holds {what}", expected="a state_dict of tensors")
    wide = {value.dtype for value in found.values()}
    dtype = wide.pop() if len(wide) == 1 else torch.float64 if torch.float64 in wide else torch.float32
    shapes = {name: tuple(value.shape) for name, value in found.items()}
    write_weights(
        target, ((name, value.to(dtype)) for name, value in found.items()), shapes, str(dtype).removeprefix("torch.")
    )
