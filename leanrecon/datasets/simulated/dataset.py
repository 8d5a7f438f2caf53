"""A simulated subject: drawn scenes, and the responses of a simulated visual cortex to them, in place of a download."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, Field, field_validator

from leanrecon.context import Context
from leanrecon.datasets.images import stimulus_ids
from leanrecon.datasets.plan import DatasetPlan, DatasetSettings
from leanrecon.datasets.simulated.cortex import (
    CALIBRATION,
    PANEL,
    Cortex,
    draw_voxels,
    making_nbytes,
    responding_nbytes,
    trial_numbers,
    word_rows,
)
from leanrecon.datasets.simulated.scenes import KEPT, SCENE_NBYTES, TEST, compose, describe, paint, painting_nbytes
from leanrecon.datasets.splits import check_shared
from leanrecon.errors import StoreError
from leanrecon.memory import buffer, give_back
from leanrecon.study.costs import store_read, total
from leanrecon.study.layout import Study
from leanrecon.study.rows import Rows, SplitRows, refuse_earlier_format

if TYPE_CHECKING:
    from leanrecon.stores.images import ImageReader
    from leanrecon.stores.store import Store

Array = np.ndarray[Any, Any]

FORMAT = 2
"""Of the scenes and of the arithmetic that leads to the responses: raised whenever either changes."""

FIRST = {"train": 0, "test": TEST}
"""Index of a split's first scene."""

OVERHEAD = 6 * 10**6
"""Bytes that BLAS takes when it is first used, and what stays of freed blocks between others: 1 to 4 MB measured."""

_SPLITS = ("train", "test")


class SimulatedSettings(DatasetSettings):
    """``[dataset] kind = "simulated"``: a subject whose brain is simulated, looking at drawn scenes."""

    kind: Literal["simulated"] = "simulated"
    """A simulated brain that looks at drawn scenes."""
    subject: int = Field(default=0, ge=0, le=1_000_000)
    """Number of the subject; all subjects look at the same scenes, which the seed draws."""
    n_train: int = Field(default=900, ge=2, le=1_000_000)
    """Number of train images."""
    n_test: int = Field(default=100, ge=1, le=100_000)
    """Number of test images."""
    size: int = Field(default=64, ge=16, le=512)
    """Height and width of the images in pixels."""
    voxels: int = Field(default=1500, ge=10, le=50_000)
    """Number of voxels."""
    presentations: int = Field(default=3, ge=1, le=20)
    """How often each image is shown: one trial each time."""
    noise: float = Field(default=1.0, gt=0, le=100)
    """Median over voxels of a single trial's noise relative to the signal, both as standard deviations."""

    @property
    def simulated(self) -> bool:
        return True

    @property
    def tells_noise(self) -> bool:
        return True

    @field_validator("folds")
    @classmethod
    def _no_folds(cls, folds: int | None) -> int | None:
        if folds is not None:
            raise ValueError("a simulated subject has test images of its own (n_test), so leave folds out")
        return folds

    @field_validator("group")
    @classmethod
    def _no_runs(cls, group: str) -> str:
        if group == "run":
            raise ValueError("a simulated subject has no runs")
        return group

    def brain(self, seed: int) -> int:
        """The seed of the subject's voxels, noise and order of trials; that of the scenes for subject 0."""
        if self.subject == 0:
            return seed
        drawn = np.random.SeedSequence([self.subject, seed & 0xFFFFFFFF, seed >> 32]).generate_state(1, np.uint64)
        return int(drawn[0] >> np.uint64(1))

    def images(self, split: str) -> int:
        """Number of images of a split."""
        return self.n_train if split == "train" else self.n_test

    def each(self, split: str) -> int:
        """Rows of betas for each image."""
        return 1 if self.averages(split) else self.presentations

    def shape(self, role: str, split: str) -> tuple[int, ...]:
        """Shape of the store of a role: betas or stimuli."""
        images = self.images(split)
        return (images * self.each(split), self.voxels) if role == "betas" else (images, self.size, self.size, 3)


