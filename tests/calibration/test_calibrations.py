"""Calibrations of first images: beside closed forms and scikit-learn, kept without pickles, asked whether they help."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import Ridge

from leanrecon import kinds
from leanrecon.calibration import boost as boosting
from leanrecon.calibration.boost import pixel_features, sampled, stride_of
from leanrecon.calibration.calibration import FILE, CalibrationData, CalibrationShapes, held_out_images, pairs
from leanrecon.calibration.linear import local_features
from leanrecon.calibration.trees import Trees, trees_of
from leanrecon.context import Context
from leanrecon.errors import BudgetError, SettingsError, StoreError
from leanrecon.memory import PeakMemory, process_memory

LEARNING = [
    {"kind": "linear"},
    {"kind": "boost", "iterations": 12, "least_leaf": 20},
]


def make(table, seed=0):
    settings = kinds.settings_of("calibrations", table, "stage1.calibrate.", default="none")
    return kinds.kind_of("calibrations", settings)(settings, seed=seed)


def learned(table, data, folder, context=None, seed=0):
    calibration = make(table, seed)
    context = context or Context.of("3GB", label="calibration")
    if not calibration.find(folder, {"first": data.first.content}, context):
        calibration.learn(data, folder, {"first": data.first.content}, context)
    return calibration


def images_of(data):
    return data.first[0 : data.first.rows] / np.float32(255), data.true[0 : data.true.rows] / np.float32(255)


@pytest.mark.parametrize("table", LEARNING, ids=lambda table: table["kind"])
@pytest.mark.parametrize("shape", [(14, 12, 1), (10, 9, 3)])
def test_what_is_learned_lowers_the_error_of_images_that_were_not_learned_from(table, shape, data_of, tmp_path):
    data = data_of(shape=shape)
    calibration = learned(table, data, tmp_path / "network")
    record = calibration.record()
    assert record["used"]
    assert record["held_out_images"] == round(0.15 * 48)
    fresh = data_of(rows=90, images=90, shape=shape)
    first, true = (store[60:90].astype(float) for store in (fresh.first, fresh.true))
    mended = np.stack([calibration.apply(image) for image in fresh.first[60:90]])
    assert mended.dtype == np.uint8
    assert np.mean((mended - true) ** 2) < 0.5 * np.mean((first - true) ** 2)
    assert record["held_out_mse"]["after"] == pytest.approx(np.mean((mended - true) ** 2) / 255**2, rel=0.8)


@pytest.mark.parametrize("table", LEARNING, ids=lambda table: table["kind"])
def test_what_was_learned_is_kept_and_another_one_refused(table, data_of, tmp_path):
    data, folder = data_of(), tmp_path / "network"
    image = data.first[0:1][0]
    before = learned(table, data, folder).apply(image)
    (kept,) = folder.iterdir()
    assert kept.name == f"{FILE}.safetensors"
    written = kept.stat().st_mtime_ns
    np.testing.assert_array_equal(learned(table, data, folder).apply(image), before)
    assert kept.stat().st_mtime_ns == written
    again = learned(table, data, tmp_path / "again")
    assert (tmp_path / "again" / kept.name).read_bytes() == kept.read_bytes()
    np.testing.assert_array_equal(again.apply(image), before)
    with pytest.raises(StoreError, match="trained with other settings: contrast"):
        learned(table | {"contrast": "match"}, data, folder)
    with pytest.raises(StoreError, match="trained with other settings: seed"):
        learned(table, data, folder, seed=1)
    learned(table | {"contrast": "match"}, data, folder, Context.of("3GB", overwrite=True))


def test_linear_is_the_ridge_of_scikit_learn(data_of, tmp_path):
    data = data_of(shape=(10, 9, 3))
    alpha = 1e-3
    calibration = learned({"kind": "linear", "alpha": alpha}, data, tmp_path)
    first, true = images_of(data)
    features = np.concatenate([local_features(image) for image in first]).astype(float)
    fitted = Ridge(alpha * len(features)).fit(features[:, :-1], true.reshape(-1).astype(float))
    expected = np.rint(np.clip(fitted.predict(local_features(first[3]).astype(float)[:, :-1]), 0, 1) * 255)
    found = calibration.apply(data.first[3:4][0]).reshape(-1)
    assert np.abs(found - expected).max() <= 1
    assert (found != data.first[3:4].reshape(-1)).any()


def test_features_are_of_a_pixel_and_its_surroundings():
    image = np.random.default_rng(0).random((7, 6, 3)).astype(np.float32)
    mean = np.random.default_rng(1).random((7, 6, 3)).astype(np.float32)
    found = pixel_features(image, mean).reshape(-1, 7, 6, 3)[:, 2, 3, 1]
    blurs = [gaussian_filter(image[:, :, 1], sigma)[2, 3] for sigma in (0.8, 1.6, 3.0)]
    around = [image[1, 3, 1], image[3, 3, 1], image[2, 2, 1], image[2, 4, 1]]
    own = image[:, :, 1]
    expected = [image[2, 3, 1], *blurs, *around, own.mean(), own.std(), mean[2, 3, 1], 2, 3, image[2, 3].mean(), 1]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert len(found) == boosting.n_features(image.shape)


@pytest.mark.parametrize("leaves", [2, 5, 12, 15])
def test_trees_predict_the_bytes_of_scikit_learn(leaves):
    rng = np.random.default_rng(leaves)
    given = rng.integers(0, 40, (3000, 5)) / 40  # with ties
    true = np.sin(6 * given[:, 0]) + given[:, 1] * given[:, 2] + 0.1 * rng.standard_normal(3000)
    grown = HistGradientBoostingRegressor(max_iter=30, max_leaf_nodes=leaves, early_stopping=False).fit(given, true)
    trees = trees_of(grown)
    fresh = np.concatenate([rng.random((500, 5)), given[:500], rng.random((20, 5)) * 10 - 5])
    np.testing.assert_array_equal(trees.predict(fresh.T), grown.predict(fresh))
    np.testing.assert_array_equal(Trees.of(trees.arrays()).predict(fresh.T), grown.predict(fresh))


def test_boost_grows_the_trees_of_scikit_learn(data_of, tmp_path):
    data = data_of()
    calibration = learned({"kind": "boost", "iterations": 9, "least_leaf": 30, "l2": 2.0}, data, tmp_path)
    first, true = images_of(data)
    mean = true.mean(axis=0, dtype=float).astype(np.float32)
    features = np.concatenate([pixel_features(image, mean).T for image in first])
    grown = HistGradientBoostingRegressor(
        max_iter=9,
        learning_rate=0.08,
        max_leaf_nodes=12,
        min_samples_leaf=30,
        l2_regularization=2.0,
        early_stopping=False,
    ).fit(features, true.reshape(-1))
    expected = grown.predict(pixel_features(first[5], mean).T)
    found = calibration.apply(data.first[5:6][0]).reshape(-1)
    np.testing.assert_array_equal(found, np.rint(np.clip(expected.astype(np.float32), 0, 1) * 255))
    assert calibration.record()["pixels"] == calibration.record()["pixels_there"] == 60 * 14 * 12


def test_of_many_pixels_a_stride_is_taken_from_all_images(data_of, monkeypatch):
    monkeypatch.setattr(boosting, "MOST_PIXELS", 700)
    data = data_of()
    mean = data.true[0 : data.true.rows].mean(axis=0) / np.float32(255)
    given, true = sampled(data, np.arange(60), mean.astype(np.float32), 3, Context.of())
    step = stride_of(60 * 168, 700)
    assert step == 15
    start = int(np.random.default_rng([3, 31]).integers(step))
    first, shown = images_of(data)
    np.testing.assert_array_equal(given[:, 0], first.reshape(-1)[start::step])
    np.testing.assert_array_equal(true, shown.reshape(-1)[start::step])
    assert len(given) <= 700
    assert stride_of(2800, 700) == 5  # odd: an even one might see every second column alone


def test_images_are_held_out_with_all_their_rows(data_of):
    held = held_out_images(np.arange(48), 0.15, 0)
    assert len(held) == 7
    np.testing.assert_array_equal(held, held_out_images(np.arange(48), 0.15, 0))
    assert (held != held_out_images(np.arange(48), 0.15, 1)).any()
    assert len(held_out_images(np.arange(5), 0.01, 0)) == 2
    data = data_of()
    for row, first, true in pairs(data, np.array([3, 4, 40, 59])):
        np.testing.assert_allclose(first, data.first[row : row + 1][0] / 255, atol=1e-6)
        np.testing.assert_allclose(true, data.true[row : row + 1][0] / 255, atol=1e-6)


@pytest.mark.parametrize("table", LEARNING, ids=lambda table: table["kind"])
def test_what_lowers_no_error_is_left_out(table, data_of, tmp_path):
    """First images that are the true ones can't be mended."""
    data = data_of()
    perfect = CalibrationData(data.true, data.true, data.stimulus)
    calibration = learned(table, perfect, tmp_path)
    assert not calibration.record()["used"]
    image = perfect.first[0:1][0]
    assert calibration.apply(image) is image
    assert not learned(table, perfect, tmp_path).record()["used"]


