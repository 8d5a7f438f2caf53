"""Embeddings of judges that workers share: the bytes of one process."""

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("distributed", reason="dask.distributed is not installed (extra cluster)")

from support.tiny_networks import Tiny  # noqa: E402

import leanrecon  # noqa: E402
from leanrecon.progress import Progress  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.networks]


def tables(weights: Path) -> dict[str, Any]:
    network = {"kind": "module", "builder": "support.tiny_networks:Tiny", "weights": str(weights), "size": 33}
    return {
        "dataset": {"kind": "simulated", "n_train": 40, "n_test": 34, "voxels": 60, "size": 24},
        "features": {"pca": {"components": 8}},
        "regression": {"alpha": 10.0},
        "evaluate": {"permutations": 1, "resamples": 100, "blend": 0.0},
        "judges": {"tiny": {**network, "layer": "pool"}, "named": {**network, "measure": "classes"}},
    }


def test_embeddings_of_workers_have_the_bytes_of_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    torch.save(Tiny().state_dict(), tmp_path / "tiny.pth")
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parents[1]}:{Path(leanrecon.__file__).parents[1]}")
    settings = tables(tmp_path / "tiny.pth")
    leanrecon.run(settings, study=tmp_path / "alone", progress=Progress())
    leanrecon.run(settings, study=tmp_path / "shared", progress=Progress(), cluster="local:2")
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    names = sorted(file.relative_to(alone) for file in alone.rglob("*") if file.is_file())
    assert sum(name.parts[0] == "embeddings" for name in names) > 20
    assert names == sorted(file.relative_to(shared) for file in shared.rglob("*") if file.is_file())
    differing = [name.as_posix() for name in names if (alone / name).read_bytes() != (shared / name).read_bytes()]
    assert differing == ["report.html", "run.json"], "these tell times"
    record = json.loads((tmp_path / "shared" / "run.json").read_text())["stages"]["evaluate"]
    assert record["workers"] >= 1
    assert record["worker_peak_bytes"] > 50_000_000
