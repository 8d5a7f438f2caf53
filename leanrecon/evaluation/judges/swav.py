"""SwAV's ResNet-50 as a judge, from its published file."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import BaseModel, field_validator

from leanrecon.evaluation.judges.building import OWN, Blueprint, Description
from leanrecon.evaluation.judges.judge import Measure
from leanrecon.evaluation.judges.network import NetworkJudge, NetworkSettings
from leanrecon.evaluation.judges.torchvision import averaged
from leanrecon.weights.names import WeightsName


class SwAVSettings(NetworkSettings):
    """``[judges.swav]``"""

    kind: Literal["swav"] = "swav"
    layer: str = "avgpool"
    """The module whose output describes an image, by its name; "avgpool" as in published tables."""
    measure: Measure = "distance"
    """distance: 1 − r, as in published tables. two_way: identification by correlation."""
    weights: WeightsName = "swav_800ep_pretrain.pth.tar"
    """The published file of 800 epochs, or another one of the same form."""

    @field_validator("layer")
    @classmethod
    def _is_there(cls, layer: str) -> str:
        if layer in ("", "fc"):
            raise ValueError("SwAV's file has no classifier, so the network has no output: take avgpool")
        return layer


class SwAVJudge(NetworkJudge):
    """ResNet-50 trained by SwAV without labels (Caron et al. 2020, arXiv:2006.09882): its average pooling.

    The published file names weights ``module.…`` and has no classifier; its own heads are left out. Its licence,
    CC BY-NC 4.0, forbids commercial use.
    """

    Settings: ClassVar[type[BaseModel]] = SwAVSettings
    prefix = "module."
    unused = ("projection_head.", "prototypes.")
    lacking = ("fc.",)

    @classmethod
    def blueprint(cls, settings: SwAVSettings) -> Blueprint:
        return Blueprint(OWN, '{"model": "resnet50"}')

    @classmethod
    def title(cls, settings: SwAVSettings) -> str:
        return f"SwAV's ResNet-50, {Path(str(settings.weights)).name}"

    def known(self) -> Description | None:
        return averaged("resnet50", self.settings.size) if self.settings.layer == "avgpool" else None
