"""The libraries that run models: whether they are installed, and the memory that importing them takes."""

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from leanrecon.errors import SettingsError, installing

if TYPE_CHECKING:
    from torch import Tensor

LIBRARY_NBYTES = 40_000_000
"""Bytes of kernels that PyTorch prepares when it first runs, and of gaps in the heap."""

IMPORTS_NBYTES = {"torch": 140_000_000, "transformers": 160_000_000, "diffusers": 200_000_000}
"""Bytes that importing takes: the CPU build of PyTorch 2.13, then CLIP of transformers 5.23 (142 MB measured), or an
autoencoder of diffusers 0.42, which imports transformers too (188 MB)."""

AFTER_TRANSFORMERS = 60_000_000
"""Bytes that diffusers takes where a model of transformers is imported already: 48 MB measured."""

_BRINGS = {
    "torch": frozenset({"torch"}),
    "transformers": frozenset({"torch", "transformers"}),
    "diffusers": frozenset({"torch", "transformers", "diffusers"}),
}

_counted: ContextVar[frozenset[str] | None] = ContextVar("libraries that a plan counts as held", default=None)

CUDA_NBYTES = 330_000_000
"""Bytes that a CUDA build of PyTorch takes beyond a CPU build: 325 MB measured."""


def require_installed(*packages: str) -> None:
    """Raise SettingsError if a library is not installed."""
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise SettingsError(
            f"these weights need {' and '.join(map(_title, missing))}, which is not installed",
            todo=installing("models"),
        )


def imports_nbytes(library: Literal["transformers", "diffusers"] | None = None) -> int:
    """Memory that importing PyTorch and another library will take, if they are not imported yet."""
    held = 0 if library is None else beside_torch_nbytes(library)
    if not is_imported("torch"):
        held += IMPORTS_NBYTES["torch"]
        spec = importlib.util.find_spec("torch")
        if spec and spec.origin and (Path(spec.origin).parent / "lib" / "libtorch_cuda.so").exists():
            held += CUDA_NBYTES
    return held


def beside_torch_nbytes(library: Literal["transformers", "diffusers"]) -> int:
    """Memory that importing a library will take beside PyTorch, if it is not imported yet."""
    if is_imported(library):
        return 0
    models = "transformers.modeling_utils"  # transformers alone imports next to nothing
    after = library == "diffusers" and (models in sys.modules or is_imported("transformers", counted=True))
    return AFTER_TRANSFORMERS if after else IMPORTS_NBYTES[library]


def is_imported(library: str, *, counted: bool = False) -> bool:
    """Whether a library is imported, or counted as held by the plan that is being made; or ``counted`` alone."""
    return library in (_counted.get() or ()) or (not counted and library in sys.modules)


@contextlib.contextmanager
def counting() -> Iterator[None]:
    """While a study is planned: libraries that ``count_held`` tells of are planned as if they were imported."""
    token = _counted.set(frozenset())
    try:
        yield
    finally:
        _counted.reset(token)


def count_held(library: str | None) -> None:
    """Say that the plan that is being made counts a library, and those that it brings, as held from now on."""
    if (before := _counted.get()) is not None and library in _BRINGS:
        _counted.set(before | _BRINGS[library])


def _title(package: str) -> str:
    return "PyTorch" if package == "torch" else package


def resized(images: "Tensor", size: tuple[int, int], *, bicubic: bool = False, antialias: bool = True) -> "Tensor":
    """Images [b, 3, height, width] at another size, which gradients go through.

    With ``antialias`` they are averaged over where they shrink: Pillow's filters of the same name give the same to rounding.
    """
    from torch.nn import functional

    if tuple(images.shape[2:]) == size:
        return images
    mode = "bicubic" if bicubic else "bilinear"
    return functional.interpolate(images, size, mode=mode, antialias=antialias, align_corners=False)


@contextlib.contextmanager
def exact_inference(device: str) -> Iterator[None]:
    """Inference without gradients; on CUDA without TF32, whose ten bits of mantissa change features, and deterministic."""
    import torch

    with torch.inference_mode(), _exact(device):
        yield


@contextlib.contextmanager
def exact_gradients(device: str) -> Iterator[None]:
    """Gradients in float32: on CUDA without TF32, and deterministic."""
    import torch

    with torch.enable_grad(), _exact(device):
        yield


@contextlib.contextmanager
def _exact(device: str) -> Iterator[None]:
    import torch

    if not device.startswith("cuda"):
        yield
        return
    flags: Any = torch.backends.cudnn.flags
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")  # of products of matrices, which cuDNN's flags say nothing of
    try:
        with flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
