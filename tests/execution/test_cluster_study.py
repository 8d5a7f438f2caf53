"""Studies whose stages are shared among workers: the bytes of one process, whoever dies on the way."""

import json
import sys

import pytest
from support.cluster_studies import BLOCKS
from support.clusters import Deadly, contents, run_twice, worker_here
from support.memory import held

import leanrecon
from leanrecon.errors import BudgetError
from leanrecon.execution.tasks import SHARE
from leanrecon.progress import Progress

pytest.importorskip("distributed", reason="dask.distributed is not installed (extra cluster)")


@pytest.mark.slow
def test_a_worker_that_dies_costs_its_tasks_alone_and_every_file_has_the_same_bytes(tmp_path):
    leanrecon.run(BLOCKS, study=tmp_path / "alone", progress=Progress())
    progress = Deadly("^pca, train")
    leanrecon.run(BLOCKS, study=tmp_path / "shared", progress=progress, cluster="local:2")
    assert progress.left == {}, "a worker was killed"
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")
    stages = json.loads((tmp_path / "shared" / "run.json").read_text())["stages"]
    for stage in ("features pca", "regression pca", "stage1"):
        assert stages[stage]["workers"] >= 1
        assert stages[stage]["worker_peak_bytes"] > 50_000_000
    begun = [line for line in progress.lines if line.startswith("stage ")]
    assert begun[0].startswith("stage 1 of 6: dataset, on workers")
    assert "dataset: in this process, because this kind has no tasks for workers" in progress.lines
    assert begun[1].startswith("stage 2 of 6: features, on workers")


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.networks
def test_networks_on_workers_that_die_give_the_same_bytes(tmp_path, monkeypatch):
    pytest.importorskip("diffusers")
    from support.refined_study import write_refined_study

    write_refined_study(tmp_path, "study.toml", 'baselines = ["prior", "oracle"]\n[stores]\nchunk = "20KB"\n')
    monkeypatch.chdir(tmp_path)
    quiet = Progress()
    leanrecon.run("study.toml", study="alone", until="refine", progress=quiet)
    progress = Deadly("^vdvae, train", "^refine")
    leanrecon.run("study.toml", study="shared", until="refine", progress=progress, cluster="local:2")
    assert progress.left == {}, "workers were killed in both"
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")
    stages = json.loads((tmp_path / "shared" / "run.json").read_text())["stages"]
    for stage in ("features vdvae", "features clip", "regression vdvae", "stage1", "refine"):
        assert stages[stage]["workers"] >= 1
        assert stages[stage]["worker_peak_bytes"] > 50_000_000
    assert stages["refine"]["seconds_per_image"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("room", [-20_000_000, 6_000_000])
def test_workers_with_too_little_memory_are_refused_with_the_limit_that_would_do(room, tmp_path):
    settings = BLOCKS | {"features": {"pixels": {"kind": "pixels", "size": 32}}}
    limit = int((held() + room) / SHARE)
    with (
        worker_here(limit) as client,
        pytest.raises(BudgetError, match=r"needs at least .* on a worker .*--memory-limit \d+MB"),
    ):
        leanrecon.run(settings, study=tmp_path / "study", until="features", progress=Progress(), cluster=client)
    assert not list((tmp_path / "study" / "features" / "pixels" / "train.zarr").glob("c/*")), "nothing was begun"


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.kills
def test_a_driver_that_is_killed_continues_with_the_same_command_to_the_same_bytes(tmp_path):
    import tomli_w

    (tmp_path / "s.toml").write_text(tomli_w.dumps(BLOCKS))
    command = [sys.executable, "-m", "leanrecon", "run", "s.toml", "--study"]
    points = ("features/pca/train.zarr/c", "predictions/pca/test.zarr/c", "reconstructions/stage1/00003.png")
    run_twice(command, tmp_path, [(tmp_path / "shared" / point).exists for point in points])
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")
