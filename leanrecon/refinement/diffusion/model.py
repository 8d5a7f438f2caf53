"""A latent diffusion model in its folder: its networks, the predictions that it takes, and how large it is."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from copy import deepcopy
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from leanrecon.errors import InputError, SettingsError, shown
from leanrecon.images import Array
from leanrecon.places.paths import expanded
from leanrecon.refinement.diffusion import sampling
from leanrecon.refinement.diffusion.networks import Part, WeightSource, downscale_factor, read_part, upscale_factor
from leanrecon.refinement.diffusion.plan import Sizes
from leanrecon.refinement.diffusion.settings import DiffusionSettings
from leanrecon.refinement.inputs import Inputs, read_rows
from leanrecon.stores.fingerprint import fingerprint
from leanrecon.weights.folders import find_model, part_of, read_config, whole_number, whole_numbers

_UNCONDITIONAL_INPUT = {"text": "an empty caption", "vision": "a black image"}
_NEGATIVE_KEYS = {"text": "negative", "vision": "negative_vision"}


class DiffusionModel(ABC):
    """A network that denoises an autoencoder's latents under conditions: tokens of one width, concatenated.

    A subclass says which conditions it takes and what its network is. ``unconditional`` holds by role the unconditional
    embeddings [tokens · width] for which settings name no file. Weights are found and headers read when first needed.
    """

    layout: ClassVar[str]
    """The layout of its folder, for messages."""

    tokens: ClassVar[Mapping[str, int]]
    """Number of tokens of each role, in the order in which the network takes them."""

    deciding: ClassVar[frozenset[str]]
    """The settings that decide final images, beyond contents of files."""

    def __init__(self, settings: DiffusionSettings, unconditional: Mapping[str, Array] | None = None) -> None:
        self.settings = settings
        self._unconditional = unconditional or {}

    # Parts

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

    def sources(self, precision: str) -> list[WeightSource]:
        """The weights of the network that denoises, and of the autoencoder."""
        return [WeightSource(self.unet, precision), WeightSource(self.vae, precision)]

    @abstractmethod
    def prepare(self, network: Any) -> None:
        """Set what the network that denoises needs beside its weights."""

    def schedule(self) -> sampling.Schedule:
        """The scheduler and its noise levels; raises SettingsError for steps that the model's schedule can't run."""
        return deepcopy(self._schedule)  # a scheduler counts the steps of its batch

    @cached_property
    def _schedule(self) -> sampling.Schedule:
        settings = self.settings
        return sampling.schedule(settings.sampler, self.scheduler, settings.steps, settings.strength)

    # Sizes and shapes

    @cached_property
    def factor(self) -> int:
        """The ratio of the sides of images and latents: 8 for Stable Diffusion.

        Raises InputError for an autoencoder whose images have another size than it was given, or whose latents are not
        the base's.
        """
        vae, channels = self.vae, whole_number(self.unet.config, "in_channels", 4, self.unet.folder / "config.json")
        factor, back = downscale_factor(vae.kind, vae.config), upscale_factor(vae.kind, vae.config)
        # The weights of the base's own autoencoder may be absent beside a tiny one.
        config = self.base / "vae" / "config.json"
        expected = downscale_factor("AutoencoderKL", read_config(config)) if config.is_file() else factor
        found = whole_number(vae.config, "latent_channels", 4, vae.folder / "config.json")
        if (found, factor, back) != (channels, expected, expected):
            raise InputError(
                f"{vae.folder} makes latents of {found} channels, {factor} times narrower than images, and images "
                f"{back} times wider than latents",
                expected=f"{channels} channels and {expected} times, as {self.base} has them",
            )
        return factor

    def check_size(self) -> None:
        """Raise SettingsError for images that autoencoder and network can't halve as often as they do."""
        blocks = downscale_factor("UNet2DConditionModel", self.unet.config)
        if self.settings.size % (self.factor * blocks):
            raise SettingsError(
                f"refine.size = {self.settings.size}",
                expected=f"a multiple of {self.factor * blocks}: the base's autoencoder shrinks images by {self.factor}, "
                f"its network latents by {blocks}",
            )

    @property
    def width(self) -> int:
        """Numbers a token."""
        return whole_number(self.unet.config, "cross_attention_dim", 0, self.unet.folder / "config.json")

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of a predicted row of each role: tokens and their width, or channels, height and width of latents."""
        side = self.settings.size // self.factor
        latents = whole_number(self.unet.config, "in_channels", 4, self.unet.folder / "config.json"), side, side
        return {role: (tokens, self.width) for role, tokens in self.tokens.items()} | {"latents": latents}

    def sizes(self) -> Sizes:
        """Counts of numbers, from headers and settings of the model."""
        self.check_size()
        size, unet, vae = self.settings.size, self.unet.config, self.vae.config
        described = self.vae.folder / "config.json"
        channels = whole_numbers(unet, "block_out_channels", [320], self.unet.folder / "config.json")[0]
        if self.vae.kind == "AutoencoderTiny":
            wide = max(whole_numbers(vae, "decoder_block_out_channels", [64], described))
        else:  # the decoder enlarges the states of its last block but one to the size of the image
            wide = whole_numbers(vae, "block_out_channels", [64], described)[:2][-1]
        return Sizes(
            unet=self.unet.nbytes_as("float32") // 4,
            vae=self.vae.nbytes_as("float32") // 4,
            largest=max(self.unet.largest, self.vae.largest),
            unet_state=8 * channels * (size // self.factor) ** 2,
            vae_state=wide * size**2,
        )

    # Conditions

    def check(self) -> None:
        """Raise SettingsError or InputError for files and sizes that don't work together; reads headers only."""
        self.check_size()
        self._check_network()
        if not any(key in self.scheduler for key in ("beta_start", "beta_end", "num_train_timesteps", "trained_betas")):
            raise InputError(f"{self.base} has a scheduler_config.json without noise levels", expected=self.layout)
        for role, path in self.settings.negatives.items():
            if path and self.settings.guidance > 1:
                self._negative_of(role)

    def _check_network(self) -> None:
        """Raise InputError for a network that is of another architecture, or whose weights are not its config's."""
        unet, described = self.unet, self.unet.folder / "config.json"
        if found := unet.config.get("addition_embed_type"):
            raise InputError(
                f"{described} is of a network with further conditions (addition_embed_type = {shown(found)}, as in "
                "Stable Diffusion XL)",
                expected=self.layout,
                todo="set refine.base to Stable Diffusion 1.5, or a model like it",
            )
        first = whole_numbers(unet.config, "block_out_channels", [320], described)[0]
        channels = whole_number(unet.config, "in_channels", 4, described)
        wanted: dict[str, tuple[int, ...]] = {"conv_in.weight": (first, channels, 3, 3)}
        wanted |= {
            name: (*entry.shape[:1], self.width)
            for name, entry in unet.entries.items()
            if name.endswith("attn2.to_k.weight")
        }
        for name, shape in wanted.items():
            found_shape = unet.entries[name].shape if name in unet.entries else None
            if found_shape != shape:
                raise InputError(
                    f"the weights in {unet.folder} have {name} of {list(found_shape or ())}",
                    expected=f"{list(shape)}, as its config.json says",
                    todo="set refine.base to the folder of one model, or download it again",
                )

    def check_inputs(self, inputs: Inputs) -> None:
        """Raise InputError for predictions whose rows have another length than the network takes."""
        self.check()
        for role, matrix in inputs.predicted.items():
            self.check_length(role, matrix.shape[1])
        _ = self.negative

    def check_length(self, role: str, length: int) -> None:
        """Raise InputError unless rows of ``length`` numbers are what the network takes in a role."""
        shape = self.shapes[role]
        if length == prod(shape):
            return
        key = "start" if role == "latents" else role
        found = f"refine.{key} = {getattr(self.settings, key)!r} has rows of {length} numbers"
        if role == "latents":
            raise InputError(
                found,
                expected=f"{prod(shape)}, latents of {' × '.join(map(str, shape))}",
                todo='set refine.size to the size of the images that they were made from, or refine.start = "stage1"',
            )
        raise InputError(
            found,
            expected=f"{prod(shape)}, the base's {shape[0]} tokens of {shape[1]}",
            todo=f"predict the {role} embeddings of this base's own encoder",
        )

    def conditions(self, inputs: Inputs, rows: range) -> Array:
        """The predictions that condition the images of these rows, float32 [rows, tokens, width]."""
        roles = [read_rows(inputs.predicted[role], rows).reshape(len(rows), *self.shapes[role]) for role in self.tokens]
        return np.concatenate(roles, axis=1)

    @cached_property
    def negative(self) -> Array | None:
        """The unconditional embedding, float32 [1, tokens, width]; None without classifier-free guidance.

        Raises InputError where one is missing, or has another shape.
        """
        if self.settings.guidance == 1:
            return None
        return np.concatenate([self._negative_of(role) for role in self.tokens], axis=1)

    def _negative_of(self, role: str) -> Array:
        key, shape = f"refine.{_NEGATIVE_KEYS[role]}", self.shapes[role]
        if path := self.settings.negatives[role]:
            where = f"{key}: {expanded(str(path))}"
            try:
                row = np.load(expanded(str(path)), allow_pickle=False)
            except (OSError, ValueError) as error:
                raise InputError(f"{where} can't be read ({error})", expected="an array as .npy") from None
        elif role in self._unconditional:
            where = f"the embedding of {_UNCONDITIONAL_INPUT[role]} by refine.{role} = {self.settings.guides[role]!r}"
            row = self._unconditional[role]
        else:
            raise InputError(
                f"refine.guidance = {self.settings.guidance:g} needs the embedding of {_UNCONDITIONAL_INPUT[role]}, "
                "which is missing",
                todo=f"set {key} to its path, or set refine.guidance = 1",
            )
        if row.size != prod(shape) or not np.isfinite(row).all():
            raise InputError(f"{where} holds {list(row.shape)} numbers", expected=f"finite {list(shape)}")
        negative: Array = row.astype(np.float32).reshape(1, *shape)
        return negative

    def made_of(self) -> dict[str, Any]:
        """All that decides final images beyond predictions, precision and seed: contents and settings, never places."""
        scheduler = {key: value for key, value in self.scheduler.items() if not key.startswith("_")}
        made_of = {
            **self.settings.model_dump(include=set(self.deciding)),
            "unet": self.unet.content,
            "vae": self.vae.content,
            "scheduler": fingerprint(scheduler),
        }
        if self.negative is not None:
            made_of["negative"] = fingerprint({"numbers": self.negative.tobytes().hex()})
        return made_of
