"""Final images by a search for the latents of a decoder whose image matches what the brain says: the kind inversion."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from leanrecon.context import Context
from leanrecon.devices import choose
from leanrecon.errors import BudgetError, InputError, SettingsError
from leanrecon.images import Array, ImageShape
from leanrecon.memory import format_bytes
from leanrecon.progress import counted
from leanrecon.refinement.inputs import Images, Inputs, Rows, read_rows
from leanrecon.refinement.inversion import plan as planning
from leanrecon.refinement.inversion.batch import Searcher
from leanrecon.refinement.inversion.distance import whitened
from leanrecon.refinement.inversion.learn import Learned, learn
from leanrecon.refinement.inversion.networks import loaded
from leanrecon.refinement.inversion.plan import InversionPlan, Networks, Responses
from leanrecon.refinement.inversion.settings import InversionSettings
from leanrecon.refinement.learning import LearningShapes, TrainRows
from leanrecon.weights.checkpoint import Folder
from leanrecon.weights.libraries import imports_nbytes

if TYPE_CHECKING:
    from leanrecon.stores.pictures import Pictures

FORMAT = 1
"""Version of the arithmetic from first images to final ones."""

FILE = "search"
"""The file of what was learned."""

SEEN: ImageShape = (64, 64, 3)
"""An image shape: what is searched through gives rows of one length, whatever the images."""

_VRAM_SHARE = 0.9  # of the GPU memory that is free; the rest is for the allocator's gaps

_BETAS = "betas"


class Inversion:
    """Searches a decoder's latents for the image whose features, or responses, match those of the brain."""

    Settings: ClassVar = InversionSettings
    refines: ClassVar = True
    learns: ClassVar = True

    def __init__(
        self,
        settings: InversionSettings,
        *,
        seed: int = 0,
        device: str = "cpu",
        scratch: Path = Path(),
        unconditional: Mapping[str, Array] | None = None,
    ) -> None:
        self.settings, self.seed, self.device = settings, seed, choose(device)
        self._spaces: Mapping[str, Any] = {}
        self._learned: Learned | None = None
        self._curves: list[list[float]] = []
        self._restarts: list[int] = []
        self._seconds: list[float] = []

    # What it takes

    @classmethod
    def roles(cls, settings: InversionSettings) -> dict[str, str]:
        return {"features": settings.features} if settings.match == "features" else {}

    @classmethod
    def spaces(cls, settings: InversionSettings) -> dict[str, str]:
        """The feature spaces that settings name, by the key that names them."""
        return {"decoder": settings.decoder, "features": settings.features}

    @classmethod
    def measured(cls, settings: InversionSettings) -> bool:
        """Whether it takes the measured betas of the rows that it draws, as the role ``betas``."""
        return settings.match == "responses"

    @classmethod
    def predicted(cls, settings: InversionSettings) -> list[str]:
        """The feature spaces whose predictions of train rows, each without its own image, it learns from."""
        return [settings.features] if settings.match == "features" else []

    @classmethod
    def first_images(cls, settings: InversionSettings) -> bool:
        """Whether it learns from first images of train rows."""
        return settings.steps == "auto"

    @classmethod
    def unconditional_roles(cls, settings: InversionSettings) -> dict[str, str]:
        return {}

    @classmethod
    def notes(cls, settings: InversionSettings) -> Iterator[str]:
        what = "predicted features" if settings.match == "features" else "measured betas"
        yield (
            f"Final images are found by a search through the decoder of {settings.decoder} for images that match "
            f"{what}: detail that these do not carry comes from the decoder, not from the brain."
        )

    def use(self, spaces: Mapping[str, Any]) -> None:
        """Take the feature spaces of the study by name."""
        self._spaces = spaces

    # What it is made of

    @property
    def shape(self) -> None:
        """Final images have the shape of first images."""

    @property
    def _decoder(self) -> Any:
        return self._spaces[self.settings.decoder]

    @property
    def _features(self) -> Any:
        return self._spaces[self.settings.features]

    def check(self) -> None:
        """Raise SettingsError for feature spaces that can't be searched through, InputError for weights that don't fit."""
        for key, space in (("decoder", self._decoder), ("features", self._features)):
            if not getattr(space, "differentiable", False):
                raise SettingsError(
                    f"refine.{key} = {space.name!r}, which gives no gradients",
                    expected="a feature space of images that is a network, as vdvae, autokl or clip-vision",
                )
            if (check := getattr(space, "check", None)) is not None:
                check()
        if not self._decoder.decodes:
            raise SettingsError(
                f"refine.decoder = {self._decoder.name!r}, which has no decoder",
                expected="one that has, as vdvae or autokl",
            )

    def made_of(self) -> dict[str, Any]:
        settings = self.settings.model_dump(mode="json", exclude={"baselines", "batch"})
        decoder = self._decoder.made_of() | self._decoder.decode_made_of()
        made_of = {"format": FORMAT, **settings, "seed": self.seed}
        return made_of | {"decoder": decoder, "features": self._features.made_of()}

    # Plans

    @property
    def _batch(self) -> int:
        if self.settings.batch != "auto":
            return self.settings.batch
        return planning.AT_ONCE_ON_CPU if self.device == "cpu" else planning.AT_ONCE_ON_GPU

    def plan(self, rows: int, free: int) -> InversionPlan:
        responses = Responses(self.settings.voxels) if self.measured(self.settings) else None
        return self._plan(responses, min(self._batch, max(rows, 1)))

    def plan_learning(self, shapes: LearningShapes, free: int) -> InversionPlan:
        """Plan what is learned from train rows, searches of train images included."""
        settings = self.settings
        responses = None
        if self.measured(settings):
            matched = min(settings.voxels, shapes.voxels)
            responses = Responses(matched, shapes.rows, shapes.images, shapes.voxels)
        drawing = self._plan(responses, self._batch)
        networks = self._networks()
        read = planning.read_nbytes(max(networks.features, networks.latents))
        work = planning.learning_nbytes(networks, responses, read, shapes.tile)
        first = settings.tuned_on * int(np.prod(shapes.first)) * 2 if self.first_images(settings) else 0
        return replace(drawing, work=max(work, drawing.work) + first, summary=f"inversion, learns {drawing.summary}")

    def _plan(self, responses: Responses | None, batch: int) -> InversionPlan:
        library = "diffusers" if "diffusers" in self._libraries else "transformers"
        imports = imports_nbytes(library if self._libraries - {"torch"} else None)  # type: ignore[arg-type]
        plan = planning.plan_search(self._networks(), responses, batch, device=self.device, imports=imports)
        if plan.vram > (vram := self._free_vram()):
            raise BudgetError(
                f"refine needs {format_bytes(plan.vram)} on the GPU, where {format_bytes(vram)} are free",
                todo='set a smaller refine.batch, or device = "cpu"',
            )
        settings = self.settings
        steps = (
            f"at most {counted(settings.most, 'steps')}"
            if settings.steps == "auto"
            else counted(settings.steps, "steps")
        )
        starts = counted(settings.restarts, "starts")
        return replace(plan, summary=f"inversion, {steps}, {starts}, {plan.summary}")

    @property
    def _libraries(self) -> set[str]:
        return {str(space.library) for space in (self._decoder, self._features)}

    def _networks(self) -> Networks:
        decoder, features = self._decoder, self._features
        decoding, encoding = decoder.gradient_cost("decode"), features.gradient_cost("encode")
        weights = decoding.held + encoding.held
        if decoder.name != features.name:
            weights += decoder.gradient_cost("encode").held
        states = decoding.per_image + encoding.per_image
        pixels = int(np.prod(decoder.decoded_shape(SEEN)))
        return Networks(weights, states, decoder.dims(SEEN), features.dims(SEEN), pixels)

    def _free_vram(self) -> int:
        if self.device != "cuda":
            return 0
        import torch

        return int(torch.cuda.mem_get_info()[0] * _VRAM_SHARE)

    # Learning

    def find(self, folder: Path, made_of: Mapping[str, Any], context: Context) -> bool:
        """Load what was learned in ``folder`` from data of this description; whether it was there."""
        known = Folder(folder, made_of, overwrite=context.overwrite).find(FILE)
        if known is not None:
            self._learned = Learned({name: known.read(name) for name in known.names}, dict(known.record["result"]))
        return known is not None

    def learn(self, train: TrainRows, folder: Path, made_of: Mapping[str, Any], context: Context) -> None:
        """Learn from train rows how features and latents vary, what of them is predicted, and how many steps serve."""
        self._learned = learn(self.settings, train, self._searcher, self._batch, self.seed, context)
        files = Folder(folder, made_of, overwrite=context.overwrite)
        files.write(FILE, self._learned.arrays, result=self._learned.record)

    def _searcher(self, arrays: Mapping[str, Array]) -> Searcher:
        return Searcher(self.settings, loaded(self._decoder, self._features), arrays, self.seed)

    # Drawing

    def draw(self, first: Images, predicted: Mapping[str, Rows], out: "Pictures", context: Context) -> None:
        """Search the final images that ``out`` lacks, each batch written as soon as it is found, and finish it.

        ``predicted`` holds ``features`` [rows, t], or the measured ``betas`` [rows, voxels]. Raises InputError for NaN
        among them before the first search. Batches do not depend on which images are missing.
        """
        if self._learned is None:
            raise ValueError("nothing was learned from train rows yet")
        inputs = Inputs(first, dict(predicted))
        inputs.check_counts(out.rows)
        if missing := set(out.missing()):
            plan = self.plan(out.rows, context.budget.free)
            context = context.named(context.label or "refine")
            context.require(context.label, plan.work)
            batches = [range(k, min(k + plan.batch, out.rows)) for k in range(0, out.rows, plan.batch)]
            batches = [rows for rows in batches if missing.intersection(rows)]
            self._check_finite(inputs, batches)
            searcher = self._searcher(self._learned.arrays)
            with context.task(total=out.rows, unit="images", done=out.rows - len(missing)) as advance:
                for rows in batches:
                    lacking = sorted(missing.intersection(rows))
                    self._draw_batch(searcher, inputs, rows, lacking, out)
                    advance(len(lacking))
        out.finish()

    def _check_finite(self, inputs: Inputs, batches: list[range]) -> None:
        assert self._learned is not None
        for rows in batches:
            if not np.isfinite(self._target(inputs, rows)).all():
                what = "measured betas" if self.measured(self.settings) else "predicted features"
                raise InputError(
                    f"the {what} of rows {rows[0]} to {rows[-1]} are not finite", todo="run the regression again"
                )

    def _target(self, inputs: Inputs, rows: range) -> Array:
        """What the brain says of some rows: predicted features, or whitened responses."""
        assert self._learned is not None
        if not self.measured(self.settings):
            return read_rows(inputs.predicted["features"], rows)
        return whitened(self._learned.arrays, read_rows(inputs.predicted[_BETAS], rows))

    def _draw_batch(self, searcher: Searcher, inputs: Inputs, rows: range, lacking: list[int], out: "Pictures") -> None:
        assert self._learned is not None
        started = time.perf_counter()
        first = [inputs.first.read(row) for row in rows]
        found = searcher(list(rows), first, self._target(inputs, rows), self._learned.steps(self.settings))
        for row, image, curve, restart in zip(rows, found.images, found.distance, found.restart, strict=True):
            if row in lacking:
                out.write(row, image)
                self._curves.append(curve)
                self._restarts.append(restart)
        self._seconds += [(time.perf_counter() - started) / len(rows)] * len(lacking)

    def record(self) -> dict[str, Any]:
        """What was learned, and of the images that were drawn now the mean distance from the brain at every step."""
        record = {} if self._learned is None else dict(self._learned.record)
        if self._curves:
            record["distance"] = np.mean(self._curves, axis=0).round(6).tolist()
            record["restarts"] = np.bincount(self._restarts, minlength=self.settings.restarts).tolist()
            record["searched"] = len(self._curves)
            record["seconds_per_image"] = float(np.median(self._seconds))
        return record
