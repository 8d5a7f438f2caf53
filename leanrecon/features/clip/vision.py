"""CLIP's description of images as a feature space: what Versatile Diffusion is shown, or one vector an image."""

import functools
from typing import Any, Literal

import numpy as np

from leanrecon.errors import InputError
from leanrecon.features.clip.encoder import Encoder
from leanrecon.features.clip.preprocess import Preprocessing
from leanrecon.features.clip.space import CLIPSettings, CLIPSpace
from leanrecon.features.inference import LIBRARY_NBYTES, exact_inference, imports_nbytes, require
from leanrecon.features.plan import FLOAT, Cost
from leanrecon.features.space import Array, ImageShape, Rows
from leanrecon.weights.folders import part_of
from leanrecon.weights.pieces import PROCESSORS
from leanrecon.weights.safetensors import AGAIN

FORMAT = 1
"""Of the arithmetic that leads from images to rows."""

BATCH = 8
"""Images between two steps of progress; on a CPU they go through the network one by one, which costs nothing: 2.4 s an
image of one core with ViT-L/14, 2.5 s eight at a time."""

AT_ONCE_ON_GPU = 32

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
    """All tokens as Versatile Diffusion takes them, or the embedding that CLIP compares with captions."""


class CLIPVision(CLIPSpace):
    """Rows of CLIP's tokens of an image, in C order.

    ``form = "versatile"``, 257 × 768 with CLIP ViT-L/14: the last hidden states through the layer norm that CLIP has
    for its class token and the visual projection, divided by the norm of the projected class token (Ozcelik & VanRullen
    2023). ``form = "embedding"``, 768: that class token alone, of norm 1 (Radford et al. 2021). On a CPU images go
    through one by one, so that a row has the same bytes in every batch; on a GPU it may differ by rounding, some 1e-6 of
    its largest number in float32.
    """

    at_once_on_gpu = AT_ONCE_ON_GPU

    def dims(self, image_shape: ImageShape) -> int:
        tokens = self._encoder.positions if self.settings.form == "versatile" else 1
        return tokens * self._encoder.projection

    def cost(self, image_shape: ImageShape) -> Cost:
        encoder, pixels = self._encoder, 3 * self._preprocessing.crop[0] * self._preprocessing.crop[1]
        held = LIBRARY_NBYTES + imports_nbytes("transformers")
        if self._loaded is None:
            held += encoder.weights.loading_nbytes(encoder.parts(projection=True), self.precision, self.device)
        at_once = self._at_once
        held += at_once * (3 * encoder.positions * encoder.projection + 3 * pixels) * FLOAT
        height, width = self._preprocessing.size_of(*image_shape[:2])
        held += 3 * (2 * height * width + image_shape[0] * image_shape[1])  # one image in Pillow, and resized
        if self.device == "cpu":
            held += at_once * encoder.state_nbytes(self.precision)
        return Cost(held=held, per_image=0, batch=self.cost_batch)

    @property
    def cost_batch(self) -> int:
        """Images a batch beyond which it gets no faster."""
        return BATCH if self.device == "cpu" else AT_ONCE_ON_GPU

    def made_of(self) -> dict[str, Any]:
        return {
            "kind": self.settings.kind,
            "format": FORMAT,
            "form": self.settings.form,
            "precision": self.precision,
            "config": self._encoder.config,
            "weights": self._encoder.weights.content(),
            "preprocessing": self._preprocessing.as_table(),
        }

    def encode(self, images: Array, rows: Rows) -> Array:
        """Rows [b, dims] in float32 of images of any size; grey ones are repeated in the three colours."""
        out = np.empty((len(images), self.dims(images.shape[1:])), np.float32)
        model = self._model()
        for start in range(0, len(images), self._at_once):
            part = slice(start, start + self._at_once)
            out[part] = self._encode(model, self._preprocessing(images[part]))
        return out

    def unconditional(self) -> Array:
        """The row [dims] of a black image."""
        row: Array = self.encode(np.zeros((1, *self._preprocessing.crop, 3), np.uint8), range(1))[0]
        return row

    def _encode(self, model: Any, pixels: Array) -> Array:
        import torch

        with exact_inference(self.device):
            numbers = torch.from_numpy(pixels).to(self.device, getattr(torch, self.precision))
            states = model.vision_model(pixel_values=numbers).last_hidden_state
            if self.settings.form == "embedding":
                states = states[:, :1]
            states = model.visual_projection(model.vision_model.post_layernorm(states)).float()
            states = states / states[:, :1].norm(dim=-1, keepdim=True)
            rows: Array = states.reshape(len(pixels), -1).cpu().numpy()
        return rows

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
                expected="how images are resized and normalised, in it or in its folder feature_extractor",
                todo=AGAIN,
            )
        found, image = Preprocessing.of(folder), self._encoder.config.get("image_size", 224)
        if found.crop != (image, image):
            raise InputError(
                f"{folder} cuts images to {found.crop[0]} × {found.crop[1]} pixels",
                expected=f"{image} × {image}, as the model in {self._encoder.folder} takes them",
            )
        return found

    def _model(self) -> Any:
        """The network, loaded when it is first needed."""
        if self._loaded is None:
            require("torch", "transformers")
            self._loaded = self._encoder.load(projection=True, precision=self.precision, device=self.device)
        return self._loaded
