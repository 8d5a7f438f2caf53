"""The small models that come with leanrecon, checked against their checksums."""

from pathlib import Path

from leanrecon.errors import InputError
from leanrecon.places.files import write_json
from leanrecon.stores.fingerprint import file_content
from leanrecon.weights.folders import read_config

FOLDER = Path(__file__).parents[1] / "models"

MANIFEST = "sha256.json"
"""The file with the SHA-256 of every other file, by its path in the folder."""

SUFFIXES = (".safetensors", ".json", ".txt")
"""Suffixes of the files that decide what a model does."""

AGAIN = (
    "install leanrecon again from where it came (pip install --force-reinstall --no-deps); "
    "`leanrecon demo --fast` does without these models"
)


def in_recipe(text: str) -> Path | None:
    """The packaged file or folder that a recipe names as ``../models/NAME``; None for any other text."""
    before, models, *names = (*Path(text).parts, "", "")
    return FOLDER.joinpath(*names) if (before, models) == ("..", "models") else None


def is_packaged(name: str) -> bool:
    """Whether a path leads into the folder of packaged models."""
    return Path(name).is_relative_to(FOLDER)


def write_manifest(folder: Path = FOLDER) -> None:
    """Write the checksums of the models in a folder, beside them."""
    write_json(folder / MANIFEST, {name: file_content(folder / name) for name in _files(folder)}, indent=1)


def check_packaged(folder: Path | None = None) -> list[Path]:
    """The files of the packaged models, after comparing each with its checksum.

    Raises InputError that names the first file that is missing, damaged, or not part of leanrecon.
    """
    folder = folder or FOLDER
    wanted = {"expected": "the models that come with leanrecon", "todo": AGAIN}
    if not (folder / MANIFEST).is_file():
        raise InputError(f"{folder} has no {MANIFEST}" if folder.is_dir() else f"there is no folder {folder}", **wanted)
    listed, there = read_config(folder / MANIFEST), _files(folder)
    for name, digest in listed.items():
        path = folder / name
        if name not in there:
            raise InputError(f"{path} is missing", **wanted)
        if (found := file_content(path)) != digest:
            raise InputError(
                f"{path} is damaged, or another version: its SHA-256 is {found}",
                expected=f"{digest}, as {MANIFEST} says",
                todo=AGAIN,
            )
    if others := [name for name in there if name not in listed]:
        raise InputError(f"{folder / others[0]} did not come with leanrecon", **wanted)
    return [folder / name for name in listed]


def _files(folder: Path) -> list[str]:
    """The sorted paths of the model files in a folder, from there."""
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path.suffix in SUFFIXES)
    return sorted(path.as_posix() for path in files if path.name[0] != "." and path.as_posix() != MANIFEST)
