"""Published models on disk: found without a network, with their configs and the headers of their weights.

A model is a folder as transformers and diffusers write it (config.json beside the weights), or a pipeline's folder with
such folders in it, or the name of one in Hugging Face's cache. Weights are read as safetensors alone, as a pickle can run
code when it is opened.
"""

import contextlib
import importlib.util
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leanrecon.errors import InputError
from leanrecon.stores.fingerprint import file_content, fingerprint
from leanrecon.weights.safetensors import AGAIN, Entry, Precision, itemsize, read_header, reserved

SHOWN = 6
"""Most names that an error lists for each kind of problem."""

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")

STEMS = ("model", "diffusion_pytorch_model")  # as transformers and as diffusers name weights
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_NOT_ARITHMETIC = ("architectures", "transformers_version", "torch_dtype", "dtype")  # in a config.json
_OLD_ATTENTION = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


# Finding


def cache_folder() -> Path:
    """The folder of downloaded files outside Hugging Face's cache: ``$LEANRECON_CACHE``, or in the user's cache."""
    if chosen := os.environ.get("LEANRECON_CACHE"):
        return Path(chosen).expanduser().absolute()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "leanrecon"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "leanrecon"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "leanrecon"


def converted_folder(name: str) -> Path:
    """The folder of a model on the hub that is published as pickles only, after conversion."""
    return cache_folder() / "models" / name.replace("/", "--")


def cached_file(name: str) -> Path | None:
    """The file of this name in the cache of downloaded files; None if there is none."""
    path = cache_folder() / name
    return path if name and Path(name).name == name and path.is_file() else None


def cached_model(name: str) -> Path | None:
    """The folder of a downloaded model by its name on the hub; None if there is none."""
    if not HUB_NAME.fullmatch(name):
        return None
    if (folder := converted_folder(name)).is_dir():
        return folder
    if importlib.util.find_spec("huggingface_hub"):
        from huggingface_hub import snapshot_download

        with contextlib.suppress(OSError, ValueError):  # not in the cache, or not a name
            return Path(snapshot_download(name, local_files_only=True))
    return None


def find_model(name: str, setting: str) -> Path:
    """The folder or file of a model: a path, or a name that is in Hugging Face's cache; nothing is downloaded.

    Raises InputError if there is none; ``setting`` is the full name of the setting, for its message.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    if (found := cached_model(name)) is not None:
        return found
    raise InputError(
        f"there is no folder {name}, and Hugging Face's cache has no model of that name",
        expected="a folder with config.json and .safetensors, as transformers and diffusers write it",
        todo="download it with `leanrecon fetch-weights RECIPE` and the settings of this run, "
        f"or set {setting} to where it is",
    )


def part_of(folder: Path, parts: Sequence[str], file: str, what: str) -> Path:
    """The first of these parts of a model's folder (``"."`` is itself) that has a ``file``; raises InputError."""
    for part in parts:
        if (folder / part / file).is_file():
            return folder / part
    places = " or ".join(str(Path(part) / file) for part in parts)
    raise InputError(f"{folder} has no {places}", expected=f"the folder of {what}")


def read_config(path: Path) -> dict[str, Any]:
    """The config of a model, from a JSON file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} can't be read: {error}", todo=AGAIN) from error
    if not isinstance(found, dict):
        raise InputError(f"{path} does not hold the config of a model", todo=AGAIN)
    return found


def arithmetic(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a config that decides results: without names, paths, versions, and the precision of the file."""
    return {key: v for key, v in config.items() if key not in _NOT_ARITHMETIC and not key.startswith("_")}


def present_name(key: str) -> str:
    """The current name of a weight in diffusers: versions before 0.14 named the attention of autoencoders otherwise."""
    if ".attentions." in key:
        for old, new in _OLD_ATTENTION.items():
            key = key.replace(old, new)
    return key


# Weights


@dataclass(frozen=True)
class Weights:
    """The files of a model's weights, and their headers."""

    files: tuple[Path, ...]
    entries: Mapping[str, Entry]

    @classmethod
    def of(cls, folder: Path, name: Callable[[str], str | None] = lambda name: name) -> "Weights":
        """The weights in a folder, renamed by ``name``, which returns None for those to leave out.

        Raises InputError if there are none, or only pickles, or a file is damaged.
        """
        files = _files(folder)
        entries = {}
        for file in files:
            for key, entry in read_header(file)[0].items():
                if (renamed := name(key)) is not None:
                    entries[renamed] = entry
        return cls(files, entries)

    def content(self) -> str:
        """The fingerprint of the files' bytes, taken once while they stay the same."""
        prints = [file_content(file) for file in self.files]
        return prints[0] if len(prints) == 1 else fingerprint({"files": prints})

    def named(self, parts: Sequence[str]) -> list[str]:
        """The names in these parts of the model, such as ``("encoder.", "quant_conv.")``."""
        return [name for name in self.entries if name.startswith(tuple(parts))]

    def nbytes(self, parts: Sequence[str], precision: Precision) -> int:
        """Bytes that these parts of the model take when loaded."""
        return sum(reserved(self.entries[name].shape, itemsize(precision)) for name in self.named(parts))

    def loading_nbytes(self, parts: Sequence[str], precision: Precision, device: str) -> int:
        """Bytes of main memory that loading takes: all parts on a CPU, else one tensor at a time."""
        entries = [self.entries[name] for name in self.named(parts)]
        if device != "cpu":
            return max((2 * entry.nbytes for entry in entries), default=0)
        changed = [entry.nbytes for entry in entries if not entry.is_read_as_it_is(precision)]
        return self.nbytes(parts, precision) + max(changed, default=0)


def _files(folder: Path) -> tuple[Path, ...]:
    for stem in STEMS:
        if (whole := folder / f"{stem}.safetensors").is_file():
            return (whole,)
        if (index := folder / f"{stem}.safetensors.index.json").is_file():
            names = sorted(set(read_config(index).get("weight_map", {}).values()))
            if missing := [name for name in names if not (folder / name).is_file()]:
                raise InputError(f"{folder} lacks {', '.join(missing[:SHOWN])}", todo=AGAIN)
            return tuple(folder / name for name in names)
        if (half := folder / f"{stem}.fp16.safetensors").is_file():
            return (half,)
    expected = " or ".join(f"{stem}.safetensors" for stem in STEMS)
    if pickles := sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLES):
        raise InputError(
            f"{folder} has its weights in {pickles[0]} only, and leanrecon opens no file that can run code",
            expected=expected,
            todo="download the .safetensors file of this model, or convert it if you trust its source "
            "(from_pretrained, then save_pretrained)",
        )
    raise InputError(f"{folder} has no weights", expected=expected, todo=AGAIN)
