"""Which way of holding weights fits into memory, and how many images go together: arithmetic only."""

from dataclasses import dataclass

from leanrecon.refinement.diffusion.offload import EXPLAINED, Mode
from leanrecon.weights.safetensors import itemsize

ON_CPU: tuple[Mode, ...] = ("none", "stream")
"""What auto tries on a CPU, in this order; stream took no longer where it was measured."""

ON_GPU: tuple[Mode, ...] = ("none", "model", "sequential", "disk")

BATCH_ON_GPU = 4

IMPORTS = {"torch": 140_000_000, "diffusers": 200_000_000}
"""Bytes of importing PyTorch 2.13 for CPUs, and then diffusers 0.42 with accelerate: 135 and 193 MB measured."""

_LIBRARY_NBYTES = 90_000_000  # oneDNN's kernels and the heap's gaps between states
_CUDA_NBYTES = 700_000_000  # CUDA's libraries and context in the process
_UNET_STATES = (
    7  # the largest states of the UNet that are in memory at its peak, with what products take for themselves
)
_VAE_STATES = 5
_HOOKED = 6  # the largest weights that accelerate's hooks leave in the heap: 3.5 and 6 measured for disk, sequential


@dataclass(frozen=True)
class Sizes:
    """What the plan needs to know of a model: counts of numbers, and none of their values."""

    unet: int
    vae: int
    largest: int
    """In the largest weight."""
    unet_state: int
    """In the largest state of the UNet for one image: within its feed-forward layers, 8 channels for each of the first."""
    vae_state: int
    """In the largest state of the autoencoder for one image."""


@dataclass(frozen=True)
class RefinePlan:
    """How the stage will run."""

    mode: Mode
    batch: int
    """Images that are denoised together."""
    work: int
    """Bytes of the process's memory at the peak, on top of what it holds."""
    vram: int
    """Bytes on the GPU at the peak; 0 where there is none."""
    precision: str

    @property
    def blocks(self) -> str:
        """The plan in words."""
        images = "1 image" if self.batch == 1 else f"{self.batch} images"
        return f"{self.precision}, {EXPLAINED[self.mode]}, {images} at once"


def plan_refine(
    sizes: Sizes,
    *,
    device: str,
    precision: str,
    offload: str,
    batch: int | None,
    rows: int,
    free: int,
    vram: int = 0,
    imports: int = 0,
    guided: bool = False,
    as_stored: bool = False,
) -> RefinePlan:
    """Choose the first mode that fits into ``free`` bytes (and ``vram`` on a GPU), and the batch.

    ``offload`` and ``batch`` fix either. ``imports`` are bytes of libraries still to be loaded; ``as_stored``: weights
    need neither casting nor merging. Where nothing fits the least is returned, which the caller refuses.
    """
    modes = _modes(device) if offload == "auto" else (offload,)
    most = batch or (1 if device == "cpu" else BATCH_ON_GPU)
    wanted = [max(min(most, rows), 1)]
    if batch is None:
        wanted += range(wanted[0] - 1, 0, -1)

    def planned(mode: str, at_once: int) -> RefinePlan:
        ram, on_gpu = _needs(sizes, mode, at_once * (2 if guided else 1), device, precision, as_stored)
        return RefinePlan(mode, at_once, ram + imports, on_gpu, precision)  # type: ignore[arg-type]

    plans = [planned(mode, at_once) for mode in modes for at_once in wanted]
    fitting = (plan for plan in plans if plan.work <= free and plan.vram <= vram)
    return next(fitting, min(plans, key=lambda plan: (plan.vram > vram, plan.work, plan.vram)))


def _modes(device: str) -> tuple[Mode, ...]:
    return {"cpu": ON_CPU, "cuda": ON_GPU}.get(device, ("none",))


def _needs(sizes: Sizes, mode: str, at_once: int, device: str, precision: str, as_stored: bool) -> tuple[int, int]:
    """Bytes of the process's memory and of the GPU's."""
    item = itemsize(precision)
    weights = (sizes.unet + sizes.vae) * item
    one_layer = sizes.largest * item
    # Adding a LoRA takes the largest weight twice in float32, casting it once more.
    merging = 0 if as_stored and mode in ("disk", "stream") else sizes.largest * (8 + item)
    states = item * max(_UNET_STATES * sizes.unet_state * at_once, _VAE_STATES * sizes.vae_state)
    # Products lay the weight that is used out anew.
    states += one_layer
    hooked = _HOOKED * one_layer
    held = {"none": weights, "model": weights, "sequential": weights + hooked, "disk": hooked, "stream": 0}[mode]
    if device != "cuda":  # Apple's GPU shares the memory
        return _LIBRARY_NBYTES + held + max(states, merging), 0
    on_gpu = {"none": weights, "model": max(sizes.unet, sizes.vae) * item}.get(mode, one_layer) + states
    return _CUDA_NBYTES + (0 if mode == "none" else held) + merging, on_gpu
