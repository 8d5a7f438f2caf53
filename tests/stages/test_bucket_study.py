"""A study in a bucket: begun here, mirrored there, continued, verified, damaged and repaired there, to the same bytes."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support import buckets
from support.clusters import Deadly, late_worker, workers_apart
from support.nsd_server import Proxy, proxied

import leanrecon
from leanrecon.app import cli
from leanrecon.errors import BudgetError, StoreError
from leanrecon.places import Location, as_location, bucket
from leanrecon.progress import Progress
from leanrecon.stages.repair import mend
from leanrecon.stores import Store
from leanrecon.study.lock import only_run
from leanrecon.study.verify import find_damage

pytestmark = pytest.mark.slow

SETTINGS = {
    "dataset": {"kind": "simulated", "n_train": 40, "n_test": 8, "voxels": 20, "size": 16},
    "stores": {"chunk": "8KB"},
    "features": {"pca": {"components": 10}},
    "regression": {"alpha": 100.0},
    "evaluate": {"permutations": 0, "resamples": 100},
}

OF_ITS_OWN = {"run.json", "report.html"}
"""What tells the times and the memory of a run."""


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with (
        buckets.serving() as url,
        proxied(url) as proxy,
        buckets.environment(proxy.url, cache=tmp_path_factory.mktemp("cache")),
    ):
        yield proxy


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that never left this machine."""
    folder = tmp_path_factory.mktemp("here") / "study"
    leanrecon.run(SETTINGS, study=folder, progress=Progress())
    return folder


def contents(root: Location) -> dict[str, bytes]:
    """All files of a study but those of its own, holds and files of others among them."""
    if (path := root.place.local_path(root.key)) is not None:
        found = {file.relative_to(path).as_posix(): file for file in path.rglob("*") if file.is_file()}
        return {name: file.read_bytes() for name, file in found.items() if name not in OF_ITS_OWN}
    names = [key.removeprefix(f"{root.key}/") for key in buckets.keys(root)]
    return {name: (root / name).read_bytes() for name in names if name not in OF_ITS_OWN}


def some(fault: str, seed: int = 3):
    chosen = np.random.default_rng(seed).random(100_000) < 0.05
    return lambda number, method, path: fault if chosen[number] else None


@pytest.mark.parametrize("until", ["features", pytest.param("evaluate", marks=pytest.mark.long)])
def test_a_study_goes_on_in_a_bucket_and_is_repaired_there(
    until: str, s3: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket, "_sleep", lambda seconds: None)
    there, here = buckets.at(f"one/{until}"), tmp_path / "here"
    leanrecon.run(SETTINGS, study=tmp_path / "study", until="dataset", mirror=str(there), progress=Progress())
    leanrecon.run(SETTINGS, study=here, until=until, progress=Progress())
    faults = ["503", "drop", "truncate", "lost"]
    chosen = [some(fault, seed) for seed, fault in enumerate(faults)]
    s3.choose = lambda *request: next(filter(None, (of(*request) for of in chosen)), None)
    try:
        results = leanrecon.run(SETTINGS, study=str(there), until=until, progress=Progress())
    finally:
        s3.choose = lambda *_: None
    assert sum(answer.fault is not None for answer in s3.answers) > 10
    assert contents(there) == contents(as_location(here))
    np.testing.assert_array_equal(results.features("pca", "test"), leanrecon.open(here).features("pca", "test"))
    assert find_damage(there) == {}
    assert list((Path(os.environ["LEANRECON_CACHE"])).rglob("*.*")) == [], "no copies stay on this machine"

    chunk = Store.open(there / "features/pca/train.zarr").chunk_path(0)
    data = bytearray(chunk.read_bytes())
    data[5] ^= 1
    chunk.write_bytes(data)
    (there / "betas/rows.json").write_bytes(b"{}")
    harmed = ["betas/rows.json", "features/pca/train.zarr"]
    if until == "evaluate":
        assert results.figures["final"] == leanrecon.open(here).figures["final"]
        (there / "reconstructions/stage1/00003.png").unlink()
        harmed.append("reconstructions/stage1")
    damaged = find_damage(there)
    assert sorted(one.path.relative_to(there) for one in damaged) == harmed
    mend(there, damaged)
    assert find_damage(there) == {}
    assert contents(there) == contents(as_location(here))


@pytest.mark.long
def test_a_study_that_was_lost_here_is_restored_from_the_bucket(here: Path, s3: Proxy, tmp_path: Path) -> None:
    there = str(buckets.at("two"))
    leanrecon.run(SETTINGS, study=tmp_path / "a", mirror=there, until="stage1", progress=Progress())
    leanrecon.run(SETTINGS, study=tmp_path / "b", mirror=there, progress=Progress())
    assert contents(as_location(tmp_path / "b")) == contents(as_location(there)) == contents(as_location(here))


