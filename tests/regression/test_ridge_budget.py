"""The budget decides where a ridge works and in how many passes, and never what comes out; a kill loses no block."""

import re
from pathlib import Path

import numpy as np
import pytest

from leanrecon.errors import BudgetError
from leanrecon.memory import MemoryBudget
from leanrecon.regression.ridge import ridge as module
from leanrecon.regression.ridge.ridge import StreamingRidge
from leanrecon.stores import RowSubset, Store, as_matrix

pytestmark = pytest.mark.slow

WAYS = [
    pytest.param(300, 500, 40, {}, id="dual"),
    pytest.param(500, 300, 40, {}, id="primal"),
    pytest.param(300, 500, 600, {}, id="dual, many test rows"),
    pytest.param(500, 100, 600, {}, id="through weights"),
    pytest.param(500, 100, 600, {"restandardize": "inductive"}, id="inductive"),
    pytest.param(300, 500, 600, {"restandardize": "transductive"}, id="transductive"),
    pytest.param(300, 500, 40, {"standardize": True, "alpha": "loo"}, id="dual, loo"),
    pytest.param(500, 300, 40, {"alpha": "loo"}, id="primal, loo"),
    pytest.param(300, 500, 40, {"kernel": "rbf", "gamma": 0.5}, id="rbf"),
    pytest.param(500, 300, 600, {"kernel": "rbf", "gamma": 0.5, "alpha": "loo"}, id="rbf, loo, more rows"),
    pytest.param(500, 300, 40, {"voxel_weights": "accuracy", "voxel_power": 1.0}, id="primal, weighed"),
]


@pytest.fixture
def paths(study, stored):
    """Writes a study into stores, and returns their paths."""

    def write(n, p, m, t=700):
        arrays = study(n, p, m=m, t=t, dtype=np.float32)
        return [stored(array, f"{name}.zarr", chunk="60kB") for name, array in zip("xyt", arrays, strict=True)]

    return write


class Plans:
    """What was planned: where the Gram matrix goes and the bytes of a pass; how many panels of test rows go together."""

    def __init__(self, monkeypatch):
        self.fits, self.groups, self.needed = [], [], 0
        fit, predict, require = module.plan_fit, module.plan_predict, MemoryBudget.require

        def noted_fit(*args, **options):
            planned = fit(*args, **options)
            self.fits.append("memory" if planned.in_memory else planned.pass_nbytes)
            return planned

        def noted_predict(*args, **options):
            planned = predict(*args, **options)
            self.groups.append(planned[0])
            return planned

        def noted_require(budget, stage, work):
            self.needed = work
            return require(budget, stage, work)

        monkeypatch.setattr(module, "plan_fit", noted_fit)
        monkeypatch.setattr(module, "plan_predict", noted_predict)
        monkeypatch.setattr(MemoryBudget, "require", noted_require)

    def least(self, x, y, t, settings, *, test=None):
        """The least budget with which a ridge can be fitted and predict."""
        budget = 1
        while True:
            try:
                StreamingRidge(**({"standardize": False, "alpha": 5.0, "budget": budget} | settings)).fit(
                    x, y, test=test
                ).predict(t)
            except BudgetError:
                budget = self.needed
            else:
                self.fits.clear()
                self.groups.clear()
                return budget


@pytest.fixture
def plans(monkeypatch, constants, nothing_held):
    """Small panels and no workspace, so that budgets of some megabytes make a difference."""
    constants(WIDTH=64, DEPTH=32, TEST_ROWS=128, SEARCH_ROWS=120)
    for name in ("WORKSPACE", "WARM"):
        monkeypatch.setattr(f"leanrecon.regression.ridge.plan.{name}", 0)
    return Plans(monkeypatch)


@pytest.mark.filterwarnings("ignore::leanrecon.errors.LeanreconWarning")
@pytest.mark.parametrize("known", [False, True], ids=["any test betas", "known test betas"])
@pytest.mark.parametrize(("n", "p", "m", "settings"), WAYS)
def test_every_budget_gives_the_same_bytes(paths, plans, tmp_path, n, p, m, settings, known):
    x, y, t = paths(n, p, m)
    test = t if known else None
    least = plans.least(x, y, t, settings, test=test)
    predictions = set()
    for more in (0, 200_000, 1_000_000, 10**9):
        fitted = StreamingRidge(
            **({"standardize": False, "alpha": 5.0, "budget": least + more, "scratch": tmp_path} | settings)
        )
        predictions.add(fitted.fit(x, y, test=test).predict(t).tobytes())
    assert len(predictions) == 1
    assert plans.fits[-1] == "memory"


def test_a_small_budget_leads_to_the_disk_in_several_passes_and_to_groups_of_test_rows(paths, plans, constants):
    constants(DEPTH=256)
    x, y, t = paths(1200, 1300, 600, t=50)
    least = plans.least(x, y, t, {})
    for more in (0, 1_000_000, 10**9):
        StreamingRidge(alpha=5.0, budget=least + more, standardize=False).fit(x, y).predict(t)
    assert plans.fits[0] < plans.fits[1] < 1200 * 1200 * 8 / 2
    assert plans.fits[2] == "memory"
    assert plans.groups[0] < plans.groups[2] == 5


