"""One half of a published CLIP: its config, its weights by name, and the memory of a layer."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from leanrecon.errors import InputError, shown
from leanrecon.features.inference import load_weights
from leanrecon.weights.folders import Weights, arithmetic, described_by, read_config
from leanrecon.weights.safetensors import AGAIN, Precision, itemsize

if TYPE_CHECKING:
    from torch import nn

Half = Literal["text", "vision"]

_PROJECTION = {"text": "text_projection", "vision": "visual_projection"}
_POSITIONS = "embeddings.position_embedding.weight"

STATES, HIDDEN_STATES = 9, 4
"""States in memory at the peak of a layer: of the model's width, and of the width of its MLP."""


class Encoder:
    """One half of a CLIP in a folder: sizes are read at once, weights by ``load``.

    The folder holds all of CLIP, or this half alone with or without its projection, of any version of transformers.
    Raises InputError for any other model.
    """

    def __init__(self, folder: Path, half: Half) -> None:
        self.folder = folder
        self.half = half
        config = read_config(folder / "config.json")
        found = config.get("model_type")
        if found == "clip":
            # In a whole CLIP, the width of the shared space stands beside the two halves.
            shared = {key: config[key] for key in ("projection_dim",) if key in config}
            own = config.get(f"{half}_config", {})
            if not isinstance(own, dict):
                raise InputError(f"{folder / 'config.json'} has no table {half}_config", todo=AGAIN)
            config = {**own, **shared}
        elif found != f"clip_{half}_model":
            raise InputError(
                f"{folder} holds a model of type {shown(found)}",
                expected=f"clip or clip_{half}_model: the {half} half of CLIP",
            )
        self.config = arithmetic(config)
        self.weights = Weights.of(folder, self._name)
        for name in (f"{half}_model.{_POSITIONS}", f"{half}_model.encoder.layers.0.mlp.fc1.weight"):
            if name not in self.weights.entries or len(self._shape(name)) != 2:
                raise InputError(f"{self.weights.files[0]} has no {name}", expected=f"the {half} half of CLIP")

    def _name(self, key: str) -> str | None:
        """The name of a weight in CLIP…ModelWithProjection; None for weights that it does not have."""
        if key.endswith("position_ids"):  # 0, 1, 2, …, saved by old versions
            return None
        if key.startswith((f"{self.half}_model.", f"{_PROJECTION[self.half]}.")):
            return key
        alone = ("embeddings.", "encoder.", "final_layer_norm.", "pre_layrnorm.", "post_layernorm.")
        return f"{self.half}_model.{key}" if key.startswith(alone) else None  # one half as transformers 5 saves it

    def parts(self, *, projection: bool) -> tuple[str, ...]:
        """The prefixes of the names of its weights."""
        return (f"{self.half}_model.", *([f"{_PROJECTION[self.half]}."] if projection else []))

    @property
    def positions(self) -> int:
        """The number of tokens."""
        return self._shape(f"{self.half}_model.{_POSITIONS}")[0]

    @property
    def width(self) -> int:
        return self._shape(f"{self.half}_model.{_POSITIONS}")[1]

    @property
    def projection(self) -> int:
        """Width of the space that captions and images share; raises InputError for weights without a projection."""
        name = f"{_PROJECTION[self.half]}.weight"
        if name not in self.weights.entries:
            raise InputError(
                f"{self.folder} has no {name}; the text encoder of Stable Diffusion lacks it",
                expected="a whole CLIP, or its half with the projection",
                todo="set model to openai/clip-vit-large-patch14 or to Versatile Diffusion's folder",
            )
        if len(self._shape(name)) != 2:
            raise InputError(f"{name} in {self.folder} is {list(self._shape(name))}", expected="a matrix", todo=AGAIN)
        return self._shape(name)[0]

    def state_nbytes(self, precision: Precision) -> int:
        """Bytes that a layer takes for one caption or image at its peak."""
        hidden = self._shape(f"{self.half}_model.encoder.layers.0.mlp.fc1.weight")[0]
        return self.positions * (STATES * self.width + HIDDEN_STATES * hidden) * itemsize(precision)

    def operations(self) -> float:
        """Floating-point operations for one caption or image: products with weights, and tokens with each other."""
        known = {name: self._shape(name) for name in self.weights.entries}
        products = sum(
            (self.positions - (len(shape) == 4)) * math.prod(shape)  # patches have no class token
            for name, shape in known.items()
            if len(shape) in (2, 4) and not name.endswith(("position_embedding.weight", "token_embedding.weight"))
        )
        layers = {name.split(".")[3] for name in known if ".layers." in name}
        return 2.0 * products + 4.0 * len(layers) * self.positions**2 * self.width

    def gradient_nbytes(self) -> int:
        """Bytes that all layers keep of one image until its gradient, in float32."""
        layers = {name.split(".")[3] for name in self.weights.entries if ".layers." in name}
        return len(layers) * self.state_nbytes("float32")

    def load(self, *, projection: bool, precision: Precision, device: str) -> "nn.Module":
        """The half as a module of transformers, loaded and ready for inference."""
        import torch
        import transformers

        text = self.half == "text"
        config_class: Any = transformers.CLIPTextConfig if text else transformers.CLIPVisionConfig
        model_class: Any = (
            transformers.CLIPTextModelWithProjection if text else transformers.CLIPVisionModelWithProjection
        )
        with torch.device("meta"), described_by(self.folder / "config.json"):
            module = model_class(config_class(**self.config))
        parts = self.parts(projection=projection)
        module = load_weights(module, self.weights, parts, precision=precision, device=device)
        embeddings = getattr(module, f"{self.half}_model").embeddings
        embeddings.position_ids = torch.arange(self.positions, device=device)[None]  # not a weight, so not in the file
        return module

    def _shape(self, name: str) -> tuple[int, ...]:
        return self.weights.entries[name].shape
