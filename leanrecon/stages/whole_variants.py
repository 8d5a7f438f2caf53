"""Regression of whole variants, such as folds and areas, as tasks for workers: each fits one in its own memory."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from leanrecon import kinds
from leanrecon.context import Context, Executor, Peaks
from leanrecon.memory import PeakMemory
from leanrecon.places import Location
from leanrecon.places.files import write_bytes
from leanrecon.regression.kept import KEPT, Kept
from leanrecon.regression.regressor import Output, RegressionData, RegressionShapes
from leanrecon.stages.stage import Run
from leanrecon.stores.layout import plan_chunks
from leanrecon.stores.shared import Receipts, StorePart, confirm, identity, receipts_of
from leanrecon.stores.store import Store
from leanrecon.study.variants import Variant


@dataclass(frozen=True)
class Fit:
    """One feature space of one variant: its predictions and their stores."""

    variant: Variant
    space: Any
    regressor: Any
    pairings: int

    @property
    def every(self) -> list[Variant]:
        """The measured variant, and its random pairings of betas and images."""
        return [self.variant, *self.variant.shuffled(self.pairings)]

    @property
    def label(self) -> str:
        """Its name in messages."""
        return f"{self.variant.label}{self.stage}"

    @property
    def stage(self) -> str:
        """Its name in run.json."""
        return f"regression {self.space.name}"

    @property
    def kept(self) -> list[Location]:
        """Small files beside the predictions."""
        predictions = self.variant.study.predictions(self.space.name)
        return kinds.optional(self.regressor, "keeps", predictions)

    @property
    def products(self) -> list[Location]:
        """All files that it writes."""
        return [*(one.study.predictions(self.space.name) for one in self.every), *self.kept]


class Operations(NamedTuple):
    """Operations of the fits of one variant, and of streaming their targets."""

    fits: float
    streams: float


@dataclass(frozen=True)
class Made:
    """The results of one fit on a worker."""

    record: dict[str, Any]
    receipts: Sequence[Receipts]
    """Receipts of the store of each pairing."""
    small: list[tuple[str, bytes]]
    """Small files, by their names in the variant's folder."""


def worth_it(costs: Sequence[Operations], workers: int) -> bool:
    """Whether whole variants take no longer on workers than blocks of targets, by operations alone.

    With blocks, the driver does the fits one after the other.
    """
    busy = [0.0] * max(workers, 1)
    for operations in sorted(map(sum, costs), reverse=True):
        busy[int(np.argmin(busy))] += operations
    blocks = sum(one.fits for one in costs) + sum(one.streams for one in costs) / len(busy)
    return len(costs) > 1 and max(busy) <= blocks


def operations_of(fits: Sequence[Fit], run: Run, free: int) -> Operations | None:
    """Operations of one variant; None if it does not fit into ``free`` bytes of a worker."""
    alone, streamed = 0.0, 0.0
    for fit in fits:
        shapes = _shapes(fit, run)
        plan = fit.regressor.plan(shapes, free)
        if not getattr(fit.regressor, "alone", False) or plan.operations is None or plan.work > free:
            return None
        alone += plan.operations
        streamed += 2.0 * shapes.m * shapes.s * shapes.t * (1 + shapes.pairings)
    return Operations(alone, streamed)


def _shapes(fit: Fit, run: Run) -> RegressionShapes:
    variant, space = fit.variant, fit.space
    betas = Store.open(run.study.betas("train"))
    features = Store.open(variant.features(space.learns).features(space.name, "train"))
    return RegressionShapes(
        n=len(variant.train_rows),
        p=betas.columns if variant.voxels is None else len(variant.voxels),
        m=len(variant.test_rows),
        s=len(variant.train_images),
        t=features.columns,
        x_block=betas.chunk_columns,
        y_block=plan_chunks(features.shape, np.float32, run.settings.stores.chunk_bytes)[1],
        subset=variant.fold is not None or variant.voxels is not None,
        pairings=fit.pairings,
        fits=len(run.spaces),
    )


# In the driver


def share_whole(
    executor: Executor,
    wanted: Mapping[int, Sequence[Fit]],
    begun: Mapping[int, Sequence[Sequence[Output]]],
    costs: Mapping[int, Operations],
    take: Callable[[Fit, Made], None],
    advance: Callable[[int], None],
) -> None:
    """Let workers fit each variant, by its number, into stores that were begun; ``take`` gets the results."""

    def arrived(numbers: Sequence[int], returned: Any, worker: str) -> None:
        for number, every in zip(numbers, returned, strict=True):
            for fit, made in zip(wanted[number], every, strict=True):
                take(fit, made)
            advance(1)

    order = sorted(wanted, key=lambda number: -sum(costs[number]))
    of = {
        str(number): [[identity(out.store.made_of) for out in outputs] for outputs in begun[number]] for number in order
    }
    executor.share([[number] for number in order], {"whole": of}, arrived)


def take_made(fit: Fit, outputs: Sequence[Output], made: Made) -> dict[str, Any]:
    """Mark the stores that a worker filled complete, and write its small files; returns its record."""
    for output, receipts in zip(outputs, made.receipts, strict=True):
        confirm(output.store, receipts)
    for name, data in made.small:
        write_bytes(fit.variant.study.root / name, data)
    for output in outputs:
        output.store.finish()
    return made.record


# On a worker


def whole_variant(
    fits: Sequence[Fit], context: Context, data_of: Callable[[Fit], RegressionData], of: Sequence[Sequence[str]]
) -> list[Made]:
    """Fit one variant, whose stores the driver began; ``data_of`` gives the data of a fit, ``of`` its provenance."""
    kept, shared, made = Kept(context.scratch), dict[str, Any](), list[Made]()
    for number, fit in enumerate(fits, 1):
        kept.to_come = len(fits) - number
        shared[KEPT] = kept
        small: list[tuple[str, bytes]] = []
        root = fit.variant.study.root

        def keep(path: Location, data: bytes, root: Location = root, small: list[Any] = small) -> None:
            small.append((path.relative_to(root), data))

        own = replace(context.named(fit.label).refreshed(), small=keep, peaks=Peaks(), device="cpu")
        outputs = [
            Output(
                StorePart.begun(one.study.predictions(fit.space.name), made_of),
                one.study.network(fit.space.name).workplace(),
                one.pairing,
            )
            for one, made_of in zip(fit.every, of[number - 1], strict=True)
        ]
        began = time.monotonic()
        with PeakMemory() as peak:
            record = fit.regressor.predict(data_of(fit), outputs, own, shared)
        record |= {"seconds": time.monotonic() - began, "planned_bytes": own.peaks.largest}
        record |= {"workers": 1, "worker_peak_bytes": peak.peak}
        every = [(out.store, range(out.store.row_groups), range(out.store.column_groups)) for out in outputs]
        receipts = [receipts_of(store, [(i, j) for j in columns for i in rows]) for store, rows, columns in every]
        made.append(Made(record, receipts, small))
    return made
