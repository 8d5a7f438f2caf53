"""Studies whose folds hold a single test image: intervals, identification and R² of all folds together."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.stats import bootstrap

import leanrecon

Array = np.ndarray[Any, Any]

pytestmark = pytest.mark.slow

N = 12


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Leave one out over 12 images."""
    folder = tmp_path_factory.mktemp("leave_one_out")
    rng = np.random.default_rng(0)
    code = rng.standard_normal((N, 6))
    images = np.clip(128 + 40 * (code @ rng.standard_normal((6, 432))), 0, 255).astype(np.uint8)
    np.save(folder / "b.npy", (code @ rng.standard_normal((6, 40))).astype(np.float32))
    np.save(folder / "s.npy", images.reshape(N, 12, 12, 3))
    settings = {
        "dataset": {"betas": str(folder / "b.npy"), "stimuli": str(folder / "s.npy"), "folds": N},
        "features": {"pixels": {"size": 6}, "pca": {"components": 5, "size": 8}},
        "stage1": {"space": "pca"},
        "evaluate": {"permutations": 1, "resamples": 5000},
    }
    leanrecon.run(settings, study=folder / "study")
    return folder / "study"


def rows_of(study: Path) -> tuple[list[int], Array, Array]:
    """In the order of the folds: the rows, the reconstructions and the images seen, as flat rows."""
    folds = json.loads((study / "folds.json").read_text())["folds"]
    order = [row for fold in folds for row in fold]
    drawn = [Image.open(study / f"variants/fold{k:02d}/reconstructions/final/00000.png") for k in range(N)]
    seen = np.load(study.parent / "s.npy")[order]
    return order, np.stack([np.asarray(image).ravel() for image in drawn]).astype(float), seen.reshape(N, -1)


def test_figures_are_those_of_all_images_together(study: Path) -> None:
    final = json.loads((study / "evaluation" / "metrics.json").read_text())["final"]
    _, drawn, seen = rows_of(study)
    r = np.corrcoef(drawn, seen)[:N, N:]
    wins = [np.mean([r[k, k] > r[k, j] for j in range(N) if j != k]) for k in range(N)]
    back = [np.mean([r[k, k] > r[j, k] for j in range(N) if j != k]) for k in range(N)]
    assert final["two_way_pixels"]["value"] == pytest.approx(np.mean(wins))
    assert final["two_way_pixels_reverse"]["value"] == pytest.approx(np.mean(back))
    assert final["top1_pixels"]["chance"] == pytest.approx(1 / N)
    assert final["pixcorr"]["value"] == pytest.approx(np.diag(r).mean(), abs=1e-6)
    expected = bootstrap((np.diag(r),), np.mean, n_resamples=5000, method="percentile").confidence_interval
    width = expected.high - expected.low
    assert final["pixcorr"]["low"] == pytest.approx(expected.low, abs=0.1 * width)
    assert final["pixcorr"]["high"] == pytest.approx(expected.high, abs=0.1 * width)
    wrong = [r[k, j] for k in range(N) for j in range(N) if j != k]
    assert final["pixcorr"]["chance"] == pytest.approx(np.mean(wrong), abs=1e-6)


def test_r2_of_features_that_folds_share_is_that_of_all_images(study: Path) -> None:
    import zarr

    order, _, _ = rows_of(study)
    metrics = json.loads((study / "evaluation" / "metrics.json").read_text())
    predicted = np.concatenate([zarr.open_array(study / f"variants/fold{k:02d}/predictions/pixels/test.zarr")[:] for k in range(N)])  # fmt: skip
    true = zarr.open_array(study / "features/pixels/train.zarr")[:][order].astype(float)
    error = np.square(predicted - true).sum(axis=0) / np.square(true - true.mean(axis=0)).sum(axis=0)
    assert metrics["features"]["pixels"]["latent_r2_mean"]["value"] == pytest.approx(1 - error.mean(), abs=1e-6)
    assert metrics["features"]["pca"]["two_way_features"]["low"] is not None


def test_the_report_says_that_folds_were_pooled(study: Path) -> None:
    metrics = json.loads((study / "evaluation" / "metrics.json").read_text())
    assert any("pooled" in note for note in metrics["notes"])
    assert "A fold has a single test image" in (study / "report.html").read_text()
    with (study / "evaluation" / "scores.csv").open() as file:
        scores = list(csv.DictReader(file))
    assert len(scores) == N
    value = np.mean([float(row["final.two_way_pixels"]) for row in scores])
    assert metrics["final"]["two_way_pixels"]["value"] == pytest.approx(value)
