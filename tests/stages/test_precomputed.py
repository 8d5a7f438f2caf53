"""Precomputed features end to end: studies without images, and spaces of them beside others."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr
from scipy.io import savemat
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from support.small_study import damage_of

import leanrecon
from leanrecon.errors import InputError, LeanreconError, SettingsError
from leanrecon.stages.repair import mend
from leanrecon.study.verify import find_damage

Array = np.ndarray[Any, Any]

pytestmark = pytest.mark.slow

N, M, VOXELS, DIMS = 60, 20, 15, 7


class Data:
    """Betas of images that can't be had, and features of them."""

    def __init__(self, folder: Path) -> None:
        rng = np.random.default_rng(0)
        self.folder = folder
        self.features = rng.standard_normal((N + M, DIMS)).astype(np.float32)
        self.features[:, 6] = rng.standard_normal(N + M)  # one that no voxel tells
        mixing = rng.standard_normal((DIMS, VOXELS))
        mixing[6] = 0
        self.betas = (self.features @ mixing + rng.standard_normal((N + M, VOXELS))).astype(np.float32)
        for name, array in (("b", self.betas), ("f", self.features)):
            np.save(folder / f"{name}_train.npy", array[:N])
            np.save(folder / f"{name}_test.npy", array[N:])

    def settings(self, **space: Any) -> dict[str, Any]:
        return {
            "memory": "4GB",
            "dataset": {"betas_train": str(self.folder / "b_train.npy"), "betas_test": str(self.folder / "b_test.npy")},
            "features": {"net": {"kind": "precomputed", **(space or self.paths("f_train.npy", "f_test.npy"))}},
            "regression": {"alpha": 10.0},
            "evaluate": {"resamples": 200},
        }

    def paths(self, train: str, test: str) -> dict[str, str]:
        return {"train": str(self.folder / train), "test": str(self.folder / test)}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return Data(tmp_path_factory.mktemp("blind"))


@pytest.fixture(scope="module")
def done(data: Data) -> Path:
    leanrecon.run(data.settings(), study=data.folder / "study")
    return data.folder / "study"


@pytest.fixture
def study(done: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(done, tmp_path / "study"))


