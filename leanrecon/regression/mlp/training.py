"""The training loop: AdamW under a cosine schedule, over batches that stream from disk."""

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from leanrecon.errors import InputError
from leanrecon.progress import Progress
from leanrecon.regression.mlp.batches import Batches
from leanrecon.regression.mlp.network import loss_of
from leanrecon.regression.mlp.settings import MLPSettings
from leanrecon.weights.checkpoint import Folder, History, Place, load_place, load_weights, save_place, weights_of
from leanrecon.weights.seeds import seeded
from leanrecon.weights.tensors import TensorFile

if TYPE_CHECKING:
    import torch
    from torch import nn

Array = np.ndarray[Any, Any]

PRECISIONS = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}
"""What accelerate calls them. Weights and moments stay float32."""

WEIGHTS, _STEP = range(10, 12)  # streams of random numbers

_BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Data:
    """Batches of (inputs, targets[, offsets]) to learn from, and the same of the validation rows, held in memory.

    The prediction is the network's output plus the offset, which is the ridge's cross-validated prediction of the row.
    """

    batches: Batches
    validation: list[Array]
    spread: Array
    """float32 [outputs]: brings targets to the units in which SoftCLIP compares directions."""


def learning_rate(settings: MLPSettings, step: int, steps: int) -> float:
    """The learning rate of a step: a linear rise over the first ``warmup`` of all steps, then half a cosine to zero."""
    rising = max(round(settings.warmup * steps), 1)
    if step < rising:
        return settings.learning_rate * (step + 1) / rising
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(steps - rising, 1)))


def train(
    network: "nn.Module",
    data: Data,
    settings: MLPSettings,
    folder: Folder,
    *,
    seed: int,
    device: str,
    progress: Progress,
    label: str,
) -> History:
    """Train from where an earlier run stopped; the network ends with the weights of the least validation loss.

    The same data, settings and seed give the same weights on a CPU with the same number of threads, however often it was
    stopped. A loss that is not finite raises InputError with the rows of its batch; the last checkpoint stays.
    """
    import torch
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # left by another training in this process
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision=PRECISIONS[settings.precision])
    optimizer = torch.optim.AdamW(_groups(network, settings.weight_decay), lr=settings.learning_rate, fused=True)
    network, optimizer = accelerator.prepare(network, optimizer)
    batches, steps = data.batches, data.batches.steps
    measure = loss_of(
        settings.loss,
        torch.from_numpy(data.spread).to(device),
        temperature=settings.temperature,
        contrast=settings.contrast,
    )
    place = load_place(folder, network, optimizer.optimizer) or Place()
    if accelerator.scaler is not None and place.scaler:
        accelerator.scaler.load_state_dict(place.scaler)
    history = place.history
    if not history.train:  # the untrained network may be the best: beside a ridge it predicts as the ridge
        history.train.append(None)
        history.validation.append(_validate(network, data, measure, settings, accelerator))
        _keep(folder, network, history, 0)
    saved = time.monotonic()
    with progress.task(
        label,
        total=settings.epochs * steps,
        unit="steps",
        done=place.epoch * steps + place.step,
        note=lambda: curve_line(history),
    ) as advance:
        while place.epoch < settings.epochs and not _is_enough(history, settings.patience):
            network.train()
            for rows, arrays in batches.epoch(place.epoch, place.step):
                step = place.epoch * steps + place.step
                torch.manual_seed(seeded(seed, _STEP, step))
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(settings, step, settings.epochs * steps)
                x, true, *offset = (torch.from_numpy(array).to(device) for array in arrays)
                with accelerator.autocast():
                    predicted = network(_augmented(x, settings))
                loss = measure(predicted + offset[0] if offset else predicted, true)
                value = loss.item()
                if not math.isfinite(value):
                    raise _not_finite(value, place, rows, arrays)
                optimizer.zero_grad(set_to_none=True)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(network.parameters(), settings.clip)
                optimizer.step()
                place.step, place.total = place.step + 1, place.total + value
                if place.step < steps and time.monotonic() - saved >= 60 * settings.checkpoint_minutes:
                    _save(folder, place, network, optimizer, accelerator)
                    saved = time.monotonic()
                advance(1)
            history.train.append(place.total / steps)
            place.epoch, place.step, place.total = place.epoch + 1, 0, 0.0
            history.validation.append(_validate(network, data, measure, settings, accelerator))
            _keep(folder, network, history, place.epoch)
            if time.monotonic() - saved >= 60 * settings.checkpoint_minutes:
                _save(folder, place, network, optimizer, accelerator)
                saved = time.monotonic()
    if len(data.validation[0]):
        load_weights(network, TensorFile(folder.file("best")))
    network.eval()
    return history


