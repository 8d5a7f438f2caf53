"""The settings of the calibration ``conv``."""

import math
from typing import Annotated, Literal

from pydantic import Field

from leanrecon.calibration.calibration import CalibrationSettings


class ConvCalibrationSettings(CalibrationSettings):
    """``[stage1.calibrate]`` with ``kind = "conv"``."""

    kind: Literal["conv"] = "conv"
    """A small residual U-Net, which begins as the identity."""
    width: Annotated[int, Field(strict=True, ge=8, multiple_of=8)] = 24
    """Channels of the highest resolution; they double at each of two lower ones."""
    epochs: Annotated[int, Field(strict=True, ge=1)] = 6
    """Most passes over the train rows."""
    batch_size: Annotated[int, Field(strict=True, ge=1)] = 24
    """Rows of a batch."""
    learning_rate: Annotated[float, Field(gt=0, lt=math.inf)] = 1e-3
    """Highest learning rate of AdamW; it falls to zero along half a cosine."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Weight decay of AdamW."""
    average: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """How much of the moving average of the weights stays at each step; the averaged weights are used."""
    patience: Annotated[int, Field(strict=True, ge=1)] = 4
    """Epochs without a lower error of held-out images after which training stops."""
    checkpoint_minutes: Annotated[float, Field(ge=0)] = 5.0
    """Minutes between checkpoints of the training."""
