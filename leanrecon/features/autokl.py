"""Latents of Stable Diffusion's autoencoder (AutoencoderKL) as a feature space, at an eighth of the image's sides."""

import functools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from leanrecon.errors import InputError, SettingsError, shown
from leanrecon.features.gradients import Use
from leanrecon.features.inference import PretrainedSpace, exact_inference, load_weights, resized, runs_in
from leanrecon.features.plan import FLOAT, Cost
from leanrecon.features.space import Array, ImageShape, Rows
from leanrecon.features.vdvae.noise import POSTERIOR, normals
from leanrecon.images import Sees, resize, with_channels
from leanrecon.weights.folders import (
    Weights,
    arithmetic,
    described_by,
    find_model,
    part_of,
    present_name,
    read_config,
    whole_number,
    whole_numbers,
)
from leanrecon.weights.libraries import LIBRARY_NBYTES, imports_nbytes, require_installed
from leanrecon.weights.names import WeightsName
from leanrecon.weights.needs import Need
from leanrecon.weights.pieces import Piece
from leanrecon.weights.safetensors import AGAIN, Precision, itemsize

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
"""Version of the arithmetic from images to rows."""

BATCH = 4
"""Images between two steps of progress; on a CPU they are encoded one by one."""

AT_ONCE_ON_GPU = 4

STATES = {"encode": 6, "decode": 4}
"""Memory at the peak in states of the largest size, buffers of convolutions included. Measured with Stable Diffusion's
autoencoder at 512 pixels: 5.0 and 3.0 (671 and 798 MB in float32, 330 and 373 MB in bfloat16)."""

GRADIENT_STATES = 3
"""States that a layer keeps until its gradient, in units of its input."""

Side = Annotated[int, Field(strict=True, ge=8, le=4096)]

_PARTS: dict[Use, tuple[str, ...]] = {
    "encode": ("encoder.", "quant_conv."),
    "decode": ("decoder.", "post_quant_conv."),
}


class AutoKLSettings(BaseModel):
    """``[features.autokl]``"""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    kind: Literal["autokl"] = "autokl"
    model: Annotated[WeightsName, Field(min_length=1)]
    """Folder or name on the Hugging Face Hub of an AutoencoderKL, or of a pipeline with one in vae/."""
    size: Side = 512
    """Height and width in pixels to which images are resized."""
    latents: Literal["mean", "sample"] = "mean"
    """Means of the posteriors ("mean"), or samples from them ("sample")."""
    precision: Literal["auto"] | Precision = "auto"
    """Precision of the network; "auto" is float16 on CUDA and float32 elsewhere."""
    # bfloat16 moved latents by 1.3 % of their standard deviation, for 0.65 of the memory (random weights, 512 pixels).
    tile: Side | None = None
    """Side in pixels of overlapping tiles, for far less memory and slightly different latents; absent: no tiles."""
    tiny: Annotated[WeightsName, Field(min_length=1)] | None = None
    """Folder or name of an AutoencoderTiny (TAESD) to decode with, some twenty times faster and less sharp."""