def figures_of(study: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((study / "evaluation" / "metrics.json").read_text())
    return found


def test_a_study_without_images_predicts_and_compares_features(data: Data, done: Path) -> None:
    x, test = (data.betas[part].astype(float) for part in (slice(N), slice(N, None)))
    mean, spread = x.mean(axis=0), x.std(axis=0, ddof=1)
    expected = Ridge(10.0).fit((x - mean) / spread, data.features[:N]).predict((test - mean) / spread)
    predicted = leanrecon.open(done).predictions("net")
    np.testing.assert_allclose(predicted, expected, atol=1e-4)
    true = data.features[N:]
    found = figures_of(done)["features"]["net"]
    r2 = r2_score(true, predicted, multioutput="raw_values")
    r = [np.corrcoef(true[:, k], predicted[:, k])[0, 1] for k in range(DIMS)]
    np.testing.assert_allclose(np.load(done / "evaluation/latent_r2/net.npy"), r2, rtol=1e-5)
    np.testing.assert_allclose(np.load(done / "evaluation/latent_r/net.npy"), r, rtol=1e-5)
    assert found["latent_r2_mean"]["value"] == pytest.approx(r2.mean(), abs=1e-6)
    assert found["latent_r_mean"]["value"] == pytest.approx(np.mean(r), abs=1e-6)
    cross = np.corrcoef(predicted, true)[:M, M:]
    wins = [np.mean([cross[i, i] > cross[i, j] for j in range(M) if j != i]) for i in range(M)]
    assert found["two_way_features"]["value"] == pytest.approx(np.mean(wins))
    assert found["two_way_features"]["chance"] == 0.5
    with (done / "evaluation/scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["net.two_way_features"]) for row in rows] == pytest.approx(wins)


def test_it_says_what_is_missing(done: Path) -> None:
    assert not (done / "reconstructions").exists()
    assert not (done / "stimuli/train.zarr").exists()
    metrics = figures_of(done)
    assert "stage1" not in metrics
    assert any("no images" in note and "no pixel metrics" in note for note in metrics["notes"])
    assert any("another program made" in note and "f_train.npy" in note for note in metrics["notes"])
    page = (done / "report.html").read_text()
    assert "No image was reconstructed" in page
    assert "no pixel metrics" in page
    assert "Features are predicted above chance" in page
    assert '<section class="gallery-section"' not in page
    assert "<script>" not in page


def test_a_finished_study_stays_as_it_is_from_any_folder(
    data: Data, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.read_bytes() for path in study.rglob("*") if path.is_file()}
    monkeypatch.chdir(tmp_path)
    leanrecon.run(study / "study.toml", study=study)
    assert {path: path.read_bytes() for path in study.rglob("*") if path.is_file()} == before


@pytest.mark.alone
def test_the_plan_covers_what_was_measured_and_loads_nothing(data: Data, done: Path) -> None:
    lines = leanrecon.plan(data.settings())
    assert [line.stage for line in lines] == ["dataset", "features net", "regression net", "evaluate"]
    stages = json.loads((done / "run.json").read_text())["stages"]
    for line in lines:
        assert stages[line.stage]["peak_bytes"] <= stages[line.stage]["planned_bytes"], line.stage
    assert "no images" in lines[-1].summary


@pytest.mark.parametrize("lost", ["features/net/train.zarr/c/0/0", "predictions/net/test.zarr/c/0/0"])
def test_damage_is_found_and_mended(study: Path, lost: str) -> None:
    good = (study / lost).read_bytes()
    (study / lost).write_bytes(good[:-9] + bytes(9))
    mend(study, find_damage(study))
    assert damage_of(study) == {}
    assert (study / lost).read_bytes() == good


@pytest.mark.parametrize("lost", ["report.html", "evaluation/latent_r/net.npy", "features/net/sources_train.json"])
def test_a_lost_file_is_written_again(data: Data, study: Path, lost: str) -> None:
    before = (study / lost).read_bytes()
    (study / lost).unlink()
    leanrecon.run(data.settings(), study=study)
    assert (study / lost).exists()
    assert lost.endswith(".html") or (study / lost).read_bytes() == before


def test_the_mirror_holds_all_of_it(data: Data, tmp_path: Path) -> None:
    leanrecon.run(data.settings(), study=tmp_path / "study", mirror=tmp_path / "mirror")
    for path in (tmp_path / "study").rglob("*"):
        if path.is_file() and path.name not in ("run.json", "study.toml"):
            assert (tmp_path / "mirror" / path.relative_to(tmp_path / "study")).read_bytes() == path.read_bytes()


def written(folder: Path, ending: str, features: Array, ids: list[str]) -> dict[str, str]:
    """All features in one file, in another order, by id."""
    order = np.random.default_rng(1).permutation(len(ids))
    path, shuffled, names = folder / f"all.{ending}", features[order], [ids[k] for k in order]
    if ending == "npz":
        np.savez(path, x=shuffled, ids=np.array(names))
    elif ending == "h5":
        with h5py.File(path, "w") as file:
            file["x"] = shuffled.astype(np.float64)
            file.create_dataset("ids", data=names, dtype=h5py.string_dtype())
    elif ending == "mat":
        savemat(path, {"x": shuffled, "ids": np.array(names, dtype=object)})
    else:
        np.save(path, shuffled.reshape(len(ids), 1, -1))  # tokens are flattened
        (folder / "ids.txt").write_text("\n".join(names))
        return {"array": str(path), "ids": str(folder / "ids.txt")}
    return {"path": str(path), "array": ":x", "ids": ":ids"}


@pytest.mark.parametrize("ending", ["npz", "h5", "mat", "npy"])
def test_rows_are_found_by_id_in_every_format(data: Data, tmp_path: Path, ending: str) -> None:
    space = written(tmp_path, ending, data.features, [str(k) for k in range(N + M)])
    leanrecon.run(data.settings(**space), study=tmp_path / "study", until="features")
    for split, rows in (("train", slice(N)), ("test", slice(N, None))):
        store = zarr.open_array(tmp_path / f"study/features/net/{split}.zarr")
        np.testing.assert_array_equal(store[:], data.features[rows])


def test_numbers_are_ids_too(data: Data, tmp_path: Path) -> None:
    order = np.arange(N + M)[::-1]
    np.savez(tmp_path / "f.npz", x=data.features[order], ids=order.astype(np.float64))
    space = {"path": str(tmp_path / "f.npz"), "array": ":x", "ids": ":ids"}
    leanrecon.run(data.settings(**space), study=tmp_path / "study", until="features")
    np.testing.assert_array_equal(leanrecon.open(tmp_path / "study").features("net", "test"), data.features[N:])


def test_rows_of_test_images_never_enter_train(data: Data, tmp_path: Path) -> None:
    """Train images whose features are only among the test rows are missing, not taken from there."""
    ids = [str(k) for k in range(N + M)]
    for name, some in (("train", ids[: N - 3]), ("test", ids[N - 3 :])):
        np.save(tmp_path / f"{name}.npy", data.features[[int(k) for k in some]])
        (tmp_path / f"{name}.txt").write_text("\n".join(some))
    space = {f"{of}{split}": str(tmp_path / f"{split}.{'txt' if of else 'npy'}") for split in ("train", "test") for of in ("", "ids_")}  # fmt: skip
    with pytest.raises(InputError, match="3 of 60 train images have no features: 57, 58, 59"):
        leanrecon.run(data.settings(**space), study=tmp_path / "study")


def test_folds_without_images(data: Data, tmp_path: Path) -> None:
    np.save(tmp_path / "b.npy", data.betas)
    np.save(tmp_path / "f.npy", data.features)
    settings = data.settings(array=str(tmp_path / "f.npy")) | {
        "dataset": {"betas": str(tmp_path / "b.npy"), "folds": 4}
    }
    done = leanrecon.run(settings, study=tmp_path / "study")
    joined = done.predictions("net")
    folds = json.loads((tmp_path / "study/folds.json").read_text())["folds"]
    r2 = [r2_score(data.features[rows], joined[rows], multioutput="raw_values").mean() for rows in folds]
    assert done.figures["features"]["net"]["latent_r2_mean"]["value"] == pytest.approx(np.mean(r2), abs=1e-6)
    of_fold = figures_of(tmp_path / "study/variants/fold01")["features"]["net"]["latent_r2_mean"]["value"]
    assert of_fold == pytest.approx(r2[1], abs=1e-6)


def test_leaving_one_out_pools_the_test_rows(data: Data, tmp_path: Path) -> None:
    np.save(tmp_path / "b.npy", data.betas[:20])
    np.save(tmp_path / "f.npy", data.features[:20])
    settings = data.settings(array=str(tmp_path / "f.npy")) | {
        "dataset": {"betas": str(tmp_path / "b.npy"), "folds": 20}
    }
    done = leanrecon.run(settings, study=tmp_path / "study")
    predicted, true = done.predictions("net"), data.features[:20]
    expected = r2_score(true, predicted, multioutput="raw_values").mean()
    found = done.figures["features"]["net"]
    assert found["latent_r2_mean"]["value"] == pytest.approx(expected, abs=1e-6)
    r = [np.corrcoef(true[:, k], predicted[:, k])[0, 1] for k in range(DIMS)]
    assert found["latent_r_mean"]["value"] == pytest.approx(np.mean(r), abs=1e-6)
    assert found["two_way_features"]["low"] is not None


def test_a_precomputed_space_stands_beside_others_where_there_are_images(data: Data, tmp_path: Path) -> None:
    images = np.random.default_rng(2).integers(0, 256, (N + M, 8, 8, 1), np.uint8)
    images[5] = images[3]  # shown twice, with the same features
    features = data.features.copy()
    features[5] = features[3]
    for name, of in (("s", images), ("g", features)):
        np.save(tmp_path / f"{name}_train.npy", of[:N])
        np.save(tmp_path / f"{name}_test.npy", of[N:])
    settings = data.settings(train=str(tmp_path / "g_train.npy"), test=str(tmp_path / "g_test.npy"))
    settings["features"]["pixels"] = {}
    settings["dataset"] |= {f"stimuli_{of}": str(tmp_path / f"s_{of}.npy") for of in ("train", "test")}
    settings["evaluate"] |= {"permutations": 1}
    done = leanrecon.run(settings, study=tmp_path / "study")
    assert done.features("net").shape == (N - 1, DIMS)
    np.testing.assert_array_equal(done.features("net"), np.delete(features[:N], 5, axis=0))
    assert {"pixcorr", "two_way_pixels"} <= set(done.figures["final"])
    assert set(done.figures["features"]) == {"net", "pixels"}

    np.save(tmp_path / "g_train.npy", data.features[:N])  # rows that are not in the order of the trials
    with pytest.raises(InputError, match="rows 3 and 5 of .* differ, and these trials show the same image"):
        leanrecon.run(settings, study=tmp_path / "other")


def arrays_with(data: Data, folder: Path, train: Array, **more: Any) -> dict[str, Any]:
    np.save(folder / "x.npy", train)
    return data.settings(train=str(folder / "x.npy"), test=str(data.folder / "f_test.npy"), **more)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("short", ["59 rows for the 60 trials", "ids_train"]),
        ("wide", ["shape (60, 9)", "same number of features"]),
        ("nan", ["NaN or infinite in 1 of", "(4)"]),
        ("text", ["features.net.train", "numbers"]),
        ("flat", ["shape (60,)", "[images, dims]"]),
        ("doubled", ["1 ids occur more than once: 7", "each image once"]),
        ("few ids", ["60 rows and ids_train 59 ids", "same order"]),
        ("unknown", ["1 of 60 train images have no features: 12", "stimuli/ids.json"]),
    ],
)
def test_what_does_not_fit_is_refused_with_what_to_do(
    data: Data, tmp_path: Path, change: str, words: list[str]
) -> None:
    train: Array = data.features[:N].copy()
    ids = [str(k) for k in range(N)]
    if change == "nan":
        train[4, 2] = np.nan
    if change == "doubled":
        ids[8] = "7"
    if change == "unknown":
        ids[12] = "n01518878_5958"
    arrays = {"short": train[:-1], "wide": np.ones((N, 9)), "text": train.astype(str), "flat": train[:, 0]}
    more = {}
    if change in ("doubled", "few ids", "unknown"):
        (tmp_path / "ids.txt").write_text("\n".join(ids[: 59 if change == "few ids" else N]))
        (tmp_path / "test.txt").write_text("\n".join(str(k) for k in range(N, N + M)))
        more = {"ids_train": str(tmp_path / "ids.txt"), "ids_test": str(tmp_path / "test.txt")}
    settings = arrays_with(data, tmp_path, arrays.get(change, train), **more)
    with pytest.raises(InputError) as caught:
        leanrecon.run(settings, study=tmp_path / "study")
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"features": {"pca": {}}}, ["[features.pca] needs them", "precomputed"]),
        ({"refine": {"kind": "lcm", "base": "x", "text": "net"}}, ["[refine]"]),
        ({"judges": {"clip": {"model": "x"}}}, ["[judges.clip]"]),
    ],
)
def test_what_needs_images_is_refused_by_name(data: Data, tmp_path: Path, tables: Any, words: list[str]) -> None:
    for act in (leanrecon.plan, lambda of: leanrecon.run(of, study=tmp_path / "study")):
        with pytest.raises(LeanreconError) as caught:
            act(data.settings() | tables)
        for word in words:
            assert word in str(caught.value)
    assert not (tmp_path / "study").exists()


def test_a_stage_that_needs_images_says_so(data: Data) -> None:
    with pytest.raises(InputError, match="the stage stage1 needs images"):
        leanrecon.plan(data.settings(), until="stage1")


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({}, "no features are given"),
        ({"train": "a.npy"}, "set train and test"),
        ({"train": "a.npy", "test": "b.npy", "array": "c.npy"}, "array and train or test"),
        ({"array": ":x"}, "key of `path`"),
        ({"train": "a.npy", "test": "b.npy", "ids_train": "c.txt"}, "without ids_test"),
        ({"array": "a.npy", "ids_train": "c.txt", "ids_test": "d.txt"}, "takes its ids from ids, not from"),
        ({"train": "a.npy", "test": "b.npy", "ids": "c.txt"}, "train and test take their ids from ids_train"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(space: dict[str, str], words: str) -> None:
    tables = {
        "dataset": {"betas": "b.npy", "test_fraction": 0.5},
        "features": {"net": {"kind": "precomputed", **space}},
    }
    with pytest.raises(SettingsError, match=words):
        leanrecon.plan(tables)
