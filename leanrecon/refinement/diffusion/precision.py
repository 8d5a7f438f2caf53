"""The precision that networks run in, for each kind of device."""

import platform
import sys
from functools import cache
from pathlib import Path

from leanrecon.errors import SettingsError

_VECTORS, _TILES = "avx512_bf16", "amx_bf16"  # instructions as Linux names them
_CPUINFO = Path("/proc/cpuinfo")


def precision_of(setting: str, device: str) -> str:
    """PyTorch's name of the precision for a setting; ``auto`` chooses one that is fast and safe on the device.

    CUDA float16; Apple's MPS float32, where half precision has crashed and given black images; a CPU bfloat16 if it
    has instructions for it. Raises SettingsError for a precision that is slow on the device.
    """
    if setting == "auto":
        if device == "cuda":
            return "float16"
        return "bfloat16" if device == "cpu" and cpu_has_bfloat16() else "float32"
    if setting == "float16" and device == "cpu":
        raise SettingsError(
            'refine.precision = "float16" on a CPU, which is slower there', expected="float32, bfloat16"
        )
    return setting


def cpu_has_bfloat16(cpuinfo: Path = _CPUINFO) -> bool:
    """Whether the CPU has instructions for bfloat16; False where the system does not say."""
    flags = _flags(cpuinfo)
    return _VECTORS in flags or _TILES in flags


def multiplies_bfloat16_in_vectors(cpuinfo: Path = _CPUINFO) -> bool:
    """Whether the CPU has instructions for vectors of bfloat16 and none for tiles, which PyTorch's attention uses."""
    flags = _flags(cpuinfo)
    return _VECTORS in flags and _TILES not in flags


@cache
def _flags(cpuinfo: Path) -> str:
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        return ""
    try:
        return cpuinfo.read_text()
    except OSError:
        return ""
