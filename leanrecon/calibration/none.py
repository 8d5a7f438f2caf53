"""No calibration: first images are what their feature space decodes."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from leanrecon.calibration.calibration import CalibrationData, CalibrationPlan, CalibrationShapes
from leanrecon.context import Context
from leanrecon.images import Array


class NoCalibrationSettings(BaseModel):
    """``[stage1] calibrate = "none"``"""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    kind: Literal["none"] = "none"
    """First images are left as they are."""


class NoCalibration:
    """First images are left as their feature space decodes them."""

    Settings: ClassVar[type[BaseModel]] = NoCalibrationSettings
    calibrates: ClassVar[bool] = False
    least: ClassVar[int] = 0

    def __init__(self, settings: NoCalibrationSettings, *, seed: int = 0, device: str = "cpu") -> None:
        self.settings = settings

    @classmethod
    def notes(cls, settings: NoCalibrationSettings) -> Iterable[str]:
        return ()

    def made_of(self) -> dict[str, Any]:
        return {}

    def plan(self, shapes: CalibrationShapes) -> CalibrationPlan:
        return CalibrationPlan(0, 0, "none")

    def find(self, folder: Path, made_of: Mapping[str, Any], context: Context) -> bool:
        return True

    def learn(self, data: CalibrationData, folder: Path, made_of: Mapping[str, Any], context: Context) -> None:
        """There is nothing to learn."""

    def record(self) -> dict[str, Any]:
        return {"used": False}

    def apply(self, image: Array) -> Array:
        return image
