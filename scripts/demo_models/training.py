"""One loop for every model: AdamW, averaged weights, a log, and checkpoints from which a killed training continues."""

import contextlib
import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from demo_models.data import batches

Array = np.ndarray[Any, Any]
Weights = dict[str, Tensor]

SAVE_SECONDS = 180
LOG_STEPS = 50


@dataclass(frozen=True)
class Schedule:
    """Steps, batch size and learning rate of a training."""

    steps: int
    batch: int
    rate: float
    warmup: int = 100
    cooldown: float = 0.3
    """Share of the steps over which the rate falls to nothing at the end."""
    decay: float = 0.01
    """Of the weights, by AdamW."""
    average: float = 0.999
    """Of the weights that are kept; younger ones count more at first."""
    clip: float = 1.0
    """Largest norm of a gradient."""
    betas: tuple[float, float] = (0.9, 0.99)

    def rate_at(self, step: int) -> float:
        left = (self.steps - step) / max(self.cooldown * self.steps, 1)
        return self.rate * min(1.0, (step + 1) / self.warmup, math.sin(0.5 * math.pi * min(left, 1.0)))


class Task(ABC):
    """A model in training: its weights by name, its loss on a batch, and its figures on held-out scenes."""

    name: str
    schedule: Schedule
    weights: Weights
    """Those that are learned, changed in place."""
    averaged: Weights
    """Their averages so far, which ``train`` keeps."""

    @property
    @abstractmethod
    def rows(self) -> int:
        """The number of training scenes."""

    @abstractmethod
    def loss(self, rows: Array, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        """The loss of one batch, and numbers for the log."""

    @abstractmethod
    def measure(self, weights: Weights) -> dict[str, float]:
        """Figures of averaged weights on held-out scenes."""


@contextlib.contextmanager
def holding(module: nn.Module, weights: Weights) -> Iterator[None]:
    """Use other weights in a module for a while."""
    kept = {name: value.detach().clone() for name, value in module.named_parameters() if name in weights}
    module.load_state_dict(weights, strict=False)
    try:
        yield
    finally:
        module.load_state_dict(kept, strict=False)


def train(task: Task, folder: Path, *, device: str, seed: int = 0, measure_every: int = 500) -> Weights:
    """Train from the last checkpoint to the end of the schedule; returns the averaged weights in float32.

    A killed training takes the same steps as one that was never killed, up to rounding.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, log = folder / "checkpoint.pt", folder / "log.jsonl"
    weights = list(task.weights.values())
    optimizer = torch.optim.AdamW(
        [
            {"params": [w for w in weights if w.ndim > 1], "weight_decay": task.schedule.decay},
            {"params": [w for w in weights if w.ndim <= 1], "weight_decay": 0.0},
        ],
        betas=task.schedule.betas,
        fused=True,
    )
    averaged = {name: weight.detach().clone() for name, weight in task.weights.items()}
    step, spent = 0, 0.0
    if checkpoint.exists():
        step, spent = _load(checkpoint, task.weights, averaged, optimizer, device)
    task.averaged = averaged
    began = saved = time.monotonic()
    lines: list[dict[str, Any]] = []
    numbers: dict[str, list[float]] = {}
    rows_of = _rows(task, step, seed)
    while step < task.schedule.steps:
        for group in optimizer.param_groups:
            group["lr"] = task.schedule.rate_at(step)
        loss, told = task.loss(next(rows_of), np.random.default_rng([seed, step, 1]))
        if not torch.isfinite(loss):
            raise FloatingPointError(f"{task.name}: the loss is {loss.item()} at step {step}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(weights, task.schedule.clip)
        optimizer.step()
        step += 1
        keep = min(task.schedule.average, step / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(averaged.values()), weights, 1 - keep)
        for key, value in (told | {"loss": loss.item(), "gradient": norm.item()}).items():
            numbers.setdefault(key, []).append(value)
        last = step == task.schedule.steps
        if step % LOG_STEPS == 0 or last:
            seconds = spent + time.monotonic() - began
            lines.append({"step": step, "seconds": round(seconds, 1)} | {k: _mean(v) for k, v in numbers.items()})
            numbers = {}
            if step % measure_every == 0 or last:
                lines[-1] |= {f"held_out_{k}": v for k, v in task.measure(averaged).items()}
            print(task.name, json.dumps(lines[-1]), flush=True)
        if time.monotonic() - saved > SAVE_SECONDS or last:
            with log.open("a") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
            lines = []
            _save(checkpoint, task.weights, averaged, optimizer, step, spent + time.monotonic() - began)
            saved = time.monotonic()
    return averaged


def _rows(task: Task, step: int, seed: int) -> Iterator[Array]:
    return batches(task.rows, task.schedule.batch, step, seed)


def _mean(values: list[float]) -> float:
    return float(f"{sum(values) / len(values):.5g}")


def _save(
    path: Path, weights: Weights, averaged: Weights, optimizer: torch.optim.Optimizer, step: int, seconds: float
) -> None:
    partial = path.with_suffix(".partial")
    state = {"weights": {name: w.detach() for name, w in weights.items()}, "averaged": averaged}
    torch.save(state | {"optimizer": optimizer.state_dict(), "step": step, "seconds": seconds}, partial)
    partial.replace(path)


def _load(
    path: Path, weights: Weights, averaged: Weights, optimizer: torch.optim.Optimizer, device: str
) -> tuple[int, float]:
    state = torch.load(path, map_location=device, weights_only=True)
    with torch.no_grad():
        for own, kept in ((weights, state["weights"]), (averaged, state["averaged"])):
            if own.keys() != kept.keys():
                raise ValueError(f"{path} is of another model: remove it to begin anew")
            for name, weight in own.items():
                weight.copy_(kept[name])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"]), float(state["seconds"])


def learned(path: Path, device: str) -> Weights:
    """The averaged weights of a training's last checkpoint."""
    found: Mapping[str, Tensor] = torch.load(path / "checkpoint.pt", map_location=device, weights_only=True)["averaged"]
    return dict(found)
