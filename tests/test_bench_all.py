"""The table of all benchmarks: what is missing is said, and what fell is told."""

import json

import bench_all
import pytest
from bench_all import Line, fallen, main, table

LINES = [
    Line("a", "1.00 s", "peer: 2.00 s", 2.0),
    Line("b", "2.00 s", "peer: 3.00 s", 1.5),
    Line("c", "1.00 s", "other: not installed", None),
]


@pytest.mark.parametrize(
    ("before", "told"),
    [
        ({"a": 2.0, "b": 1.5}, []),
        ({"a": 2.2, "b": 1.0}, []),  # 9 % below, and above
        ({"a": 2.5, "b": 1.5}, ["a: 2.00, 20% below 2.50"]),
        ({"c": 9.0, "d": 9.0}, []),
    ],
)
def test_ratios_that_fell_by_more_than_a_tenth_are_told(before, told):
    assert fallen(LINES, before) == told


def test_the_table_has_a_line_for_each_and_says_what_is_missing():
    lines = table(LINES).splitlines()
    assert len(lines) == 5
    assert len({len(line) for line in lines}) == 1
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == ["a", "1.00 s", "peer: 2.00 s", "2.00"]
    assert lines[4].split("|")[4].strip() == "missing"


def test_a_run_is_compared_with_a_recorded_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(bench_all.BENCHMARKS, "ridge", lambda how: iter(LINES))
    record = tmp_path / "ratios.json"
    ridge = ["--only", "ridge", "--folder", str(tmp_path)]
    assert main([*ridge, "--record", str(record)]) == 0
    kept = json.loads(record.read_text())
    assert kept["ratios"] == {"a": 2.0, "b": 1.5}
    assert kept["versions"]["numpy"]
    assert main([*ridge, "--against", str(record)]) == 0
    assert "no ratio is more than 10% below" in capsys.readouterr().out
    record.write_text(json.dumps(kept | {"ratios": {"a": 4.0, "gone": 1.0}}))
    assert main([*ridge, "--against", str(record)]) == 1
    told = capsys.readouterr().out
    assert "a: 2.00, 50% below 4.00" in told
    assert "not measured now: gone" in told
    with pytest.raises(SystemExit):  # ratios of other sizes say nothing
        main([*ridge, "--small", "--against", str(record)])


@pytest.mark.slow
def test_the_ridge_is_measured_beside_the_peers_that_are_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_all, "find_spec", lambda name: None if name == "himalaya" else True)
    monkeypatch.setattr(bench_all, "RIDGE_PEERS", {"scikit-learn Ridge": "sklearn", "himalaya KernelRidge": "himalaya"})
    lines = {line.name: line for line in bench_all.ridge(bench_all.How(tmp_path, True, 1, None))}
    assert lines["ridge, memory, scikit-learn Ridge"].ratio > 1
    assert lines["ridge, seconds, scikit-learn Ridge"].ratio > 0
    assert lines["ridge, seconds, himalaya KernelRidge"].ratio is None
    assert lines["ridge, seconds, himalaya KernelRidge"].beside.endswith("not installed")
    assert 0 < lines["ridge, memory of the plan"].ratio <= 1
