"""The calibration ``conv``: trained or continued in its folder, applied image by image."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from pydantic import BaseModel

from leanrecon import devices
from leanrecon.calibration.calibration import (
    CalibrationData,
    CalibrationPlan,
    CalibrationShapes,
    LearnedCalibration,
    Model,
)
from leanrecon.calibration.conv.network import fold_of, n_weights, residual_unet
from leanrecon.calibration.conv.settings import ConvCalibrationSettings
from leanrecon.calibration.conv.training import train
from leanrecon.context import Context
from leanrecon.images import Array
from leanrecon.stores.windows import window_rows
from leanrecon.weights.averages import averaged
from leanrecon.weights.checkpoint import Folder
from leanrecon.weights.seeds import seeded_weights
from leanrecon.weights.tensors import TensorFile

_WEIGHTS = 33  # stream of random numbers

FLOAT = 4

TORCH_NBYTES = 190_000_000
"""Bytes that PyTorch keeps in the process once a network was trained."""

_COPIES = 8
"""Copies of the weights while it trains: with gradients, moments, averages, and a checkpoint that is written."""

_ACTIVATIONS = 44
"""Numbers that are held for each pixel and channel of the highest resolution, of all levels, while a batch is learned."""


class ConvCalibration(LearnedCalibration):
    """A small residual U-Net, which begins as the identity and stops early on held-out train images."""

    Settings: ClassVar[type[BaseModel]] = ConvCalibrationSettings
    least: ClassVar[int] = 50
    refits: ClassVar[bool] = False

    def plan(self, shapes: CalibrationShapes) -> CalibrationPlan:
        height, width, channels = shapes.image
        settings, fold = self.settings, fold_of(height, width)
        weights, numbers = n_weights(channels, settings.width, fold), int(np.prod(shapes.image))
        pixels = (-(-height // fold) + 3) * (-(-width // fold) + 3)
        one = pixels * settings.width * _ACTIVATIONS * FLOAT + 12 * numbers * FLOAT
        window = 2 * min(window_rows(2 * numbers, settings.batch_size), shapes.rows) * numbers
        return CalibrationPlan(
            TORCH_NBYTES + _COPIES * weights * FLOAT + window + settings.batch_size * one,
            2 * weights * FLOAT + one,
            f"U-Net of {weights:,} weights, {settings.epochs} epochs of {shapes.rows} images at most",
            disk=weights * FLOAT + 20_000,
            scratch=(5 + 5 + 1) * weights * FLOAT,
            held=TORCH_NBYTES,
        )

    def _fit(self, data: CalibrationData, rows: Array, held: Array, folder: Folder, context: Context) -> dict[str, Any]:
        device = devices.choose(self.device)
        with seeded_weights(self.seed, _WEIGHTS):
            network = averaged(self._network(data.first.shape[1:])).to(device)
        history = train(
            network, data, rows, held, self.settings, folder, seed=self.seed, device=device, context=context
        )  # fmt: skip
        best = TensorFile(folder.file("best"))
        return {name: best.read(name) for name in best.names} | {
            "image": list(data.first.shape[1:]),
            "epochs_trained": len(history.train) - 1,
            "best_epoch": history.best,
            "curve": history.as_dict(),
        }

    def _model(self, learned: Mapping[str, Any]) -> Model:
        import torch

        device = devices.choose(self.device)
        network = self._network(learned["image"])
        network.load_state_dict({name: torch.from_numpy(learned[name]) for name in network.state_dict()})
        network = network.to(device).eval().requires_grad_(False)

        def calibrated(image: Array) -> Array:
            x = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)[None])).to(device)
            with torch.inference_mode():
                result: Array = network(x)[0].cpu().numpy().transpose(1, 2, 0)
            return result

        return calibrated

    def _network(self, shape: Any) -> Any:
        height, width, channels = shape
        return residual_unet(channels, self.settings.width, fold_of(height, width))
