"""Parts of a Gram matrix that workers form: the bytes of the whole, whatever the tasks and whoever is killed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leanrecon.context import Arrived, Context
from leanrecon.errors import BudgetError, StoreError
from leanrecon.memory import MemoryBudget, PeakMemory, process_memory
from leanrecon.places import as_location
from leanrecon.regression.normalise import Centred, moments
from leanrecon.regression.regressor import Output, RegressionData, RegressionShapes
from leanrecon.regression.ridge import on_workers, part_plan, projection_parts
from leanrecon.regression.ridge.gram_parts import GramParts
from leanrecon.regression.ridge.hat import gram
from leanrecon.regression.ridge.on_workers import FOLDER, part_of_fit
from leanrecon.regression.ridge.part_plan import GramShapes, Part, joined, tasks_of
from leanrecon.regression.ridge.regressor import RidgeRegressor
from leanrecon.regression.ridge.settings import RidgeSettings
from leanrecon.stores import Store, as_matrix
from leanrecon.stores.matrix import ColumnSubset, Matrix, RowSubset
from leanrecon.validation import validate

RNG = np.random.default_rng(7)

SMALL = {"WIDTH": 64, "ROWS": 100, "DEPTH": 48}
"""So that a small matrix has many parts, and spans that lie apart."""


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    from leanrecon.regression.ridge import gram_parts, hat, kernel, triangle

    for module in (gram_parts, hat, kernel, triangle, part_plan):
        for name, value in SMALL.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(on_workers, "SHARED_OPERATIONS", 0)


def centred(matrix: Matrix, like: Matrix | None = None, *, dual: bool) -> Centred:
    return Centred(matrix, moments(like or matrix), scale=True, dual=dual)


@pytest.mark.parametrize(("n", "p"), [(410, 530), (64, 70), (65, 200), (530, 410), (700, 64), (300, 129)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_parts_have_the_bytes_of_the_whole_in_whatever_order_they_are_formed(
    n: int, p: int, dtype: Any, small: None
) -> None:
    x, t = (as_matrix(RNG.standard_normal((rows, p), np.float32) * 3 + 1) for rows in (n, 37))
    betas, test = centred(x, dual=n <= p), centred(t, x, dual=n <= p)
    whole, cross = gram(betas, dtype, test=test)
    parts = GramParts(betas, test, np.dtype(dtype))
    every = parts.shapes.parts
    order = RNG.permutation(len(every))
    covered = 0.0
    for some in (order[:3], order[3:5], *([k] for k in order[5:])):
        for k, made in zip(some, parts.form([every[k] for k in some]), strict=True):
            part = every[k]
            rows = slice(part.rows.start, part.rows.stop)
            expected = cross[:, rows] if part.crosses else whole.load(part.panel)[rows]
            assert made.tobytes() == np.ascontiguousarray(expected).tobytes()
            covered += parts.shapes.cost_of(part)
    assert covered == parts.shapes.operations


def test_a_gram_matrix_is_cut_into_rows_that_meet(small: None) -> None:
    for order in (1, 63, 64, 65, 164, 165, 400):
        for j in range(-(-order // 64)):
            parts = part_plan.panel_parts(order, j)
            assert (parts[0].start, parts[-1].stop) == (0, order - 64 * j)
            assert all(a.stop == b.start for a, b in pairwise(parts))
            assert all(0 < len(part) <= 100 + 64 * (part.start == 0) for part in parts)


def test_spans_are_joined_where_they_meet() -> None:
    assert joined([range(5, 9), range(3), range(3, 5), range(20, 21), range(6, 8)]) == [range(9), range(20, 21)]


@pytest.mark.parametrize("workers", [1, 2, 5, 64])
def test_tasks_hold_every_part_once_and_none_takes_long(workers: int) -> None:
    shapes = GramShapes(n=8859, p=15_724, m=982, dual=True, itemsize=4, scratch=0)
    costs = [shapes.cost_of(part) for part in shapes.parts]
    assert sum(costs) == shapes.operations
    wanted = [k for k in range(len(costs)) if k != 3]
    tasks = tasks_of(costs, wanted, workers)
    assert sorted(k for task in tasks for k in task) == wanted
    each = [sum(costs[k] for k in task) for task in tasks]
    assert each == sorted(each, reverse=True)
    assert max(each) <= max(sum(costs) / workers / 4, max(costs))
    busy = [0.0] * workers
    for cost in each:  # whoever is free takes the next one
        busy[int(np.argmin(busy))] += cost
    if workers <= 5:
        assert max(busy) < 1.08 * sum(busy) / workers


def test_work_is_what_forming_a_part_takes() -> None:
    """By hand: 1024 + 4096 rows of 512 voxels twice, of 4 bytes, and the part itself."""
    shapes = GramShapes(n=8859, p=15_724, m=982, dual=True, itemsize=4, scratch=1000)
    assert shapes.work([Part(0, range(5120))]) == 28_000_000 + 1000 + (2 * 5120 * 512 + 5120 * 1024) * 4
    assert shapes.work([Part(-1, range(4096, 8192))]) == 28_000_000 + 1000 + (2 * 5078 * 512 + 982 * 4096) * 4


@pytest.mark.alone
@pytest.mark.slow
def test_the_measured_peak_stays_under_the_plan(tmp_path: Path) -> None:
    betas = Store.create(tmp_path / "betas.zarr", (6000, 3000), np.float32, made_of={})
    for i in range(betas.row_groups):
        rows = betas.group_rows(i)
        betas.write_rows(i, RNG.standard_normal((len(rows), 3000), np.float32))
    betas.finish()
    matrix = as_matrix(Store.open(betas.path))
    parts = GramParts(centred(matrix, dual=True), None, np.dtype(np.float32))
    held = process_memory()
    work = parts.shapes.work(parts.shapes.parts[:2])
    with PeakMemory() as peak:
        made = parts.form(parts.shapes.parts[:2])
    assert made[0].shape == (5120, 1024)
    assert 0.5 * work < peak.peak - held <= work


# The driver and its workers


class DriverKilledError(Exception):
    """Stands for the death of the driver."""


@dataclass
class Helpers:
    """Workers in this process, which make tasks as ``part_of_fit`` has them made; the driver dies after some tasks."""

    data: RegressionData
    folder: Path
    workers: int = 2
    free: int = 10**9
    room: int = 10**9
    """Bytes that a worker may take beside what it holds."""
    dies_after: int | None = None
    harm: Callable[[Path], None] | None = None
    made: list[int] = field(default_factory=list)
    kinds: set[str] = field(default_factory=set)

    def share(self, tasks: Sequence[Sequence[int]], given: Mapping[str, Any], arrived: Arrived) -> None:
        if "fit" not in given:
            self._stream(tasks, given, arrived)
            return
        work = None
        self.kinds.add(given["fit"])
        for done, task in enumerate(tasks):
            if self.dies_after is not None and done == self.dies_after:
                raise DriverKilledError
            work = work or part_of_fit(self.data, as_location(self.folder / FOLDER), given, self.context())
            receipts = work(task)
            self.made += task
            if self.harm is not None:
                self.harm(self.folder / FOLDER)
            arrived(task, receipts, "tcp://a")

    def context(self) -> Context:
        held = process_memory()
        return Context(MemoryBudget(held + self.room, held), label="regression pca")

    def _stream(self, tasks: Sequence[Sequence[int]], given: Mapping[str, Any], arrived: Arrived) -> None:
        from leanrecon.stores.shared import StorePart, receipts_of

        store = StorePart.begun(self.folder / "test.zarr", given["of"])
        work = RidgeRegressor.piece(self.data.targets, store, given, self.context())
        for task in tasks:
            work(task)
            arrived(task, receipts_of(store, [(i, j) for j in task for i in range(store.row_groups)]), "tcp://a")


def study(n: int = 300, p: int = 350, m: int = 30, t: int = 90) -> RegressionData:
    rng = np.random.default_rng(2)
    betas, test = (rng.standard_normal((rows, p), np.float32) for rows in (n, m))
    targets = betas[:, :t] + rng.standard_normal((n, t), np.float32)
    return RegressionData(as_matrix(betas), as_matrix(targets), as_matrix(test), [""] * n)


def output(folder: Path, data: RegressionData, **made_of: Any) -> Output:
    shape = (data.test.shape[0], data.targets.shape[1])
    return Output(Store.create(folder / "test.zarr", shape, np.float32, made_of=made_of, chunk=4000), folder / "net")


def predicted(folder: Path, data: RegressionData, helpers: Helpers | None = None, **table: Any) -> dict[str, bytes]:
    """All files of predictions that were made with helpers, or by this process alone."""
    regressor = RidgeRegressor(validate(RidgeSettings, {"alpha": 30.0, **table}, "regression."))
    context = replace(Context.of("4GB", scratch=folder), executor=helpers, label="regression pca")
    regressor.predict(data, [output(folder, data)], context, {})
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("order", ["dual", "primal"])
@pytest.mark.parametrize("alpha", [30.0, "loo"])
def test_predictions_have_the_bytes_of_one_process_and_nothing_is_left(
    order: str, alpha: Any, tmp_path: Path, small: None
) -> None:
    data = study() if order == "dual" else study(n=400, p=210)
    helpers = Helpers(data, tmp_path / "shared")
    shared = predicted(tmp_path / "shared", data, helpers, alpha=alpha)
    assert helpers.made, "workers made parts"
    assert shared == predicted(tmp_path / "alone", data, alpha=alpha)
    assert not (tmp_path / "shared" / FOLDER).exists()


@pytest.mark.parametrize("far", [0.0, 50.0])
@pytest.mark.parametrize("repeated", [False, True])
def test_projections_of_targets_are_those_of_one_process(
    far: float, repeated: bool, tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projection_parts, "PROJECTION_ROWS", 256)
    data = study(n=700, p=650, t=600)
    wide = np.concatenate([np.asarray(data.targets.array) + far] * 3, axis=1)[: 350 if repeated else 700]
    stimulus = np.arange(700) // 2 if repeated else None
    data = replace(data, targets=as_matrix(wide), stimulus=stimulus)
    helpers = Helpers(data, tmp_path / "shared")
    shared = predicted(tmp_path / "shared", data, helpers, alpha="loo")
    assert shared == predicted(tmp_path / "alone", data, alpha="loo")
    assert helpers.kinds == {"gram", "projected"}
    assert not (tmp_path / "shared" / FOLDER).exists()


def test_the_work_of_projecting_is_what_the_arrays_take() -> None:
    """By hand: 1024 rows of 512 sums; two tiles; and of 512 targets of a tile differences, numbers of the type, and signed ones."""
    targets = as_matrix(np.zeros((2000, 4096), np.float32))
    parts = projection_parts.ProjectionParts(targets, 0, np.dtype(np.float32), np.zeros(4096))
    assert parts.work([0]) == 28_000_000 + 1024 * 512 * 4 + 2 * 256 * 4096 * 4 + 3 * 256 * 512 * 8
    assert sum(parts.costs) == 128.0 * 2000 * 4096


def test_areas_and_folds_are_read_as_the_driver_reads_them(tmp_path: Path, small: None) -> None:
    whole = study(n=400, p=700)
    voxels, rows = np.arange(3, 700, 2), np.flatnonzero(np.arange(400) % 5)
    data = replace(
        whole,
        betas=ColumnSubset(RowSubset(whole.betas, rows), voxels),
        test=ColumnSubset(whole.test, voxels),
        targets=RowSubset(whole.targets, rows),
    )
    helpers = Helpers(data, tmp_path / "shared")
    assert predicted(tmp_path / "shared", data, helpers) == predicted(tmp_path / "alone", data)
    assert helpers.made


def test_a_budget_that_puts_the_gram_matrix_on_disk_changes_nothing(
    tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from leanrecon.regression.ridge import ridge

    data, planned = study(), ridge.plan_fit
    monkeypatch.setattr(ridge, "plan_fit", lambda *a, **k: replace(planned(*a, **k), in_memory=False))
    helpers = Helpers(data, tmp_path / "shared")
    shared = predicted(tmp_path / "shared", data, helpers)
    monkeypatch.undo()
    assert helpers.made
    assert shared == predicted(tmp_path / "alone", data)


def test_a_driver_that_is_killed_takes_up_the_parts_that_are_whole(tmp_path: Path, small: None) -> None:
    data, folder = study(), tmp_path / "shared"
    first = Helpers(data, folder, dies_after=5)
    with pytest.raises(DriverKilledError):
        predicted(folder, data, first)
    there = sorted((folder / FOLDER).glob("gram-*.part"))
    assert len(there) == len(first.made) > 2
    there[0].write_bytes(there[0].read_bytes()[:-40])  # a part that a dying machine left half-written
    there[1].write_bytes(bytes(len(there[1].read_bytes())))
    (folder / FOLDER / "gram-0123456789abcdef-00000.part").write_bytes(b"of other betas")
    second = Helpers(data, folder)
    shared = predicted(folder, data, second)
    assert set(second.made) & set(first.made) == {int(path.stem[-5:]) for path in there[:2]}
    assert shared == predicted(tmp_path / "alone", data)


def test_parts_of_other_settings_are_not_taken(tmp_path: Path, small: None) -> None:
    data, folder = study(), tmp_path / "shared"
    with pytest.raises(DriverKilledError):
        predicted(folder, data, Helpers(data, folder, dies_after=5))
    helpers = Helpers(data, folder)
    shared = predicted(folder, data, helpers, standardize=False)
    assert len(set(helpers.made)) == len(helpers.made) > 5
    assert shared == predicted(tmp_path / "alone", data, standardize=False)


def test_a_run_without_workers_clears_what_one_with_workers_left(tmp_path: Path, small: None) -> None:
    data, folder = study(), tmp_path / "shared"
    with pytest.raises(DriverKilledError):
        predicted(folder, data, Helpers(data, folder, dies_after=5))
    assert predicted(folder, data) == predicted(tmp_path / "alone", data)


def test_a_worker_that_comes_late_leaves_nothing_behind(tmp_path: Path, small: None) -> None:
    data, folder = study(), tmp_path / "shared"

    def gone(fit: Path) -> None:
        (fit / "gram.of").unlink(missing_ok=True)

    with pytest.raises(StoreError, match="another run began it since"):
        predicted(folder, data, Helpers(data, folder, harm=gone))


def test_a_part_that_is_damaged_before_it_is_used_is_refused(tmp_path: Path, small: None) -> None:
    data, folder = study(), tmp_path / "shared"

    def harm(fit: Path) -> None:
        for file in fit.glob("*.part"):
            data = bytearray(file.read_bytes())
            data[len(data) // 2] ^= 1
            file.write_bytes(bytes(data))

    with pytest.raises(StoreError, match=r"parts of a Gram matrix in .* are damaged.*checksum"):
        predicted(folder, data, Helpers(data, folder, harm=harm))


def test_a_worker_takes_parts_one_by_one_where_several_do_not_fit_and_else_says_what_would(
    tmp_path: Path, small: None
) -> None:
    data = study()
    betas = centred(data.betas, dual=True)
    shapes = GramParts(betas, centred(data.test, data.betas, dual=True), np.dtype(np.float64)).shapes
    least = max(shapes.work([part]) for part in shapes.parts)
    assert shapes.work(shapes.parts[:2]) > least
    tight, short = (Helpers(data, tmp_path / "shared", room=least - missing) for missing in (0, 1))
    with pytest.raises(BudgetError, match=r"regression pca, Gram matrix needs at least"):
        predicted(tmp_path / "shared", data, short)
    assert predicted(tmp_path / "shared", data, tight) == predicted(tmp_path / "alone", data)
    assert sorted(tight.made + short.made) == list(range(len(shapes.parts)))


def test_a_small_gram_matrix_stays_in_the_driver(tmp_path: Path) -> None:
    data = study()
    helpers = Helpers(data, tmp_path / "shared")
    assert predicted(tmp_path / "shared", data, helpers) == predicted(tmp_path / "alone", data)
    assert helpers.made == []


def test_a_plan_tells_what_workers_share_of_a_fit() -> None:
    shapes = RegressionShapes(n=8859, p=15_724, m=982, t=91_168, s=8859, x_block=512, y_block=2048)
    gram_parts = GramShapes(n=8859, p=15_724, m=982, dual=True, itemsize=4, scratch=0)
    parts = [gram_parts.cost_of(part) for part in gram_parts.parts]
    projections = 128.0 * 8859 * 91_168
    fixed, chosen = (
        RidgeRegressor(RidgeSettings.model_validate({"alpha": alpha})).plan(shapes, 10**10) for alpha in (1000.0, "loo")
    )
    assert fixed.shared_operations == sum(parts)
    assert chosen.shared_operations == sum(parts) + projections
    for plan in (fixed, chosen):
        assert plan.operations is not None
        assert plan.operations > plan.shared_operations


def test_a_plan_counts_the_bytes_that_workers_leave_on_disk(tmp_path: Path) -> None:
    shapes = RegressionShapes(n=8859, p=15_724, m=982, t=91_168, s=8859, x_block=512, y_block=2048)
    fixed, chosen = (
        RidgeRegressor(RidgeSettings.model_validate({"alpha": alpha})).plan(shapes, 10**10) for alpha in (1000.0, "loo")
    )
    lower, crossing = 4 * 8859 * 8860 // 2, 4 * 982 * 8859  # float32: the lower triangle, products with test betas
    assert 1 <= fixed.parts / (lower + crossing) < 1.1  # panels hold some numbers above the diagonal
    assert chosen.parts == fixed.parts + 4 * 8859 * 512


def test_a_small_fit_is_the_drivers_alone() -> None:
    shapes = RegressionShapes(n=1200, p=4000, m=60, t=8000, s=1200, x_block=512, y_block=2048)
    assert RidgeRegressor(RidgeSettings(alpha="loo")).plan(shapes, 10**10).shared_operations == 0
    assert RidgeRegressor(RidgeSettings(alpha="loo")).plan(shapes, 10**10).parts == 0
