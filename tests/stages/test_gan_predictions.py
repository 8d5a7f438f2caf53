"""A decoder of predicted features: it learns from predictions of train rows that were made without them."""

import json
import tomllib

import numpy as np
import pytest

import leanrecon
from leanrecon.errors import SettingsError
from leanrecon.weights.tensors import TensorFile

TABLES = {
    "memory": "2GB",
    "dataset": {"kind": "simulated", "n_train": 40, "n_test": 6, "size": 16, "voxels": 60},
    "features": {"pixels": {"size": 4}},
    "regression": {"alpha": 100.0, "standardize": True},
    "decode": {
        "kind": "gan", "space": "pixels", "size": 32, "width": 8, "hidden": 16, "batch_size": 12, "epochs": 1,
        "discriminator_width": 8,
    },
    "evaluate": {"permutations": 1, "resamples": 100},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.networks
def test_a_network_reads_predictions_that_were_made_without_their_image(tmp_path):
    study = leanrecon.run(TABLES, study=tmp_path / "study")
    betas, true = study.betas("train").astype(np.float64), study.features("pixels", "train").astype(np.float64)
    betas = (betas - betas.mean(axis=0)) / betas.std(axis=0)
    fitted = np.delete(betas, 0, axis=0), np.delete(true, 0, axis=0)  # the ridge of the others, which predicts row 0
    X, Y = (of - of.mean(axis=0) for of in fitted)
    weights = np.linalg.solve(X.T @ X + 100 * np.eye(X.shape[1]), X.T @ Y)
    expected = (betas[0] - fitted[0].mean(axis=0)) @ weights + fitted[1].mean(axis=0)
    predictions = study.path / "predictions" / "pixels" / "train.zarr"
    found = np.asarray(leanrecon.stores.Store.open(predictions)[0:40], np.float64)
    np.testing.assert_allclose(found[0], expected, atol=2e-3)
    network = TensorFile(study.path / "networks" / "decoder" / "network.safetensors")
    np.testing.assert_allclose(network.read("mean"), found.mean(axis=0), atol=1e-4)
    assert network.read("defc7.weight").shape == (16, 48)
    stages = json.loads((study.path / "run.json").read_text())["stages"]
    assert stages["decode"]["peak_bytes"] <= stages["decode"]["planned_bytes"]
    metrics = json.loads((study.path / "evaluation" / "metrics.json").read_text())
    assert {"shuffled_betas", "mean_train_image"} <= set(metrics["baselines"])
    assert set(metrics["features"]) == {"pixels"}
    kept = tomllib.loads((study.path / "study.toml").read_text())
    assert (kept["decode"]["space"], list(kept["features"])) == ("pixels", ["pixels"])
    before = (study.path / "evaluation" / "metrics.json").stat().st_mtime_ns
    leanrecon.run(study.path / "study.toml", study=study.path)
    assert (study.path / "evaluation" / "metrics.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"decode": {"kind": "gan", "space": "pixel"}}, r"decode.space = 'pixel' is not a feature space.*pixels"),
        ({"decode": {"kind": "gan"}}, r"leave out \[features\] and \[regression\]"),
        ({"stage1": {"space": "pixels"}}, r"leave out \[stage1\]"),
    ],
)
def test_tables_that_are_not_needed_are_refused(tmp_path, changed, said):
    with pytest.raises(SettingsError, match=said):
        leanrecon.run(TABLES | changed, study=tmp_path / "study")
