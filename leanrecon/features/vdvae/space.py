"""VDVAE latents as a feature space: Brain-Diffuser predicts them from betas, and decodes its first images from them."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from leanrecon.errors import InputError
from leanrecon.features.gradients import Use
from leanrecon.features.inference import PretrainedSpace, resized, runs_in
from leanrecon.features.plan import FLOAT, Cost
from leanrecon.features.space import Array, ImageShape, Rows
from leanrecon.features.vdvae.checkpoint import check_file, loading_nbytes, require_file, weights_nbytes
from leanrecon.features.vdvae.config import (
    VDVAEConfig,
    decoding_weights,
    encoding_weights,
    gradient_numbers,
    latent_groups,
    operations,
    state_nbytes,
)
from leanrecon.features.vdvae.network import AT_ONCE_ON_GPU, VDVAE, at_once_on_cpu
from leanrecon.images import Sees, resize, with_channels
from leanrecon.places.paths import expanded
from leanrecon.stores.fingerprint import file_content
from leanrecon.weights.libraries import LIBRARY_NBYTES, imports_nbytes
from leanrecon.weights.names import WeightsName
from leanrecon.weights.needs import Need
from leanrecon.weights.safetensors import Precision

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
"""Version of the arithmetic from images to rows."""

BATCH = 16
"""Images between two steps of progress on a CPU."""

STATES = 6
"""Memory at the peak in states of the largest size, buffers of convolutions included."""


class VDVAESettings(BaseModel):
    """``[features.vdvae]``"""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    kind: Literal["vdvae"] = "vdvae"
    checkpoint: Annotated[WeightsName, Field(min_length=1)]
    """File of weights (.th or .safetensors), as the published imagenet64-iter-1600000-model-ema.th."""
    n_latents: Annotated[int, Field(strict=True, ge=1)] = 31
    """Number of latents in a row, from the coarsest."""
    latents: Literal["sample", "mean"] = "sample"
    """Samples from the posteriors ("sample", as published), or their means ("mean")."""
    precision: Precision = "float32"
    """Precision of the convolutions; float16 on a GPU only."""
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Temperature of the latents beyond n_latents in decoding: 0 takes the means of the prior, 1 samples as published."""
    sample_pixels: bool = False
    """Sample each pixel from its distribution, as published, instead of the mean of the most probable component."""
    config: Literal["imagenet64"] | dict[str, Any] = "imagenet64"
    """Sizes of the network: "imagenet64" as published, or a table of the fields of VDVAEConfig."""

    @field_validator("config", mode="before")
    @classmethod
    def _checked_config(cls, config: Any) -> Any:
        if config == "imagenet64":
            return config
        if not isinstance(config, dict):
            raise ValueError('"imagenet64" or a table of sizes is expected')
        return VDVAEConfig.from_table(config).as_table()

    @model_validator(mode="after")
    def _enough_latents(self) -> Self:
        self.network.dims(self.n_latents)
        return self

    @property
    def network(self) -> VDVAEConfig:
        """The sizes of the network."""
        return VDVAEConfig.imagenet64() if isinstance(self.config, str) else VDVAEConfig.from_table(self.config)


