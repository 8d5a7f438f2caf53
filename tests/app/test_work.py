"""The time, bytes and requests of a plan, and the rates they come from."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from leanrecon.app import bench, rates
from leanrecon.app.plan import show
from leanrecon.app.rates import BUCKET, Rates, rates_of
from leanrecon.app.work import parse_bandwidth, seconds, seconds_of, show_work, told
from leanrecon.errors import BudgetError, SettingsError, StoreError
from leanrecon.places import as_location
from leanrecon.stages.stage import PlannedStage
from leanrecon.study.costs import Cost, chunks_of, store_made, store_read


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LEANRECON_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("text", "rate"),
    [("1Gbit", 125e6), ("100 Mbit/s", 12.5e6), ("125MB", 125e6), ("125MB/s", 125e6), ("2.5gbit", 312.5e6)],
)
def test_bandwidths_are_read_in_bits_and_bytes(text: str, rate: float) -> None:
    assert parse_bandwidth(text) == rate


@pytest.mark.parametrize("text", ["fast", "0Gbit", "-1Gbit", "1", "1Gbit/h", "", "1e9b"])
def test_what_is_no_bandwidth_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="is not a bandwidth"):
        parse_bandwidth(text)


def test_seconds_follow_from_rates() -> None:
    slow = Rates(gemm=10e9, store_read=100e6, store_write=50e6, latency=0.5)
    assert seconds(Cost(20e9, 300_000_000, 100_000_000, puts=3, gets=1), slow) == pytest.approx(2 + 3 + 2 + 2)


@pytest.mark.parametrize(
    ("workers", "bandwidth", "expected"),
    [(1, None, 1 + 8 + 1), (4, None, 1 + 2 + 0.25), (4, 10e6, 10.0)],  # 100 MB at 10 MB/s
)
def test_workers_share_what_they_can_and_one_line_to_the_study(
    workers: int, bandwidth: float | None, expected: float
) -> None:
    stage = PlannedStage("x", "", 0, 0, cost=Cost(10e9), shared=Cost(80e9, read=100_000_000))
    at = Rates(gemm=10e9, store_read=100e6)
    assert seconds_of(stage, at, workers, bandwidth) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("moved", "said"),
    [
        ({"download": 12_300_000, "requests": 1234}, "12.3 MB to download in 1,234 requests"),
        ({"download": 12_300_000}, "12.3 MB to download\n"),
        ({}, "disk 1 B\n"),
    ],
)
def test_the_plan_tells_the_download_and_its_requests_where_they_are_known(
    moved: dict[str, int], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    show([PlannedStage("dataset", "", 1, 1, **moved)], "1GB")
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("workers", "share", "said"),
    [
        (4, 1.0, "counted; each worker 3 MB in 300 requests"),
        (4, 0.5, "counted; each worker 1.5 MB in 150 requests"),
        (4, 0.0, "not counted\n"),
        (1, 1.0, "not counted\n"),
    ],
)
def test_workers_share_a_download(
    workers: int, share: float, said: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    stage = PlannedStage("dataset", "", 1, 1, download=12_000_000, requests=1200, shared_download=share)
    show_work([stage, PlannedStage("features", "", 1, 1)], as_location(tmp_path), workers, None)
    told_of = capsys.readouterr().out
    assert "dataset downloads 12 MB in 1,200 requests, whose time depends on the link" in told_of
    assert said in told_of
    assert "features downloads" not in told_of


def test_a_store_costs_its_chunks() -> None:
    # 5 MB in rows of 4,000 bytes and chunks of 1 MB: 250 rows fit, 128 is the largest power of two below
    assert chunks_of((1250, 1000), "float32", 1_000_000) == 10
    made = store_made((1250, 1000), "float32", 1_000_000)
    assert made.written == 10 * 128 * 4000
    assert store_read((1250, 1000), "float32", 1_000_000, 3).gets - 1 == 30


def test_stated_rates_are_told_from_measured_ones(tmp_path: Path, cache: Path) -> None:
    here, there = as_location(tmp_path / "study"), as_location("s3://bucket/study")
    assert (rates_of(here), rates_of(there)) == (Rates(), BUCKET)
    assert "stated default rates" in told(rates_of(here), here)
    rates.keep(there, Rates(gemm=7e9, latency=0.02, measured="2026-01-02"))
    assert rates_of(as_location("s3://bucket/other")).gemm == 7e9
    assert "from doctor --bench of 2026-01-02: 7 GFLOP/s" in told(rates_of(there), there)
    assert rates_of(here) == Rates()
    (cache / rates.RECORD).write_text("[]")
    assert rates_of(there) == BUCKET


@pytest.mark.slow
def test_the_bench_keeps_what_it_measures_and_leaves_nothing_behind(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(bench, "EACH", 0.1)
    study = tmp_path / "new" / "study"
    found = bench.bench(study)
    assert not study.parent.exists()
    assert rates_of(as_location(study)) == found
    assert json.loads((cache / rates.RECORD).read_text())[rates.place_of(as_location(study))]["gemm"] == found.gemm
    assert 1e8 < found.gemm < 1e14
    assert min(found.write, found.read, found.store_write, found.store_read) > 1e6
    assert found.latency == 0
    said = capsys.readouterr().out
    assert "GFLOP/s" in said
    assert "chunks of stores" in said
    with pytest.raises(BudgetError, match="doctor --bench"):
        bench.bench(study, "20MB")
    with pytest.raises(StoreError, match="can't be written"):
        bench.bench("/proc/study")


@pytest.mark.parametrize(
    "harm",
    [
        {"gemm": "fast"}, {"gemm": 0}, {"gemm": -1.0}, {"gemm": None}, {"gemm": float("nan")}, {"gemm": float("inf")},
        {"gemm": True}, {"gemm": [1]}, {"gemm": 1e-320}, {"gemm": 10**400}, {"store_read": 0}, {"store_write": {}},
        {"latency": "x"}, {"latency": -1}, {"latency": float("nan")}, {"measured": 5}, {"measured": ["x"]},
    ],
)  # fmt: skip
def test_rates_that_no_measurement_gives_are_not_used(
    harm: dict[str, Any], tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = as_location(tmp_path)
    rates.keep(here, Rates(measured="2026-01-01"))
    file = cache / rates.RECORD
    assert rates_of(here).measured
    content = json.loads(file.read_text())
    content[rates.place_of(here)] |= harm
    file.write_text(json.dumps(content))
    assert rates_of(here) == Rates()
    show_work([PlannedStage("x", "", 0, 0, cost=Cost(1e9, 1, 1), shared=Cost(1e9, 1, 1))], here, 3, None)
    assert "stated default rates" in capsys.readouterr().out


def test_rates_of_another_version_are_used_as_far_as_they_are_known(tmp_path: Path, cache: Path) -> None:
    here = as_location(tmp_path)
    cache.mkdir()
    (cache / rates.RECORD).write_text(json.dumps({rates.place_of(here): {"gemm": 9e9, "tensor_cores": "many"}}))
    assert rates_of(here) == Rates(gemm=9e9)


def test_a_cache_that_is_a_file_is_told(tmp_path: Path, cache: Path) -> None:
    cache.write_text("a file")
    with pytest.raises(
        StoreError, match=r"rates.json can't be written.*File exists. A file or a broken link has this name"
    ):
        rates.keep(as_location(tmp_path), Rates())


def test_a_cache_without_permission_is_told_with_its_variable(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(StoreError, match="can't be written: Permission denied.*with the variable LEANRECON_CACHE"):
        rates.keep(as_location(tmp_path), Rates())