class Simulated:
    """A simulated subject as a dataset."""

    Settings: ClassVar[type[BaseModel]] = SimulatedSettings

    def __init__(self, settings: SimulatedSettings) -> None:
        self.settings = settings

    @classmethod
    def notes(cls, settings: SimulatedSettings) -> Iterable[str]:
        """Sentences that a reader of the report must know: none, as ``settings.simulated`` has its own place there."""
        return ()

    def plan(self, *, base_dir: Path | None, chunk: int, free: int) -> DatasetPlan:
        """Say what simulating the subject would write and take; more than the least memory would not speed it up."""
        from leanrecon.stores.layout import plan_chunks, store_nbytes

        settings = self.settings
        group, chunks, disk = {}, {}, 0
        for role, dtype in (("betas", np.float32), ("stimuli", np.uint8)):
            shapes = [settings.shape(role, split) for split in _SPLITS]
            cells = [plan_chunks(shape, dtype, chunk) for shape in shapes]
            itemsize = np.dtype(dtype).itemsize
            group[role] = max(n[0] * prod(shape[1:]) * itemsize for n, shape in zip(cells, shapes, strict=True))
            chunks[role] = max(prod(n) * itemsize for n in cells)
            disk += sum(store_nbytes(shape, dtype, chunk) for shape in shapes)
        # A group of rows with a chunk of it made contiguous or padded, beside what draws them or answers to images.
        pixels = settings.size**2
        drawing = max(PANEL * pixels * 6 + painting_nbytes(settings.size), chunks["stimuli"])
        responding = responding_nbytes(settings.size, settings.voxels) + chunks["betas"]
        filling = max(
            group["stimuli"] + drawing,
            making_nbytes(settings.size, settings.voxels),
            group["betas"] + chunks["stimuli"] + responding,
            group["stimuli"] + chunks["stimuli"],  # of the ids
        )
        # Images are read for what voxels answer to, and for the ids.
        seen = [store_read(settings.shape("stimuli", split), np.uint8, chunk, 2) for split in _SPLITS]
        n = {split: settings.shape("betas", split)[0] for split in _SPLITS}
        texts = 600 * sum(n.values())  # of captions, ids and trials
        texts += SCENE_NBYTES * min(KEPT, settings.n_train + settings.n_test + len(CALIBRATION))
        work = OVERHEAD + texts + filling
        return DatasetPlan(
            n_train=n["train"],
            n_test=n["test"],
            train_images=settings.n_train,
            test_images=settings.n_test,
            max_repeats=settings.presentations,
            voxels=settings.voxels,
            image_shape=(settings.size, settings.size, 3),
            folds=None,
            work=work,
            disk=disk,
            beside=total(seen),
        )

    def ingest(self, study: Study, *, base_dir: Path | None, context: Context) -> None:
        """Draw a study's scenes and simulate the betas, continuing where an earlier run stopped.

        ``rows.json`` numbers trials as they were presented; ``voxels.npz`` holds index, areas, coordinates (mm), and
        the true ncsnr. The seed decides scenes, subject and noise; the memory budget decides nothing.
        Raises StoreError for stores made of something else, BudgetError before any work.
        """
        from leanrecon.datasets.sidecars import keep_json, n_voxels, remove_others, sources_path, sweep

        settings, seed = self.settings, context.seed
        if not context.overwrite:
            refuse_earlier_format(study)
        plan = self.plan(base_dir=base_dir, chunk=context.chunk, free=context.budget.free)
        context.require("simulating the subject", plan.work)
        sweep(study)
        stores = _create(settings, study, context)
        done = all(store.complete for store in stores.values()) and _is_recorded(settings, study)
        if context.overwrite:  # what a dataset of another kind left, too
            remove_others(study, captions=_SPLITS)
            sources_path(study).unlink(missing_ok=True)
        if not done:
            study.rows.unlink(missing_ok=True)  # written last: its presence says that all is done
            for split in _SPLITS:
                _draw(stores["stimuli", split], split, context)
                give_back()
            _simulate(settings, stores, context)
            give_back()
        for split in _SPLITS:
            scenes = range(FIRST[split], FIRST[split] + settings.images(split))
            captions = [[describe(compose(seed, i))] for i in scenes]
            keep_json(study.captions(split), captions, "captions", overwrite=context.overwrite)
        compose.cache_clear()  # no later stage asks for a scene
        if not (done and n_voxels(study, "ncsnr") == settings.voxels):  # else what others added is kept
            _write_voxels(settings, study, settings.brain(seed))
        if not done:
            rows = {split: _rows(settings, split, t) for split, t in _trials(settings, settings.brain(seed)).items()}
            ids = {split: _ids(stores["stimuli", split]) for split in _SPLITS}
            check_shared(ids, dict.fromkeys(_SPLITS, lambda row: f"image {row}"), todo="choose another seed")
            Rows(rows, ids).write(study)


