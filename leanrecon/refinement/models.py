"""Diffusion models as folders in diffusers' format: found here or on the hub, their parts read and checked."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from leanrecon.errors import InputError
from leanrecon.refinement.lora import LoRA
from leanrecon.refinement.weights import DTYPES, Entries, MappedWeights, read_header, write_weights
from leanrecon.stores.fingerprint import file_content, fingerprint

WEIGHTS = "diffusion_pytorch_model"

FORMAT = 1
"""Of the files of merged and cast weights."""

_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Part:
    """One network of a model: its class and sizes, and where its weights lie."""

    folder: Path
    kind: str
    config: dict[str, Any]
    entries: Entries
    stored: Entries
    """The same tensors under the names that they have in their files."""

    @property
    def files(self) -> list[Path]:
        return sorted({entry.file for entry in self.entries.values()})

    @property
    def content(self) -> str:
        """A hash of the sizes and weights, whatever the names of files."""
        config = {key: value for key, value in self.config.items() if not key.startswith("_")}
        return fingerprint({"config": config, "weights": [file_content(file) for file in self.files]})

    def nbytes_as(self, dtype: str) -> int:
        """Bytes of the weights in a precision."""
        return sum(entry.nbytes_as(dtype) for entry in self.entries.values())

    @property
    def largest(self) -> int:
        """Numbers in the largest weight."""
        return max(entry.nbytes_as("float32") for entry in self.entries.values()) // 4


class Source:
    """The weights of a part in the precision that they are used in, a LoRA added: computed one by one."""

    def __init__(self, part: Part, dtype: str, lora: LoRA | None = None) -> None:
        self.part = part
        self.dtype = dtype
        self.lora = lora
        self._mapped = MappedWeights(part.stored)
        self._names = dict(zip(part.entries, part.stored, strict=True))

    @property
    def as_stored(self) -> bool:
        """Whether the files hold just these numbers already."""
        return self.lora is None and all(entry.dtype == DTYPES[self.dtype] for entry in self.part.entries.values())

    def read(self, name: str) -> Any:
        """One weight, in memory of its own."""
        import torch

        weight = self._mapped[self._names[name]]
        merged = weight if self.lora is None else self.lora.added_to(name, weight)
        result = merged.to(getattr(torch, self.dtype))
        if result is weight:
            result = weight.clone()
        self._mapped.release(self._names[name])
        return result

    def on_disk(self, scratch: Path, content: str) -> Entries:
        """The weights in a file: the part's own where it holds them so, else one in ``scratch``, written once.

        ``content`` names what the weights are made of.
        """
        if self.as_stored:
            return self.part.entries
        path = scratch / f"{self.part.kind}-{content[:16]}-{self.dtype}.safetensors"
        if not path.exists():
            write_weights(path, ((name, self.read(name)) for name in self.part.entries), self.part.entries, self.dtype)
        return read_header(path)[0]


def find_model(name: str, setting: str, *, patterns: list[str] | None = None) -> Path:
    """The folder or file of a model: a path, or a name on the Hugging Face Hub, which is downloaded unless it is here.

    Raises InputError for what is neither.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    if not _HUB_NAME.fullmatch(name):
        raise InputError(f"there is no {path}", todo=f"set {setting} to a folder, or to a name on the Hugging Face Hub")
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError:
        raise InputError(f"there is no folder {name}", todo="install leanrecon[refine] to fetch it") from None
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"{name} is neither a folder here nor could it be downloaded ({type(error).__name__})",
            todo=f"check {setting} and the network, or download it elsewhere and give its folder",
        ) from None


def read_part(folder: Path, kinds: tuple[str, ...]) -> Part:
    """Read the sizes of one network and the headers of its weights; raises InputError for what is missing or another."""
    config = read_config(folder / "config.json")
    kind = config.get("_class_name", "")
    if kind not in kinds:
        raise InputError(f"{folder} holds a {kind or 'model of no known kind'}", expected=" or ".join(kinds))
    stored: Entries = {}
    for file in _weight_files(folder):
        stored |= read_header(file)[0]
    entries = {_renamed(name): entry for name, entry in stored.items()}
    return Part(folder, kind, config, entries, stored)


def read_config(file: Path) -> dict[str, Any]:
    """The settings of one part of a model, from its folder; raises InputError where there are none."""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"the model {file.parent.parent} lacks {file.parent.name}/{file.name}",
            expected="a whole folder in diffusers' format",
            todo="download it whole, or choose another base",
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{file} can't be read ({error})") from None
    if not isinstance(config, dict):
        raise InputError(f"{file} holds no settings of a model")
    return config


def build(part: Part) -> Any:
    """The network of a part, without weights; raises InputError if the file holds other ones than it needs."""
    import diffusers
    import torch

    # AutoencoderTiny writes a key that it does not take.
    config = {key: value for key, value in part.config.items() if (part.kind, key) != ("AutoencoderTiny", _DERIVED)}
    try:
        with torch.device("meta"):
            network = getattr(diffusers, part.kind).from_config(config)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{part.folder} describes a network that can't be built ({error})") from None
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
    pairs = [(a, b) for a, b in zip(part.entries, part.stored, strict=True) if a in names]
    return replace(part, entries={a: part.entries[a] for a, _ in pairs}, stored={b: part.stored[b] for _, b in pairs})


_DERIVED = "block_out_channels"


def _weight_files(folder: Path) -> list[Path]:
    index = folder / f"{WEIGHTS}.safetensors.index.json"
    if index.exists():
        return [folder / name for name in sorted(set(read_config(index)["weight_map"].values()))]
    for name in (f"{WEIGHTS}.safetensors", f"{WEIGHTS}.fp16.safetensors"):
        if (folder / name).exists():
            return [folder / name]
    pickled = sorted(folder.glob("*.bin"))
    raise InputError(
        f"the model {folder.parent} lacks {folder.name}/{WEIGHTS}.safetensors",
        expected="weights as safetensors" + (f"; {pickled[0].name} may run code when it is read" if pickled else ""),
        todo="download it whole, or choose another base",
    )


def _renamed(name: str) -> str:
    """The present name of a weight: the autoencoders of Stable Diffusion 1 call their attention otherwise."""
    parts = name.split(".")
    if len(parts) > 2 and parts[-2] in _OLD_ATTENTION and "attentions" in parts:
        return ".".join([*parts[:-2], _OLD_ATTENTION[parts[-2]], parts[-1]])
    return name
