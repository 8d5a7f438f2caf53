"""The stage that makes final images: planned, drawn batch by batch from predictions alone, and resumable."""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from leanrecon.devices import choose
from leanrecon.errors import BudgetError, InputError, SettingsError
from leanrecon.images import Array, ImageShape, resize, with_channels
from leanrecon.memory import MemoryBudget, format_bytes
from leanrecon.progress import Progress
from leanrecon.refinement.diffusion import sampling as diffusion
from leanrecon.refinement.diffusion.model import Generator
from leanrecon.refinement.diffusion.offload import place
from leanrecon.refinement.diffusion.plan import IMPORTS, RefinePlan, plan_refine
from leanrecon.refinement.diffusion.precision import precision_of
from leanrecon.refinement.diffusion.settings import RefineSettings
from leanrecon.refinement.diffusion.stable import StableDiffusion
from leanrecon.refinement.diffusion.versatile import VersatileDiffusion
from leanrecon.refinement.inputs import Images, Inputs, Rows, read_rows
from leanrecon.stores.fingerprint import file_content, fingerprint
from leanrecon.stores.pictures import Pictures

FORMAT = 1
"""Of the arithmetic that leads from first images to final ones."""

_VRAM_SHARE = 0.9  # of the GPU memory that is free; the rest is for the allocator's gaps


def generator_of(settings: RefineSettings, unconditional: Mapping[str, Array] | None = None) -> Generator:
    """The generator that settings name; cheap, no weights are loaded."""
    made = VersatileDiffusion if settings.kind == "versatile" else StableDiffusion
    return made(settings, unconditional)