def _create(settings: SimulatedSettings, study: Study, context: Context) -> dict[tuple[str, str], "Store"]:
    """Open every store for writing, so that one made of something else is refused before anything is written."""
    from leanrecon.stores.store import Store

    made_of = {"kind": "simulated", "format of the simulation": FORMAT, "seed": context.seed}

    def decides(role: str, split: str) -> dict[str, Any]:
        if role == "stimuli":
            return {"size": settings.size}
        drawn = settings.model_dump(include={"n_train", "n_test", "size", "voxels", "presentations", "noise"})
        if settings.subject:
            drawn["subject"] = settings.subject
        if not settings.averages(split):
            drawn["repeats" if split == "train" else "test_repeats"] = "single"
        elif settings.rescales(split):
            drawn["rescale_average"] = True
        return drawn

    return {
        (role, split): Store.create(
            study.betas(split) if role == "betas" else study.stimuli(split),
            settings.shape(role, split),
            np.float32 if role == "betas" else np.uint8,
            made_of=made_of | {"dataset": decides(role, split), "split": split},
            chunk=context.chunk,
            overwrite=context.overwrite,
        )
        for role in ("stimuli", "betas")
        for split in _SPLITS
    }


def _fill(store: "Store", make: Callable[[range], Array], context: Context) -> None:
    """Write the missing row groups; ``make`` gives the rows of a range within one panel."""
    missing = store.missing_row_groups()
    memory = buffer((min(store.chunk_rows, store.rows) if missing else 0, *store.shape[1:]), store.dtype)
    done = store.rows - sum(len(store.group_rows(i)) for i in missing)
    with context.task(total=store.rows, unit="rows", done=done) as advance:
        for i in missing:
            group = store.group_rows(i)
            for start in range(group.start, group.stop, PANEL):
                rows = range(start, min(start + PANEL, group.stop))
                memory[rows.start - group.start : rows.stop - group.start] = make(rows)
                advance(len(rows))
            store.write_rows(i, memory[: len(group)])
    store.finish()


def _draw(store: "Store", split: str, context: Context) -> None:
    def draw(rows: range) -> Array:
        return np.stack([paint(compose(context.seed, FIRST[split] + i), store.shape[1]) for i in rows])

    _fill(store, draw, context.named(f"stimuli, {split}"))


def _simulate(settings: SimulatedSettings, stores: dict[tuple[str, str], "Store"], context: Context) -> None:
    from leanrecon.stores.images import ImageReader

    if all(stores["betas", split].complete for split in _SPLITS):
        return
    brain = settings.brain(context.seed)
    trials = _trials(settings, brain)
    n_trials = sum(numbers.size for numbers in trials.values())
    cortex = Cortex(brain, settings.size, settings.voxels, settings.noise, n_trials)
    give_back()
    for split in _SPLITS:
        images = ImageReader(stores["stimuli", split])
        subject = _Subject(settings, split, cortex, images, trials[split], context.seed)
        _fill(stores["betas", split], subject.respond, context.named(f"betas, {split}"))


