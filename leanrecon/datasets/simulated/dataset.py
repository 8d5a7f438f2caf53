"""A simulated subject: drawn scenes, and the responses of a simulated visual cortex to them, in place of a download."""

from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, field_validator

from leanrecon.datasets.images import stimulus_ids
from leanrecon.datasets.plan import DatasetPlan, DatasetSettings
from leanrecon.datasets.simulated.cortex import PANEL, Cortex, cortex_nbytes, draw_voxels, trial_numbers, word_rows
from leanrecon.datasets.simulated.scenes import TEST, compose, describe, paint
from leanrecon.memory import MemoryBudget, buffer
from leanrecon.progress import Progress
from leanrecon.study.layout import Study

if TYPE_CHECKING:
    from leanrecon.stores.store import Store

Array = np.ndarray[Any, Any]

FORMAT = 2
"""Of the scenes and of the arithmetic that leads to the responses: raised whenever either changes."""

FIRST = {"train": 0, "test": TEST}
"""Index of a split's first scene."""

OVERHEAD = 32 * 10**6
"""Bytes that Zarr and BLAS take when they are first used, with room for captions and ids."""

_SILENT = Progress()
_SPLITS = ("train", "test")


class SimulatedSettings(DatasetSettings):
    """``[dataset] kind = "simulated"``: a subject whose brain is simulated, looking at drawn scenes."""

    kind: Literal["simulated"] = "simulated"
    n_train: int = Field(default=900, ge=2, le=1_000_000)
    n_test: int = Field(default=100, ge=1, le=100_000)
    size: int = Field(default=64, ge=16, le=512)
    """Height and width of the images in pixels."""
    voxels: int = Field(default=1500, ge=10, le=50_000)
    repeats: int = Field(default=3, ge=1, le=20)
    """How often each image is shown; its responses are averaged."""
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

    def rows(self, split: str) -> int:
        return self.n_train if split == "train" else self.n_test

    def shape(self, role: str, split: str) -> tuple[int, ...]:
        """Shape of the store of a role: betas or stimuli."""
        return (self.rows(split), self.voxels) if role == "betas" else (self.rows(split), self.size, self.size, 3)


def plan_simulated(
    settings: SimulatedSettings, *, base_dir: Path | None = None, chunk: str | int | None = None, free: int
) -> DatasetPlan:
    """Say what simulating the subject would make and take; more than the least memory would not speed it up."""
    from leanrecon.stores.layout import chunk_nbytes, plan_chunks, store_nbytes

    chunk_bytes = chunk_nbytes(chunk)
    group, chunks, disk = {}, {}, 0
    for role, dtype in (("betas", np.float32), ("stimuli", np.uint8)):
        shapes = [settings.shape(role, split) for split in _SPLITS]
        cells = [plan_chunks(shape, dtype, chunk_bytes) for shape in shapes]
        itemsize = np.dtype(dtype).itemsize
        group[role] = max(n[0] * prod(shape[1:]) * itemsize for n, shape in zip(cells, shapes, strict=True))
        chunks[role] = max(prod(n) * itemsize for n in cells)
        disk += sum(store_nbytes(shape, dtype, chunk_bytes) for shape in shapes)
    # A group of rows, with a chunk of it made contiguous, then padded, and the images it answers or is read back into.
    filling = max(group["betas"] + 2 * chunks["betas"] + chunks["stimuli"], 2 * (group["stimuli"] + chunks["stimuli"]))
    texts = 600 * (settings.n_train + settings.n_test)  # of captions, ids and trials
    work = OVERHEAD + texts + cortex_nbytes(settings.size, settings.voxels) + filling
    image_shape = (settings.size, settings.size, 3)
    return DatasetPlan(settings.n_train, settings.n_test, settings.voxels, image_shape, None, work, disk)


