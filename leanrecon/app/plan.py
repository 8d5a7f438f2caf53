"""The plan of a whole study: memory and disk of every stage, from headers and settings alone."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from leanrecon import datasets, features
from leanrecon.datasets.plan import DatasetPlan
from leanrecon.errors import InputError
from leanrecon.evaluation.evaluate import most_sources, plan_evaluate
from leanrecon.evaluation.judges.clip import judge_name, make_judge
from leanrecon.evaluation.judges.embeddings import GROUP
from leanrecon.features.extract_captions import CaptionSpace, plan_captions
from leanrecon.features.plan import plan_decode, plan_extract
from leanrecon.features.space import DecodingSpace, FeatureSpace
from leanrecon.features.stage1 import decoding_space, picture_shape
from leanrecon.images import ImageShape
from leanrecon.memory import SPARE, MemoryBudget, format_bytes, parse_bytes
from leanrecon.refinement.diffusion.refiner import Refiner
from leanrecon.regression.mlp.plan import NetworkShapes, plan_network
from leanrecon.regression.ridge.plan import Shapes, plan_fit
from leanrecon.regression.ridge.restandardise import LOO_ROWS
from leanrecon.regression.settings import MLPSettings
from leanrecon.stages.pipeline import COPYING, NO_IMAGES, STAGES
from leanrecon.stores.layout import plan_chunks, store_nbytes
from leanrecon.stores.matrix import PANEL
from leanrecon.study.needs import BRINGS, require_weights, told
from leanrecon.study.settings import Settings
from leanrecon.weights.fetch import Want, is_published

_FLOAT = 4  # bytes

_GATHERED = 4_000_000
"""Bytes that a run has taken before its first stage and planning has not: modules, records."""

REPORTED = 25_000
"""Bytes that a test image takes in the report and in the tables of scores."""

_LIBRARIES = {"sklearn": 90_000_000, "torch": 180_000_000, "transformers": 340_000_000, "diffusers": 390_000_000}
"""Bytes of large libraries that stay in the process once a feature space has used them, with what they allocate.

