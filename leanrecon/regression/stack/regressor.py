"""The regressor ``stack``: each member predicts train rows out of fold, and test rows; weights come from the first."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from leanrecon import kinds
from leanrecon.context import Context
from leanrecon.memory import buffer
from leanrecon.regression.out_of_fold import out_of_fold, plan_out_of_fold
from leanrecon.regression.regressor import Output, RegressionData, RegressionPlan, RegressionShapes
from leanrecon.regression.stack.settings import StackSettings
from leanrecon.regression.stack.weights import NormalEquations
from leanrecon.stores.fingerprint import fingerprint
from leanrecon.stores.layout import PANEL, store_nbytes

if TYPE_CHECKING:
    from leanrecon.places import Location
    from leanrecon.stores.matrix import Matrix
    from leanrecon.stores.store import Store

Array = np.ndarray[Any, Any]

_SCIPY_NBYTES = 45_000_000  # scipy.optimize, imported


class StackRegressor:
    """Predictions of several regressors, combined by non-negative weights that are learned out of fold."""

    Settings = StackSettings

    def __init__(self, settings: StackSettings) -> None:
        self.settings = settings
        self.members = [kinds.kind_of("regressors", member)(member) for member in settings.members]

    @classmethod
    def needs(cls, settings: StackSettings, prefix: str) -> Iterable[Any]:
        for member in settings.members:
            yield from kinds.optional(kinds.kind_of("regressors", member), "needs", member, prefix)

    @classmethod
    def notes(cls, settings: StackSettings, space: str) -> Iterable[str]:
        for member in settings.members:
            yield from kinds.optional(kinds.kind_of("regressors", member), "notes", member, space)
        yield (
            f"Predictions of {space} combine {len(settings.members)} regressors by non-negative weights, which were "
            "learned from out-of-fold predictions of train rows."
        )

    def made_of(self) -> dict[str, Any]:
        own = self.settings.model_dump(exclude_none=True, exclude={"members"})
        return own | {"members": [member.made_of() for member in self.members]}

    @property
    def wants_reliability(self) -> bool:
        """Whether a member asks for the dataset's word on how reliable voxels are."""
        return any(getattr(member, "wants_reliability", False) for member in self.members)

    # Planning

    def plan(self, shapes: RegressionShapes, free: int) -> RegressionPlan:
        """The most that a member takes, alone or out of fold, or that combining takes; ``scratch`` holds all predictions."""
        chunk = PANEL * shapes.y_block * 4
        largest = -(-shapes.n // max(shapes.s, 1)) if shapes.s != shapes.n else 1
        work, disk, scratch, held = self._combining_nbytes(shapes), 0, 0, 0
        libraries: set[str | None] = set()
        for member in self.members:
            plan = member.plan(shapes, free)
            folded = plan_out_of_fold(member, shapes, self.settings.folds, free, chunk=chunk, largest=largest)
            work = max(work, plan.work, folded.work)
            scratch = max(scratch, plan.scratch, folded.scratch)
            disk, held = disk + plan.disk, max(held, plan.held)
            libraries.add(plan.library)
        kept = store_nbytes((shapes.n, shapes.t), np.float32, chunk)
        kept += (1 + shapes.pairings) * store_nbytes((shapes.m, shapes.t), np.float32, chunk)
        summary = f"{len(self.members)} regressors, {self.settings.folds} folds"
        library = next(iter(libraries - {None}), None)
        return RegressionPlan(work, summary, disk, scratch + len(self.members) * kept, held=held, library=library)

    def _combining_nbytes(self, shapes: RegressionShapes) -> int:
        """Chunks of every member and of the targets, in float32 and float64; the mean of each target."""
        rows = min(PANEL, max(shapes.n, shapes.m))
        chunk = 2 * rows * shapes.y_block
        return _SCIPY_NBYTES + (len(self.members) + 2) * chunk * (4 + 8) + 3 * 8 * shapes.t

    # Predicting

    def predict(
        self, data: RegressionData, outputs: Sequence[Output], context: Context, shared: dict[str, Any]
    ) -> dict[str, Any]:
        """Fill the stores of all outputs; members' predictions lie beside the first until all are combined.

        Weights are learned from betas and images as measured, and combine random pairings too. They are noted with the
        first store, so that a run that was killed once all was combined learns nothing again.
        """
        shared.clear()  # a factor would lie beside the members
        store = outputs[0].store
        folder = store.path.with_name(f"{store.path.stem}-members")
        combined = "weights" in store.notes and not any(output.store.missing() for output in outputs)
        records = [] if combined else self._combined(data, outputs, folder, context)
        weights = np.array(store.notes["weights"])
        folder.delete_tree()
        for output in outputs:
            output.store.finish()
        context.progress.say(f"{context.label}: {self._said(weights)}")
        return {
            "settings": self.settings.model_dump(exclude_none=True),
            "weights": weights.tolist() if self.settings.block else weights[0].tolist(),
            "members": records,
            "notes": [self._said(weights)],
        }

    def _combined(
        self, data: RegressionData, outputs: Sequence[Output], folder: "Location", context: Context
    ) -> list[dict[str, Any]]:
        """Learn the weights, note them, and write all outputs; returns the records of the members."""
        store = outputs[0].store
        folded = [self._out_of_fold(k, data, store, folder, context) for k in range(len(self.members))]
        targets = _by_row(data)
        mean = _mean(targets, context)
        weights = self._weights(folded, targets, mean)
        store.note(weights=weights.tolist())
        records, parts = [], []
        for k, member in enumerate(self.members):
            made = [self._output(k, output, folder, context) for output in outputs]
            label = f"{context.label}, {self._name(k)}"
            inner = context.refreshed().named(label)
            records.append({} if all(o.store.complete for o in made) else member.predict(data, made, inner, {}))
            parts.append([output.store for output in made])
        for output, stores in zip(outputs, zip(*parts, strict=True), strict=True):
            self._combine(stores, weights, mean, output.store)
        return records

    def _name(self, k: int) -> str:
        return f"member {k + 1} ({self.settings.members[k].model_dump()['kind']})"

    def _said(self, weights: Array) -> str:
        means = weights.mean(axis=0)
        terms = " + ".join(f"{weight:.2f} × {self._name(k)}" for k, weight in enumerate(means))
        return terms + (f", mean over {len(weights)} blocks of targets" if len(weights) > 1 else "")

    def _out_of_fold(
        self, k: int, data: RegressionData, store: "Store", folder: "Location", context: Context
    ) -> "Store":
        shape = (data.betas.shape[0], data.targets.shape[1])
        folded = self._store(folder / f"{k:02d}" / "train.zarr", shape, {"of": store.made_of, "member": k}, context)
        if not folded.complete:
            out_of_fold(
                self.members[k], data, folded, self.settings.folds, context.named(f"{context.label}, {self._name(k)}")
            )
        return folded

    def _output(self, k: int, output: Output, folder: "Location", context: Context) -> Output:
        name = "test" if output.pairing is None else f"shuffled{output.pairing:02d}"
        made_of = {"of": output.store.made_of, "member": k}
        shape = (output.store.rows, output.store.columns)
        store = self._store(folder / f"{k:02d}" / f"{name}.zarr", shape, made_of, context)
        return Output(store, output.folder / f"member{k:02d}", output.pairing)

    @staticmethod
    def _store(path: "Location", shape: tuple[int, int], made_of: dict[str, Any], context: Context) -> "Store":
        from leanrecon.stores.store import Store

        known = {"made of": fingerprint(made_of)}
        return Store.create(path, shape, np.float32, made_of=known, chunk=context.chunk, overwrite=True)

    # Combining

    def _blocks(self, columns: range) -> Iterator[tuple[int, range]]:
        """The blocks of targets that share weights within some columns: number and columns."""
        size = self.settings.block
        if size is None:
            yield 0, columns
            return
        for b in range(columns.start // size, -(-columns.stop // size)):
            yield b, range(max(columns.start, b * size), min(columns.stop, (b + 1) * size))

    def _weights(self, folded: Sequence["Store"], targets: "Matrix", mean: Array) -> Array:
        """Weights [blocks, members] of least squared error on the out-of-fold predictions of all train rows."""
        one = folded[0]
        size = self.settings.block or one.columns
        sums = NormalEquations.zeros(-(-one.columns // size), len(folded))
        memories = [buffer((store.buffer_nbytes(),), np.uint8) for store in folded]
        true = buffer((min(one.chunk_rows, one.rows), one.chunk_columns), np.float32)
        for j in range(one.column_groups):
            columns = one.group_columns(j)
            for i in range(one.row_groups):
                rows = one.group_rows(i)
                targets.read(rows, columns, true[: len(rows), : len(columns)])
                chunks = [store.read_chunk(i, j, memory) for store, memory in zip(folded, memories, strict=True)]
                for b, part in self._blocks(columns):
                    own = slice(part.start - columns.start, part.stop - columns.start)
                    centre = mean[part.start : part.stop]
                    predicted = np.stack([chunk[: len(rows), own] - centre for chunk in chunks])
                    sums.add(b, predicted, true[: len(rows), own] - centre)
        return sums.weights()

    def _combine(self, stores: Sequence["Store"], weights: Array, mean: Array, out: "Store") -> None:
        """Write what ``out`` lacks: the mean, and the weighted sum of what each member predicts beside it."""
        memories = [buffer((store.buffer_nbytes(),), np.uint8) for store in stores]
        for i, j in out.missing():
            rows, columns = out.group_rows(i), out.group_columns(j)
            by_column = np.empty((len(stores), len(columns)))
            for b, part in self._blocks(columns):
                by_column[:, part.start - columns.start : part.stop - columns.start] = weights[b][:, None]
            centre = mean[columns.start : columns.stop]
            total = np.tile(centre, (len(rows), 1))
            for store, memory, weight in zip(stores, memories, by_column, strict=True):
                total += weight * (store.read_chunk(i, j, memory)[: len(rows), : len(columns)] - centre)
            out.write_chunk(i, j, total.astype(np.float32))


def _by_row(data: RegressionData) -> "Matrix":
    """The targets of every train row, [n, t]."""
    from leanrecon.stores.gather import gathered

    return data.targets if data.stimulus is None else gathered(data.targets, np.asarray(data.stimulus))


def _mean(targets: "Matrix", context: Context) -> Array:
    """The mean of each target over train rows, float64 [t]."""
    from leanrecon.stores.matrix import column_blocks, panels

    mean = np.zeros(targets.shape[1])
    block = buffer((min(PANEL, targets.shape[0]), targets.block), np.float32)
    for columns in column_blocks(targets):
        for rows in panels(targets.shape[0]):
            part = block[: len(rows), : len(columns)]
            targets.read(rows, columns, part)
            mean[columns.start : columns.stop] += part.sum(axis=0, dtype=np.float64)
    return mean / targets.shape[0]
