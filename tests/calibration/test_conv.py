"""The U-Net that calibrates first images: begins as the identity, continues to the same bytes, follows from its seed."""

import copy

import numpy as np
import pytest

from leanrecon.calibration.calibration import CalibrationShapes
from leanrecon.calibration.conv.conv import ConvCalibration
from leanrecon.calibration.conv.network import fold_of, n_weights, residual_unet
from leanrecon.calibration.conv.settings import ConvCalibrationSettings
from leanrecon.calibration.conv.training import as_input, learning_rate
from leanrecon.context import Context
from leanrecon.errors import InputError
from leanrecon.memory import PeakMemory, process_memory
from leanrecon.stores.windows import batches_of, window_rows, windows_of
from leanrecon.weights.averages import averaged
from leanrecon.weights.checkpoint import Folder

SMALL = {"epochs": 4, "width": 8, "batch_size": 8, "learning_rate": 4e-3, "checkpoint_minutes": 0.0}


def make(seed=0, **changes):
    return ConvCalibration(ConvCalibrationSettings(**SMALL | changes), seed=seed)


@pytest.mark.parametrize(
    ("height", "width", "fold"), [(12, 14, 1), (28, 28, 1), (40, 8, 1), (64, 64, 2), (96, 128, 4), (425, 425, 16)]
)
def test_large_images_are_folded_into_channels(height, width, fold):
    assert fold_of(height, width) == fold


def test_windows_hold_every_row_once_and_follow_from_seed_and_epoch():
    rows = np.arange(5, 505)
    windows = windows_of(rows, 160, (1, 32, 0))
    assert [len(window) for window in windows] == [160, 160, 160, 20]
    np.testing.assert_array_equal(np.sort(np.concatenate(windows)), rows)
    assert (np.concatenate(windows) != np.concatenate(windows_of(rows, 160, (1, 32, 1)))).any()
    np.testing.assert_array_equal(np.concatenate(windows), np.concatenate(windows_of(rows, 160, (1, 32, 0))))
    assert [place for w, place in batches_of(windows, 50) if w == 0] == [slice(0, 50), slice(50, 100), slice(100, 150)]
    assert batches_of([np.arange(7)], 50) == [(0, slice(0, 7))]
    assert window_rows(2 * 64 * 64 * 3, 24) % 24 == 0
    assert window_rows(10**9, 24) == 24


def test_the_learning_rate_rises_and_falls_to_zero():
    settings = ConvCalibrationSettings()
    rates = [learning_rate(settings, step, 400) for step in range(400)]
    assert rates[0] == pytest.approx(settings.learning_rate / 50)
    assert np.argmax(rates) == 49
    assert rates[-1] < 1e-4 * settings.learning_rate


def test_images_are_given_channels_first():
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), np.uint8)
    np.testing.assert_array_equal(as_input(images)[1, 2, 3, 4], np.float32(images[1, 3, 4, 2]) / np.float32(255))


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "fold"), [((1, 12, 14), 1), ((3, 70, 66), 2)])
def test_the_untrained_network_is_the_identity_for_any_size(shape, fold):
    import torch

    network = residual_unet(shape[0], 8, fold)
    x = torch.rand(2, *shape)
    assert torch.equal(network(x), x)
    assert sum(parameter.numel() for parameter in network.parameters()) == n_weights(shape[0], 8, fold)


@pytest.mark.slow
def test_averages_follow_the_weights():
    import torch

    network = residual_unet(1, 8, 1)
    both = averaged(network)
    expected = [parameter.detach().clone() for parameter in network.parameters()]
    for stays in (0.5, 0.9):
        for k, parameter in enumerate(network.parameters()):
            parameter.data += 1
            expected[k] = stays * expected[k] + (1 - stays) * parameter.detach()
        both.update(stays)
    for average, one in zip(both.averages().values(), expected, strict=True):
        torch.testing.assert_close(average, one)
    other = copy.deepcopy(network)
    other.load_state_dict(both.averages())
    x = torch.rand(1, 1, 8, 8)
    torch.testing.assert_close(both(x), other(x))


@pytest.mark.slow
def test_a_killed_training_ends_with_the_same_bytes(data_of, tmp_path, monkeypatch):
    data = data_of()
    make().learn(data, tmp_path / "whole", {}, Context.of("3GB"))
    (kept,) = (tmp_path / "whole").iterdir()
    write, left, runs = Folder.write, [0], 0

    class StoppedError(Exception):
        pass

    def stops(self, *given, **options):
        left[0] -= 1
        if left[0] < 0:
            raise StoppedError
        write(self, *given, **options)

    monkeypatch.setattr(Folder, "write", stops)
    while True:
        left[0], runs = 6, runs + 1
        calibration = make()
        try:
            if not calibration.find(tmp_path / "killed", {}, Context.of("3GB")):
                calibration.learn(data, tmp_path / "killed", {}, Context.of("3GB"))
            break
        except StoppedError:
            continue
    assert runs > 3
    assert [path.name for path in (tmp_path / "killed").iterdir()] == [kept.name]
    assert (tmp_path / "killed" / kept.name).read_bytes() == kept.read_bytes()
    record = calibration.record()
    assert record["epochs_trained"] == len(record["curve"]["validation"]) - 1 <= 4
    assert record["held_out_mse"]["after"] == pytest.approx(min(record["curve"]["validation"]), rel=1e-5)
    assert record["held_out_mse"]["after"] < record["held_out_mse"]["before"] == record["curve"]["validation"][0]
    left[0], other = 99, make(seed=1)
    other.learn(data, tmp_path / "other", {}, Context.of("3GB"))
    image = data.first[0:1][0]
    assert (other.apply(image) != calibration.apply(image)).any()


@pytest.mark.slow
def test_a_loss_that_is_not_finite_is_told(data_of, tmp_path):
    with pytest.raises(InputError, match=r"the loss became (nan|inf).*Lower stage1\.calibrate\.learning_rate"):
        make(learning_rate=1e38).learn(data_of(), tmp_path, {}, Context.of("3GB"))


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.parametrize("width", [16, 32])
def test_training_takes_no_more_than_was_planned(width, data_of, tmp_path):
    import torch  # noqa: F401

    data = data_of(rows=60, images=60, shape=(64, 64, 3), chunk=1_000_000)
    calibration = make(width=width, batch_size=24, epochs=1, learning_rate=1e-3)
    planned = calibration.plan(CalibrationShapes(60, 60, (64, 64, 3)))
    before = process_memory()
    with PeakMemory() as peak:
        calibration.learn(data, tmp_path, {}, Context.of("3GB"))
    taken = peak.peak - before
    print(width, taken / 1e6, planned.work / 1e6)
    assert taken <= planned.work
    assert sum(path.stat().st_size for path in tmp_path.glob("*.safetensors")) <= planned.disk