def test_matched_contrast_has_the_deviation_of_true_images(data_of, tmp_path):
    data = data_of(rows=200, images=200, shape=(16, 16, 1))
    flat, match = (
        learned({"kind": "linear", "contrast": contrast}, data, tmp_path / contrast) for contrast in ("mse", "match")
    )
    assert match.record()["gain"] > 1.05
    deviation = [np.mean([np.var(one.apply(image) / 255) for image in data.first[0:200]]) for one in (flat, match)]
    true = np.mean([np.var(image / 255) for image in data.true[0:200]])
    assert deviation[0] < 0.93 * true
    assert deviation[1] == pytest.approx(true, rel=0.1)  # what leaves 0 to 1 is clipped


def test_settings_are_checked_by_their_kind():
    with pytest.raises(SettingsError, match="stage1.calibrate.kind = 'bost'.*did you mean boost"):
        make({"kind": "bost"})
    with pytest.raises(SettingsError, match="stage1.calibrate.leaves = 16"):
        make({"kind": "boost", "leaves": 16})


def test_too_small_a_budget_is_refused_before_any_work(data_of, tmp_path):
    with pytest.raises(BudgetError, match="calibration needs at least"):
        learned({"kind": "boost"}, data_of(), tmp_path, Context.of("1B", label="calibration"))
    assert list(tmp_path.glob("*.safetensors")) == []


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["linear", "boost"])
def test_learning_takes_no_more_than_was_planned(kind, data_of, tmp_path):
    import sklearn.ensemble  # noqa: F401
    from scipy import ndimage  # noqa: F401

    data = data_of(rows=150, images=150, shape=(64, 64, 3), chunk=2_000_000)
    calibration = make({"kind": kind})
    planned = calibration.plan(CalibrationShapes(150, 150, (64, 64, 3)))
    before = process_memory()
    with PeakMemory() as peak:
        calibration.learn(data, tmp_path, {}, Context.of("3GB"))
    assert peak.peak - before <= planned.work
    kept = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert kept <= planned.disk
