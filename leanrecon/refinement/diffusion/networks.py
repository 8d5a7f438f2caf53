"""The networks of a diffusion model in diffusers' format: sizes are read and checked, weights read one by one."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from leanrecon.errors import InputError, shown
from leanrecon.refinement.diffusion.lora import LoRA
from leanrecon.stores.fingerprint import file_content, fingerprint
from leanrecon.weights.folders import (
    Weights,
    described_by,
    part_of,
    present_name,
    read_config,
    whole_number,
    whole_numbers,
)
from leanrecon.weights.safetensors import SHORT, Entry, MappedWeights, read_header, write_weights

FORMAT = 1
"""Version of the files of merged and cast weights."""

_BLOCKS = {
    "AutoencoderKL": ("block_out_channels", 1),
    "AutoencoderTiny": ("num_encoder_blocks", 4),
    "UNet2DConditionModel": ("block_out_channels", 4),
}
"""The key of a config that lists blocks, all but one of which halve their input, and the default number of blocks."""


@dataclass(frozen=True)
class Part:
    """One network of a model: its class, its sizes and its files of weights."""

    folder: Path
    kind: str
    config: dict[str, Any]
    weights: Weights

    @property
    def entries(self) -> Mapping[str, Entry]:
        return self.weights.entries

    @property
    def content(self) -> str:
        """A hash of the sizes and weights, whatever the names of files."""
        config = {key: value for key, value in self.config.items() if not key.startswith("_")}
        return fingerprint({"config": config, "weights": [file_content(file) for file in self.weights.files]})

    def nbytes_as(self, dtype: str) -> int:
        """Bytes of the weights in a precision."""
        return sum(entry.nbytes_as(dtype) for entry in self.entries.values())

    @property
    def largest(self) -> int:
        """Numbers in the largest weight."""
        return max(entry.nbytes_as("float32") for entry in self.entries.values()) // 4


def downscale_factor(kind: str, config: Mapping[str, Any]) -> int:
    """The ratio of the sides of an autoencoder's images and latents, or of a UNet's latents and narrowest states."""
    key, default = _BLOCKS[kind]
    blocks = len(_list(config, key)) if key in config else default
    return int(2 ** (blocks - 1))


def _list(config: Mapping[str, Any], key: str) -> list[int]:
    return whole_numbers(config, key, (), Path("config.json"))


def upscale_factor(kind: str, config: Mapping[str, Any]) -> int:
    """The ratio of the sides of an autoencoder's images and the latents that it decodes."""
    if kind != "AutoencoderTiny":
        return downscale_factor(kind, config)
    blocks = len(_list(config, "num_decoder_blocks")) if "num_decoder_blocks" in config else 4
    return int(whole_number(config, "upsampling_scaling_factor", 2, Path("config.json")) ** (blocks - 1))


class WeightSource:
    """The weights of a part, cast to a precision and with a LoRA added, one by one."""

    def __init__(self, part: Part, dtype: str, lora: LoRA | None = None) -> None:
        self.part = part
        self.dtype = dtype
        self.lora = lora
        self._mapped = MappedWeights(part.entries)

    @property
    def as_stored(self) -> bool:
        """Whether the files hold exactly these numbers."""
        return self.lora is None and all(entry.dtype == SHORT[self.dtype] for entry in self.part.entries.values())

    def read(self, name: str) -> Any:
        """One weight, in memory of its own."""
        import torch

        weight = self._mapped[name]
        merged = weight if self.lora is None else self.lora.added_to(name, weight)
        result = merged.to(getattr(torch, self.dtype))
        if result is weight:
            result = weight.clone()
        self._mapped.release(name)
        return result

    def on_disk(self, scratch: Path, content: str) -> Mapping[str, Entry]:
        """The weights in a file: the part's own where it holds them as used, else one in ``scratch``, written once.

        ``content`` is a fingerprint of all that the weights are made of.
        """
        if self.as_stored:
            return self.part.entries
        path = scratch / f"{self.part.kind}-{content[:16]}-{self.dtype}.safetensors"
        if not path.exists():
            shapes = {name: entry.shape for name, entry in self.part.entries.items()}
            write_weights(path, ((name, self.read(name)) for name in shapes), shapes, self.dtype)
        return read_header(path)[0]


def read_part(model: Path, parts: tuple[str, ...], kinds: tuple[str, ...], what: str) -> Part:
    """Read the sizes and headers of one network of a model, from the first of the folders ``parts`` that exists.

    ``kinds`` are its classes in diffusers. Raises InputError where it is missing, or of another class.
    """
    folder = part_of(model, parts, "config.json", what)
    config = read_config(folder / "config.json")
    kind = config.get("_class_name", "")
    if kind not in kinds:
        raise InputError(
            f"{folder} holds a {shown(kind) if kind else 'model of no known kind'}", expected=" or ".join(kinds)
        )
    return Part(folder, kind, config, Weights.of(folder, present_name))


def build(part: Part) -> Any:
    """The network of a part, without weights; raises InputError if its files lack weights or have other shapes."""
    import diffusers
    import torch

    # AutoencoderTiny writes a key that it does not take.
    config = {key: value for key, value in part.config.items() if (part.kind, key) != ("AutoencoderTiny", _DERIVED)}
    with torch.device("meta"), described_by(part.folder / "config.json"):
        network = getattr(diffusers, part.kind).from_config(config)
    needed = {name: tuple(weight.shape) for name, weight in network.state_dict().items()}
    for name, shape in needed.items():
        found = part.entries.get(name)
        if found is None or found.shape != shape:
            what = "lack" if found is None else f"have {list(found.shape)} instead of {list(shape)} for"
            raise InputError(
                f"the weights in {part.folder} {what} {name}", expected=f"those of a {part.kind} of these sizes"
            )
    return network.eval().requires_grad_(False)


def only_needed(part: Part, network: Any) -> Part:
    """The part without tensors that its network does not have."""
    names = set(network.state_dict())
    entries = {name: entry for name, entry in part.entries.items() if name in names}
    return replace(part, weights=replace(part.weights, entries=entries))


_DERIVED = "block_out_channels"
