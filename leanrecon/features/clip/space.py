"""The settings and the base class of CLIP's two feature spaces."""

import functools
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from leanrecon.devices import together_on_cpu
from leanrecon.features.clip.encoder import Encoder
from leanrecon.features.inference import PretrainedSpace, runs_in
from leanrecon.features.panels import PANEL
from leanrecon.features.plan import Cost
from leanrecon.weights.folders import find_model
from leanrecon.weights.libraries import LIBRARY_NBYTES, imports_nbytes
from leanrecon.weights.names import WeightsName
from leanrecon.weights.safetensors import Precision

BATCH = 16
"""Rows between two steps of progress. On a CPU images and captions go through ViT-L/14 one by one, which costs little:
2.4 s an image and 0.21 s a caption on one core, 2.5 s and 0.18 s in batches of eight."""


class CLIPSettings(BaseModel):
    """The settings that both spaces have."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    model: Annotated[WeightsName, Field(min_length=1)]
    """Folder or name on the Hugging Face Hub of a CLIP, a Stable Diffusion (captions only) or a Versatile Diffusion."""
    precision: Precision = "float32"
    """Precision of the network; float16 on a GPU only."""


class CLIPSpace(PretrainedSpace):
    """One half of CLIP as a feature space, loaded when it is needed.

    On a CPU, items go through it one at a time, or in panels where it is small.
    """

    library: str | None = "transformers"
    conditions = True
    family = "clip"
    at_once_on_gpu: ClassVar[int]

    def __init__(self, settings: Any, *, name: str = "", seed: int = 0, device: str = "cpu") -> None:
        super().__init__(settings, name=name, seed=seed, device=device)
        self.precision = runs_in(settings.precision, self.device, self.setting("precision"))

    def check(self) -> None:
        """Raise InputError for files that are not a CLIP of this half; reads headers and configs only."""
        space: Any = self
        space.cost((64, 64, 3))

    def _cost(self, held: int, *, projection: bool) -> Cost:
        """The cost of rows that take ``held`` bytes beside the libraries, the weights and, on a CPU, the network's states."""
        encoder = self._encoder
        held += LIBRARY_NBYTES + imports_nbytes("transformers")
        if self._loaded is None:
            held += encoder.weights.loading_nbytes(encoder.parts(projection=projection), self.precision, self.device)
        if self.device == "cpu":
            held += self._at_once * encoder.state_nbytes(self.precision)
        batch = BATCH if self.device == "cpu" else self.at_once_on_gpu
        return Cost(held=held, per_image=0, batch=batch, operations=encoder.operations())

    def _made_of(self, version: int) -> dict[str, Any]:
        """What decides the rows of either half; ``version`` is that of the arithmetic."""
        return {
            "kind": self.settings.kind,
            "format": version,
            "form": self.settings.form,
            "precision": self.precision,
            "config": self._encoder.config,
            "weights": self._encoder.weights.content(),
        }

    @property
    def _at_once(self) -> int:
        if self.device != "cpu":
            return self.at_once_on_gpu
        encoder: Encoder = self._encoder
        return together_on_cpu(encoder.state_nbytes(self.precision), PANEL)

    @property
    def _encoder(self) -> Encoder:
        """The half that it is."""
        raise NotImplementedError

    @functools.cached_property
    def _root(self) -> Path:
        return find_model(self.settings.model, self.setting("model"))
