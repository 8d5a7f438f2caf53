"""What every generator of final images has: a model's folder, the predictions that it takes, and how they guide it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from leanrecon.errors import InputError, SettingsError
from leanrecon.images import Array
from leanrecon.refinement.diffusion import sampling as diffusion
from leanrecon.refinement.diffusion.networks import Part, Source, enlarges_by, read_part, shrinks_by
from leanrecon.refinement.diffusion.plan import Sizes
from leanrecon.refinement.diffusion.settings import RefineSettings
from leanrecon.refinement.inputs import Inputs, read_rows
from leanrecon.stores.fingerprint import fingerprint
from leanrecon.weights.folders import find_model, part_of, read_config

_OF = {"text": "an empty text", "vision": "a black image"}


class Generator(ABC):
    """A network that denoises an autoencoder's latents under conditions, tokens of one width that are laid in a row.

    A subclass says which conditions it takes and what its network is. ``unconditional`` holds by role the rows to be
    led away from where settings name no file. Weights are found and headers read when they are first needed.
    """

    layout: ClassVar[str]
    """What its folder is, for messages."""

    tokens: ClassVar[Mapping[str, int]]
    """How many tokens each role has, in the order in which the network takes them."""

    own_settings: ClassVar[frozenset[str]]
    """The settings that decide final images, beyond contents of files."""

    def __init__(self, settings: RefineSettings, unconditional: Mapping[str, Array] | None = None) -> None:
        if settings.kind == "none" or settings.steps is None:
            raise ValueError("with kind = 'none' there is nothing to refine")
        self.settings = settings
        self.steps: int = settings.steps
        self._unconditional = unconditional or {}

    # Its parts

    @cached_property
    def base(self) -> Path:
        return find_model(self.settings.base, "refine.base")

    @property
    @abstractmethod
    def unet(self) -> Part:
        """The network that denoises."""

    @cached_property
    def vae(self) -> Part:
        if not self.settings.tiny_autoencoder:
            return read_part(self.base, ("vae",), ("AutoencoderKL",), self.layout)
        folder = find_model(self.settings.tiny_autoencoder, "refine.tiny_autoencoder")
        return read_part(folder, (".", "vae"), ("AutoencoderTiny",), "an AutoencoderTiny, such as madebyollin/taesd")

    @cached_property
    def scheduler(self) -> dict[str, Any]:
        name = "scheduler_config.json"
        return read_config(part_of(self.base, ("scheduler",), name, self.layout) / name)

    def sources(self, precision: str) -> list[Source]:
        """The weights of the network that denoises, and of the autoencoder."""
        return [Source(self.unet, precision), Source(self.vae, precision)]

    @abstractmethod
    def made_ready(self, network: Any) -> None:
        """Set what the network that denoises has beside its weights."""

    def sampler(self) -> tuple[Any, Any]:
        """The sampler and the noise levels that it visits; raises SettingsError for what the model's can't do."""
        return diffusion.scheduled(self.settings.sampler, self.scheduler, self.steps, self.settings.strength)

    # What it takes

    @cached_property
    def factor(self) -> int:
        """How many times narrower the autoencoder's latents are than images: 8 for Stable Diffusion's.

        Raises InputError for one that does not come back to the size of its images, or whose latents are not the base's.
        """
        vae, channels = self.vae, int(self.unet.config.get("in_channels", 4))
        factor, back = shrinks_by(vae.kind, vae.config), enlarges_by(vae.kind, vae.config)
        own = (
            self.base / "vae" / "config.json"
        )  # weights are not needed beside a tiny autoencoder, and may not be there
        of_base = shrinks_by("AutoencoderKL", read_config(own)) if own.is_file() else factor
        found = int(vae.config.get("latent_channels", 4))
        if (found, factor, back) != (channels, of_base, of_base):
            raise InputError(
                f"{vae.folder} makes latents of {found} channels, {factor} times narrower than images, and images "
                f"{back} times wider than latents",
                expected=f"{channels} channels and {of_base} times, as {self.base} has them",
            )
        return factor

    def check_size(self) -> None:
        """Raise SettingsError for images that autoencoder and network can't halve as often as they do."""
        blocks = shrinks_by("UNet2DConditionModel", self.unet.config)
        if self.settings.size % (self.factor * blocks):
            raise SettingsError(
                f"refine.size = {self.settings.size}",
                expected=f"a multiple of {self.factor * blocks}: the base's autoencoder shrinks images by {self.factor}, "
                f"its network latents by {blocks}",
            )

    @property
    def width(self) -> int:
        """Numbers a token."""
        return int(self.unet.config["cross_attention_dim"])

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of a predicted row of each role: tokens and their width, or channels, height and width of latents."""
        side = self.settings.size // self.factor
        latents = int(self.unet.config.get("in_channels", 4)), side, side
        return {role: (tokens, self.width) for role, tokens in self.tokens.items()} | {"latents": latents}

    def check(self, inputs: Inputs) -> None:
        """Raise InputError for predictions that are not as long as the network takes them, and for parts that fail."""
        self.check_size()
        for role, matrix in inputs.predicted.items():
            shape = self.shapes[role]
            if matrix.shape[1] == prod(shape):
                continue
            key = "start" if role == "latents" else role
            found = f"refine.{key} = {getattr(self.settings, key)!r} has rows of {matrix.shape[1]} numbers"
            if role == "latents":
                raise InputError(
                    found,
                    expected=f"{prod(shape)}, latents of {' × '.join(map(str, shape))}",
                    todo="set refine.size to the size of the images that they were made from, or "
                    'refine.start = "stage1"',
                )
            raise InputError(
                found,
                expected=f"{prod(shape)}, the base's {shape[0]} tokens of {shape[1]}",
                todo=f"predict the {role} embeddings of this base's own encoder",
            )
        _ = self.negative

    def conditions(self, inputs: Inputs, rows: range) -> Array:
        """What guides the images of these rows, float32 [rows, tokens, width]."""
        roles = [read_rows(inputs.predicted[role], rows).reshape(len(rows), *self.shapes[role]) for role in self.tokens]
        return np.concatenate(roles, axis=1)

    @cached_property
    def negative(self) -> Array | None:
        """What they are led away from, float32 [1, tokens, width]; None without guidance."""
        if self.settings.guidance == 1:
            return None
        paths = self.settings.negatives()
        return np.concatenate([self._negative_of(role, paths[role]) for role in self.tokens], axis=1)

    def _negative_of(self, role: str, path: str) -> Array:
        key = "negative" if role == "text" else f"negative_{role}"
        shape = self.shapes[role]
        if path:
            where = f"refine.{key}: {Path(path).expanduser()}"
            try:
                row = np.load(Path(path).expanduser(), allow_pickle=False)
            except (OSError, ValueError) as error:
                raise InputError(f"{where} can't be read ({error})", expected="an array as .npy") from None
        elif role in self._unconditional:
            where = f"{_OF[role]} as refine.{role} = {getattr(self.settings, role)!r} encodes it"
            row = self._unconditional[role]
        else:
            raise InputError(
                f"refine.guidance = {self.settings.guidance:g} leads away from {_OF[role]}, whose encoding is not there",
                todo=f"give its path as refine.{key}, or set refine.guidance = 1",
            )
        if row.size != prod(shape) or not np.isfinite(row).all():
            raise InputError(f"{where} holds {list(row.shape)} numbers", expected=f"finite {list(shape)}")
        negative: Array = row.astype(np.float32).reshape(1, *shape)
        return negative

    # What it is made of, and how large it is

    def made_of(self) -> dict[str, Any]:
        """All that decides final images beyond predictions, precision and seed: contents and settings, never places."""
        scheduler = {key: value for key, value in self.scheduler.items() if not key.startswith("_")}
        made_of = {
            **self.settings.model_dump(include=set(self.own_settings)),
            "unet": self.unet.content,
            "vae": self.vae.content,
            "scheduler": fingerprint(scheduler),
        }
        if self.negative is not None:
            made_of["negative"] = fingerprint({"numbers": self.negative.tobytes().hex()})
        return made_of

    def sizes(self) -> Sizes:
        """Counts of numbers, from headers and settings of the model."""
        self.check_size()
        size, unet, vae = self.settings.size, self.unet.config, self.vae.config
        channels = unet.get("block_out_channels", [320])[0]
        if self.vae.kind == "AutoencoderTiny":
            wide = max(vae.get("decoder_block_out_channels", [64]))
        else:  # the decoder enlarges the states of its last block but one to the size of the image
            wide = vae["block_out_channels"][min(1, len(vae["block_out_channels"]) - 1)]
        return Sizes(
            unet=self.unet.nbytes_as("float32") // 4,
            vae=self.vae.nbytes_as("float32") // 4,
            largest=max(self.unet.largest, self.vae.largest),
            unet_state=8 * channels * (size // self.factor) ** 2,
            vae_state=wide * size**2,
        )
