"""The parts of a fit that workers make, and write into files beside the predictions for the driver."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from leanrecon.context import Context, Executor
from leanrecon.errors import StoreError
from leanrecon.memory import buffer
from leanrecon.places import Location
from leanrecon.regression.normalise import Centred
from leanrecon.regression.regressor import Output, RegressionData
from leanrecon.regression.ridge.arrays_file import AGAIN, checksum_of, read_arrays, write_arrays
from leanrecon.regression.ridge.gram_parts import GramParts
from leanrecon.regression.ridge.kernel import Panels
from leanrecon.regression.ridge.limits import PROJECTIONS
from leanrecon.regression.ridge.loo import centre, first_means
from leanrecon.regression.ridge.part_plan import PROJECTING, PROJECTION_TASKS, SHARED_OPERATIONS, TASKS_EACH, tasks_of
from leanrecon.regression.ridge.projection_parts import ProjectionParts
from leanrecon.stores.matrix import Matrix
from leanrecon.stores.shared import identity, share_columns, wait_until_seen, while_begun

if TYPE_CHECKING:
    from leanrecon.regression.ridge.ridge import StreamingRidge
    from leanrecon.stores.store import Store

Array = np.ndarray[Any, Any]

FOLDER = "fit"
"""The temporary folder beside the predictions of a space that holds parts of its fit."""

GRAM, PROJECTED = "gram", "projected"
"""The kinds of parts."""

_NOT_SHARED = (
    "there is no hat matrix to share (an alpha for each target, more than 1,024 test rows, or few voxels and many "
    "targets)"
)

Work = Callable[[Sequence[int]], Any]


class Parts(Protocol):
    """Parts that are made independently, by their numbers."""

    @property
    def costs(self) -> list[float]:
        """Operations of each part."""

    def work(self, numbers: Sequence[int]) -> int:
        """Bytes of work of making some neighbouring parts."""

    def make(self, numbers: Sequence[int]) -> list[Array]:
        """Some neighbouring parts."""


@dataclass(frozen=True)
class FitOnWorkers:
    """Parts of one fit that workers make; complete parts of a killed run are kept."""

    folder: Location
    of: str
    """What the predictions are made of."""
    executor: Executor
    context: Context

    @classmethod
    def beside(cls, store: "Store", context: Context) -> "FitOnWorkers | None":
        """That of the predictions in a store; None where there are no workers."""
        if context.executor is None:
            return None
        return cls(store.path.parent / FOLDER, identity(store.made_of), context.executor, context)

    def takes_gram(self, betas: Centred, dtype: np.dtype[Any], test: Centred | None) -> bool:
        """Whether workers form a Gram matrix: only if it takes enough operations."""
        return GramParts(betas, test, dtype).shapes.operations >= SHARED_OPERATIONS

    def gram(
        self, betas: Centred, dtype: np.dtype[Any], test: Centred | None, directory: Path | None
    ) -> tuple[Panels, Array | None]:
        """The Gram matrix, and products with test betas beside, as ``hat.gram`` makes them."""
        parts = GramParts(betas, test, dtype)
        shapes, (mean, factor, left_out) = parts.shapes, betas.numbers
        about = {"dtype": dtype.str, "dual": betas.dual, "tested": shapes.m > 0}
        arrays = [mean, left_out.view(np.uint8), *([] if factor is None else [factor])]
        made = self._made(GRAM, "Gram matrix", about, arrays, parts)
        files = dict(zip(shapes.parts, made, strict=True))
        result = Panels(shapes.order, dtype, directory=directory)
        for j, columns in enumerate(result.columns):
            panel = buffer((shapes.order - columns.start, len(columns)), dtype)
            for part, file in files.items():
                if part.panel == j:
                    read_arrays(file, "parts of a Gram matrix", [panel[part.rows.start : part.rows.stop]])
            result.save(j, panel)
            del panel
        if not shapes.m:
            return result, None
        cross = buffer((shapes.m, shapes.n), dtype)
        for part, file in files.items():
            if part.crosses:
                cross[:, part.rows.start : part.rows.stop] = read_arrays(file, "products with test betas")[1][0]
        return result, cross

    def takes_projections(self, targets: Matrix) -> bool:
        """Whether workers project the targets: only if that takes enough operations."""
        s, t = targets.shape
        return t > PROJECTIONS and PROJECTING * s * t >= SHARED_OPERATIONS

    def projections(self, targets: Matrix, seed: int, dtype: np.dtype[Any], weights: Array | None) -> Array:
        """Random projections of targets, as ``loo.project`` makes them."""
        means = first_means(targets)
        parts = ProjectionParts(targets, seed, dtype, means)
        made = self._made(PROJECTED, "projections of targets", {"dtype": dtype.str, "seed": seed}, [means], parts)
        result = buffer((targets.shape[0], PROJECTIONS), dtype)
        for rows, file in zip(parts.rows, made, strict=True):
            read_arrays(file, "projections of targets", [result[rows.start : rows.stop]])
        return centre(result, targets, weights)

    def _made(
        self, kind: str, what: str, about: Mapping[str, Any], arrays: Sequence[Array], parts: Parts
    ) -> list[Location]:
        """The files of all parts: missing ones are made, and those of other fits are deleted.

        ``about`` and ``arrays`` are the inputs of workers.
        """
        made_of = write_arrays(_description(self.folder, kind), {"of": self.of, **about}, arrays)
        costs, each = parts.costs, PROJECTION_TASKS if kind == PROJECTED else TASKS_EACH
        there = set(self._whole(kind, made_of, len(costs)))
        missing = [k for k in range(len(costs)) if k not in there]
        labelled = self.context.named(f"{self.context.label}, {what}")
        with labelled.task(total=len(costs), unit="parts", done=len(there)) as advance:

            def arrived(numbers: Sequence[int], receipts: Any, worker: str) -> None:
                for k, checksum in receipts:
                    file = _part_file(self.folder, kind, made_of, k)
                    wait_until_seen(lambda: checksum_of(file) == checksum, self.folder, str(file))  # noqa: B023
                advance(len(numbers))

            tasks = tasks_of(costs, missing, self.executor.workers, each)
            self.executor.share(tasks, {"fit": kind, "made_of": made_of, "what": what}, arrived)
        return [_part_file(self.folder, kind, made_of, k) for k in range(len(costs))]

    def _whole(self, kind: str, made_of: str, count: int) -> Iterator[int]:
        """The complete parts of an earlier run."""
        wanted = {_part_file(self.folder, kind, made_of, k).name: k for k in range(count)}
        for file in list(self.folder.glob(f"{kind}-*")):
            if file.name in wanted:
                try:
                    read_arrays(file, "parts")
                except StoreError:
                    pass
                else:
                    yield wanted[file.name]
                    continue
            file.unlink(missing_ok=True)


def stream(
    ridge: "StreamingRidge", data: RegressionData, out: Output, context: Context, advance: Callable[[int], None]
) -> None:
    """Stream the targets into a store of predictions: here, or on workers that read the hat matrices from a file."""
    path = out.store.path.parent / "hats" / f"{out.store.path.name}.hats"
    hats = None
    if context.executor is not None and out.store.missing_column_groups():
        hats = ridge.known_hats(out.store.chunk_columns)
        if hats is None:
            context.progress.say(f"{context.label}: streamed in this process, because {_NOT_SHARED}")
    if hats is None or context.executor is None:
        ridge.predict_into(data.test, out.store, advance=advance)
    else:
        hats.write(path)
        share_columns(out.store, context.executor, {"pairing": out.pairing, "hats": path.name}, advance)
    path.parent.delete_tree()  # also parts of a killed run


def clear_fit(store: "Store") -> None:
    """Delete the parts of the fit beside the predictions in a store, also those of a killed run.

    Descriptions are deleted first, so that a late worker sees that its part is not needed.
    """
    folder = store.path.parent / FOLDER
    for kind in (GRAM, PROJECTED):
        _description(folder, kind).unlink(missing_ok=True)
    folder.delete_tree()


def part_of_fit(data: RegressionData, folder: Location, given: Mapping[str, Any], context: Context) -> Work:
    """The task of a worker: make parts of the fit that the driver described, and return their checksums."""
    description = _description(folder, given["fit"])
    about, arrays = read_arrays(description, "numbers of a fit")
    parts = _parts(given["fit"], data, about, arrays)
    labelled = context.named(f"{context.label}, {given['what']}")

    def work(numbers: Sequence[int]) -> list[tuple[int, str]]:
        made: list[tuple[int, str]] = []
        together = parts.work(numbers) <= context.budget.free
        for some in [numbers] if together else [[k] for k in numbers]:
            labelled.require(labelled.label, parts.work(some))
            for k, part in zip(some, parts.make(some), strict=True):
                made.append((k, _write_part(description, given, k, part)))
        return made

    _check_described(description, given["made_of"])
    return work


def _write_part(description: Location, given: Mapping[str, Any], k: int, part: Array) -> str:
    """Write a part if the driver still needs it; returns its checksum."""
    file = _part_file(description.parent, given["fit"], given["made_of"], k)

    def undo() -> None:
        file.unlink(missing_ok=True)
        if not list(description.parent.iterdir()):
            description.parent.delete_tree()

    with while_begun(lambda: _check_described(description, given["made_of"]), undo):
        return write_arrays(file, {"part": k}, [part])


def _parts(kind: str, data: RegressionData, about: Mapping[str, Any], arrays: Sequence[Array]) -> Parts:
    """The parts of a fit that the driver described."""
    dtype = np.dtype(about["dtype"])
    if kind == PROJECTED:
        return ProjectionParts(data.targets, about["seed"], dtype, arrays[0])
    mean, left_out, *factor = arrays
    numbers = (mean, factor[0] if factor else None, left_out.view(np.bool_))
    betas = Centred.given(data.betas, *numbers, dual=about["dual"])
    test = Centred.given(data.test, *numbers, dual=about["dual"]) if about["tested"] else None
    return GramParts(betas, test, dtype)


def _check_described(description: Location, made_of: str) -> None:
    """Raise StoreError if the driver has ended, or begun another fit: then no file may be left behind."""
    if checksum_of(description) != made_of:
        raise StoreError(f"{description} is not what this task was made for: another run began it since", todo=AGAIN)


def _description(folder: Location, kind: str) -> Location:
    return folder / f"{kind}.of"


def _part_file(folder: Location, kind: str, made_of: str, k: int) -> Location:
    return folder / f"{kind}-{made_of[:16]}-{k:05d}.part"
