"""What workers do of a fit, and leave in files beside the predictions for the driver to take."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from leanrecon.regression.ridge.part_plan import SHARED_OPERATIONS, tasks_of
from leanrecon.stores.shared import identity, share_columns, wait_for

if TYPE_CHECKING:
    from leanrecon.regression.ridge.ridge import StreamingRidge
    from leanrecon.stores.store import Store

Array = np.ndarray[Any, Any]

FOLDER = "fit"
"""The folder beside the predictions of a space that holds parts of its fit, for a while."""

GRAM = "gram"

_NOT_SHARED = "workers take hat matrices of at most 1,024 test rows, and one alpha for all targets"

Work = Callable[[Sequence[int]], Any]


@dataclass(frozen=True)
class FitOnWorkers:
    """Parts of one fit that workers make; those that a killed run left whole are taken as they are."""

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
        """Whether a Gram matrix is worth the files: by its operations alone."""
        return GramParts(betas, test, dtype).shapes.operations >= SHARED_OPERATIONS

    def gram(
        self, betas: Centred, dtype: np.dtype[Any], test: Centred | None, directory: Path | None
    ) -> tuple[Panels, Array | None]:
        """The Gram matrix, and products with test betas beside, as ``hat.gram`` makes them."""
        shapes = GramParts(betas, test, dtype).shapes
        mean, factor, left_out = betas.numbers
        about = {"of": self.of, "dtype": dtype.str, "dual": betas.dual, "tested": shapes.m > 0}
        arrays = [mean, left_out.view(np.uint8), *([] if factor is None else [factor])]
        made_of = self._describe(GRAM, about, arrays)
        self._share(GRAM, made_of, [shapes.cost_of(part) for part in shapes.parts], "Gram matrix")
        files = {part: _part_file(self.folder, GRAM, made_of, k) for k, part in enumerate(shapes.parts)}
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

    def _describe(self, kind: str, about: Mapping[str, Any], arrays: Sequence[Array]) -> str:
        """Write what workers need to know; returns its checksum, which parts are named by."""
        return write_arrays(_description(self.folder, kind), about, arrays)

    def _share(self, kind: str, made_of: str, costs: Sequence[float], what: str) -> None:
        """Have the parts made that are not there whole; those of other fits are deleted."""
        there = set(self._whole(kind, made_of, len(costs)))
        missing = [k for k in range(len(costs)) if k not in there]
        labelled = self.context.named(f"{self.context.label}, {what}")
        with labelled.task(total=len(costs), unit="parts", done=len(there)) as advance:

            def arrived(numbers: Sequence[int], receipts: Any, worker: str) -> None:
                for k, checksum in receipts:
                    file = _part_file(self.folder, kind, made_of, k)
                    wait_for(lambda: checksum_of(file) == checksum, self.folder, str(file))  # noqa: B023
                advance(len(numbers))

            tasks = tasks_of(costs, missing, self.executor.workers)
            self.executor.share(tasks, {"fit": kind, "made_of": made_of, "what": what}, arrived)

    def _whole(self, kind: str, made_of: str, count: int) -> Iterator[int]:
        """The parts that an earlier run left whole."""
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
            context.progress.say(f"{context.label}: streamed in this process, as {_NOT_SHARED}")
    if hats is None or context.executor is None:
        ridge.predict_into(data.test, out.store, advance=advance)
    else:
        hats.write(path)
        share_columns(out.store, context.executor, {"pairing": out.pairing, "hats": path.name}, advance)
    path.parent.delete_tree()  # what a killed run left, too


def clear_fit(store: "Store") -> None:
    """Delete the parts of the fit beside the predictions in a store, those that a killed run left, too."""
    (store.path.parent / FOLDER).delete_tree()


def part_of_fit(data: RegressionData, folder: Location, given: Mapping[str, Any], context: Context) -> Work:
    """What a worker does: it makes parts of the fit that the driver described, and returns their checksums."""
    description = _description(folder, given["fit"])
    about, arrays = read_arrays(description, "numbers of a fit")
    mean, left_out, *factor = arrays
    numbers = (mean, factor[0] if factor else None, left_out.view(np.bool_))
    betas = Centred.given(data.betas, *numbers, dual=about["dual"])
    test = Centred.given(data.test, *numbers, dual=about["dual"]) if about["tested"] else None
    parts = GramParts(betas, test, np.dtype(about["dtype"]))
    labelled = context.named(f"{context.label}, {given['what']}")

    def work(numbers: Sequence[int]) -> list[tuple[int, str]]:
        made: list[tuple[int, str]] = []
        shapes, at_once = parts.shapes, [list(numbers)]
        if shapes.work([shapes.parts[k] for k in numbers]) > context.budget.free:
            at_once = [[k] for k in numbers]
        for some in at_once:
            wanted = [shapes.parts[k] for k in some]
            labelled.require(labelled.label, shapes.work(wanted))
            for k, part in zip(some, parts.form(wanted), strict=True):
                _check_described(description, given["made_of"])
                file = _part_file(folder, given["fit"], given["made_of"], k)
                made.append((k, write_arrays(file, {"part": k}, [part])))
        return made

    _check_described(description, given["made_of"])
    return work


def _check_described(description: Location, made_of: str) -> None:
    """Raise StoreError where the driver has begun another fit, or ended, since: nothing may be left behind then."""
    if checksum_of(description) != made_of:
        raise StoreError(f"{description} is not what this task was made for: another run began it since", todo=AGAIN)


def _description(folder: Location, kind: str) -> Location:
    return folder / f"{kind}.of"


def _part_file(folder: Location, kind: str, made_of: str, k: int) -> Location:
    return folder / f"{kind}-{made_of[:16]}-{k:05d}.part"