class Refiner:
    """Final images by a generator from first images, predicted embeddings and, if asked, latents.

    ``scratch`` holds weights that were merged with a LoRA or cast, for the modes that read them from disk;
    ``unconditional`` the rows [tokens · width] to be led away from, by role, where settings name no file.
    """

    def __init__(
        self,
        settings: RefineSettings,
        *,
        seed: int = 0,
        device: str = "auto",
        scratch: Path,
        vram: int | None = None,
        unconditional: Mapping[str, Array] | None = None,
    ) -> None:
        self.generator = generator_of(settings, unconditional)
        self.settings = settings
        self.seed = seed
        self.device = choose(device)
        self.scratch = scratch
        self.precision = precision_of(settings.precision, self.device)
        self.seconds: list[float] = []
        """For each image that was drawn, with its share of what its batch took."""
        self.retried: list[int] = []
        """Rows that came out black or not finite, and were drawn again in float32."""
        self.black: list[int] = []
        """Rows that are black in float32 too."""
        self.mode: str | None = None
        self._vram = vram
        self._loaded: tuple[RefinePlan, diffusion.Networks] | None = None
        if settings.offload == "stream" and self.device != "cpu":
            raise SettingsError(f'refine.offload = "stream" on {self.device}', expected='"disk", or device = "cpu"')
        if self.device == "mps" and settings.offload not in ("auto", "none"):
            raise SettingsError(
                f'refine.offload = "{settings.offload}" on mps, which shares its memory with the CPU', expected='"none"'
            )

    # What it is made of

    @property
    def shape(self) -> ImageShape:
        """Of the final images."""
        return self.settings.size, self.settings.size, 3

    def made_of(self) -> dict[str, Any]:
        """All that decides final images beyond first images and predictions: contents and settings, never places."""
        return {"format": FORMAT, **self.generator.made_of(), "precision": self.precision, "seed": self.seed}

    def record(self) -> dict[str, Any]:
        """What a run is remembered by: how it ran, the median time an image, and rows with trouble."""
        found = {"mode": self.mode, "precision": self.precision, "retried": self.retried, "black": self.black}
        return found | ({"seconds_per_image": float(np.median(self.seconds))} if self.seconds else {})

    # How it will run

    def plan(self, rows: int, free: int, *, precision: str | None = None) -> RefinePlan:
        """Plan the drawing of ``rows`` images into ``free`` bytes; reads headers of weights only.

        Raises BudgetError where the GPU's memory is too small for every mode; ``work`` may exceed ``free``, which the
        caller refuses.
        """
        settings, precision = self.settings, precision or self.precision
        vram = self._free_vram()
        plan = plan_refine(
            self.generator.sizes(),
            device=self.device,
            precision=precision,
            offload=settings.offload,
            batch=None if settings.batch == "auto" else settings.batch,
            rows=rows,
            free=free,
            vram=vram,
            imports=sum(nbytes for name, nbytes in IMPORTS.items() if name not in sys.modules),
            guided=settings.guidance > 1,
            as_stored=all(source.as_stored for source in self.generator.sources(precision)),
        )
        if plan.vram > vram:
            raise BudgetError(
                f"refine needs {format_bytes(plan.vram)} on the GPU, where {format_bytes(vram)} are free",
                todo='set device = "cpu", a smaller refine.size, or refine.offload = "auto"',
            )
        return plan

    def scratch_nbytes(self, plan: RefinePlan) -> int:
        """Bytes of weights that a plan keeps in ``scratch``."""
        if plan.mode not in ("disk", "stream"):
            return 0
        sources = self.generator.sources(plan.precision)
        return sum(source.part.nbytes_as(plan.precision) for source in sources if not source.as_stored)

    # Drawing

    def refine(
        self,
        first: Images,
        predicted: Mapping[str, Rows],
        out: Pictures,
        *,
        budget: MemoryBudget,
        progress: Progress | None = None,
        label: str = "refine",
    ) -> None:
        """Draw the final images that ``out`` lacks, each written as soon as it is there, and complete it.

        ``predicted`` holds by role what settings.roles() names: ``text`` [rows, 77 · width], ``vision`` [rows,
        257 · width] for Versatile Diffusion, and ``latents`` [rows, channels · (size / factor)²], scaled latents of the
        autoencoder (channels, height, width), which replace ``first`` as the start where given. Raises InputError, SettingsError or
        BudgetError before the first image. Batches lie where they lie when all images are drawn, so that a run that was
        killed ends with the same ones.
        """
        progress = progress or Progress()
        inputs = Inputs(first, dict(predicted))
        self._check(inputs, out)
        missing = set(out.missing())
        if missing:
            plan = self.plan(out.rows, budget.free)
            budget.require(label, plan.work)
            self.generator.sampler()  # what the model's own scheduler can't do is refused now
            batches = [range(k, min(k + plan.batch, out.rows)) for k in range(0, out.rows, plan.batch)]
            wanted = [rows for rows in batches if missing.intersection(rows)]
            inputs.check_finite([row for rows in wanted for row in rows])
            try:
                self._networks(plan)
                with progress.task(label, total=out.rows, unit="images", done=out.rows - len(missing)) as advance:
                    for rows in wanted:
                        lacking = sorted(missing.intersection(rows))
                        self._draw(rows, lacking, inputs, out, plan, budget, progress)
                        advance(len(lacking))
            finally:
                self._loaded = None  # the next stage, or fold, has the memory
            self.mode = plan.mode
        out.finish()

    def _draw(
        self,
        rows: range,
        lacking: list[int],
        inputs: Inputs,
        out: Pictures,
        plan: RefinePlan,
        budget: MemoryBudget,
        progress: Progress,
    ) -> None:
        """Draw a batch and write those of its images that are lacking."""
        started = time.perf_counter()
        for row, image in zip(rows, self._drawn(rows, inputs, plan), strict=True):
            if row in lacking:
                final = self._sound(row, image, inputs, plan, budget, progress)
                out.write(row, np.rint(final * 255).astype(np.uint8))
        self.seconds += [(time.perf_counter() - started) / len(rows)] * len(lacking)

    def _drawn(self, rows: range, inputs: Inputs, plan: RefinePlan) -> Array:
        """Images float32 [rows, size, size, 3] from 0 to 1."""
        import torch

        networks, generator = self._networks(plan), self.generator
        drawn = diffusion.generators(self.seed, rows)
        if (latents := inputs.predicted.get("latents")) is None:
            images = [resize(with_channels(inputs.first.read(row), 3), self.shape, bicubic=True) for row in rows]
            start = diffusion.encoded(networks, np.stack(images), drawn)
        else:
            start = torch.from_numpy(read_rows(latents, rows).reshape(len(rows), *generator.shapes["latents"]))
        end = diffusion.denoised(
            networks,
            generator.sampler(),
            start,
            torch.from_numpy(generator.conditions(inputs, rows)),
            drawn,
            guidance=self.settings.guidance,
            negative=None if generator.negative is None else torch.from_numpy(generator.negative),
        )
        return diffusion.decoded(networks, end)

    def _sound(
        self, row: int, image: Array, inputs: Inputs, plan: RefinePlan, budget: MemoryBudget, progress: Progress
    ) -> Array:
        """The image, or another one drawn in float32 where it is black or not finite."""
        trouble = _trouble(image)
        if trouble and plan.precision != "float32":
            progress.say(f"image {row} is {trouble} in {plan.precision}: drawn again in float32")
            self.retried.append(row)
            self._loaded = None
            now = MemoryBudget.of(budget)
            exact = self.plan(1, now.free, precision="float32")
            now.require("refine in float32", exact.work)
            image = self._drawn(range(row, row + 1), inputs, exact)[0]
            trouble = _trouble(image)
        if trouble == "black":
            progress.say(f"image {row} is black in float32 too")
            self.black.append(row)
        elif trouble:
            raise InputError(
                f"image {row} is not finite in float32",
                todo="check the weights of refine.base and refine.lora, and refine.lora_scale",
            )
        return image

    def _networks(self, plan: RefinePlan) -> diffusion.Networks:
        if self._loaded is None or self._loaded[0] != plan:
            self._loaded = None
            parts = []
            for source in self.generator.sources(plan.precision):
                lora = source.lora
                added = None if lora is None else [file_content(lora.file), self.settings.lora_scale]
                content = fingerprint({"part": source.part.content, "lora": added})
                how: dict[str, Any] = {"device": self.device, "scratch": self.scratch, "content": content}
                parts.append(place(source, plan.mode, **how))
            self.generator.made_ready(parts[0].network)
            self._loaded = plan, diffusion.Networks(parts[0], parts[1], plan.precision, self.device)
        return self._loaded[1]

    def _free_vram(self) -> int:
        if self._vram is not None:
            return self._vram
        if self.device != "cuda":
            return 0
        import torch

        return int(torch.cuda.mem_get_info()[0] * _VRAM_SHARE)

    def _check(self, inputs: Inputs, out: Pictures) -> None:
        if out.shape != self.shape:
            raise InputError(f"{out.path} is for images of {out.shape}", expected=f"{self.shape}")
        if set(inputs.predicted) != set(self.settings.roles()):
            raise ValueError(f"predictions of {list(inputs.predicted)} for {list(self.settings.roles())}")
        self.generator.check(inputs)
        counts = {"first images": inputs.first.rows, "images to draw": out.rows}
        counts |= {f"rows of {role}": matrix.shape[0] for role, matrix in inputs.predicted.items()}
        if len(set(counts.values())) > 1:
            raise InputError(", ".join(f"{n} {name}" for name, n in counts.items()), expected="as many of each")


def _trouble(image: Array) -> str:
    """What is wrong with an image; empty if nothing is."""
    if not np.isfinite(image).all():
        return "not finite"
    return "black" if image.max() < 0.5 / 255 else ""
