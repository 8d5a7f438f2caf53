"""Any PyTorch network of an installed package as a judge."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Field, field_validator

from leanrecon.evaluation.judges.building import Blueprint
from leanrecon.evaluation.judges.network import NetworkJudge, NetworkSettings
from leanrecon.weights.names import WeightsName


class ModuleSettings(NetworkSettings):
    """``[judges.NAME]``"""

    kind: Literal["module"] = "module"
    builder: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")]
    """What gives the network, as in "package.module:Class.method": its code is run."""
    arguments: Mapping[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the builder."""
    weights: Annotated[WeightsName, Field(min_length=1)]
    """Its state_dict (.pth or .safetensors), which runs no code."""
    prefix: str = ""
    """What stands before every name in that file, as in "module."."""

    @field_validator("arguments")
    @classmethod
    def _plain(cls, table: Mapping[str, Any]) -> Mapping[str, Any]:
        json.dumps(table)  # raises TypeError, or ValueError, for what is not plain
        return table


class ModuleJudge(NetworkJudge):
    """A layer of any network that an installed package builds: a module path, its arguments and a state_dict.

    The package's code is run, as that of any library; the file of weights is read without running code.
    """

    Settings: ClassVar[type[BaseModel]] = ModuleSettings
    packages = ("torch",)

    def __init__(self, settings: ModuleSettings, *, name: str, device: str = "cpu") -> None:
        super().__init__(settings, name=name, device=device)
        self.prefix = settings.prefix  # type: ignore[misc]

    @classmethod
    def blueprint(cls, settings: ModuleSettings) -> Blueprint:
        return Blueprint(settings.builder, json.dumps(dict(settings.arguments), sort_keys=True))

    @classmethod
    def title(cls, settings: ModuleSettings) -> str:
        return f"{settings.builder}, {Path(str(settings.weights)).name}"