def ingest_simulated(
    settings: SimulatedSettings,
    study: Study,
    *,
    base_dir: Path | None = None,
    chunk: str | int | None = None,
    budget: MemoryBudget | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress = _SILENT,
) -> None:
    """Draw a study's scenes and simulate the betas, continuing where an earlier run stopped.

    ``rows.json`` numbers trials as they were presented; ``voxels.npz`` holds index, areas, coordinates (mm), and the
    true ncsnr. ``seed`` decides scenes, subject and noise; the memory budget decides nothing.
    Raises StoreError for stores made of something else, BudgetError before any work.
    """
    from leanrecon.datasets.sidecars import keep_json, n_voxels, remove_others, sources_path, sweep
    from leanrecon.places.files import write_json
    from leanrecon.stores.layout import chunk_nbytes

    budget = MemoryBudget.of(None) if budget is None else budget
    budget.require("simulating the subject", plan_simulated(settings, chunk=chunk, free=budget.free).work)
    sweep(study)
    stores = _create(settings, study, chunk_nbytes(chunk), seed, overwrite=overwrite)
    done = all(store.complete for store in stores.values()) and _is_recorded(settings, study)
    if overwrite:  # what a dataset of another kind left, too
        remove_others(study, captions=_SPLITS)
        sources_path(study).unlink(missing_ok=True)
    if not done:
        study.rows.unlink(missing_ok=True)  # written last, so that its presence says that all is done
        for split in _SPLITS:
            _draw(stores["stimuli", split], split, seed, progress)
        _simulate(settings, stores, seed, progress)
    for split in _SPLITS:
        scenes = range(FIRST[split], FIRST[split] + settings.rows(split))
        captions = [[describe(compose(seed, i))] for i in scenes]
        keep_json(study.captions(split), captions, "captions", overwrite=overwrite)
    if not (done and n_voxels(study, "ncsnr") == settings.voxels):  # else what others added is kept
        _write_voxels(settings, study, seed)
    if not done:
        trials = _trials(settings, seed)
        records = {
            split: {
                "stimulus": _ids(stores["stimuli", split]),
                "trials": trials[split].tolist(),
                "repeats": [settings.repeats] * settings.rows(split),
            }
            for split in _SPLITS
        }
        write_json(study.rows, records)


def _create(
    settings: SimulatedSettings, study: Study, chunk: int, seed: int, *, overwrite: bool
) -> dict[tuple[str, str], "Store"]:
    """Open every store for writing, so that one made of something else is refused before anything is written."""
    from leanrecon.stores.store import Store

    made_of = {"kind": "simulated", "format of the simulation": FORMAT, "seed": seed}
    decides = {
        "stimuli": made_of | {"dataset": {"size": settings.size}},
        "betas": made_of | {"dataset": settings.model_dump(exclude={"kind", "folds"})},
    }
    return {
        (role, split): Store.create(
            study.betas(split) if role == "betas" else study.stimuli(split),
            settings.shape(role, split),
            np.float32 if role == "betas" else np.uint8,
            made_of=decides[role] | {"split": split},
            chunk=chunk,
            overwrite=overwrite,
        )
        for role in ("stimuli", "betas")
        for split in _SPLITS
    }


def _fill(store: "Store", name: str, make: Callable[[range], Array], progress: Progress) -> None:
    """Write the missing row groups; ``make`` gives the rows of a range within one panel."""
    missing = store.missing_row_groups()
    memory = buffer((min(store.chunk_rows, store.rows) if missing else 0, *store.shape[1:]), store.dtype)
    done = store.rows - sum(len(store.group_rows(i)) for i in missing)
    with progress.task(name, total=store.rows, unit="rows", done=done) as advance:
        for i in missing:
            group = store.group_rows(i)
            for start in range(group.start, group.stop, PANEL):
                rows = range(start, min(start + PANEL, group.stop))
                memory[rows.start - group.start : rows.stop - group.start] = make(rows)
                advance(len(rows))
            store.write_rows(i, memory[: len(group)])
    store.finish()


def _draw(store: "Store", split: str, seed: int, progress: Progress) -> None:
    def draw(rows: range) -> Array:
        return np.stack([paint(compose(seed, FIRST[split] + i), store.shape[1]) for i in rows])

    _fill(store, f"stimuli, {split}", draw, progress)


def _simulate(
    settings: SimulatedSettings, stores: dict[tuple[str, str], "Store"], seed: int, progress: Progress
) -> None:
    if all(stores["betas", split].complete for split in _SPLITS):
        return
    trials = _trials(settings, seed)
    n_trials = sum(numbers.size for numbers in trials.values())
    cortex = Cortex(seed, settings.size, settings.voxels, settings.noise, n_trials)
    for number, split in enumerate(_SPLITS):
        images = stores["stimuli", split]

        def respond(rows: range, number: int = number, split: str = split, images: "Store" = images) -> Array:
            scenes = range(FIRST[split] + rows.start, FIRST[split] + rows.stop)
            responses = cortex.respond(images[rows.start : rows.stop], word_rows(seed, scenes), rows)
            for row, response in zip(rows, responses, strict=True):
                response += cortex.noise(number, row, trials[split][row].tolist())
            return responses

        _fill(stores["betas", split], f"betas, {split}", respond, progress)


def _trials(settings: SimulatedSettings, seed: int) -> dict[str, Array]:
    """The numbers of every row's trials, [rows, repeats]: train and test images were shown in turns."""
    numbers = trial_numbers(seed, settings.n_train + settings.n_test, settings.repeats)
    return {"train": numbers[: settings.n_train], "test": numbers[settings.n_train :]}


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
    from leanrecon.places.files import read_json

    records = read_json(study.rows)
    try:
        return all(len(records[split]["stimulus"]) == settings.rows(split) for split in _SPLITS)
    except (TypeError, KeyError):
        return False
