"""The names and shapes of tensors that PyTorch pickled, without PyTorch, without their numbers, and without their code."""

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leanrecon.errors import InputError, said_by
from leanrecon.weights.safetensors import AGAIN

_LARGEST = 64_000_000  # bytes of the pickle without numbers; that of the published VDVAE has 0.2 MB


_ARCHIVE = b"PK\x03\x04"
"""How an archive of PyTorch 1.6 or later begins."""


class _UnknownError(Exception):
    """A class that a plain state_dict does not have."""


class _Tensor(tuple[int, ...]):
    """The shape of a tensor."""


class _Headers(pickle.Unpickler):
    """Reads tables of tensors alone: the few names that it knows stand for functions of this module."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_parameter"):
            return _shape_of if name == "_rebuild_tensor_v2" else _of_parameter
        if module == "torch" and name.endswith("Storage"):
            return _UnknownError  # never called: it is a part of the place of numbers
        raise _UnknownError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        return None


def _shape_of(storage: Any, offset: Any, size: Any, *_: Any) -> _Tensor:
    return _Tensor(int(side) for side in size)


def _of_parameter(tensor: Any, *_: Any) -> Any:
    return tensor


def is_archive(path: Path) -> bool:
    """Whether PyTorch 1.6 or later wrote a file; zipfile itself raises for some damaged ones."""
    try:
        return zipfile.is_zipfile(path)
    except (zipfile.BadZipFile, ValueError, OverflowError):
        return False


def shapes_in(path: Path, *, again: str = AGAIN) -> Mapping[str, tuple[int, ...]] | None:
    """The shape of every tensor of a state_dict by name.

    None for what only PyTorch can tell: files of before PyTorch 1.6, and those that hold more than tensors. Raises
    InputError for a damaged archive, and for a file that ends before it does.
    """
    if not is_archive(path):
        with path.open("rb") as file:
            begins = file.read(len(_ARCHIVE))
        if _ARCHIVE.startswith(begins):  # the list of its entries stands at the end
            raise InputError(f"{path} can't be read as weights: it is {'cut off' if begins else 'empty'}", todo=again)
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            (entry,) = (one for one in archive.infolist() if one.filename.endswith("/data.pkl"))
            if entry.file_size > _LARGEST or entry.compress_type != zipfile.ZIP_STORED:
                return None
            found = _Headers(io.BytesIO(archive.read(entry))).load()
    except _UnknownError:
        return None
    except MemoryError:
        raise
    except Exception as error:  # damaged pickles raise errors of many types
        said = f"{path} can't be read as weights ({type(error).__name__}: {said_by(error)})"
        raise InputError(said, todo=again) from None
    if not isinstance(found, Mapping) or not all(isinstance(shape, _Tensor) for shape in found.values()):
        return None
    return {str(name): tuple(shape) for name, shape in found.items()}
