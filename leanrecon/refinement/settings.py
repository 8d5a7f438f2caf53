"""``[refine]``: how first images are made into final ones."""

from typing import Literal

from pydantic import BaseModel, ConfigDict


class RefineSettings(BaseModel):
    """``[refine]``"""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["none"] = "none"
    """none: the final images are the first ones."""
