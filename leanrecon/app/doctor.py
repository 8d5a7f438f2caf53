"""The doctor: what this machine has, what each recipe needs, and whether it fits."""

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from leanrecon.app.options import LACKS_DATA
from leanrecon.app.plan import disk_nbytes
from leanrecon.devices import available
from leanrecon.errors import InputError, LeanreconError, plain
from leanrecon.memory import MemoryBudget, available_memory, cgroup_free, format_bytes, parse_budget
from leanrecon.stages.pipeline import plan_study
from leanrecon.study.needs import missing
from leanrecon.study.recipes import read_settings, recipes
from leanrecon.weights.needs import MISSING, is_published
from leanrecon.weights.packaged import check_packaged

LIBRARIES = {
    "numpy": "", "scipy": "", "scikit-learn": "", "zarr": "", "h5py": "", "pillow": "",
    "torch": "models", "torchvision": "judges", "safetensors": "models", "boto3": "nsd", "nibabel": "nsd",
}  # fmt: skip
"""Libraries whose version decides results or what can be run, each with the extra that installs it."""


@dataclass(frozen=True)
class Requirement:
    """What a recipe takes here: bytes of memory, disk and download, or why that is unknown."""

    recipe: str
    memory: int = 0
    disk: int = 0
    download: int = 0
    fits: bool = False
    missing: str = ""


def machine() -> Iterator[tuple[str, str]]:
    """What there is: names and values to show."""
    import psutil

    memory = psutil.virtual_memory()
    yield "Python", f"{platform.python_version()}, {platform.platform()}"
    yield (
        "CPU",
        f"{os.cpu_count()} cores ({len(os.sched_getaffinity(0))} for this process)"
        if hasattr(os, "sched_getaffinity")
        else f"{os.cpu_count()} cores",
    )
    yield "memory", f"{format_bytes(memory.total)}, {format_bytes(memory.available)} available"
    limits = list(cgroup_free())
    yield "memory cgroup", f"{format_bytes(min(limits))} left" if limits else "no limit"
    yield "default budget", f"{format_bytes(MemoryBudget.of(None).allowed)} (80 % of what is free)"
    yield "GPU", _gpu()
    for name, folder in (("disk", Path.cwd()), ("temporary disk", Path(os.environ.get("TMPDIR", "/tmp")))):
        if folder.exists():
            yield name, f"{format_bytes(shutil.disk_usage(folder).free)} free at {folder}"


def libraries() -> Iterator[tuple[str, str]]:
    """The versions of libraries, or how to install those that are missing."""
    for name, extra in LIBRARIES.items():
        try:
            yield name, version(name)
        except PackageNotFoundError:
            yield (
                name,
                f"not installed (pip install '.[{extra}]' in the folder of leanrecon)" if extra else "not installed",
            )


def packaged() -> tuple[str, str]:
    """Whether the models of the demo are as they came with leanrecon."""
    try:
        files = check_packaged()
    except InputError as error:
        return "models of the demo", str(error)
    return "models of the demo", f"{format_bytes(sum(file.stat().st_size for file in files))}, sound"


def requirements(memory: str | None = None) -> Iterator[Requirement]:
    """What each recipe that comes with leanrecon needs, and whether it fits here."""
    if memory is not None:
        parse_budget(memory)  # refuses what is not a size, once
    free = shutil.disk_usage(Path.cwd()).free
    for name, path in recipes().items():
        lacking = ""
        try:
            settings, base_dir = read_settings(path, memory=memory)
            if any(map(is_published, missing(settings))):
                lacking = f"weights are missing: download them with `leanrecon fetch-weights {name}`"
            if settings.dataset.remote:  # the doctor waits for no network
                unknown = f"data are downloaded: `leanrecon plan {name}` says how much"
                yield Requirement(name, missing="; ".join(filter(None, (unknown, lacking))))
                continue
            stages = plan_study(settings, base_dir=base_dir)
        except LeanreconError as error:
            problem = "" if error.found.startswith(MISSING) else f"{error.found}; see `leanrecon plan {name}`"
            if problem and LACKS_DATA.search(error.found):
                problem = f"data are missing: see `leanrecon recipes {name}`"
            yield Requirement(name, missing="; ".join(filter(None, (problem, lacking))))
            continue
        if lacking:
            yield Requirement(name, missing=lacking)
            continue
        peak, disk = max(stage.memory for stage in stages), disk_nbytes(stages)
        fits = peak <= MemoryBudget.of(memory).allowed and disk <= free
        yield Requirement(name, peak, disk, sum(stage.download for stage in stages), fits)


def _gpu() -> str:
    found = [device for device in available() if device != "cpu"]
    if "cuda" in found:
        import torch

        free, total = torch.cuda.mem_get_info()
        return f"{torch.cuda.get_device_name()}, {format_bytes(total)} ({format_bytes(free)} free)"
    if found:
        return f"Apple GPU ({found[0]}), shares the machine's memory"
    if shutil.which("nvidia-smi") and "torch" not in sys.modules:
        return "an NVIDIA GPU, but no PyTorch that can use it"
    return "none"


def show(memory: str | None = None) -> bool:
    """Print the machine, its libraries and the recipes; returns whether every recipe that is ready fits."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    about = Table(title="this machine", title_justify="left", show_header=False)
    for name, value in (*machine(), *libraries(), packaged()):
        about.add_row(name, escape(plain(value)))
    console.print(about)
    table = Table(title="recipes", title_justify="left")
    for heading in ("recipe", "memory", "disk", "download", "here"):
        table.add_column(heading, justify="right" if heading in ("memory", "disk", "download") else "left")
    sound = True
    for recipe in requirements(memory):
        if recipe.missing:
            table.add_row(recipe.recipe, "?", "?", "?", escape(plain(recipe.missing)))
            continue
        sound = sound and recipe.fits
        sizes = (format_bytes(size) for size in (recipe.memory, recipe.disk, recipe.download))
        table.add_row(recipe.recipe, *sizes, "[green]fits[/green]" if recipe.fits else "[red]does not fit[/red]")
    console.print(table)
    free = available_memory()
    if free < 1_000_000_000:
        console.print(f"only {format_bytes(free)} of memory are free: close other programs first", highlight=False)
    return sound


def show_vdvae(path: Path) -> None:
    """Prove a file of VDVAE weights: names, shapes and numbers, and a picture that goes in and comes back.

    Raises InputError for a file that holds other weights, or damaged ones.
    """
    from rich.console import Console
    from rich.markup import escape

    from leanrecon.features.vdvae import VDVAE, VDVAEConfig, prove

    console = Console(highlight=False)
    config = VDVAEConfig.imagenet64()
    model = VDVAE.from_checkpoint(path, config)
    console.print(f"{escape(plain(path))}: all names and shapes are those of imagenet64, and all numbers are finite")
    figures = prove(model)
    for suffix, what in (("", f"all {int(figures['latents'])} latents"), ("_of_31", "the first 31 latents")):
        r, psnr = figures[f"correlation{suffix}"], figures[f"psnr_db{suffix}"]
        console.print(f"a drawn picture encoded and decoded from {what}: pixel correlation {r:.3f}, PSNR {psnr:.1f} dB")
    if figures["correlation"] < COMES_BACK:
        raise InputError(
            f"the picture does not come back from {path} (pixel correlation {figures['correlation']:.3f})",
            expected=f"{COMES_BACK} or more, as of weights that were trained",
            todo="fetch the file again and compare its size and checksum with those published",
        )


COMES_BACK = 0.5
"""Pixel correlation of a picture with its reconstruction from all latents: near 0 for weights that were not trained."""
