"""A decoder of predicted features: it learns from predictions of train rows that were made without them."""

import json
import tomllib

import numpy as np
import pytest

import leanrecon
from leanrecon.errors import SettingsError
from leanrecon.stores.pictures import Pictures
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


FOLDS = 3


def study_in_folds(root, betas, stimuli, **how):
    for name, array in (("betas", betas), ("stimuli", stimuli)):
        np.save(root.with_name(f"{root.name}-{name}.npy"), array)
    files = {name: str(root.with_name(f"{root.name}-{name}.npy")) for name in ("betas", "stimuli")}
    tables = TABLES | {"dataset": {"kind": "arrays", "folds": FOLDS} | files}
    return leanrecon.run(tables, study=root, **how)


def tensors(folder):
    file = TensorFile(folder / "networks" / "decoder" / "network.safetensors")
    return {name: file.read(name) for name in file.names}


@pytest.mark.slow
@pytest.mark.networks
def test_networks_of_folds_read_predictions_of_their_own_train_rows(tmp_path):
    rng = np.random.default_rng(0)
    betas = rng.standard_normal((36, 20)).astype(np.float32)
    stimuli = rng.integers(0, 256, (36, 16, 16, 3), np.uint8)
    study = study_in_folds(tmp_path / "study", betas, stimuli)
    folds = [np.array(rows) for rows in json.loads((study.path / "folds.json").read_text())["folds"]]
    true = study.features("pixels", "train").astype(np.float64)
    for number, rows in enumerate(folds):
        folder = study.path / "variants" / f"fold{number:02d}"
        train = np.setdiff1d(np.arange(36), rows)
        X = betas[train].astype(np.float64)
        X = (X - X.mean(axis=0)) / X.std(axis=0)
        given, mean, wanted = X[1:] - X[1:].mean(axis=0), true[train[1:]].mean(axis=0), true[train[1:]]
        weights = np.linalg.solve(given.T @ given + 100 * np.eye(20), given.T @ (wanted - mean))
        found = np.asarray(leanrecon.stores.Store.open(folder / "predictions" / "pixels" / "train.zarr")[0:24])
        np.testing.assert_allclose(found[0], (X[0] - X[1:].mean(axis=0)) @ weights + mean, atol=2e-3)
        np.testing.assert_allclose(tensors(folder)["mean"], found.mean(axis=0), atol=1e-4)
        images = Pictures.open(folder / "reconstructions" / "stage1")
        of_all = Pictures.open(study.path / "reconstructions" / "stage1")
        for place, row in enumerate(rows):
            np.testing.assert_array_equal(images.read(place), of_all.read(int(row)))
    metrics = json.loads((study.path / "evaluation" / "metrics.json").read_text())
    assert (metrics["folds"], metrics["n_test"]) == (FOLDS, 36)
    assert "shuffled_betas" in metrics["baselines"]

    betas[folds[0]] += 1  # folds are dealt by images: those of the first one's test rows change places
    stimuli[folds[0]] = stimuli[folds[0]][::-1]
    other = study_in_folds(tmp_path / "other", betas, stimuli, until="decode")
    assert json.loads((other.path / "folds.json").read_text())["folds"] == [rows.tolist() for rows in folds]
    for number, same in ((0, True), (1, False)):
        one, two = (tensors(of.path / "variants" / f"fold{number:02d}") for of in (study, other))
        assert all((one[name] == two[name]).all() for name in one) == same


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
