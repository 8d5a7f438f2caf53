"""The sections of a settings file that are of one kind: the general keys, ``[stores]`` and ``[stage1]``."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, field_validator

from leanrecon import kinds
from leanrecon.devices import Device
from leanrecon.errors import SettingsError
from leanrecon.memory import parse_budget, parse_bytes

Side = Annotated[int, Field(strict=True, ge=1, le=8192)]
"""A side of an image in pixels."""


class GeneralSettings(BaseModel):
    """The keys outside of any table."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    memory: str | None = None
    """Memory that the process may hold, as in "4GB"; by default 80 % of the free memory."""
    device: Device = "auto"
    """Where networks and the ridge run; pixels and principal components run on the CPU."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of splits, noise, permutations and bootstrap resamples."""

    @field_validator("memory", mode="before")
    @classmethod
    def _size(cls, text: Any) -> str | None:
        return None if text is None else _is_size(text, parse_budget)


class StoresSettings(BaseModel):
    """``[stores]``"""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    chunk: str = "8MB"
    """Size of a chunk file."""

    @field_validator("chunk", mode="before")
    @classmethod
    def _size(cls, text: Any) -> str:
        return _is_size(text)

    @property
    def chunk_bytes(self) -> int:
        return parse_bytes(self.chunk)


class StageOneSettings(BaseModel):
    """``[stage1]``"""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    space: str | None = None
    """The feature space that first images are decoded from; by default the first one with a decoder."""
    size: Side | tuple[Side, Side] | Literal["stimuli", "decoded"] = "stimuli"
    """The longer side of first images in pixels, or [height, width]; "stimuli": the size of the stimuli."""
    calibrate: SerializeAsAny[BaseModel] = Field(default="none", validate_default=True)
    """How first images are mended, learned from out-of-fold ones of train rows: "none", "linear", "boost" or "conv"."""

    @field_validator("calibrate", mode="before")
    @classmethod
    def _of_its_kind(cls, value: Any) -> BaseModel:
        if isinstance(value, BaseModel):
            return value
        table = value if isinstance(value, Mapping) else {"kind": value}
        return kinds.settings_of("calibrations", table, "stage1.calibrate.", default="none")


def _is_size(text: Any, parse: Callable[[str], int] = parse_bytes) -> str:
    if not isinstance(text, str):
        raise ValueError('a number and a unit as text are expected, as in "4GB"')
    try:
        parse(text)
    except SettingsError as error:
        raise ValueError(str(error).rstrip(".")) from None
    return text
