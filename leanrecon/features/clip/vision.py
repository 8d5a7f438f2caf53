"""CLIP's image features as a feature space: all tokens for Versatile Diffusion, or one embedding per image."""

import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel

from leanrecon.errors import InputError
from leanrecon.features.clip.encoder import Encoder
from leanrecon.features.clip.preprocess import BICUBIC, Preprocessing
from leanrecon.features.clip.space import CLIPSettings, CLIPSpace
from leanrecon.features.gradients import Use
from leanrecon.features.inference import exact_inference
from leanrecon.features.panels import panels
from leanrecon.features.plan import FLOAT, Cost
from leanrecon.features.space import Array, ImageShape, Rows
from leanrecon.images import Sees
from leanrecon.weights.folders import part_of, whole_number
from leanrecon.weights.libraries import require_installed
from leanrecon.weights.needs import Need
from leanrecon.weights.pieces import PROCESSORS, Piece
from leanrecon.weights.safetensors import AGAIN

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
"""Version of the arithmetic from images to rows."""

AT_ONCE_ON_GPU = 32

_FILTERS: dict[int, Literal["bilinear", "bicubic"]] = {2: "bilinear", BICUBIC: "bicubic"}
"""The filters of Pillow that PyTorch has too, by their numbers."""

_PROCESSOR_FOLDERS = (
    "image_feature_extractor",
    "feature_extractor",
    ".",
    "../image_feature_extractor",
    "../feature_extractor",
)


class CLIPVisionSettings(CLIPSettings):
    """``[features.clip-vision]``"""

    kind: Literal["clip-vision"] = "clip-vision"
    form: Literal["versatile", "embedding"]
    """Rows of all tokens as Versatile Diffusion takes them ("versatile"), or of CLIP's image embedding ("embedding")."""


class CLIPVision(CLIPSpace):
    """Rows of CLIP's tokens of an image, in C order.

    ``form = "versatile"``, 257 × 768 with CLIP ViT-L/14: the last hidden states through the layer norm that CLIP has
    for its class token, and through the visual projection. They are divided by the norm of the projected class token
    (Ozcelik & VanRullen 2023). ``form = "embedding"``, 768: that class token alone, of norm 1 (Radford et al. 2021). On a
    CPU images are encoded one by one, so that a row has the same bytes in every batch. On a GPU it may differ by
    rounding, some 1e-6 of its largest number in float32.
    """

    Settings: ClassVar[type[BaseModel]] = CLIPVisionSettings
    differentiable = True
    at_once_on_gpu = AT_ONCE_ON_GPU

    @classmethod
    def needs(cls, settings: CLIPVisionSettings, prefix: str) -> Iterable[Need]:
        pieces = (
            Piece("network", ("image_encoder", ".")),
            Piece("processor", ("image_feature_extractor", "feature_extractor", ".")),
        )
        return (Need(f"{prefix}model", settings.model, pieces),)

    def dims(self, image_shape: ImageShape) -> int:
        tokens = self._encoder.positions if self.settings.form == "versatile" else 1
        return tokens * self._encoder.projection

    def cost(self, image_shape: ImageShape) -> Cost:
        encoder, pixels = self._encoder, 3 * self._preprocessing.crop[0] * self._preprocessing.crop[1]
        held = self._at_once * (3 * encoder.positions * encoder.projection + 3 * pixels) * FLOAT
        height, width = self._preprocessing.size_of(*image_shape[:2])
        held += 3 * (2 * height * width + image_shape[0] * image_shape[1])  # one image in Pillow, and resized
        return self._cost(held, projection=True)

    def made_of(self) -> dict[str, Any]:
        return self._made_of(FORMAT) | {"preprocessing": self._preprocessing.as_table()}

    def encode(self, images: Array, rows: Rows) -> Array:
        """Float32 rows [b, dims] of uint8 images of any size; grey is repeated in three colours."""
        out = np.empty((len(images), self.dims(images.shape[1:])), np.float32)
        model = self._model()
        if self.device == "cpu":
            for panel in panels(rows, self._at_once):
                out[panel.asked] = self._encode(model, self._preprocessing(panel.filled(images)))[panel.places]
            return out
        for start in range(0, len(images), self._at_once):
            part = slice(start, start + self._at_once)
            out[part] = self._encode(model, self._preprocessing(images[part]))
        return out

    @property
    def sees(self) -> Sees | None:
        """How images become what the network sees; None for a filter that no other library has."""
        how = _FILTERS.get(self._preprocessing.resample)
        return None if how is None else Sees((self._preprocessing.crop[0],), how)

    def unconditional(self) -> Array:
        """The row [dims] in float32 of a black image."""
        row: Array = self.encode(np.zeros((1, *self._preprocessing.crop, 3), np.uint8), range(1))[0]
        return row

    def _encode(self, model: Any, pixels: Array) -> Array:
        import torch

        with exact_inference(self.device):
            numbers = torch.from_numpy(pixels).to(self.device, getattr(torch, self.precision))
            rows: Array = self._tokens(model, numbers).cpu().numpy()
        return rows

    def _tokens(self, model: Any, pixels: "Tensor") -> "Tensor":
        """Rows [b, dims] of prepared pixels."""
        states = model.vision_model(pixel_values=pixels).last_hidden_state
        if self.settings.form == "embedding":
            states = states[:, :1]
        states = model.visual_projection(model.vision_model.post_layernorm(states)).float()
        rows: Tensor = (states / states[:, :1].norm(dim=-1, keepdim=True)).reshape(len(pixels), -1)
        return rows

    # With gradients

    def rows_of(self, pixels: "Tensor") -> "Tensor":
        return self._tokens(self._model(), self._preprocessing.tensor(pixels))

    def gradient_cost(self, use: Use) -> Cost:
        encoder = self._encoder
        held = encoder.weights.loading_nbytes(encoder.parts(projection=True), self.precision, self.device)
        return Cost(held, encoder.gradient_nbytes(), 1)

    @functools.cached_property
    def _encoder(self) -> Encoder:
        what = "a CLIP or of Versatile Diffusion"
        return Encoder(part_of(self._root, ("image_encoder", "."), "config.json", what), "vision")

    @functools.cached_property
    def _preprocessing(self) -> Preprocessing:
        folders = [self._root / part for part in _PROCESSOR_FOLDERS]
        folder = next((f for f in folders if any((f / name).is_file() for name in PROCESSORS)), None)
        if folder is None:
            raise InputError(
                f"{self._root} has no {PROCESSORS[0]}",
                expected="the preprocessing of images, in it or in its folder feature_extractor",
                todo=AGAIN,
            )
        found, image = (
            Preprocessing.of(folder),
            whole_number(self._encoder.config, "image_size", 224, self._encoder.folder / "config.json"),
        )
        if found.crop != (image, image):
            raise InputError(
                f"{folder} crops images to {found.crop[0]} × {found.crop[1]} pixels",
                expected=f"{image} × {image}, as the model in {self._encoder.folder} takes them",
            )
        return found

    def _model(self) -> Any:
        """The network, loaded when it is first needed."""
        if self._loaded is None:
            require_installed("torch", "transformers")
            self._loaded = self._encoder.load(projection=True, precision=self.precision, device=self.device)
        return self._loaded
