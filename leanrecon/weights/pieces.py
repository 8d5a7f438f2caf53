"""Choosing the files of a model that are needed, from their names alone."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from leanrecon.errors import InputError
from leanrecon.weights.folders import STEMS

PICKLED = {"pytorch_model": "model", "diffusion_pytorch_model": "diffusion_pytorch_model"}
"""Stems of pickled weights, and of the safetensors files that they are converted to."""

LORA_FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")

TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"))
"""Alternative sets of files that make a tokenizer."""

SPECIAL_TOKENS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
"""Optional files of a tokenizer."""

PROCESSORS = ("preprocessor_config.json", "processor_config.json")

Holds = Literal["network", "scheduler", "tokenizer", "processor", "lora"]


@dataclass(frozen=True)
class Piece:
    """A part of a model: its content, and the folders that may hold it, in order of preference."""

    holds: Holds
    folders: tuple[str, ...]
    """``"."`` is the folder of the model itself."""


def choose(names: Collection[str], pieces: Sequence[Piece], model: str) -> list[str]:
    """The names of the files of a model that these pieces need; weights in half precision are preferred.

    Pickles are chosen only without safetensors. Raises InputError for a missing piece.
    """
    chosen: dict[str, None] = {}
    for piece in pieces:
        found = next((files for folder in piece.folders if (files := _files(names, piece.holds, folder))), None)
        if found is None:
            places = " or ".join("its folder" if folder == "." else f"{folder}/" for folder in piece.folders)
            raise InputError(f"{model} has no {piece.holds} in {places}", todo="check the name of the model")
        chosen |= dict.fromkeys(found)
    return sorted(chosen)


def pickles(chosen: Collection[str]) -> dict[str, str]:
    """The pickles among chosen files, with the names of the safetensors files that they are converted to."""
    found = {}
    for name in chosen:
        folder, _, file = name.rpartition("/")
        if file.endswith(".bin"):
            stem = PICKLED[file.removesuffix(".bin").removesuffix(".fp16")]
            found[name] = f"{folder}/{stem}.safetensors".lstrip("/")
    return found


def _files(names: Collection[str], holds: Holds, folder: str) -> list[str]:
    """The names of the files of a piece in a folder; none if it is missing or incomplete."""
    prefix = "" if folder == "." else f"{folder}/"
    here = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    here = {name for name in here if "/" not in name}
    files: Sequence[str] = ()
    if holds == "network":
        weights = _weights(here)
        files = ["config.json", *weights] if weights and "config.json" in here else ()
    elif holds == "scheduler":
        files = [name for name in ("scheduler_config.json",) if name in here]
    elif holds == "tokenizer":
        if any(here.issuperset(those) for those in TOKENIZERS):
            files = [n for n in (*(name for those in TOKENIZERS for name in those), *SPECIAL_TOKENS) if n in here]
    elif holds == "processor":
        files = [name for name in PROCESSORS if name in here]
    else:
        known = [name for name in LORA_FILES if name in here] or sorted(n for n in here if n.endswith(".safetensors"))
        if len(known) == 1 or (known and known[0] in LORA_FILES):
            files = [known[0], *(name for name in ("adapter_config.json",) if name in here)]
    return [prefix + name for name in files]


def _weights(here: Collection[str]) -> list[str]:
    """The files of a network's weights: in half precision, in one file, in shards, or pickled."""
    for stem in STEMS:
        for name in (f"{stem}.fp16.safetensors", f"{stem}.safetensors"):
            if name in here:
                return [name]
        if f"{stem}.safetensors.index.json" in here:
            shards = {n: m for n in here if (m := re.fullmatch(rf"{stem}-\d+-of-(\d+)\.safetensors", n))}
            if shards and len(shards) == int(next(iter(shards.values()))[1]):
                return [f"{stem}.safetensors.index.json", *shards]
    for stem in PICKLED:
        for name in (f"{stem}.fp16.bin", f"{stem}.bin"):
            if name in here:
                return [name]
    return []