@pytest.mark.parametrize(("n", "p", "m", "settings"), WAYS)
@pytest.mark.filterwarnings("ignore::leanrecon.errors.LeanreconWarning")
def test_only_missing_blocks_are_written_and_with_the_same_bytes(paths, constants, tmp_path, n, p, m, settings):
    constants(TEST_ROWS=256)
    x, y, t = paths(n, p, m)
    fitted = StreamingRidge(**({"standardize": False, "alpha": 5.0} | settings)).fit(x, y)
    store = Store.create(tmp_path / "out.zarr", (m, 700), np.float32, made_of={"test": 1}, chunk="20kB")
    done = []
    fitted.predict_into(t, store, advance=done.append)
    assert sum(done) == store.column_groups == len(done)
    store.finish()
    np.testing.assert_allclose(store[:], fitted.predict(t), rtol=1e-4, atol=1e-4)
    files = {file: file.read_bytes() for file in (Path(store.path) / "c").rglob("*") if file.is_file()}
    assert len(files) == store.row_groups * store.column_groups
    store.discard([(0, 0), (store.row_groups - 1, store.column_groups - 1)])
    times = {file: file.stat().st_mtime_ns for file in files if file.exists()}
    assert len(times) == len(files) - len({(0, 0), (store.row_groups - 1, store.column_groups - 1)})
    again = Store.create(tmp_path / "out.zarr", (m, 700), np.float32, made_of={"test": 1}, chunk="20kB")
    fitted.predict_into(t, again, advance=done.append)
    again.finish()
    assert {file: file.read_bytes() for file in files} == files
    assert {file: file.stat().st_mtime_ns for file in times} == times
    assert sum(done) == store.column_groups + len({0, store.column_groups - 1})


def test_nothing_is_computed_for_a_store_that_lacks_nothing(paths, tmp_path, monkeypatch):
    x, y, t = paths(60, 100, 10)
    fitted = StreamingRidge(1.0, standardize=False).fit(x, y)
    store = Store.create(tmp_path / "out.zarr", (10, 700), np.float32, made_of={})
    fitted.predict_into(t, store)
    monkeypatch.setattr(module, "hat_matrix", None)
    fitted.predict_into(t, store)


@pytest.mark.parametrize("known", [False, True], ids=["any test betas", "known test betas"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"restandardize": "inductive"}, {"alpha": "loo"}, {"alpha": "loo", "per_target": True}],
    ids=["alpha", "inductive", "loo", "per target"],
)
@pytest.mark.filterwarnings("ignore::leanrecon.errors.LeanreconWarning")
def test_a_refusal_names_a_budget_that_will_do(paths, settings, known):
    x, y, t = paths(300, 500, 40)
    settings = {"alpha": 5.0, "standardize": False} | settings
    with pytest.raises(
        BudgetError, match="the ridge regression needs at least .* more than the 1 MB allowed"
    ) as refused:
        StreamingRidge(budget="1MB", **settings).fit(x, y, test=t if known else None)
    named = re.search(r'"(\d+MB)"', refused.value.todo)[1]
    fitted = StreamingRidge(budget=named, **settings).fit(x, y, test=t if known else None)
    assert fitted.projected_ <= MemoryBudget.of(named).allowed
    out = [values.copy() for _, _, values in fitted.predict_blocks(t)]
    assert sum(block.shape[1] for block in out) == 700


def test_a_refused_fit_reads_nothing(paths, monkeypatch):
    x, y, t = paths(300, 500, 40)
    monkeypatch.setattr(Store, "read_chunk", None)
    monkeypatch.setattr(Store, "read_columns", None)
    with pytest.raises(BudgetError):
        StreamingRidge(1.0, standardize=False, budget="1MB").fit(x, y, test=t)


@pytest.mark.parametrize("settings", [{}, {"alpha": "loo", "per_target": True}], ids=["alpha", "per target"])
@pytest.mark.parametrize("known", [False, True], ids=["any test betas", "known test betas"])
@pytest.mark.filterwarnings("ignore::leanrecon.errors.LeanreconWarning")
def test_predictions_that_do_not_fit_are_refused_before_they_are_made(paths, nothing_held, settings, known):
    x, y, t = paths(100, 200, 500, t=700)
    fitted = StreamingRidge(**({"standardize": False, "alpha": 5.0} | settings)).fit(x, y, test=t if known else None)
    fitted.budget = 13_000_000  # for 1.4 MB of predictions, with a workspace of 12 MB
    with pytest.raises(BudgetError, match="predicting needs at least"):
        fitted.predict(t)


def test_folds_go_through_the_disk_with_the_same_bytes(paths, plans):
    x, y = (as_matrix(path) for path in paths(900, 400, 2)[:2])
    train, test = np.arange(0, 900, 2), np.arange(1, 900, 4)
    fold = RowSubset(x, train), RowSubset(y, train), RowSubset(x, test)
    least = plans.least(*fold, {})
    found = set()
    for budget in (least, 10**9):
        found.add(StreamingRidge(5.0, budget=budget, standardize=False).fit(*fold[:2]).predict(fold[2]).tobytes())
    assert len(found) == 1
    assert plans.fits[0] != plans.fits[1] == "memory"
