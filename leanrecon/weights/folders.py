"""Published models on disk: found without a network, with their configs and the headers of their weights.

A model is a folder as transformers and diffusers write it (config.json beside the weights), or a pipeline's folder with
such folders in it, or the name of one in Hugging Face's cache. Weights are read as safetensors alone, as a pickle can run
code when it is opened.
"""

import contextlib
import importlib.util
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leanrecon.errors import InputError, LeanreconError, said_by, shown
from leanrecon.places.paths import cache_folder, find
from leanrecon.stores.fingerprint import file_content, fingerprint
from leanrecon.weights.safetensors import AGAIN, Entry, Precision, itemsize, read_header, reserved

SHOWN = 6
"""Most names that an error lists for each kind of problem."""

LARGEST_CONFIG = 50_000_000
"""Bytes of a config; an index of the weights of a very large model has some 10 MB."""

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")

STEMS = ("model", "diffusion_pytorch_model")  # as transformers and as diffusers name weights
_SHARD = re.compile(r"[\w][\w.-]{,200}\.safetensors")  # beside the index: no folder, no ..
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_NOT_ARITHMETIC = ("architectures", "transformers_version", "torch_dtype", "dtype")  # in a config.json
_OLD_ATTENTION = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


# Finding


def converted_folder(name: str) -> Path:
    """The folder of a model on the hub that is published as pickles only, after conversion."""
    return cache_folder() / "models" / name.replace("/", "--")


def cached_file(name: str) -> Path | None:
    """The file of this name in the cache of downloaded files; None if there is none."""
    return find(str(cache_folder() / name), None, Path.is_file) if name and Path(name).name == name else None


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
    if (path := find(name, None)) is not None:
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
        with path.open("rb") as file:
            content = file.read(LARGEST_CONFIG + 1)
        if len(content) > LARGEST_CONFIG:
            raise ValueError(f"it is larger than {LARGEST_CONFIG} bytes")
        found = json.loads(content)
    except (OSError, ValueError) as error:
        said = error.strerror if isinstance(error, OSError) else said_by(error)
        raise InputError(f"{path} can't be read: {said}", todo=AGAIN) from error
    except RecursionError:
        raise InputError(f"{path} is nested too deeply for a config", todo=AGAIN) from None
    if not isinstance(found, dict):
        raise InputError(f"{path} does not hold the config of a model", todo=AGAIN)
    return found


@contextlib.contextmanager
def described_by(path: Path) -> Iterator[None]:
    """Turn what other libraries raise for a config with wrong values into an InputError that names its file."""
    try:
        yield
    except (LeanreconError, MemoryError):
        raise
    except Exception as error:  # configs with wrong types raise errors of many types
        raise InputError(
            f"{path} describes a model that can't be built ({type(error).__name__}: {said_by(error)})",
            expected="the files of a model as it was published",
            todo=AGAIN,
        ) from error


def whole_number(config: Mapping[str, Any], key: str, default: int, path: Path) -> int:
    """A size in a config; raises InputError unless it is a whole number from 1 to a million."""
    value = config.get(key, default)
    if type(value) is not int or not 1 <= value <= 1_000_000:
        raise InputError(f"{path} has {key} = {shown(value)}", expected="a whole number from 1 on", todo=AGAIN)
    return value


def whole_numbers(config: Mapping[str, Any], key: str, default: Sequence[int], path: Path) -> list[int]:
    """Sizes in a config, one a block; raises InputError unless they are one to 16 whole numbers."""
    values = config.get(key, list(default))
    if not isinstance(values, list | tuple) or not 1 <= len(values) <= 16:
        raise InputError(f"{path} has {key} = {shown(values)}", expected="a list of whole numbers", todo=AGAIN)
    return [whole_number({key: value}, key, 0, path) for value in values]


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


def _shards(index: Path) -> list[str]:
    """The names of the files that an index lists, all beside it."""
    table = read_config(index).get("weight_map")
    names = list(table.values()) if isinstance(table, dict) else []
    if not names or not all(isinstance(name, str) and _SHARD.fullmatch(name) for name in names):
        raise InputError(
            f"{index} names no files of weights", expected="a weight_map of tensors and .safetensors", todo=AGAIN
        )
    return sorted(set(names))


def _files(folder: Path) -> tuple[Path, ...]:
    for stem in STEMS:
        if (whole := folder / f"{stem}.safetensors").is_file():
            return (whole,)
        if (index := folder / f"{stem}.safetensors.index.json").is_file():
            names = _shards(index)
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
