"""What training a network takes, by arithmetic; and that it takes no more than was planned."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leanrecon.regression.mlp.plan import ADAMW, NetworkShapes, plan_network
from leanrecon.regression.mlp.settings import MLPSettings

GB = 1_000_000_000
NSD = {
    "n": 8859, "p": 15_724, "m": 982, "t": 91_168, "block": 7872,
    "x_tile": 15_200 * 1024, "y_tile": 7872 * 1024,
}  # fmt: skip
ALONE = {"blocks": 1, "skip": "none", "inputs": "betas"}


def shapes(sizes, **settings):
    return NetworkShapes(**sizes, settings=MLPSettings(**ALONE | settings))


def test_the_heads_of_a_network_at_nsd_size():
    pca, full = shapes(NSD), shapes(NSD, head="full")
    body = 15_724 * 2048 + 2048 + 2 * 2048 + (2 * 2048 + 2048 * 2048 + 2048) + 2 * 2048
    assert pca.weights == body + 1024 * 2049 == 38_511_616
    assert full.weights == body + 91_168 * 2049 == 223_216_672
    planned = plan_network(pca, 8 * GB)
    assert ADAMW * pca.weights < planned.phases["training"] <= planned.work < 1.5 * GB
    assert planned.phases["eigenvectors of the targets"] > 3 * 4 * 8859**2
    assert plan_network(full, 8 * GB).work > ADAMW * full.weights > 3.5 * GB
    assert pca.kept_nbytes == 4 * pca.weights + 4 * 8859 * 1024


def test_a_ridge_beside_it_and_predictions_of_validation_rows_are_counted():
    alone, beside = (plan_network(shapes(NSD, skip=skip, alpha=1.0), 8 * GB) for skip in ("none", "ridge"))
    assert any(name.startswith("ridge: ") for name in beside.phases)
    assert beside.phases["training"] - alone.phases["training"] >= 4 * 8859 * 1024
    more = plan_network(shapes(NSD, restandardize="transductive"), 8 * GB)
    assert more.phases["predictions"] - alone.phases["predictions"] >= 2 * 886 * 8859 * 4


def test_the_targets_gram_matrix_goes_to_disk_where_that_is_enough():
    small = shapes(NSD, hidden=64, components=64)
    held = plan_network(small, 8 * GB)
    on_disk = plan_network(small, held.work - 1)
    assert held.in_memory
    assert not on_disk.in_memory
    assert on_disk.work < held.work
    assert on_disk.scratch > held.scratch


SETTINGS = st.fixed_dictionaries(
    {
        "hidden": st.integers(1, 4096),
        "blocks": st.integers(0, 6),
        "batch_size": st.integers(1, 512),
        "window": st.integers(1, 8192),
        "components": st.integers(1, 4096),
        "validation": st.floats(0, 0.5),
        "alpha": st.sampled_from([1.0, "loo"]),
        "precision": st.sampled_from(["float32", "bfloat16"]),
        "restandardize": st.sampled_from(["none", "transductive"]),
    }
)
HEADS = st.sampled_from(
    [
        {"head": "full", "skip": "none", "inputs": "betas"},
        {"skip": "none", "inputs": "betas"},
        {"skip": "ridge", "inputs": "betas"},
        {"skip": "ridge", "inputs": "ridge"},
    ]
)

SHAPES = st.builds(
    NetworkShapes,
    n=st.integers(2, 30_000),
    p=st.integers(1, 30_000),
    m=st.integers(0, 3000),
    t=st.integers(1, 400_000),
    settings=st.builds(lambda settings, head: MLPSettings(**settings, **head), SETTINGS, HEADS),
)


@given(shapes=SHAPES, free=st.integers(0, 8 * GB), more=st.integers(0, 8 * GB))
def test_a_plan_fits_or_names_what_would(shapes, free, more):
    planned = plan_network(shapes, free)
    enough = plan_network(shapes, max(planned.work, free))
    assert enough.work <= max(planned.work, free)
    assert plan_network(shapes, max(planned.work, free) + more).work <= max(planned.work, free) + more
    assert planned.phases["training"] > ADAMW * shapes.weights
    assert plan_network(shapes, free, torch_held=True).work <= planned.work


MEASURED = """
import json, sys
from pathlib import Path
from leanrecon.memory import PeakMemory
from leanrecon.regression.mlp.mlp import StreamingMLP

folder, how = Path(sys.argv[1]), json.loads(sys.argv[2])
with PeakMemory() as memory:
    mlp = StreamingMLP(**how, epochs=2, budget="4GB", folder=folder / sys.argv[3], checkpoint_minutes=0.02)
    mlp.fit(folder / "x.zarr", folder / "y.zarr", test_rows=40)
    mlp.predict(folder / "t.zarr")
print(json.dumps([mlp.projected_, memory.peak]))
"""


@pytest.mark.networks
@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        {"hidden": 2000, "blocks": 1, "skip": "none", "inputs": "betas"},
        {"hidden": 800, "blocks": 1, "skip": "none", "inputs": "betas", "head": "full"},
        {"hidden": 1500, "blocks": 1, "alpha": 100.0, "inputs": "betas", "components": 200},
        {"hidden": 2000, "blocks": 2, "alpha": 100.0, "inputs": "ridge"},
    ],
    ids=["pca", "full", "beside ridge", "on the ridge's predictions"],
)
def test_it_takes_no_more_than_was_planned(study, stored, tmp_path, how):
    X, Y, T = study(900, 6000, t=9000, dtype=np.float32)
    for name, rows in (("x", X), ("y", Y), ("t", T)):
        stored(rows, f"{name}.zarr")
    del X, Y, T
    command = [sys.executable, "-c", MEASURED, str(tmp_path), json.dumps(how), "network"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    planned, peak = json.loads(done.stdout.splitlines()[-1])
    assert peak <= planned, how
    assert peak >= 0.6 * planned, how
