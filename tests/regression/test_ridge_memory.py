"""The memory contract: what a ridge holds, measured in a process of its own, is what its plan said."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from leanrecon.stores import Store

RIDGE = """
import json, sys
from pathlib import Path
from leanrecon.errors import BudgetError
from leanrecon.memory import MemoryBudget, PeakMemory, process_memory
from leanrecon.regression.ridge import StreamingRidge
from leanrecon.stores import Store

folder, out, asked = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
base = process_memory()
budget = MemoryBudget.of(base + asked["megabytes"] * 1_000_000)
try:
    with PeakMemory() as memory:
        ridge = StreamingRidge(budget=budget, scratch=folder, **asked["settings"])
        test = folder / asked["test"]
        ridge.fit(folder / "x.zarr", folder / asked["y"], test=test if asked["known"] else None)
        rows, columns = Store.open(test).rows, Store.open(folder / asked["y"]).columns
        store = Store.create(out, (rows, columns), "f4", made_of={})
        ridge.predict_into(test, store)
        store.finish()
except BudgetError as refused:
    print(json.dumps({"base": base, "peak": memory.peak, "refused": str(refused)}))
else:
    on_disk = ridge._factor is not None and ridge._factor.on_disk
    print(json.dumps({
        "base": base, "allowed": budget.allowed, "projected": ridge.projected_, "planned": max(budget.required),
        "peak": memory.peak, "on disk": on_disk, "content": store.content,
    }))
"""


def write(path: Path, rows: int, columns: int, seed: int) -> None:
    """A store of random rows, chunk by chunk."""
    store = Store.create(path, (rows, columns), np.float32, made_of={"seed": seed})
    block = np.random.default_rng(seed).standard_normal((store.chunk_rows, columns), dtype=np.float32)
    for i in range(store.row_groups):
        store.write_rows(i, np.roll(block, 37 * i, axis=1)[: len(store.group_rows(i))])
    store.finish()


@pytest.fixture(scope="module")
def gigabyte(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Betas of 96 MB, targets of 0.9 GB, 500 test rows."""
    folder = tmp_path_factory.mktemp("gigabyte")
    for name, rows, columns in (("x", 4000, 6000), ("y", 4000, 56_000), ("t", 500, 6000)):
        write(folder / f"{name}.zarr", rows, columns, seed=len(name) + rows)
    return folder


@pytest.fixture(scope="module")
def dual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dual")
    for name, rows, columns in (("x", 2500, 6000), ("y", 2500, 3000), ("t", 500, 6000), ("many", 3000, 6000)):
        write(folder / f"{name}.zarr", rows, columns, seed=len(name) + rows)
    return folder


@pytest.fixture(scope="module")
def primal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("primal")
    sizes = (("x", 5000, 1500), ("y", 5000, 9000), ("few", 5000, 600), ("t", 500, 1500), ("many", 3000, 1500))
    for name, rows, columns in (*sizes, ("crowd", 12_000, 1500)):
        write(folder / f"{name}.zarr", rows, columns, seed=len(name) + rows)
    return folder


@pytest.fixture
def ridge(tmp_path):
    """Fits a ridge and predicts in a fresh process; returns what it planned and what it held."""

    def run(folder, megabytes, *, known=False, test="t.zarr", y="y.zarr", **settings):
        settings = {"alpha": 1000.0} | settings
        asked = {"megabytes": megabytes, "settings": settings, "known": known, "test": test, "y": y}
        out = tmp_path / f"{megabytes}-{known}"
        command = [sys.executable, "-W", "ignore", "-c", RIDGE, str(folder), str(out), json.dumps(asked)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return json.loads(done.stdout)

    return run


def assert_as_planned(found):
    assert found["peak"] <= found["planned"] <= found["allowed"], found
    assert found["peak"] >= 0.6 * found["planned"], found


@pytest.mark.parametrize(("megabytes", "known"), [(256, True), (512, False)])
def test_a_gigabyte_of_targets(gigabyte, ridge, megabytes, known):
    found = ridge(gigabyte, megabytes, known=known, standardize=True)
    assert_as_planned(found)
    assert found["projected"] == found["planned"]  # the fit had planned for its predictions
    assert found["planned"] - found["base"] < 140_000_000


@pytest.mark.parametrize("known", [False, True], ids=["any test betas", "known test betas"])
def test_leave_one_out(dual, ridge, known):
    found = ridge(dual, 512, alpha="loo", known=known)
    assert_as_planned(found)
    assert found["projected"] == found["planned"]


def test_a_budget_for_the_disk_gives_the_same_predictions(dual, ridge):
    small, large = ridge(dual, 95), ridge(dual, 512)
    for found in (small, large):
        assert_as_planned(found)
    assert (small["on disk"], large["on disk"]) == (True, False)
    assert small["content"] == large["content"]


@pytest.mark.parametrize(
    "asked",
    [
        {"restandardize": "inductive", "megabytes": 300},
        {"restandardize": "inductive", "megabytes": 300, "known": True},
        {"restandardize": "transductive", "megabytes": 512, "test": "many.zarr"},
        {"megabytes": 130, "test": "many.zarr"},
    ],
    ids=["inductive", "inductive, known", "transductive", "groups of test rows"],
)
def test_ways_to_predict(dual, ridge, asked):
    assert_as_planned(ridge(dual, **asked))


@pytest.mark.parametrize(
    "asked",
    [
        {"megabytes": 512},
        {"megabytes": 200, "test": "many.zarr"},
        {"megabytes": 512, "test": "crowd.zarr", "y": "few.zarr"},  # through weights
        {"megabytes": 512, "alpha": "loo"},
        {"megabytes": 512, "alpha": "loo", "per_target": True, "test": "many.zarr", "y": "few.zarr"},
    ],
    ids=["alpha", "groups of test rows", "weights", "loo", "per target"],
)
def test_more_rows_than_voxels(primal, ridge, asked):
    assert_as_planned(ridge(primal, **asked))


def test_a_budget_that_holds_nothing_is_refused_before_any_work(gigabyte, ridge, tmp_path):
    found = ridge(gigabyte, 40)
    assert "the ridge regression needs at least" in found["refused"]
    assert found["peak"] - found["base"] < 3_000_000
    assert list(tmp_path.iterdir()) == []
