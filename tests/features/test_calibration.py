"""A space that learns its decode from out-of-fold predictions, as stage 1 uses it."""

import numpy as np
import pytest
from support.calibrating_space import Shrunken, ShrunkenSettings

from leanrecon.context import Context
from leanrecon.errors import BudgetError, StoreError
from leanrecon.features.extract import decode_rows
from leanrecon.features.space import make_space
from leanrecon.stores import Store, as_matrix

SHAPE = (4, 4, 1)


@pytest.fixture
def data(store_of, smooth_images):
    """Images, and predictions of 60 rows that show them: the pixels at a third of their contrast."""
    images = smooth_images(40, *SHAPE)
    stimulus = np.concatenate([np.arange(40), np.arange(20)])  # 20 images are shown twice
    pixels = images.reshape(40, -1)[stimulus] / np.float32(255)
    predictions = ((pixels - 0.5) / 3 + 0.5).astype(np.float32)
    return store_of(images), as_matrix(store_of(predictions, "predictions/mine/train.zarr")), stimulus


def space():
    return Shrunken(ShrunkenSettings(), name="mine")


def test_decode_undoes_what_predictions_lack(data, tmp_path):
    images, predictions, stimulus = data
    calibrated = space()
    calibrated.calibrate(predictions, images, stimulus, tmp_path / "calibration.npz", Context.of())
    assert calibrated.gain == pytest.approx(3, rel=1e-4)
    rows = np.empty(predictions.shape, np.float32)
    predictions.read(range(60), range(16), rows)
    drawn = calibrated.decode(rows[:40], range(40), SHAPE)
    np.testing.assert_array_equal(drawn, images[:])
    assert space().decode(rows[:40], range(40), SHAPE).std() < 0.5 * images[:].std()


def test_the_calibration_is_part_of_what_images_are_made_of(data, tmp_path):
    images, predictions, stimulus = data
    plain, calibrated, loaded = space(), space(), space()
    calibrated.calibrate(predictions, images, stimulus, tmp_path / "calibration.npz", Context.of())
    assert calibrated.decode_made_of() != plain.decode_made_of()
    assert calibrated.made_of() == plain.made_of()  # features do not depend on it
    loaded.load_calibration(tmp_path / "calibration.npz")
    assert loaded.decode_made_of() == calibrated.decode_made_of()


def test_a_calibration_is_kept_and_another_one_refused(data, store_of, tmp_path):
    images, predictions, stimulus = data
    path = tmp_path / "calibration.npz"
    space().calibrate(predictions, images, stimulus, path, Context.of())
    written = path.stat().st_mtime_ns
    space().calibrate(predictions, images, stimulus, path, Context.of())
    assert path.stat().st_mtime_ns == written
    with pytest.raises(StoreError, match="another calibration"):
        space().calibrate(predictions, images, stimulus[::-1], path, Context.of())
    space().calibrate(predictions, images, stimulus[::-1], path, Context.of(overwrite=True))
    assert path.stat().st_mtime_ns > written


def test_too_small_a_budget_is_refused_before_any_work(data, tmp_path):
    images, predictions, stimulus = data
    with pytest.raises(BudgetError, match="calibration of mine needs at least"):
        space().calibrate(predictions, images, stimulus, tmp_path / "calibration.npz", Context.of("1B"))
    assert not (tmp_path / "calibration.npz").exists()


def test_spaces_without_calibration_ignore_it(data, tmp_path):
    images, predictions, stimulus = data
    plain = make_space("pixels", {})
    assert not plain.calibrates
    plain.calibrate(predictions, images, stimulus, tmp_path / "calibration.npz")
    assert not (tmp_path / "calibration.npz").exists()
    store = Store.open(tmp_path / "predictions" / "mine" / "train.zarr")
    assert sum(1 for _ in decode_rows(plain, store, SHAPE)) == 60
