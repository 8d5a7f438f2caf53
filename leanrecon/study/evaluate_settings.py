"""The settings of ``[evaluate]``."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class EvaluateSettings(BaseModel):
    """``[evaluate]``"""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    preset: Literal["native", "bd2023", "mindeye2", "takagi", "kamitani", "brainit"] = "native"
    """The protocol by which pixels are compared: at the size of the stimuli, or as a paper does."""
    judges: Literal["preset"] | tuple[str, ...] | None = None
    """The judges by name, of the preset's and of [judges]; "preset": all of both; none given: those of [judges]."""
    blend: float = Field(default=0.0, ge=0, lt=1)
    """Share of first images mixed into final ones before they are judged, as some papers do; 0: none."""
    permutations: int = Field(default=5, ge=0, le=10_000)
    """How often betas and images are paired at random for the baseline of shuffled betas."""
    resamples: int = Field(default=1000, ge=100, le=100_000)
    """Bootstrap resamples behind each interval."""