class AutoKL(PretrainedSpace):
    """Rows of latents [channels, size/8, size/8], scaled as the diffusion model takes them, in C order.

    Images are resized to size × size by Pillow's BICUBIC and scaled to [-1, 1]. Latents are multiplied by the model's
    scaling_factor (4 × 64 × 64 numbers of standard deviation near 1 at 512 pixels). Only the weights of the direction in
    use are in memory. On a CPU images are encoded one by one, so that a row has the same bytes in every batch; on a
    GPU it may differ by rounding. Source: Rombach et al. 2022, arXiv:2112.10752.
    """

    Settings: ClassVar[type[BaseModel]] = AutoKLSettings
    decodes = True
    differentiable = True
    library: str | None = "diffusers"

    def __init__(self, settings: AutoKLSettings, *, name: str = "", seed: int = 0, device: str = "cpu") -> None:
        super().__init__(settings, name=name, seed=seed, device=device)
        asked = settings.precision
        auto: Precision = "float16" if self.device == "cuda" else "float32"
        self.precision = runs_in(auto if asked == "auto" else asked, self.device, self.setting("precision"))

    @classmethod
    def needs(cls, settings: AutoKLSettings, prefix: str) -> Iterable[Need]:
        yield Need(f"{prefix}model", settings.model, (Piece("network", ("vae", ".")),))
        if settings.tiny:
            yield Need(f"{prefix}tiny", settings.tiny, (Piece("network", (".", "vae")),))

    def dims(self, image_shape: ImageShape) -> int:
        channels, height, width = self._latent_shape
        return channels * height * width

    def check(self) -> None:
        """Raise InputError for files that are not an autoencoder of this kind; reads headers and configs only."""
        for use in _PARTS:
            self._cost(use)
            weights = self._network(use)[1]
            folder = weights.files[0].parent
            if not weights.named(_PARTS[use]):
                raise InputError(f"{folder} has no weights of {_PARTS[use][0]}…", expected="an autoencoder", todo=AGAIN)

    def cost(self, image_shape: ImageShape) -> Cost:
        return self._cost("encode")

    def decode_cost(self, image_shape: ImageShape) -> Cost:
        return self._cost("decode")

    def decoded_shape(self, image_shape: ImageShape) -> ImageShape:
        return self.settings.size, self.settings.size, 3

    def made_of(self) -> dict[str, Any]:
        settings = self.settings
        made_of = {
            "kind": settings.kind,
            "format": FORMAT,
            "config": self._config,
            "weights": self._weights.content(),
            "size": settings.size,
            "latents": settings.latents,
            "precision": self.precision,
            "tile": settings.tile,
        }
        return made_of | ({"seed": self.seed} if settings.latents == "sample" else {})

    @property
    def sees(self) -> Sees:
        """How images become what the network sees."""
        return Sees((self.settings.size,), "bicubic")

    def decode_made_of(self) -> dict[str, Any]:
        """The tiny autoencoder, if it decodes."""
        if self.settings.tiny is None:
            return {}
        config, weights = self._tiny
        return {"tiny": {"config": config, "weights": weights.content()}}

    def encode(self, images: Array, rows: Rows) -> Array:
        """Float32 rows [b, dims] of uint8 images of any size; grey is repeated in three colours."""
        size, channels = self.settings.size, self._latent_shape[0]
        out = np.empty((len(images), self.dims(images.shape[1:])), np.float32)
        model = self._model("encode")
        for start in range(0, len(images), self._at_once):
            part = slice(start, start + self._at_once)
            moments = self._moments(model, np.stack([self._fitted(image, size) for image in images[part]]))
            latents = moments[:, :channels]
            if self.settings.latents == "sample":
                std = np.exp(0.5 * np.clip(moments[:, channels:], -30, 20))  # bounds as in diffusers
                latents = latents + std * normals(self.seed, rows[part], 0, self._latent_shape, POSTERIOR)
            shift = self._shift
            out[part] = ((latents - np.float32(shift)) * np.float32(self._scaling)).reshape(len(latents), -1)
        return out

    def decode(self, features: Array, rows: Rows, image_shape: ImageShape) -> Array:
        """Uint8 images [b, size, size, 3], whatever the size of those that were encoded."""
        if features.shape[1] != self.dims(image_shape):
            raise InputError(
                f"rows of {features.shape[1]} numbers do not hold the latents of {self.name}",
                expected=f"{self.dims(image_shape)}, {' × '.join(map(str, self._latent_shape))}",
            )
        out = np.empty((len(features), *self.decoded_shape(image_shape)), np.uint8)
        model = self._model("decode")
        for start in range(0, len(features), self._at_once):
            part = slice(start, start + self._at_once)
            latents = features[part].reshape(-1, *self._latent_shape)
            if self.settings.tiny is None:  # tiny autoencoders are trained on scaled latents
                latents = latents / np.float32(self._scaling) + np.float32(self._shift)
            out[part] = self._pixels(model, latents, rows[part])
        return out

    # With gradients

    def rows_of(self, pixels: "Tensor") -> "Tensor":
        size, channels = self.settings.size, self._latent_shape[0]
        posterior = self._model("encode").encode(resized(pixels, (size, size), bicubic=True) * 2 - 1).latent_dist
        rows: Tensor = ((posterior.parameters[:, :channels] - self._shift) * self._scaling).flatten(1)
        return rows

    def pixels_of(self, rows: "Tensor") -> "Tensor":
        latents = rows.reshape(-1, *self._latent_shape)
        if self.settings.tiny is None:
            latents = latents / self._scaling + self._shift
        pixels: Tensor = self._model("decode").decode(latents).sample
        return (pixels / 2 + 0.5).clamp(0, 1)

    def gradient_cost(self, use: Use) -> Cost:
        parts = ("",) if self._is_tiny(use) else _PARTS[use]
        held = self._network(use)[1].loading_nbytes(parts, self.precision, self.device)
        return Cost(held, self._gradient_nbytes(use), 1)

    # The network

    def _fitted(self, image: Array, size: int) -> Array:
        return with_channels(resize(image, (size, size, image.shape[2]), bicubic=True), 3)

    def _moments(self, model: Any, images: Array) -> Array:
        """Means and log variances [n, 2 · channels, height, width] of the posteriors."""
        with exact_inference(self.device):
            pixels = self._tensor(images.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(127.5) - np.float32(1))
            found: Array = model.encode(pixels).latent_dist.parameters.float().cpu().numpy()
        return found

    def _pixels(self, model: Any, latents: Array, rows: Rows) -> Array:
        import torch

        with exact_inference(self.device):
            values = model.decode(self._tensor(latents)).sample.float()
            if not bool(torch.isfinite(values).all()):
                raise InputError(
                    f"{self.name} decoded rows {rows[0]} to {rows[-1]} to NaN in {self.precision}",
                    todo=f'set {self.setting("precision")} = "float32"',
                )
            levels = (values / 2 + 0.5).clamp_(0, 1).mul_(255).round_().to(torch.uint8)
            images: Array = levels.permute(0, 2, 3, 1).cpu().numpy()
        return images

    def _tensor(self, numbers: Array) -> Any:
        import torch

        layout: Any = {"memory_format": torch.channels_last} if self.device == "cpu" else {}
        tensor = torch.tensor(np.ascontiguousarray(numbers))  # a copy: the array may be read-only
        return tensor.to(self.device, getattr(torch, self.precision), **layout)

    def _model(self, use: Use) -> Any:
        """The network with the weights of one direction; those of the other are freed first."""
        if self._loaded is None or self._loaded[0] != use:
            self._loaded = None
            self._loaded = use, self._load(use)
        return self._loaded[1]

    def _load(self, use: Use) -> Any:
        require_installed("torch", "diffusers")
        import torch
        from diffusers import AutoencoderKL, AutoencoderTiny

        config, weights = self._network(use)
        kind: Any = AutoencoderTiny if self._is_tiny(use) else AutoencoderKL
        with torch.device("meta"), described_by(weights.files[0].parent / "config.json"):
            empty = kind.from_config(config)
        model: Any = load_weights(empty, weights, _PARTS[use], precision=self.precision, device=self.device)
        if self.settings.tile is not None and not self._is_tiny(use):
            model.enable_tiling()
            model.tile_sample_min_size = self.settings.tile
            model.tile_latent_min_size = self.settings.tile // self._factor
        return model

    @property
    def _at_once(self) -> int:
        return 1 if self.device == "cpu" else AT_ONCE_ON_GPU

    def _cost(self, use: Use) -> Cost:
        weights, on_cpu = self._network(use)[1], self.device == "cpu"
        held = LIBRARY_NBYTES + imports_nbytes("diffusers")
        if self._loaded is None or self._loaded[0] != use:
            held += weights.loading_nbytes(_PARTS[use], self.precision, self.device)
            if self._loaded and on_cpu:
                held -= self._network(self._loaded[0])[1].nbytes(_PARTS[self._loaded[0]], self.precision)
        if on_cpu:
            held += self._state_nbytes(use) * STATES[use]
        size = int(self.settings.size)
        held += self._at_once * (3 * size * size * 3 * FLOAT + 4 * self.dims((size, size, 3)) * FLOAT)
        return Cost(held=max(held, 0), per_image=0, batch=BATCH if on_cpu else AT_ONCE_ON_GPU)

    def _state_nbytes(self, use: Use) -> int:
        """Bytes of the largest state of an image or a tile."""
        config = self._network(use)[0]
        if self._is_tiny(use):
            folder = self._tiny[1].files[0].parent
            channels = max(whole_numbers(config, "decoder_block_out_channels", [64], folder / "config.json"))
            return channels * int(self.settings.size) ** 2 * itemsize(self.precision)
        side = int(min(self.settings.tile or self.settings.size, self.settings.size))
        # The decoder enlarges a state before it reduces its channels.
        channels = self._channels[0] if use == "encode" else max(self._channels[:2])
        return channels * side**2 * itemsize(self.precision)

    def _gradient_nbytes(self, use: Use) -> int:
        """Bytes that an image keeps until its gradient: the input of each layer, normalised, and through its activation."""
        weights, parts = self._network(use)[1], ("decoder.",) if self._is_tiny(use) else _PARTS[use]
        levels, size, numbers = len(self._channels), int(self.settings.size), 0
        for name in weights.named(parts):
            shape = weights.entries[name].shape
            if len(shape) == 4:
                numbers += GRADIENT_STATES * shape[1] * (size >> _halvings(name, levels)) ** 2
        return numbers * FLOAT

    # Files

    @functools.cached_property
    def _folder(self) -> Path:
        root = find_model(self.settings.model, self.setting("model"))
        return part_of(root, ("vae", "."), "config.json", "an AutoencoderKL, or of a pipeline with one in vae/")

    @functools.cached_property
    def _config(self) -> dict[str, Any]:
        return _config_of(self._folder, "AutoencoderKL")

    @functools.cached_property
    def _weights(self) -> Weights:
        return Weights.of(self._folder, present_name)

    @functools.cached_property
    def _tiny(self) -> tuple[dict[str, Any], Weights]:
        folder = find_model(str(self.settings.tiny), self.setting("tiny"))
        folder = part_of(folder, (".", "vae"), "config.json", "an AutoencoderTiny, such as madebyollin/taesd")
        config = _config_of(folder, "AutoencoderTiny")
        config.pop("block_out_channels", None)  # diffusers writes it, and warns when it reads it
        channels = whole_number(config, "latent_channels", 4, folder / "config.json")
        blocks = whole_numbers(config, "num_decoder_blocks", (3, 3, 3, 1), folder / "config.json")
        if (channels, 2 ** (len(blocks) - 1)) != (self._latent_shape[0], self._factor):
            raise InputError(
                f"{folder} decodes {channels} channels to {2 ** (len(blocks) - 1)} times their size",
                expected=f"{self._latent_shape[0]} channels and {self._factor} times, as {self._folder} has them",
            )
        return config, Weights.of(folder)

    def _is_tiny(self, use: Use) -> bool:
        return use == "decode" and self.settings.tiny is not None

    def _network(self, use: Use) -> tuple[dict[str, Any], Weights]:
        return self._tiny if self._is_tiny(use) else (self._config, self._weights)

    @property
    def _channels(self) -> list[int]:
        return whole_numbers(self._config, "block_out_channels", [64], self._folder / "config.json")

    @property
    def _factor(self) -> int:
        """The ratio of the sides of images to those of latents."""
        return 1 << (len(self._channels) - 1)

    @property
    def _scaling(self) -> float:
        return _number(self._config, "scaling_factor", 0.18215, self._folder)

    @property
    def _shift(self) -> float:
        return _number(self._config, "shift_factor", 0.0, self._folder)

    @property
    def _latent_shape(self) -> tuple[int, int, int]:
        size, factor = self.settings.size, self._factor
        for key in ("size", "tile"):
            if (getattr(self.settings, key) or 0) % factor:
                raise SettingsError(
                    f"{self.setting(key)} = {getattr(self.settings, key)}", expected=f"a multiple of {factor}"
                )
        channels = whole_number(self._config, "latent_channels", 4, self._folder / "config.json")
        return channels, size // factor, size // factor


def _halvings(name: str, levels: int) -> int:
    """How often the sides of an image are halved where a layer works, by the layer's name; 0 where names don't tell."""
    if found := re.search(r"(down|up)_blocks\.(\d+)\.", name):
        place = int(found[2]) if found[1] == "down" else levels - 1 - int(found[2])
        return max(place - ("upsamplers" in name), 0)
    return levels - 1 if "mid_block" in name or "quant_conv" in name else 0


def _number(config: dict[str, Any], key: str, default: float, folder: Path) -> float:
    value = default if config.get(key) is None else config[key]
    if type(value) not in (int, float) or not abs(value) < 1e6 or (value == 0 and default):
        raise InputError(f"{folder / 'config.json'} has {key} = {shown(value)}", expected="a number", todo=AGAIN)
    return float(value)


def _config_of(folder: Path, kind: str) -> dict[str, Any]:
    config = read_config(folder / "config.json")
    if config.get("_class_name") != kind:
        raise InputError(f"{folder} holds a {shown(config.get('_class_name'))}", expected=f"an {kind}")
    if config.get("latents_mean") is not None or config.get("latents_std") is not None:
        raise InputError(f"{folder} scales each channel by its own mean and std", expected="one scaling_factor for all")
    return arithmetic(config)