@pytest.mark.long
@pytest.mark.networks
def test_networks_are_trained_here_and_kept_in_the_bucket(s3: Proxy, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    mlp = {"kind": "mlp", "hidden": 8, "blocks": 1, "epochs": 2, "batch_size": 16, "alpha": 30.0}
    settings = SETTINGS | {"regression": {"pca": mlp}}
    there = buckets.at("trained")
    leanrecon.run(settings, study=tmp_path / "study", until="regression", progress=Progress())
    leanrecon.run(settings, study=str(there), until="regression", progress=Progress())
    assert contents(there) == contents(as_location(tmp_path / "study"))
    networks = [file for file in (there / "networks").files() if file.suffix == ".safetensors"]
    assert networks
    networks[0].write_bytes(b"damaged")
    damaged = find_damage(there)
    assert [one.path for one in damaged] == [networks[0].parent]
    mend(there, damaged)
    again, whole = contents(there), contents(as_location(tmp_path / "study"))
    assert {name for name in whole if again[name] != whole[name]} <= {"study.toml"}


@pytest.mark.long
def test_commands_take_urls_and_write_no_credentials(
    s3: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []

    def command(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["leanrecon", *words])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        said.append("".join(capsys.readouterr()))
        return code

    there = "s3://studies/three"
    source = str(tmp_path / "small.toml")
    Path(source).write_text(
        '[dataset]\nkind = "simulated"\nn_train = 30\nn_test = 6\nvoxels = 20\nsize = 16\n[features.pixels]\n'
        "[evaluate]\npermutations = 1\nresamples = 100\n"
    )
    with only_run(there):
        assert command("run", source, "--study", there) == 2
        assert f"another run is using {there} (process {os.getpid()} on" in said[-1]
    assert command("run", source, "--study", there) == 0
    assert f"done: {there}/report.html" in said[-1]
    assert command("verify", there) == 0
    assert "all chunks are sound" in said[-1]
    for words in (("report", there), ("mirror", there, str(tmp_path / "copy")), ("run", there), ("plan", there)):
        assert command(*words) == 0, said[-1]
    root = as_location(there)
    written = said + [(root / key.removeprefix("three/")).read_bytes().decode("latin-1") for key in buckets.keys(root)]
    written += [file.read_text("latin-1") for file in tmp_path.rglob("*") if file.is_file()]
    assert len(written) > 30
    for secret in (buckets.KEY, buckets.SECRET):
        assert not any(secret in text for text in written)


def test_a_run_says_before_its_work_that_the_bucket_is_not_writable(s3: Proxy) -> None:
    s3.choose = lambda number, method, path: "403" if method != "GET" and method != "HEAD" else None
    said: list[str] = []

    class Said(Progress):
        def say(self, text: str) -> None:
            said.append(text)

    try:
        with pytest.raises(StoreError, match="can't be written: the S3 server refused it"):
            leanrecon.run(SETTINGS, study="s3://studies/four", progress=Said())
    finally:
        s3.choose = lambda *_: None
    assert said == []


def test_a_refused_run_leaves_no_keys_in_a_bucket(s3: Proxy, tmp_path: Path) -> None:
    with pytest.raises(BudgetError):
        leanrecon.run(SETTINGS | {"memory": "20MB"}, study="s3://studies/refused/new", progress=Progress())
    assert buckets.keys(as_location("s3://studies/refused")) == []


def test_a_plan_counts_the_memory_of_requests() -> None:
    there, here = (leanrecon.plan(SETTINGS, memory="1GB", study=where) for where in ("s3://studies/five", "five"))
    more = [a.memory - b.memory for a, b in zip(there, here, strict=True)]
    assert min(more) > bucket.HELD_NBYTES - 10_000_000
    assert max(more) < bucket.HELD_NBYTES + 10_000_000


@pytest.mark.long
def test_workers_share_a_study_in_a_bucket(s3: Proxy, here: Path) -> None:
    pytest.importorskip("distributed", reason="dask.distributed is not installed (extra cluster)")
    there = buckets.at("shared")
    leanrecon.run(SETTINGS, study=str(there), progress=Progress(), cluster="local:2")
    assert contents(there) == contents(as_location(here))


@pytest.mark.long
def test_workers_that_die_share_a_study_in_a_bucket_whose_requests_fail(
    s3: Proxy, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("distributed", reason="dask.distributed is not installed (extra cluster)")
    there = buckets.at("shared with faults")
    monkeypatch.setattr(bucket, "TIMEOUT", 1.0)  # a slow answer takes two seconds
    bucket.bucket_of.cache_clear()
    faults = np.random.default_rng(4).choice(["503", "drop", "lost", "truncate", "slow"], 100_000)
    chosen = np.random.default_rng(5).random(100_000) < 0.1
    before = len(s3.answers)
    progress = Deadly("^pca, train", "^regression pca$", "^stage 1$")

    def choose(number: int, method: str, path: str) -> str | None:
        # A slow answer is asked for again. A write that came then would replace what was written since.
        fault = str(faults[number]) if chosen[number] else None
        return "503" if fault == "slow" and method == "PUT" else fault

    with workers_apart(tmp_path, [{"TIMEOUT": "1"}] * 2) as (client, _):
        s3.choose = choose
        try:
            leanrecon.run(SETTINGS, study=str(there), progress=progress, cluster=client)
        finally:
            s3.choose = lambda *_: None
            bucket.bucket_of.cache_clear()
    seen = [answer.fault for answer in s3.answers[before:]]
    told = {fault: seen.count(fault) for fault in {*seen} - {None}}
    print(f"{len(seen)} requests, of which failed: {told}; workers that were killed: {3 - len(progress.left)}")
    assert progress.left == {}
    assert told.keys() == {"503", "drop", "lost", "truncate", "slow"}
    assert contents(there) == contents(as_location(here))
    assert find_damage(there) == {}


@pytest.mark.long
def test_a_worker_that_wakes_up_late_leaves_no_keys_in_a_bucket(s3: Proxy, here: Path, tmp_path: Path) -> None:
    pytest.importorskip("distributed", reason="dask.distributed is not installed (extra cluster)")
    there = buckets.at(f"late/{tmp_path.name}")
    # There are more tasks of images than workers, so that each of them gets some.
    with late_worker(tmp_path, "BEFORE", r"reconstructions/stage1/\d+\.png") as client:
        leanrecon.run(SETTINGS, study=str(there), progress=Progress(), cluster=client)
    assert contents(there) == contents(as_location(here))
    assert find_damage(there) == {}
