"""Drawing with a diffusion model: planned, batch by batch from predictions alone, and resumable."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from leanrecon.context import Context
from leanrecon.devices import choose
from leanrecon.errors import BudgetError, InputError, SettingsError
from leanrecon.images import Array, ImageShape, resize, with_channels
from leanrecon.memory import format_bytes
from leanrecon.progress import counted
from leanrecon.refinement.diffusion import bfloat16, sampling
from leanrecon.refinement.diffusion.codes import Codes
from leanrecon.refinement.diffusion.model import DiffusionModel
from leanrecon.refinement.diffusion.offload import place
from leanrecon.refinement.diffusion.plan import DiffusionPlan, Machine, Work, plan_diffusion
from leanrecon.refinement.diffusion.precision import precision_of
from leanrecon.refinement.diffusion.settings import DiffusionSettings
from leanrecon.refinement.inputs import Images, Inputs, Rows, read_rows
from leanrecon.stores.fingerprint import file_content, fingerprint
from leanrecon.weights.libraries import IMPORTS_NBYTES, beside_torch_nbytes, is_imported
from leanrecon.weights.needs import Need
from leanrecon.weights.pieces import Piece

if TYPE_CHECKING:
    from leanrecon.stores.pictures import Pictures

FORMAT = 1
"""Version of the arithmetic from first images to final ones."""

_VRAM_SHARE = 0.9  # of the GPU memory that is free; the rest is for the allocator's gaps


@dataclass(frozen=True)
class _Job:
    """One call of ``draw``."""

    inputs: Inputs
    out: "Pictures"
    plan: DiffusionPlan
    context: Context


class DiffusionGenerator:
    """Final images by a diffusion model from first images, predicted embeddings and, if asked, predicted latents.

    ``scratch`` holds weights that were merged with a LoRA or cast, for the modes that read them from disk.
    ``unconditional`` holds the unconditional embeddings [tokens · width] by role, where settings name no file.
    """

    Settings: ClassVar[type[DiffusionSettings]]
    Model: ClassVar[type[DiffusionModel]]
    networks: ClassVar[tuple[str, ...]]
    """The folders of the networks that denoise."""
    refines: ClassVar = True

    def __init__(
        self,
        settings: DiffusionSettings,
        *,
        seed: int = 0,
        device: str = "cpu",
        scratch: Path = Path(),
        unconditional: Mapping[str, Array] | None = None,
    ) -> None:
        self.settings = settings
        self.model = self.Model(settings, unconditional)
        self.seed = seed
        self.device = choose(device)
        self.scratch = scratch
        self.precision = precision_of(settings.precision, self.device)
        self.seconds: list[float] = []
        """For each image that was drawn, its share of the time of its batch."""
        self.retried: list[int] = []
        """Rows that came out black or not finite, and were drawn again in float32."""
        self.black: list[int] = []
        """Rows that are black in float32 too."""
        self.mode: str | None = None
        self._loaded: tuple[tuple[str, str], sampling.Networks] | None = None
        self._codes = Codes()
        if settings.offload == "stream" and self.device != "cpu":
            raise SettingsError(f'refine.offload = "stream" on {self.device}', expected='"disk", or device = "cpu"')
        if self.device == "mps" and settings.offload not in ("auto", "none"):
            raise SettingsError(
                f'refine.offload = "{settings.offload}" on mps, which shares its memory with the CPU', expected='"none"'
            )

    # What it takes

    @classmethod
    def roles(cls, settings: DiffusionSettings) -> dict[str, str]:
        """The feature space of each role: those that guide, and ``latents`` where they are the start."""
        return settings.guides | ({} if settings.start == "stage1" else {"latents": settings.start})

    @classmethod
    def unconditional_roles(cls, settings: DiffusionSettings) -> dict[str, str]:
        """The feature spaces whose unconditional embedding is needed: with guidance, those without a file."""
        if settings.guidance == 1:
            return {}
        return {role: space for role, space in settings.guides.items() if not settings.negatives[role]}

    @classmethod
    def needs(cls, settings: Any, prefix: str = "refine.") -> Iterator[Need]:
        """The parts of published models that settings name."""
        folders = [*cls.networks, *(() if settings.tiny_autoencoder else ("vae",))]
        pieces = (*(Piece("network", (folder,)) for folder in folders), Piece("scheduler", ("scheduler",)))
        yield Need(f"{prefix}base", settings.base, pieces)
        if settings.tiny_autoencoder:
            yield Need(f"{prefix}tiny_autoencoder", settings.tiny_autoencoder, (Piece("network", (".", "vae")),))

    @classmethod
    def notes(cls, settings: DiffusionSettings) -> Iterator[str]:
        yield (
            "Final images are drawn by a generative model: detail that the predictions do not carry comes from the "
            "model, not from the brain."
        )

    # What it is made of

    @property
    def shape(self) -> ImageShape:
        """The shape of final images."""
        return self.settings.size, self.settings.size, 3

    def check(self) -> None:
        """Raise SettingsError or InputError for settings and weights that can't work; reads headers only."""
        self.model.check()

    def check_length(self, role: str, length: int) -> None:
        """Raise InputError unless predicted rows of a role have this length."""
        self.model.check_length(role, length)

    def made_of(self) -> dict[str, Any]:
        """All that decides final images beyond first images and predictions: contents and settings, never places."""
        made_of = {"format": FORMAT, **self.model.made_of(), "precision": self.precision, "seed": self.seed}
        return made_of | ({"bfloat16": bfloat16.FORMAT} if self.precision == "bfloat16" else {})

    def record(self) -> dict[str, Any]:
        """How it ran, the median time an image, and the rows that failed at first."""
        record = {"mode": self.mode, "precision": self.precision, "retried": self.retried, "black": self.black}
        return record | ({"seconds_per_image": float(np.median(self.seconds))} if self.seconds else {})

    @staticmethod
    def joined(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The record of images that several processes drew, from the record of each."""
        record = dict(records[0])
        record |= {key: sorted({row for one in records for row in one[key]}) for key in ("retried", "black")}
        seconds = [one["seconds_per_image"] for one in records if "seconds_per_image" in one]
        return record | ({"seconds_per_image": float(np.median(seconds))} if seconds else {})

    # How it will run

    def plan(self, rows: int, free: int) -> DiffusionPlan:
        """Plan the drawing of ``rows`` images into ``free`` bytes; reads headers of weights only.

        Raises BudgetError where the GPU's memory is too small for every mode. ``work`` may exceed ``free``, which the
        caller refuses.
        """
        return self._plan(rows, free, self.precision)

    def _plan(self, rows: int, free: int, precision: str) -> DiffusionPlan:
        settings, vram = self.settings, self._free_vram()
        sources = self.model.sources(precision)
        work = Work(
            rows=rows,
            precision=precision,
            offload=settings.offload,
            batch=None if settings.batch == "auto" else settings.batch,
            guided=settings.guidance > 1,
            converted=sum(source.part.nbytes_as(precision) for source in sources if not source.as_stored),
        )
        imports = beside_torch_nbytes("diffusers") + (0 if is_imported("torch") else IMPORTS_NBYTES["torch"])
        plan = plan_diffusion(self.model.sizes(), work, Machine(self.device, free, vram, imports))
        if plan.vram > vram:
            raise BudgetError(
                f"refine needs {format_bytes(plan.vram)} on the GPU, where {format_bytes(vram)} are free",
                todo='set device = "cpu", a smaller refine.size, or refine.offload = "auto"',
            )
        return replace(plan, summary=f"{settings.kind}, {counted(settings.steps, 'steps')}, {plan.summary}")

    def _free_vram(self) -> int:
        if self.device != "cuda":
            return 0
        import torch

        return int(torch.cuda.mem_get_info()[0] * _VRAM_SHARE)

    # Drawing

    def draw(self, first: Images, predicted: Mapping[str, Rows], out: "Pictures", context: Context) -> None:
        """Draw the final images that ``out`` lacks, each written as soon as it is drawn, and finish it.

        ``predicted`` holds the roles of the settings: ``text`` [rows, 77 · width], and for Versatile Diffusion ``vision``
        [rows, 257 · width]. ``latents`` [rows, channels · (size / factor)²] replace ``first`` as the start: scaled latents
        of the autoencoder (channels, height, width). Raises InputError, SettingsError or BudgetError before the first
        image. Batches do not depend on which images are missing, so that a run that was killed ends with the same images.
        """
        inputs = Inputs(first, dict(predicted))
        self._check(inputs, out)
        missing = set(out.missing())
        if missing:
            plan = self.plan(out.rows, context.budget.free)
            context = context.named(context.label or "refine")
            context.require(context.label, plan.work)
            self.model.schedule()  # raises now for steps that the model's own scheduler can't run
            batches = [range(k, min(k + plan.batch, out.rows)) for k in range(0, out.rows, plan.batch)]
            batches = [rows for rows in batches if missing.intersection(rows)]
            inputs.check_finite(batches)
            job = _Job(inputs, out, plan, context)
            try:
                self._networks(plan)
                with context.task(total=out.rows, unit="images", done=out.rows - len(missing)) as advance:
                    for rows in batches:
                        lacking = sorted(missing.intersection(rows))
                        self._draw_batch(job, rows, lacking)
                        advance(len(lacking))
            finally:
                if not context.keeps:
                    self._loaded = None  # frees the memory for what comes next
            self.mode = plan.mode
        out.finish()

    def _check(self, inputs: Inputs, out: "Pictures") -> None:
        if out.shape != self.shape:
            raise InputError(f"{out.path} is for images of {out.shape}", expected=f"{self.shape}")
        roles = self.roles(self.settings)
        if set(inputs.predicted) != set(roles):
            raise ValueError(f"predictions of {list(inputs.predicted)} for {list(roles)}")
        self.model.check_inputs(inputs)
        inputs.check_counts(out.rows)

    def _draw_batch(self, job: _Job, rows: range, lacking: list[int]) -> None:
        """Draw a batch and write those of its images that are lacking."""
        started = time.perf_counter()
        for row, image in zip(rows, self._images(job, rows, job.plan), strict=True):
            if row in lacking:
                final = self._checked(job, row, image)
                job.out.write(row, np.rint(final * 255).astype(np.uint8))
        self.seconds += [(time.perf_counter() - started) / len(rows)] * len(lacking)

    def _images(self, job: _Job, rows: range, plan: DiffusionPlan) -> Array:
        """Images float32 [rows, size, size, 3] from 0 to 1."""
        import torch

        networks, model, inputs = self._networks(plan), self.model, job.inputs
        generators = sampling.generators(self.seed, rows)
        if (latents := inputs.predicted.get("latents")) is None:
            images = [resize(with_channels(inputs.first.read(row), 3), self.shape, bicubic=True) for row in rows]
            start = sampling.encoded(networks, np.stack(images), generators, self._codes)
        else:
            start = torch.from_numpy(read_rows(latents, rows).reshape(len(rows), *model.shapes["latents"]))
        conditions = sampling.Conditions(
            torch.from_numpy(model.conditions(inputs, rows)),
            None if model.negative is None else torch.from_numpy(model.negative),
            self.settings.guidance,
        )
        end = sampling.denoised(networks, model.schedule(), start, conditions, generators)
        return sampling.decoded(networks, end, plan.decoded)

    def _checked(self, job: _Job, row: int, image: Array) -> Array:
        """The image, or one drawn in float32 where it is black or not finite."""
        fault, progress = _fault(image), job.context.progress
        if fault and job.plan.precision != "float32":
            progress.say(f"image {row} is {fault} in {job.plan.precision}: drawn again in float32")
            self.retried.append(row)
            self._loaded = None
            context = job.context.refreshed()
            plan = self._plan(1, context.budget.free, "float32")
            context.require(f"{context.label} in float32", plan.work)
            image = self._images(job, range(row, row + 1), plan)[0]
            fault = _fault(image)
        if fault == "black":
            progress.say(f"image {row} is black in float32 too")
            self.black.append(row)
        elif fault:
            raise InputError(
                f"image {row} is not finite in float32",
                todo="check the weights of refine.base and refine.lora, and refine.lora_scale",
            )
        return image

    def _networks(self, plan: DiffusionPlan) -> sampling.Networks:
        """The networks with their weights, loaded once for a mode and a precision."""
        loaded_as = plan.mode, plan.precision
        if self._loaded is None or self._loaded[0] != loaded_as:
            self._loaded = None
            parts = []
            for source in self.model.sources(plan.precision):
                lora = source.lora
                updates = None if lora is None else [file_content(lora.file), lora.scale]
                content = fingerprint({"part": source.part.content, "lora": updates})
                parts.append(place(source, plan.mode, device=self.device, scratch=self.scratch, content=content))
            self.model.prepare(parts[0].network)
            self._loaded = loaded_as, sampling.Networks(parts[0], parts[1], plan.precision, self.device)
        return self._loaded[1]


def _fault(image: Array) -> str:
    """What is wrong with an image; empty if nothing is."""
    if not np.isfinite(image).all():
        return "not finite"
    return "black" if image.max() < 0.5 / 255 else ""
