"""Rows and images counted apart, end to end: each image once on disk, single trials and averages as asked."""

import json

import numpy as np
import pytest
from sklearn.linear_model import Ridge

import leanrecon
from leanrecon.places.files import write_json
from leanrecon.stores import Store

pytestmark = pytest.mark.slow

N_IMAGES, N_TEST, REPEATS, VOXELS, SIDE = 20, 6, 3, 15, 12


@pytest.fixture
def folder(tmp_path):
    """Betas of repeated images in arrays, train and test apart; repeats are neither sorted nor side by side."""
    rng = np.random.default_rng(3)
    images = rng.integers(0, 256, (N_IMAGES + N_TEST, SIDE, SIDE, 1), np.uint8)
    order = rng.permutation(np.repeat(np.arange(N_IMAGES), REPEATS))
    test_order = rng.permutation(np.repeat(np.arange(N_IMAGES, N_IMAGES + N_TEST), 2))
    mixing = rng.standard_normal((SIDE * SIDE, VOXELS))

    def betas(shown):
        signal = images[shown].reshape(len(shown), -1) / 255 @ mixing
        return (signal + rng.standard_normal((len(shown), VOXELS))).astype(np.float32)

    for name, shown in (("train", order), ("test", test_order)):
        np.save(tmp_path / f"betas_{name}.npy", betas(shown))
        np.save(tmp_path / f"stimuli_{name}.npy", images[shown])
    return tmp_path


def run(folder, name, **changes):
    dataset = {"kind": "arrays"} | {
        f"{role}_{split}": str(folder / f"{role}_{split}.npy")
        for role in ("betas", "stimuli")
        for split in ("train", "test")
    }
    tables = {
        "memory": "4GB",
        "dataset": dataset | changes,
        "features": {"pixels": {}},
        "regression": {"alpha": 10.0},
        "evaluate": {"permutations": 1, "resamples": 100},
    }
    return leanrecon.run(tables, study=folder / name)


def first_appearance(images):
    flat = [image.tobytes() for image in images]
    return list(dict.fromkeys(flat))


def test_each_image_is_kept_once_and_rows_say_which_they_show(folder):
    done = run(folder, "study", repeats="single", test_repeats="single")
    shown = np.load(folder / "stimuli_train.npy")
    assert done.stimuli("train").shape == (N_IMAGES, SIDE, SIDE, 1)
    assert [image.tobytes() for image in done.stimuli("train")] == first_appearance(shown)
    np.testing.assert_array_equal(done.stimuli("train")[done.stimulus("train")], shown)
    assert done.features("pixels", "train").shape[0] == N_IMAGES
    assert done.betas("train").shape[0] == N_IMAGES * REPEATS


def test_single_trials_predict_as_a_ridge_on_repeated_targets(folder):
    done = run(folder, "study", repeats="single", test_repeats="single")
    x, test = (np.load(folder / f"betas_{split}.npy").astype(float) for split in ("train", "test"))
    y = np.load(folder / "stimuli_train.npy").reshape(len(x), -1) / 255
    mean, spread = x.mean(axis=0), x.std(axis=0, ddof=1)
    expected = Ridge(10.0).fit((x - mean) / spread, y).predict((test - mean) / spread)
    np.testing.assert_allclose(done.predictions("pixels"), expected, atol=1e-5)
    assert len(done.scores) == N_TEST * 2


@pytest.mark.parametrize(("rescale", "factor"), [(False, 1.0), (True, np.sqrt(2))])
def test_averaged_test_rows_under_a_decoder_of_single_trials(folder, rescale, factor):
    done = run(folder, "study", repeats="single", test_repeats="average", rescale_average=rescale)
    betas, shown = np.load(folder / "betas_test.npy").astype(float), np.load(folder / "stimuli_test.npy")
    keys = [image.tobytes() for image in shown]
    expected = np.stack([betas[[k == key for k in keys]].mean(axis=0) for key in dict.fromkeys(keys)]) * factor
    np.testing.assert_allclose(done.betas("test"), expected, rtol=1e-6)
    assert len(done.scores) == N_TEST


def test_averages_of_train_rows(folder):
    done = run(folder, "study", repeats="average", test_repeats="average")
    betas, shown = np.load(folder / "betas_train.npy").astype(float), np.load(folder / "stimuli_train.npy")
    keys = [image.tobytes() for image in shown]
    expected = np.stack([betas[[k == key for k in keys]].mean(axis=0) for key in dict.fromkeys(keys)])
    np.testing.assert_allclose(done.betas("train"), expected, rtol=1e-6)


def test_folds_never_tear_an_image_apart(folder):
    done = run(folder, "study", repeats="single", test_repeats="single", folds=4)
    assert len(done.variants) >= 4
    rows = done.stimulus("train")
    tests = json.loads((folder / "study" / "folds.json").read_text())["folds"]
    seen = [set(rows[fold]) for fold in tests]
    assert all(not (a & b) for i, a in enumerate(seen) for b in seen[i + 1 :])
    assert len(done.scores) == len(rows)


def test_a_study_of_format_1_is_refused_by_name(folder):
    done = run(folder, "study", repeats="single", test_repeats="single")
    rows = done.path / "betas" / "rows.json"
    write_json(rows, {"train": {"stimulus": ["a"], "trials": [[0]], "repeats": [1]}})
    with pytest.raises(leanrecon.api.StoreError, match="format 1") as caught:
        run(folder, "study", repeats="single", test_repeats="single")
    assert "--overwrite" in str(caught.value)
    assert Store.open(done.path / "betas" / "train.zarr").complete  # nothing is lost
