"""Requests of a study in a bucket, as planned and as a server counts them."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import buckets
from support.nsd_server import Proxy, proxied

import leanrecon
from leanrecon.app.bench import bench
from leanrecon.app.rates import rates_of
from leanrecon.datasets.nsd.simulate import simulate_nsd
from leanrecon.places import as_location
from leanrecon.progress import Progress
from leanrecon.study.costs import Cost, total

SETTINGS: dict[str, Any] = {
    "dataset": {"kind": "simulated", "n_train": 60, "n_test": 8, "voxels": 150, "size": 16},
    "stores": {"chunk": "8KB"},
    "features": {"pca": {"components": 20}, "pixels": {"size": 16}},
    "regression": {"alpha": 100.0},
    "evaluate": {"permutations": 1, "resamples": 100},
}


def counted(proxy: Proxy) -> Cost:
    """Requests that a server answered: listings are as dear as writing, deleting costs nothing."""
    kinds = Counter(
        "put" if answer.method in ("PUT", "POST") or "list-type" in answer.path else answer.method
        for answer in proxy.answers
    )
    return Cost(puts=kinds["put"], gets=kinds["GET"] + kinds["HEAD"], read=proxy.nbytes())


@pytest.mark.slow
@pytest.mark.parametrize(
    "variants",
    [
        None,
        pytest.param("areas", marks=pytest.mark.long),
        pytest.param(3, marks=pytest.mark.long),
        pytest.param(5, marks=pytest.mark.long),
    ],
)
def test_a_study_in_a_bucket_sends_the_requests_that_were_planned(variants: Any, tmp_path: Path) -> None:
    settings = SETTINGS
    if variants == "areas":
        settings = SETTINGS | {"areas": {"V1": ["V1"], "ventral": ["ventral"]}}
    elif variants:
        rng = np.random.default_rng(0)
        np.save(tmp_path / "betas.npy", rng.standard_normal((60, 150)).astype(np.float32))
        np.save(tmp_path / "images.npy", rng.integers(0, 256, (60, 16, 16, 3), np.uint8))
        files = {"betas": str(tmp_path / "betas.npy"), "stimuli": str(tmp_path / "images.npy")}
        settings = SETTINGS | {"dataset": {"kind": "arrays", "folds": variants, **files}}
    with buckets.serving() as url, proxied(url) as proxy, buckets.environment(proxy.url, cache=tmp_path):
        study = buckets.at(f"counted-{variants}")  # servers in one process share their files
        planned = total(stage.cost + stage.shared for stage in leanrecon.plan(settings, study=study))
        assert proxy.answers == [], "a plan asks nothing"
        leanrecon.run(settings, study=study, progress=Progress())
        found = counted(proxy)
    assert found.puts == pytest.approx(planned.puts, rel=0.05)
    assert found.gets == pytest.approx(planned.gets, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        {},
        pytest.param({"repeats": "single", "allow_shared_stimuli": True}, marks=pytest.mark.long),
        pytest.param({"zscore_sessions": True}, marks=pytest.mark.long),
    ],
)
def test_trials_of_nsd_in_a_bucket_are_planned_too(how: Any, tmp_path: Path) -> None:
    simulate_nsd(tmp_path / "nsd", sessions=3, scale=0.2, formats=("hdf5",))
    dataset = {"kind": "nsd", "root": str(tmp_path / "nsd"), "sessions": 3, "image_size": 16, **how}
    settings = {"dataset": dataset, "stores": {"chunk": "32KB"}, "features": {"pixels": {"size": 16}}}
    with buckets.serving() as url, proxied(url) as proxy, buckets.environment(proxy.url, cache=tmp_path):
        study = buckets.at(f"trials-{len(how)}")  # servers in one process share their files
        stage = leanrecon.plan(settings, study=study)[0]
        planned = stage.cost + stage.shared
        leanrecon.run(settings, study=study, until="dataset", progress=Progress())
        found = counted(proxy)
    assert found.puts == pytest.approx(planned.puts, rel=0.05)
    assert found.gets == pytest.approx(planned.gets, rel=0.05)
    assert found.read == pytest.approx(planned.read, rel=0.1)


@pytest.mark.slow
@pytest.mark.long
def test_a_bucket_is_measured_and_left_as_it_was(tmp_path: Path) -> None:
    with buckets.serving() as url, buckets.environment(url, cache=tmp_path):
        study = buckets.at("measured")
        found = bench(study)
        assert buckets.keys(study) == []
        assert 1e-5 < found.latency < 5
        assert rates_of(as_location("s3://studies/another")) == found
