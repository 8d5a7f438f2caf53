"""Which way of holding weights fits into memory, and how many images go together: arithmetic only."""

from dataclasses import dataclass
from typing import Literal

from leanrecon.devices import together_on_cpu
from leanrecon.progress import counted
from leanrecon.refinement.diffusion.codes import CODES_NBYTES
from leanrecon.refinement.generator import GeneratorPlan
from leanrecon.weights.safetensors import itemsize

Mode = Literal["none", "model", "sequential", "disk", "stream"]
"""Where weights wait that are not in use."""

DESCRIPTIONS: dict[Mode, str] = {
    "none": "weights in memory",
    "model": "one network on the device at a time",
    "sequential": "one layer on the device at a time, weights in memory",
    "disk": "one layer in memory at a time, weights on disk",
    "stream": "weights mapped from disk, each layer's pages given back once used",
}

ON_CPU: tuple[Mode, ...] = ("none", "stream")
"""The modes that auto tries on a CPU, in this order; stream was not slower where it was measured."""

ON_GPU: tuple[Mode, ...] = ("none", "model", "sequential", "disk")

BATCH_ON_GPU = 4

BATCH_ON_CPU = 8
"""Images that a small network denoises together on a CPU: twice as fast as one by one. Those of a large one take as
long together."""

_LIBRARY_NBYTES = 90_000_000  # oneDNN's kernels and the heap's gaps between states
_CUDA_NBYTES = 700_000_000  # CUDA's libraries and context in the process
_UNET_STATES = 7  # states of the UNet in memory at its peak, in units of the largest, with the buffers of products
_VAE_STATES = 5
_HOOKED = 6  # the largest weights that accelerate's hooks leave in the heap: 3.5 and 6 measured for disk, sequential


@dataclass(frozen=True)
class Sizes:
    """Counts of numbers in a model, which the plan needs; none of their values."""

    unet: int
    vae: int
    largest: int
    """In the largest weight."""
    unet_state: int
    """In the UNet's largest state for one image: its feed-forward layers have 8 channels for each of the first."""
    vae_state: int
    """In the largest state of the autoencoder for one image."""


@dataclass(frozen=True)
class Work:
    """What is to be drawn, and how."""

    rows: int
    """Images."""
    precision: str
    offload: str = "auto"
    """A mode, or auto."""
    batch: int | None = None
    """Images that are denoised together; None: chosen."""
    guided: bool = False
    """Whether the network runs twice a step, for classifier-free guidance."""
    converted: int = 0
    """Bytes of weights that must be cast or merged with a LoRA before they are used."""


@dataclass(frozen=True)
class Machine:
    """What the work may take."""

    device: str
    free: int
    """Bytes of memory."""
    vram: int = 0
    """Bytes of GPU memory; 0 where there is no GPU."""
    imports: int = 0
    """Bytes of libraries that are still to be loaded."""


@dataclass(frozen=True)
class DiffusionPlan(GeneratorPlan):
    """How images will be drawn."""

    mode: Mode = "none"
    batch: int = 1
    """Images that are denoised together."""
    vram: int = 0
    """Bytes on the GPU at the peak; 0 where there is none."""
    precision: str = "float32"
    decoded: int = 1
    """Images that the autoencoder decodes together."""


def plan_diffusion(sizes: Sizes, work: Work, machine: Machine) -> DiffusionPlan:
    """Choose the first mode that fits into memory (and GPU memory), and the batch.

    Where nothing fits, the plan that needs least is returned; the caller refuses it.
    """
    modes = _modes(machine.device) if work.offload == "auto" else (work.offload,)
    on_cpu = machine.device == "cpu"
    state = sizes.unet_state * itemsize("float32")
    most = work.batch or (together_on_cpu(state, BATCH_ON_CPU) if on_cpu else BATCH_ON_GPU)
    batches = [max(min(most, work.rows), 1)]
    if work.batch is None and not on_cpu:  # on a CPU the free memory decides no byte
        batches += range(batches[0] - 1, 0, -1)
    plans = [_planned(sizes, work, machine, mode, batch) for mode in modes for batch in batches]  # type: ignore[arg-type]
    fitting = (plan for plan in plans if plan.work <= machine.free and plan.vram <= machine.vram)
    return next(fitting, min(plans, key=lambda plan: (plan.vram > machine.vram, plan.work, plan.vram)))


def _modes(device: str) -> tuple[Mode, ...]:
    return {"cpu": ON_CPU, "cuda": ON_GPU}.get(device, ("none",))


def _planned(sizes: Sizes, work: Work, machine: Machine, mode: Mode, batch: int) -> DiffusionPlan:
    # The autoencoder's states are the largest. Only PyTorch's float32 gains where they are small.
    small = machine.device == "cpu" and work.precision == "float32"
    decoded = together_on_cpu(sizes.vae_state * itemsize("float32"), batch) if small else 1
    ram, vram = _memory(sizes, work, machine.device, mode, batch, decoded)
    return DiffusionPlan(
        work=ram + machine.imports,
        summary=f"{work.precision}, {DESCRIPTIONS[mode]}, {counted(batch, 'images')} at once",
        scratch=work.converted if mode in ("disk", "stream") else 0,
        mode=mode,
        batch=batch,
        vram=vram,
        precision=work.precision,
        decoded=decoded,
    )


def _memory(sizes: Sizes, work: Work, device: str, mode: Mode, batch: int, decoded: int) -> tuple[int, int]:
    """Bytes of the process's memory and of the GPU's."""
    item = itemsize(work.precision)
    weights = (sizes.unet + sizes.vae) * item
    one_layer = sizes.largest * item
    # Adding a LoRA takes the largest weight twice in float32, casting it once more.
    merging = sizes.largest * (8 + item) if work.converted or mode not in ("disk", "stream") else 0
    at_once = batch * (2 if work.guided else 1)
    states = item * max(_UNET_STATES * sizes.unet_state * at_once, _VAE_STATES * sizes.vae_state * decoded)
    states += one_layer  # products copy the weight that is used into another layout
    hooked = _HOOKED * one_layer
    held = {"none": weights, "model": weights, "sequential": weights + hooked, "disk": hooked, "stream": 0}[mode]
    if device != "cuda":  # Apple's GPU shares the memory
        return _LIBRARY_NBYTES + CODES_NBYTES + held + max(states, merging), 0
    on_gpu = {"none": weights, "model": max(sizes.unet, sizes.vae) * item}.get(mode, one_layer) + states
    return _CUDA_NBYTES + CODES_NBYTES + (0 if mode == "none" else held) + merging, on_gpu
