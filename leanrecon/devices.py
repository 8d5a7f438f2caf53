"""Where models run: the one place that decides between CUDA, MPS and the CPU."""

import platform
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from leanrecon.errors import SettingsError

Device = Literal["auto", "cuda", "mps", "cpu"]


STATES_NBYTES = 16_000_000
"""Bytes of the states of rows that go through a network together on a CPU, at most. Rows of larger networks go alone,
which takes as long and the least memory; alone, those of a small one take twice the time."""


def together_on_cpu(state_nbytes: int, most: int) -> int:
    """How many rows go through a network together on a CPU, by the bytes of one row's states: ``most``, or one."""
    return most if most * state_nbytes <= STATES_NBYTES else 1


def choose(wanted: str) -> str:
    """The device for a setting: ``"auto"`` takes CUDA, then Apple's MPS, then the CPU.

    PyTorch is imported only where there may be something else than a CPU: it costs more memory than a ridge.
    Raises SettingsError where the device that was asked for is not there.
    """
    if wanted == "cpu":
        return "cpu"
    there = available()
    if wanted == "auto":
        return there[0]
    if wanted not in there:
        raise SettingsError(
            f'device = "{wanted}", but here there is {" and ".join(there)}',
            todo='set device = "auto", or install a build of PyTorch for this device',
        )
    return wanted


def available() -> list[str]:
    """The devices that PyTorch can use here, the fastest first."""
    found = ["cpu"]
    may_be_cuda = any(Path(name).exists() for name in ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd"))
    may_be_mps = platform.system() == "Darwin" and platform.machine() == "arm64"
    if find_spec("torch") is None or not (may_be_cuda or may_be_mps or platform.system() == "Windows"):
        return found
    import torch

    if torch.backends.mps.is_available():
        found.insert(0, "mps")
    if torch.cuda.is_available():
        found.insert(0, "cuda")
    return found


VRAM_SHARE = 0.9
"""The share of a GPU's free memory that is planned with; the rest is for the gaps of PyTorch's allocator."""


def free_vram() -> int:
    """Bytes of CUDA memory that work may take: what is free, and what PyTorch holds unused, less the allocator's gaps."""
    import torch

    unused = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return int((torch.cuda.mem_get_info()[0] + unused) * VRAM_SHARE)
