"""The training of the U-Net: AdamW on squared errors of pixels, over windows of rows that are read and shuffled.

Random numbers are drawn from (seed, epoch), so that a training that is killed and continued ends with the same weights.
"""

import math
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from leanrecon.calibration.calibration import CalibrationData, pairs
from leanrecon.calibration.conv.settings import ConvCalibrationSettings
from leanrecon.context import Context
from leanrecon.errors import InputError
from leanrecon.images import Array
from leanrecon.memory import buffer
from leanrecon.stores.windows import batches_of, window_rows, windows_of
from leanrecon.weights.checkpoint import Folder, History, Place, load_place, save_place

if TYPE_CHECKING:
    import torch

CLIP = 1.0
"""Largest norm of the gradient."""

WARMUP = 50
"""Steps over which the learning rate rises."""

ORDER = 32  # a stream of random numbers


def learning_rate(settings: ConvCalibrationSettings, step: int, steps: int) -> float:
    """The learning rate of a step: a linear rise, times half a cosine to zero."""
    rise = min((step + 1) / min(WARMUP, max(steps // 4, 1)), 1.0)
    return settings.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * step / max(steps, 1)))


def train(
    network: Any,
    data: CalibrationData,
    rows: Array,
    held: Array,
    settings: ConvCalibrationSettings,
    files: Folder,
    *,
    seed: int,
    device: str,
    context: Context,
) -> History:
    """Train from where an earlier run stopped; ``best`` in ``files`` holds the averaged weights of the least error.

    Entry 0 of the curve is the identity, which is the best where nothing lowers the error of held-out images.
    """
    import torch

    weights = list(network.network.parameters())
    optimizer = torch.optim.AdamW(weights, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    size = window_rows(2 * int(np.prod(data.first.shape[1:])), settings.batch_size)
    steps = len(batches_of(windows_of(rows, size, (seed, ORDER, 0)), settings.batch_size))
    place = load_place(files, network, optimizer) or Place()
    history = place.history
    if not history.train:
        history.train.append(None)
        history.validation.append(_error(network, data, held, device))
        _keep(files, network, history, 0)
    saved, total = time.monotonic(), settings.epochs * steps
    done = place.epoch * steps + place.step
    with context.task(total=total, unit="steps", done=done, note=lambda: _note(history)) as advance:
        while place.epoch < settings.epochs and len(history.validation) - 1 - history.best < settings.patience:
            for x, true in _batches(data, rows, size, settings.batch_size, seed, place, device):
                step = place.epoch * steps + place.step
                optimizer.param_groups[0]["lr"] = learning_rate(settings, step, total)
                loss = torch.nn.functional.mse_loss(network.network(x), true)
                value = loss.item()
                if not math.isfinite(value):
                    raise _not_finite(value, place)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(weights, CLIP)
                optimizer.step()
                network.update(min(settings.average, (2 + step) / (11 + step)))
                place.step, place.total = place.step + 1, place.total + value
                if place.step < steps and time.monotonic() - saved >= 60 * settings.checkpoint_minutes:
                    save_place(files, place, network, optimizer)
                    saved = time.monotonic()
                advance(1)
            history.train.append(place.total / steps)
            place.epoch, place.step, place.total = place.epoch + 1, 0, 0.0
            history.validation.append(_error(network, data, held, device))
            _keep(files, network, history, place.epoch)
            save_place(files, place, network, optimizer)
            saved = time.monotonic()
    return history


def _batches(
    data: CalibrationData, rows: Array, size: int, batch: int, seed: int, place: Place, device: str
) -> Iterator[tuple["torch.Tensor", "torch.Tensor"]]:
    """The batches of an epoch that are still to come, float32 [b, channels, height, width] on the device."""
    import torch

    from leanrecon.stores.images import ImageReader

    windows = windows_of(rows, size, (seed, ORDER, place.epoch))
    shape = data.first.shape[1:]
    held, memories = -1, [buffer((min(size, len(rows)), *shape), np.uint8) for _ in range(2)]
    readers = [ImageReader(data.first), ImageReader(data.true)]
    for w, where in batches_of(windows, batch)[place.step :]:
        ascending = np.sort(windows[w])
        if w != held:
            for reader, memory in zip(readers, memories, strict=True):
                for part, images in reader.runs(ascending):
                    memory[part] = images
            held = w
        places = np.searchsorted(ascending, windows[w][where])
        x, true = (torch.from_numpy(as_input(memory[places])).to(device) for memory in memories)
        yield x, true


def as_input(images: Array) -> Array:
    """Float32 [b, channels, height, width] from 0 to 1 of uint8 images [b, height, width, channels]."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)


def _error(network: Any, data: CalibrationData, held: Array, device: str) -> float:
    """Mean squared error of held-out rows, one at a time."""
    import torch

    total = 0.0
    with torch.inference_mode():
        for _, first, true in pairs(data, held):
            x = torch.from_numpy(np.ascontiguousarray(first.transpose(2, 0, 1)[None])).to(device)
            calibrated = network(x)[0].clamp(0, 1).cpu().numpy().transpose(1, 2, 0)
            total += float(np.mean((calibrated - true) ** 2, dtype=np.float64))
    return total / len(held)


def _keep(files: Folder, network: Any, history: History, epoch: int) -> None:
    """Write the averaged weights if they are the best so far."""
    last, best = history.validation[epoch], history.validation[history.best]
    assert last is not None
    assert best is not None
    if epoch == 0 or last < best:
        history.best = epoch
        files.write("best", {name: tensor.cpu().numpy() for name, tensor in network.averages().items()}, epoch=epoch)


def _not_finite(value: float, place: Place) -> InputError:
    return InputError(
        f"the loss became {value} in epoch {place.epoch + 1}, step {place.step + 1}",
        expected="a finite loss",
        todo="lower stage1.calibrate.learning_rate; the last checkpoint is kept",
    )


def _note(history: History) -> str:
    if len(history.train) < 2:
        return ""
    return f"held-out error {history.validation[-1]:.5f}, best {history.validation[history.best]:.5f}"
