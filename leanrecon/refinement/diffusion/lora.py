"""Low-rank updates of a network's weights (LoRA), read from published files and added to the weights once."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod, sqrt
from pathlib import Path
from typing import TYPE_CHECKING

from leanrecon.errors import InputError
from leanrecon.weights.pieces import LORA_FILES
from leanrecon.weights.safetensors import Entry, MappedWeights, read_header

if TYPE_CHECKING:
    import torch

_DOWN = (".lora_down.weight", ".lora_A.weight", ".lora_A.default.weight", ".lora.down.weight")
_UP = (".lora_up.weight", ".lora_B.weight", ".lora_B.default.weight", ".lora.up.weight")
_TEXT_ENCODER = ("lora_te_", "text_encoder.")  # not used: the text encoder's output is predicted
_PREFIXES = ("lora_unet_", "unet.", "base_model.model.unet.", "base_model.model.")


@dataclass(frozen=True)
class Update:
    """The names of B (up) and A (down) in the file, and the factor of their product."""

    up: str
    down: str
    scale: float


class LoRA:
    """W + scale · BA for the weights that a file of low-rank updates names.

    ``scale`` is the setting that all updates are multiplied by; it is part of their own scale.

    Source: Hu et al. 2021, arXiv:2106.09685; Luo et al. 2023, arXiv:2311.05556, for LCM-LoRA.
    """

    def __init__(self, file: Path, updates: dict[str, Update], weights: MappedWeights, scale: float) -> None:
        self.file = file
        self.updates = updates
        self.scale = scale
        self._weights = weights

    def added_to(self, name: str, weight: "torch.Tensor") -> "torch.Tensor":
        """A weight with its update added, in float32; itself where there is none."""
        import torch

        update = self.updates.get(name)
        if update is None:
            return weight
        up, down = (self._weights[part].float().flatten(1) for part in (update.up, update.down))
        flat = weight.float().reshape(weight.shape[0], -1)
        # One product and sum in one array: the largest weight takes 118 MB.
        return torch.addmm(flat, up, down, alpha=update.scale).reshape(weight.shape)


def read_lora(path: Path, targets: Mapping[str, Entry], *, scale: float) -> LoRA:
    """Read a file of low-rank updates for the weights ``targets`` of a network: its header and alphas only.

    Knows the names that kohya's scripts, diffusers and peft write; ``scale`` multiplies alpha / rank. Raises
    InputError for a file that is not there, holds no updates, or is made for a network of another shape.
    """
    file = _file_of(path)
    entries, metadata = read_header(file)
    weights = MappedWeights(entries)
    stored = _stored_scale(file, metadata)
    modules = {name.removesuffix(".weight"): name for name in targets if name.endswith(".weight")}
    by_kohya = {module.replace(".", "_"): module for module in modules}
    updates: dict[str, Update] = {}
    for key, entry in entries.items():
        suffix = next((end for end in _DOWN if key.endswith(end)), None)
        if suffix is None or key.startswith(_TEXT_ENCODER):
            continue
        stem = key.removesuffix(suffix)
        bare = next((stem.removeprefix(start) for start in _PREFIXES if stem.startswith(start)), stem)
        name = modules.get(by_kohya.get(bare, bare))
        up = stem + _UP[_DOWN.index(suffix)]
        if name is None or up not in entries or not _fits(targets[name].shape, entries[up].shape, entry.shape):
            raise _misfit(file, key, None if name is None else targets[name].shape)
        rank = entry.shape[0]
        alpha = float(weights[f"{stem}.alpha"]) / rank if f"{stem}.alpha" in entries else stored
        updates[name] = Update(up, key, scale * alpha)
    known = (*_DOWN, *_UP, ".alpha")
    if unknown := next((key for key in entries if not (key.startswith(_TEXT_ENCODER) or key.endswith(known))), None):
        raise InputError(f"{file} holds {unknown}, which is not a low-rank update in a known format", expected="LoRA")
    if not updates:
        raise InputError(
            f"{file} holds no low-rank updates of the UNet", expected="a LoRA for Stable Diffusion 1.5, as LCM-LoRA"
        )
    return LoRA(file, updates, weights, scale)


def _file_of(path: Path) -> Path:
    if path.is_dir():
        found = [path / name for name in LORA_FILES if (path / name).exists()] or sorted(path.glob("*.safetensors"))
        if len(found) != 1 and not (found and found[0].name in LORA_FILES):
            raise InputError(f"{path} holds {len(found)} files of weights", expected=f"one, such as {LORA_FILES[0]}")
        return found[0]
    return path


def _stored_scale(file: Path, metadata: dict[str, str]) -> float:
    """alpha / rank as metadata or a file beside the weights give it; 1 where neither does."""
    try:
        if "lora_adapter_metadata" in metadata:  # diffusers
            table = json.loads(metadata["lora_adapter_metadata"])
            table = {key.removeprefix("unet."): value for key, value in table.items() if key.startswith("unet.")}
        elif (beside := file.with_name("adapter_config.json")).exists():  # peft
            table = json.loads(beside.read_text(encoding="utf-8"))
        else:
            return 1.0
        if table.get("use_dora") or table.get("alpha_pattern") or table.get("rank_pattern"):
            raise InputError(f"{file} has another scale for each layer", expected="one alpha and rank for all layers")
        rank = table.get("r")
        alpha = table.get("lora_alpha", rank)
        return 1.0 if rank is None else float(alpha) / (sqrt(rank) if table.get("use_rslora") else rank)
    except (ValueError, AttributeError, TypeError) as error:
        raise InputError(f"the settings of {file} can't be read ({error})") from None


def _fits(weight: tuple[int, ...], up: tuple[int, ...], down: tuple[int, ...]) -> bool:
    """Whether BA has the shape of W: B [out, rank, 1, 1], A [rank, in, height, width]."""
    if len(up) < 2 or len(down) < 2 or len(weight) < 2:
        return False
    return up[0] == weight[0] and prod(up[1:]) == down[0] and prod(down[1:]) == prod(weight[1:])


def _misfit(file: Path, key: str, shape: tuple[int, ...] | None) -> InputError:
    reason = "which the base does not have" if shape is None else f"which does not fit a weight of {list(shape)}"
    return InputError(
        f"{file} updates {key}, {reason}",
        expected="a LoRA for this base's architecture",
        todo="choose the one for Stable Diffusion 1.5, or the base that it was made for",
    )
