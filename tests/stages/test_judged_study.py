"""A study judged by networks of several kinds: its figures, what is kept of them, and what its report says."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from support.tiny_networks import Tiny  # noqa: E402

import leanrecon  # noqa: E402
from leanrecon.evaluation.judges.network import NetworkJudge  # noqa: E402
from leanrecon.study.verify import find_damage  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.networks]

M = 16


def tables(weights: Path) -> dict[str, Any]:
    network = {"kind": "module", "builder": "support.tiny_networks:Tiny", "weights": str(weights), "size": 33}
    return {
        "dataset": {"kind": "simulated", "n_train": 40, "n_test": M, "voxels": 60, "size": 24},
        "features": {"pca": {"components": 8}},
        "regression": {"alpha": 10.0},
        "evaluate": {"preset": "kamitani", "judges": "preset", "permutations": 1, "resamples": 100},
        "judges": {
            "tiny": {**network, "layer": "pool"},
            "far": {**network, "layer": "first", "measure": "distance"},
            "named": {**network, "measure": "classes"},
        },
    }


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.pth"
    torch.save(Tiny().state_dict(), path)
    return path


def test_a_study_is_judged_continued_and_verified(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    own = NetworkJudge.encode

    def seen(self: NetworkJudge, images: Any) -> Any:
        encoded.append(len(images))
        return own(self, images)

    monkeypatch.setattr(NetworkJudge, "encode", seen)
    study = tmp_path / "study"
    leanrecon.run(tables(weights), study=study)
    metrics = json.loads((study / "evaluation/metrics.json").read_text())
    keys = {"two_way_rgb", "two_way_tiny", "top1_tiny_reverse", "distance_far", "way50_named", "ssim_rgb", "pixcorr"}
    assert keys <= set(metrics["final"])
    assert {"two_way_tiny", "distance_far", "way50_named"} <= set(metrics["baselines"]["random_train_image"])
    assert [quarter["rows"] for quarter in metrics["by_similarity"]] == [4] * 4
    assert metrics["departures"] == {}
    assert "Judged as kamitani" in " ".join(metrics["notes"])
    by_hand = np.mean([quarter["final"]["two_way_tiny"]["value"] for quarter in metrics["by_similarity"]])
    assert by_hand == pytest.approx(metrics["final"]["two_way_tiny"]["value"])
    report = (study / "report.html").read_text()
    assert "By likeness to the train images" in report
    assert "50-way identification by named" in report
    record = json.loads((study / "run.json").read_text())["stages"]["evaluate"]
    assert record["peak_bytes"] <= record["planned_bytes"]
    assert not find_damage(study)

    assert sum(encoded) > 3 * 2 * M
    encoded.clear()
    leanrecon.run(tables(weights), study=study)
    assert not encoded
    (study / "evaluation/metrics.json").unlink()
    leanrecon.run(tables(weights), study=study)
    assert not encoded  # embeddings are kept
    assert json.loads((study / "evaluation/metrics.json").read_text())["final"] == metrics["final"]
    torch.manual_seed(1)
    torch.save(Tiny().state_dict(), weights)
    leanrecon.run(tables(weights), study=study)
    assert sum(encoded) > 3 * 2 * M  # those of other weights are replaced