def _groups(network: "nn.Module", weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; biases and the scales of norms do not."""
    parameters = list(network.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _augmented(x: "torch.Tensor", settings: MLPSettings) -> "torch.Tensor":
    """Inputs with Gaussian noise and dropout."""
    import torch

    if settings.noise:
        x = x + settings.noise * torch.randn_like(x)
    return torch.nn.functional.dropout(x, settings.voxel_dropout) if settings.voxel_dropout else x


def _validate(network: "nn.Module", data: Data, measure: Any, settings: MLPSettings, accelerator: Any) -> float | None:
    """The mean loss over validation rows, in batches as in training."""
    import torch

    n = len(data.validation[0])
    if not n:
        return None
    network.eval()
    total = 0.0
    device = next(network.parameters()).device
    with torch.no_grad(), accelerator.autocast():
        for start in range(0, n, settings.batch_size):
            x, true, *offset = (
                torch.from_numpy(a[start : start + settings.batch_size]).to(device) for a in data.validation
            )
            predicted = network(x).float()
            total += float(measure(predicted + offset[0] if offset else predicted, true)) * len(x)
    return total / n


def _keep(folder: Folder, network: "nn.Module", history: History, epoch: int) -> None:
    """Write the weights if they are the best so far; without validation rows the last ones count as that."""
    last, best = history.validation[epoch], history.validation[history.best]
    if last is None:
        history.best = epoch
    elif epoch == 0 or (best is not None and last < best):
        history.best = epoch
        folder.write("best", weights_of(network), epoch=epoch)


def _is_enough(history: History, patience: int) -> bool:
    return history.validation[-1] is not None and len(history.validation) - 1 - history.best >= patience


def _save(folder: Folder, place: Place, network: Any, optimizer: Any, accelerator: Any) -> None:
    if accelerator.scaler is not None:
        place.scaler = accelerator.scaler.state_dict()
    save_place(folder, place, network, optimizer.optimizer)


def _not_finite(value: float, place: Place, rows: Array, arrays: list[Array]) -> InputError:
    bad = [int(row) for row, *parts in zip(rows, *arrays, strict=True) if not all(np.isfinite(p).all() for p in parts)]
    shown = ", ".join(str(int(row)) for row in sorted(bad or rows)[:12]) + (", …" if len(bad or rows) > 12 else "")
    what = f"rows {shown} hold values that are not finite" if bad else f"its batch is of rows {shown}"
    return InputError(
        f"the loss became {value} in epoch {place.epoch + 1}, step {place.step + 1}: {what}",
        expected="a finite loss",
        todo="mend those rows"
        if bad
        else "lower regression.learning_rate, or look at these rows; the last checkpoint is kept",
    )


def curve_line(history: History) -> str:
    """The training curve in one line: the last losses, and the validation losses as small bars."""
    if len(history.train) < 2:
        return ""
    text = f"loss {history.train[-1]:.4g}"
    known = [value for value in history.validation if value is not None]
    if known:
        low, high = min(known), max(known)
        shown = known[-24:]
        bars = "".join(_BARS[round(7 * (v - low) / (high - low))] if high > low else _BARS[0] for v in shown)
        text += f", validation {known[-1]:.4g}, best {low:.4g} {bars}"
    return text
