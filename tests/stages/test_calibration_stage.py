"""The calibration hook: a feature space learns its decode from predictions of train rows that were not fitted on."""

from typing import Literal

import numpy as np
import pytest
from pydantic import BaseModel
from sklearn.linear_model import Ridge

import leanrecon
from leanrecon import kinds
from leanrecon.errors import SettingsError
from leanrecon.features.pixels import Pixels
from leanrecon.places.files import write_whole
from leanrecon.stores import Store

pytestmark = pytest.mark.slow


class GainSettings(BaseModel):
    kind: Literal["gain"] = "gain"
    size: str = "original"


class Gain(Pixels):
    """Pixels whose decode multiplies predictions by a gain that calibration learned."""

    Settings = GainSettings
    calibrates = True
    gain = None

    def calibrate(self, predictions, images, stimulus, path, context=None):
        rows = np.empty(predictions.shape, np.float32)
        predictions.read(range(predictions.shape[0]), range(predictions.shape[1]), rows)
        seen = images[0 : images.rows].reshape(images.rows, -1)[stimulus] / 255
        self.gain = float((rows * seen).sum() / (rows * rows).sum())
        write_whole(path, lambda file: np.savez(file, gain=self.gain))

    def load_calibration(self, path):
        with np.load(path) as file:
            self.gain = float(file["gain"])

    def decode_made_of(self):
        return {"gain": self.gain}

    def decode(self, features, rows, image_shape):
        return super().decode(features * np.float32(self.gain), rows, image_shape)


@pytest.fixture
def done(tmp_path, monkeypatch):
    monkeypatch.setitem(kinds.BUILT_IN["features"], "gain", f"{__name__}:Gain")
    monkeypatch.setattr(kinds, "import_module", lambda name: __import__("sys").modules[name] if name == __name__ else __import__("importlib").import_module(name))  # fmt: skip
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (30, 8, 8, 1), np.uint8)
    shown = np.concatenate([np.arange(30), np.arange(15)])  # half of the images twice
    betas = images[shown].reshape(45, -1) / 255 @ rng.standard_normal((64, 20)) + rng.standard_normal((45, 20))
    np.save(tmp_path / "betas.npy", betas.astype(np.float32))
    np.save(tmp_path / "stimuli.npy", images[shown])
    np.savetxt(tmp_path / "test.txt", np.arange(25, 30), fmt="%d")
    tables = {
        "memory": "4GB",
        "dataset": {
            "kind": "arrays",
            "betas": str(tmp_path / "betas.npy"),
            "stimuli": str(tmp_path / "stimuli.npy"),
            "test_index": str(tmp_path / "test.txt"),
            "repeats": "single",
            "test_repeats": "single",
        },
        "features": {"gain": {}},
        "regression": {"alpha": 2.0},
        "evaluate": {"permutations": 1, "resamples": 100},
    }
    return leanrecon.run(tables, study=tmp_path / "study")


def test_train_rows_are_predicted_by_fits_without_their_image(done):
    store = Store.open(done.path / "predictions" / "gain" / "train.zarr")
    predictions, shown = store[0 : store.rows], done.stimulus("train")
    x = done.betas("train").astype(float)
    y = done.features("gain", "train")[shown].astype(float)
    x = (x - x.mean(axis=0)) / x.std(axis=0, ddof=1)
    assert len(set(shown)) < len(shown), "some images were shown twice"
    for image in set(shown):
        left_out = shown == image
        expected = Ridge(2.0).fit(x[~left_out], y[~left_out]).predict(x[left_out])
        np.testing.assert_allclose(predictions[left_out], expected, atol=1e-4)


def test_first_images_use_what_was_calibrated(done):
    store = Store.open(done.path / "predictions" / "gain" / "train.zarr")
    rows, shown = store[0 : store.rows], done.stimulus("train")
    seen = done.stimuli("train").reshape(len(done.stimuli("train")), -1)[shown] / 255
    gain = (rows * seen).sum() / (rows * rows).sum()
    assert gain != pytest.approx(1, abs=1e-3)
    expected = np.rint(np.clip(done.predictions("gain") * gain, 0, 1) * 255)
    images = np.stack([np.asarray(image) for image in done.images("stage1")]).reshape(expected.shape)
    assert np.abs(images - expected).max() <= 1


def test_what_a_run_refuses_its_plan_refuses_too(done, tmp_path):
    settings = done.settings | {"stage1": {"calibrate": "linear"}}
    for refused in (leanrecon.plan, lambda tables: leanrecon.run(tables, study=tmp_path / "twice")):
        with pytest.raises(SettingsError, match=r"stage1\.calibrate is set, but gain learns from predictions"):
            refused(settings)
    assert not (tmp_path / "twice").exists()
