"""CLIP's image embedding as a judge."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from leanrecon import kinds
from leanrecon.evaluation.judges.judge import Measure
from leanrecon.images import Array, ImageShape, Sees, resize, resize_tensor
from leanrecon.weights.libraries import LIBRARY_NBYTES, imports_nbytes
from leanrecon.weights.names import WeightsName
from leanrecon.weights.needs import Need
from leanrecon.weights.safetensors import Precision

Side = Annotated[int, Field(strict=True, ge=8, le=2048)]

PIXEL = (1, 1, 3)
"""The smallest image shape; dims and checks do not depend on it."""


class CLIPJudgeSettings(BaseModel):
    """``[judges.clip]``"""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    kind: Literal["clip"] = "clip"
    model: Annotated[WeightsName, Field(min_length=1)]
    """Folder or name on the Hugging Face Hub of a CLIP whose image embedding compares images."""
    precision: Precision = "float32"
    """Precision of the network; float16 on a GPU only."""
    size: Side | None = None
    """The side in pixels that images are brought to bilinearly, before the model's own preprocessing; absent: none."""
    through: Side | None = None
    """The side in pixels that images are brought to first, before size; absent: none."""
    resize: Literal["pillow", "tensor"] = "pillow"
    """Bilinear as Pillow does it, or as PyTorch resizes tensors without antialiasing, rounded to whole levels."""


class CLIPJudge:
    """CLIP's image embedding: the class token of the vision half, projected into the space shared with captions.

    It equals ``get_image_features`` of transformers divided by its norm, which changes no correlation (Radford et al.
    2021, arXiv:2103.00020). Preprocessing, weights and memory are those of the feature space "clip-vision".
    """

    Settings: ClassVar[type[BaseModel]] = CLIPJudgeSettings
    measure: Measure = "two_way"
    family: ClassVar[str | None] = "clip"
    """Images drawn from predicted features of this family are judged by the features that they were drawn for."""

    def __init__(self, settings: CLIPJudgeSettings, *, name: str = "clip", device: str = "cpu") -> None:
        self.settings = settings
        self.name = name
        self.model = _model_name(settings.model)
        self._space = _space(settings, name, device)
        self._torch = imports_nbytes()
        self._imports = imports_nbytes("transformers")  # now, as plans of later folds count the imports too

    @classmethod
    def needs(cls, settings: CLIPJudgeSettings, prefix: str) -> Iterable[Need]:
        space = kinds.get("features", "clip-vision")
        needs: Iterable[Need] = space.needs(_space_settings(settings), prefix)
        return needs

    @classmethod
    def notes(cls, settings: CLIPJudgeSettings) -> Iterable[str]:
        return (f"Scores by CLIP are by the image embedding of {_model_name(settings.model)}.",)

    @property
    def dims(self) -> int:
        return int(self._space.dims(PIXEL))

    @property
    def batch(self) -> int:
        return int(self._space.cost(PIXEL).batch)

    @property
    def staying_nbytes(self) -> int:
        return sum(self.libraries.values())

    @property
    def libraries(self) -> dict[str, int]:
        """Bytes that each library takes once it was used."""
        torch = min(self._torch, self._imports)
        return {"torch": torch + LIBRARY_NBYTES, "transformers": self._imports - torch}

    def check(self) -> None:
        """Raise InputError for a model that is missing, or has no vision half, projection or preprocessing."""
        self._space.cost(PIXEL)

    def work_nbytes(self, shape: ImageShape) -> int:
        return int(self._space.cost(shape).held) - imports_nbytes("transformers")

    def made_of(self) -> dict[str, Any]:
        made_of: dict[str, Any] = self._space.made_of()
        settings = self.settings
        before = {"size": settings.size, "through": settings.through, "resize": settings.resize}
        return made_of | ({"before": before} if settings.size or settings.through else {})

    def encode(self, images: Array) -> Array:
        if self.settings.size or self.settings.through:
            images = np.stack([self._brought(image) for image in images])
        embeddings: Array = self._space.encode(images, range(len(images)))
        return embeddings

    def _brought(self, image: Array) -> Array:
        """An image at the sizes that the settings name."""
        for side in filter(None, (self.settings.through, self.settings.size)):
            shape = (side, side, image.shape[2])
            image = resize(image, shape) if self.settings.resize == "pillow" else resize_tensor(image, shape)
        return image if image.dtype == np.uint8 else np.rint(image).astype(np.uint8)

    def release(self) -> None:
        self._space.release()

    @property
    def sees(self) -> Sees | None:
        """How images become what the network sees."""
        sides = tuple(filter(None, (self.settings.through, self.settings.size)))
        if sides:
            return Sees(sides, "bilinear" if self.settings.resize == "pillow" else "tensor")
        found: Sees | None = self._space.sees
        return found


def _space_settings(settings: CLIPJudgeSettings) -> BaseModel:
    table = {"model": settings.model, "form": "embedding", "precision": settings.precision}
    return kinds.settings_of("features", table, "judges.", default="clip-vision")


def _space(settings: CLIPJudgeSettings, name: str, device: str) -> Any:
    """The feature space that encodes images; its messages name the judge's settings."""

    class Space(kinds.get("features", "clip-vision")):  # type: ignore[misc]
        def setting(self, key: str) -> str:
            return f"judges.{name}.{key}"

    return Space(_space_settings(settings), name=name, device=device)


def _model_name(model: str) -> str:
    """The model's name in a report: its name on the hub, or the name of its folder."""
    path = Path(model)
    return path.name if path.is_absolute() else model