@dataclass(frozen=True)
class _Subject:
    """The responses of a cortex to the images of one split."""

    settings: SimulatedSettings
    split: str
    cortex: Cortex
    images: "ImageReader"
    trials: Array
    """[images, presentations]"""
    seed: int
    """Of the scenes."""

    def respond(self, rows: range) -> Array:
        """Rows of betas: averages over the trials of an image, or its trials one after the other."""
        each, number = self.settings.each(self.split), _SPLITS.index(self.split)
        images = range(rows.start // each, (rows.stop - 1) // each + 1)
        clean = self._clean(images)
        if each > 1:
            clean = clean[[row // each - images.start for row in rows]]
        for row, response in zip(rows, clean, strict=True):
            image, presentation = divmod(row, each)
            shown = self.trials[image].tolist()
            if self.settings.averages(self.split):
                response += self.cortex.noise(number, image, shown)
                if self.settings.rescales(self.split):
                    response *= np.float32(len(shown) ** 0.5)
            else:
                response += self.cortex.noise(number, image, [shown[presentation]], first=presentation)
        return clean

    def _clean(self, images: range) -> Array:
        """Responses without noise, panel by panel."""
        parts = []
        for panel in range(images.start // PANEL, (images.stop - 1) // PANEL + 1):
            of = range(max(images.start, panel * PANEL), min(images.stop, (panel + 1) * PANEL))
            scenes = range(FIRST[self.split] + of.start, FIRST[self.split] + of.stop)
            shown = self.images.read(of, np.empty(len(of) * self.images.images.columns, np.uint8))
            parts.append(self.cortex.respond(shown, word_rows(self.seed, scenes), of))
        return np.concatenate(parts)


def _trials(settings: SimulatedSettings, seed: int) -> dict[str, Array]:
    """The numbers of every image's trials, [images, presentations]: train and test images were shown in turns."""
    numbers = trial_numbers(seed, settings.n_train + settings.n_test, settings.presentations)
    return {"train": numbers[: settings.n_train], "test": numbers[settings.n_train :]}


def _rows(settings: SimulatedSettings, split: str, trials: Array) -> SplitRows:
    """The rows of betas of a split: one an image, or its single trials one after the other."""
    if settings.averages(split):
        return SplitRows(np.arange(len(trials)), trials.tolist(), [settings.presentations] * len(trials))
    stimulus = np.repeat(np.arange(len(trials)), settings.presentations)
    return SplitRows(stimulus, trials.reshape(-1, 1).tolist(), [1] * trials.size)


def _ids(store: "Store") -> list[str]:
    groups = (store.group_rows(i) for i in range(store.row_groups))
    return [name for group in groups for name in stimulus_ids(store[group.start : group.stop])]


def _write_voxels(settings: SimulatedSettings, study: Study, seed: int) -> None:
    from leanrecon.places.files import write_whole

    voxels = draw_voxels(seed, settings.voxels, settings.noise)
    write_whole(
        study.voxels,
        lambda file: np.savez(
            file,
            index=np.arange(settings.voxels),
            areas=voxels.area,
            coordinates=voxels.coordinates,
            ncsnr=voxels.ncsnr,
        ),
    )


def _is_recorded(settings: SimulatedSettings, study: Study) -> bool:
    """Whether rows.json was written after the stores that are there."""
    try:
        rows = Rows.read(study)
    except StoreError:
        return False
    shapes = {split: (len(rows[split]), len(rows.ids[split])) for split in rows.splits}
    return shapes == {split: (settings.shape("betas", split)[0], settings.images(split)) for split in _SPLITS}
