"""``[evaluate]``: what is measured, and at which size images are compared."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from leanrecon.weights.safetensors import Precision

_OF_CLIP = ("clip", "clip_precision")


class EvaluateSettings(BaseModel):
    """``[evaluate]``"""

    model_config = ConfigDict(extra="forbid")

    preset: Literal["native", "bd2023"] = "native"
    permutations: int = Field(default=5, ge=0)
    """How often betas and stimuli are paired at random and decoded again, for the baseline of shuffled betas."""
    resamples: int = Field(default=1000, ge=100, le=100_000)
    """Bootstrap resamples behind the intervals."""
    clip: str = ""
    """A CLIP by whose image embedding images are identified too: its folder, or its name in Hugging Face's cache."""
    clip_precision: Precision = "float32"
    """Of that network; float16 on a GPU only."""

    def table(self) -> dict[str, Any]:
        """The settings as a TOML table with all defaults; without a CLIP there is nothing to tell of it."""
        return self.model_dump(exclude=set() if self.clip else set(_OF_CLIP))

    def of_figures(self) -> dict[str, Any]:
        """Those that decide figures, but for the CLIP, which counts by its content."""
        return self.model_dump(exclude=set(_OF_CLIP))