The last three bring each other, the largest all of them.
"""


@dataclass(frozen=True)
class PlannedStage:
    """One line of the plan: bytes of memory at the peak, of disk kept, and of disk needed for a while."""

    stage: str
    blocks: str
    memory: int
    disk: int
    scratch: int = 0
    download: int = 0


def plan_study(settings: Settings, *, base_dir: Path | None, until: str = STAGES[-1]) -> list[PlannedStage]:
    """Plan the stages up to ``until``; nothing is read but the headers of the arrays."""
    budget = _after(MemoryBudget.of(settings.general.memory), _GATHERED)
    chunk = parse_bytes(settings.stores.chunk)
    arrays = datasets.plan_dataset(settings.dataset, base_dir=base_dir, chunk=chunk, free=budget.free)
    rows = f"{arrays.n_train + arrays.n_test} images, {arrays.voxels} voxels"
    stages = [
        PlannedStage("dataset", rows, budget.reserved + arrays.work, arrays.disk, arrays.scratch, arrays.download)
    ]
    last = STAGES.index(until)
    if last >= STAGES.index("features"):
        require_weights(settings, until, planned=True)
        stages += _features(settings, arrays, chunk, budget)
    if last >= STAGES.index("regression"):
        budget = _after(budget, _staying(_spaces(settings), _shape(arrays)))
        stages += _regression(settings, arrays, chunk, budget)
    if last >= STAGES.index("stage1"):
        if any(isinstance(how, MLPSettings) for how in settings.regression.values()):
            budget = _after(budget, _LIBRARIES["torch"])
        drawn = _drawing(settings, arrays, chunk, budget)
        stages += itertools.islice(drawn, last + 1 - STAGES.index("stage1"))
    return stages


def _after(budget: MemoryBudget, held: int) -> MemoryBudget:
    """The budget of later stages, when earlier ones left ``held`` bytes in the process."""
    return MemoryBudget(budget.allowed, budget.reserved + held)


def _staying(spaces: list[FeatureSpace], shape: ImageShape) -> int:
    """Bytes that stay in the process once these spaces were used: their libraries, and what they learned."""
    libraries = {space.library for space in spaces if space.library}
    networks = max((_LIBRARIES[name] for name in libraries if name != "sklearn"), default=0)
    learning = _LIBRARIES["sklearn"] if "sklearn" in libraries else 0
    return networks + learning + sum(s.cost(shape).held for s in spaces if s.learns)


def _spaces(settings: Settings) -> list[FeatureSpace]:
    general = settings.general
    return [
        features.make(name, table, seed=general.seed, device=general.device)
        for name, table in settings.features.items()
    ]


def _shape(arrays: DatasetPlan) -> ImageShape:
    if arrays.image_shape is None:
        raise InputError(NO_IMAGES, todo="set dataset.stimuli_train and dataset.stimuli_test, or dataset.stimuli")
    return arrays.image_shape


def _features(settings: Settings, arrays: DatasetPlan, chunk: int, budget: MemoryBudget) -> Iterator[PlannedStage]:
    shape = _shape(arrays)
    total = arrays.n_train + arrays.n_test
    image_rows = plan_chunks((total, *shape), np.uint8, chunk)[0]
    spaces = _spaces(settings)
    for k, space in enumerate(spaces):
        held = _after(budget, _staying(spaces[:k], shape))
        dims = space.dims(shape)
        chunks = plan_chunks((total, dims), np.float32, chunk)
        if isinstance(space, CaptionSpace):
            batch = plan_captions(total, dims, space.cost(shape), chunk=chunk, free=held.free)
        else:
            batch = plan_extract(
                (total, *shape), image_rows, (chunks[0], chunks[1]), dims, space.cost(shape), free=held.free
            )
        work = max(batch.work, space.fit_nbytes((arrays.n_train, *shape), image_rows))
        times = arrays.folds if arrays.folds and space.learns else 1
        one = 1 if space.name in settings.refine.unconditional().values() else 0
        yield PlannedStage(
            f"features {space.name}",
            f"{dims} dims, {batch.batch} rows a batch",
            held.reserved + work,
            times * store_nbytes((total, dims), np.float32, chunk) + one * store_nbytes((1, dims), np.float32, chunk),
        )


def _regression(settings: Settings, arrays: DatasetPlan, chunk: int, budget: MemoryBudget) -> Iterator[PlannedStage]:
    shape, (n, m) = _shape(arrays), _split(arrays)
    spaces = _spaces(settings)
    first = next((space.name for space in spaces if isinstance(space, DecodingSpace)), None)
    first = settings.stage1.space or first
    for space in spaces:
        dims = space.dims(shape)
        ridge = settings.regression[space.name]
        times = 1 + (settings.evaluate.permutations if space.name == first else 0)
        if isinstance(ridge, MLPSettings):
            yield _network(ridge, space.name, arrays, dims, chunk, budget, times)
            budget = _after(budget, _LIBRARIES["torch"])
            continue
        block = plan_chunks((n, dims), np.float32, chunk)[1]
        width = plan_chunks((n, arrays.voxels), np.float32, chunk)[1]
        x_tile, y_tile = (PANEL * columns * _FLOAT + 4096 for columns in (width, block))
        scratch = x_tile * (2 if arrays.folds else 1)
        restandardized = ridge.restandardize != "none"
        shapes = Shapes(
            n, arrays.voxels, m, dims, block, x_tile, y_tile, scratch=scratch, restandardized=restandardized,
            shuffled=times > 1,
        )  # fmt: skip
        extra = min(n, LOO_ROWS) if ridge.restandardize == "inductive" else 0
        loo = ridge.alpha == "loo"
        planned = plan_fit(shapes, budget.free, known=True, loo=loo, per_target=ridge.per_target, extra_rows=extra)
        where = "in memory" if planned.in_memory else "on disk"
        yield PlannedStage(
            f"regression {space.name}",
            f"Gram matrix of {shapes.order} {where}, {block} targets a block",
            budget.reserved + planned.work,
            times * (arrays.folds or 1) * store_nbytes((m, dims), np.float32, chunk),
            0 if planned.in_memory else planned.triangle,
        )


def _network(
    how: MLPSettings, space: str, arrays: DatasetPlan, dims: int, chunk: int, budget: MemoryBudget, times: int
) -> PlannedStage:
    """A network that is trained ``times`` times: for the predictions, and for each pairing at random."""
    n, m = _split(arrays)
    block = plan_chunks((n, dims), np.float32, chunk)[1]
    width = plan_chunks((n, arrays.voxels), np.float32, chunk)[1]
    x_tile, y_tile = (PANEL * columns * _FLOAT + 4096 for columns in (width, block))
    shapes = NetworkShapes(
        n, arrays.voxels, m, dims, how, block=block, x_tile=x_tile, y_tile=y_tile,
        scratch=x_tile * (2 if arrays.folds else 1), y_scratch=y_tile if arrays.folds else 0,
    )  # fmt: skip
    planned = plan_network(shapes, budget.free)
    trained = times * (arrays.folds or 1)
    return PlannedStage(
        f"regression {space}",
        f"{shapes.weights:,} weights, {shapes.steps} steps of {how.batch_size} rows at most"
        + (f", trained {trained} times" if trained > 1 else ""),
        budget.reserved + planned.work,
        trained * (store_nbytes((m, dims), np.float32, chunk) + shapes.kept_nbytes),
        planned.scratch,
    )


def _drawing(settings: Settings, arrays: DatasetPlan, chunk: int, budget: MemoryBudget) -> Iterator[PlannedStage]:
    """The stages that draw and compare images: stage1, refine, evaluate."""
    shape, (n, m) = _shape(arrays), _split(arrays)
    times, permutations = arrays.folds or 1, settings.evaluate.permutations
    space = decoding_space(_spaces(settings), settings.stage1.space)
    dims, decoded = space.dims(shape), space.decoded_shape(shape)
    drawn = picture_shape(space, settings.stage1.size, shape)
    chunks = plan_chunks((m, dims), np.float32, chunk)
    batch = plan_decode((chunks[0], chunks[1]), m, dims, decoded, space.decode_cost(shape), free=budget.free)
    per_image, per_baseline = math.prod(drawn), math.prod(decoded)  # PNG is seldom larger than its pixels
    yield PlannedStage(
        "stage1",
        f"{space.name}, {batch.batch} images a batch, {drawn[0]} × {drawn[1]}",
        budget.reserved + batch.work,
        times * m * (per_image + permutations * per_baseline),
    )
    yield _refining(settings, m, times, per_image, budget)
    final = () if settings.refine.kind == "none" else (_refiner(settings).shape,)
    image_chunk = plan_chunks((n, *shape), np.uint8, chunk)[0] * math.prod(shape)
    every = {other.name: other.dims(shape) for other in _spaces(settings)}
    block = plan_chunks((n, dims), np.float32, chunk)[1]
    judge = make_judge(settings)
    work = plan_evaluate(
        shape, m, n, every, settings.evaluate, image_chunk, block, encoder=judge, drawn=(drawn, *final)
    )
    embeddings = judge and store_nbytes((m, judge.dims), np.float32, GROUP * judge.dims * _FLOAT)
    yield PlannedStage(
        "evaluate",
        f"{permutations} permutations, {settings.evaluate.resamples} resamples"
        + (f", {judge_name(settings)}" if judge else ""),
        budget.reserved + max(work, batch.work),
        times * (m * (per_baseline + REPORTED) + (embeddings or 0) * (most_sources(settings.evaluate) + 1)),
    )


def _refining(settings: Settings, m: int, times: int, per_image: int, budget: MemoryBudget) -> PlannedStage:
    if settings.refine.kind == "none":
        return PlannedStage("refine", "none", budget.reserved + COPYING, times * m * per_image)
    refiner = _refiner(settings)
    plan = refiner.plan(m, budget.free)
    return PlannedStage(
        "refine",
        f"{settings.refine.kind}, {settings.refine.steps} steps, {plan.mode}, {plan.precision}",
        budget.reserved + plan.work,
        times * m * math.prod(refiner.shape) * (1 + len(settings.refine.baselines)) + refiner.scratch_nbytes(plan),
    )


def _refiner(settings: Settings) -> Refiner:
    general = settings.general
    return Refiner(settings.refine, seed=general.seed, device=general.device, scratch=Path())


def _split(arrays: DatasetPlan) -> tuple[int, int]:
    """Train and test rows that are decoded at once: of the split, or of the largest fold."""
    if not arrays.folds:
        return arrays.n_train, arrays.n_test
    m = -(-(arrays.n_train + arrays.n_test) // arrays.folds)
    return arrays.n_train + arrays.n_test - m, m


def show(stages: list[PlannedStage], memory: str | None, lacking: Sequence[Want] = ()) -> None:
    """Print the plan as a table, with what is allowed, and the weights that are lacking."""
    from rich.console import Console
    from rich.table import Table

    allowed = MemoryBudget.of(memory).allowed
    table = Table(title=f"plan, {format_bytes(allowed)} of memory allowed", title_justify="left")
    for heading in ("stage", "blocks", "memory", "disk", "download"):
        table.add_column(heading, justify="left" if heading in ("stage", "blocks") else "right")
    for stage in stages:
        short = "" if stage.memory <= allowed else " [red]too much[/red]"
        kept = format_bytes(stage.disk) + (f" + {format_bytes(stage.scratch)} for a while" if stage.scratch else "")
        table.add_row(stage.stage, stage.blocks, format_bytes(stage.memory) + short, kept, format_bytes(stage.download))
    console = Console()
    console.print(table)
    most = max(stages, key=lambda stage: stage.memory)
    disk = sum(stage.disk for stage in stages) + max(stage.scratch for stage in stages)
    fetched = sum(stage.download for stage in stages)
    download = f", {format_bytes(fetched)} to download" if fetched else ""
    said = f"peak memory {format_bytes(most.memory)} ({most.stage}), disk {format_bytes(disk)}{download}"
    console.print(said, highlight=False)
    if most.memory > allowed:
        console.print(
            f'too little memory is allowed; "{-(-(most.memory + SPARE) // 1_000_000)}MB" would do', highlight=False
        )
    if lacking:
        brings = f"; {BRINGS}" if any(map(is_published, lacking)) else ""
        console.print(told(lacking) + brings, highlight=False, markup=False)
