"""What CLIP's two feature spaces, of captions and of images, have in common."""

import functools
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from leanrecon.devices import choose
from leanrecon.features.inference import FromWeights, runs_in
from leanrecon.weights.folders import find_model
from leanrecon.weights.safetensors import Precision


class CLIPSettings(BaseModel):
    """The settings of both."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Annotated[str, Field(min_length=1)]
    """Folder of a CLIP or of Versatile Diffusion (for captions of Stable Diffusion, too), or its name in Hugging Face's cache."""
    precision: Precision = "float32"
    """Of the network; float16 on a GPU only."""


class CLIPSpace(FromWeights):
    """A feature space of one half of CLIP: found in a folder, loaded when it is needed, one item at a time on a CPU."""

    library: str | None = "transformers"
    at_once_on_gpu: ClassVar[int]

    def __init__(self, settings: Any, *, name: str = "", seed: int = 0, device: str = "cpu") -> None:
        self.settings = settings
        self.name = name or settings.kind
        self.device = choose(device)
        self.precision = runs_in(settings.precision, self.device, self.setting("precision"))

    def setting(self, key: str) -> str:
        """What a key of its settings is called in errors."""
        return f"features.{self.name}.{key}"

    @property
    def _at_once(self) -> int:
        return 1 if self.device == "cpu" else self.at_once_on_gpu

    @functools.cached_property
    def _root(self) -> Path:
        return find_model(self.settings.model, self.setting("model"))