class VDVAESpace(PretrainedSpace):
    """Rows of the first latents of a very deep VAE, flattened and concatenated.

    Only the weights of the direction in use are in memory: for imagenet64 and 31 latents 260 MB to encode and
    267 MB to decode, of 500 MB. Source: Child 2021, arXiv:2011.10650.
    """

    Settings: ClassVar[type[BaseModel]] = VDVAESettings
    decodes = True
    differentiable = True

    def __init__(self, settings: VDVAESettings, *, name: str = "", seed: int = 0, device: str = "cpu") -> None:
        super().__init__(settings, name=name, seed=seed, device=device)
        self.config = settings.network
        runs_in(settings.precision, self.device, self.setting("precision"))

    @classmethod
    def needs(cls, settings: VDVAESettings, prefix: str) -> Iterable[Need]:
        return (Need(f"{prefix}checkpoint", settings.checkpoint),)

    def dims(self, image_shape: ImageShape) -> int:
        return self.config.dims(self.settings.n_latents)

    def check(self) -> None:
        """Raise InputError for a file that does not hold this network; one that is still to be fetched may be missing."""
        if self._path.exists():
            check_file(self._path, self.config)

    def cost(self, image_shape: ImageShape) -> Cost:
        return self._cost("encode")

    def decode_cost(self, image_shape: ImageShape) -> Cost:
        return self._cost("decode")

    def decoded_shape(self, image_shape: ImageShape) -> ImageShape:
        return self.config.image_size, self.config.image_size, 3

    def made_of(self) -> dict[str, Any]:
        settings = self.settings
        made_of = {
            "kind": settings.kind,
            "format": FORMAT,
            "config": self.config.as_table(),
            "weights": _content(self._path),
            "n_latents": settings.n_latents,
            "latents": settings.latents,
            "precision": settings.precision,
        }
        return made_of | ({"seed": self.seed} if settings.latents == "sample" else {})

    def decode_made_of(self) -> dict[str, Any]:
        settings = self.settings
        draws = settings.temperature > 0 or settings.sample_pixels
        made_of = {"temperature": settings.temperature, "sample_pixels": settings.sample_pixels}
        return made_of | ({"seed": self.seed} if draws else {})

    def groups(self) -> dict[str, slice]:
        """The latents of each resolution."""
        return {f"{r} × {r}": columns for r, columns in latent_groups(self.config, self.settings.n_latents)}

    def encode(self, images: Array, rows: Rows) -> Array:
        """Float32 rows [b, dims] of uint8 images of any size, resized by Pillow; grey is repeated in three colours."""
        size = self.config.image_size
        small = np.empty((len(images), size, size, 3), np.uint8)
        for image, place in zip(images, small, strict=True):
            place[...] = with_channels(resize(image, (size, size, images.shape[3])), 3)
        settings = self.settings
        return self._model("encode").encode(
            small, settings.n_latents, latents=settings.latents, seed=self.seed, rows=rows
        )

    def decode(self, features: Array, rows: Rows, image_shape: ImageShape) -> Array:
        """Uint8 images at the size of the network, not of those that were encoded."""
        if features.shape[1] != self.dims(image_shape):
            raise InputError(
                f"rows of {features.shape[1]} numbers do not hold the {self.settings.n_latents} latents of {self.name}",
                expected=f"{self.dims(image_shape)}",
            )
        settings = self.settings
        return self._model("decode").decode(
            features,
            temperature=settings.temperature,
            sample_pixels=settings.sample_pixels,
            seed=self.seed,
            rows=rows,
        )

    # With gradients

    def rows_of(self, pixels: "Tensor") -> "Tensor":
        size = self.config.image_size
        seen = resized(pixels, (size, size)) * 255
        return self._model("encode").latents(seen, self.settings.n_latents)

    def pixels_of(self, rows: "Tensor") -> "Tensor":
        return self._model("decode").colours(rows) / 2 + 0.5

    def gradient_cost(self, use: Use) -> Cost:
        kept = gradient_numbers(self.config, self._names(use)) * FLOAT
        return Cost(self._weights_nbytes(use) + loading_nbytes(self._path), kept, 1)

    @property
    def sees(self) -> Sees:
        """How images become what the network sees."""
        return Sees((self.config.image_size,), "bilinear")

    @property
    def _path(self) -> Path:
        return expanded(str(self.settings.checkpoint))

    def _names(self, use: Use) -> list[str]:
        return (
            encoding_weights(self.config, self.settings.n_latents) if use == "encode" else decoding_weights(self.config)
        )

    def _weights_nbytes(self, use: Use) -> int:
        return weights_nbytes(self.config, self.settings.precision, self._names(use))

    def _model(self, use: Use) -> VDVAE:
        """The model with the weights of one direction; those of the other are freed first."""
        if self._loaded is None or self._loaded[0] != use:
            self._loaded = None
            model = VDVAE.from_checkpoint(
                self._path, self.config, device=self.device, precision=self.settings.precision, only=self._names(use)
            )
            self._loaded = use, model
        loaded: VDVAE = self._loaded[1]
        return loaded

    def _cost(self, use: Use) -> Cost:
        config = self.config
        on_cpu = self.device == "cpu"
        held = LIBRARY_NBYTES + imports_nbytes()
        if self._loaded is None or self._loaded[0] != use:
            weights = self._weights_nbytes(use) + loading_nbytes(self._path)
            dropped = self._weights_nbytes(self._loaded[0]) if self._loaded and on_cpu else 0
            held += max(weights - dropped, 0)
        if on_cpu:
            held += at_once_on_cpu(config) * state_nbytes(config) * STATES
        image = config.image_size**2 * 3
        counted = operations(config, self._names(use))
        return Cost(held=held, per_image=image, batch=BATCH if on_cpu else AT_ONCE_ON_GPU, operations=counted)


def _content(path: Path) -> str:
    """The fingerprint of a file of weights, taken once while the file stays the same."""
    require_file(path)
    return file_content(path)
