"""Settings files and recipes: found, read, overridden, and their paths resolved."""

import contextlib
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from leanrecon.arguments import plain_values
from leanrecon.errors import SettingsError, has_credentials, said_by, shown
from leanrecon.memory import format_bytes
from leanrecon.places import LocationLike, elsewhere
from leanrecon.places.paths import expanded, find
from leanrecon.study.settings import Settings, check_settings
from leanrecon.validation import nearest
from leanrecon.weights.folders import cached_file
from leanrecon.weights.names import weight_fields
from leanrecon.weights.packaged import in_recipe
from leanrecon.weights.published import FILES

LARGEST_FILE = 4_000_000
"""Bytes of a settings file; those of studies with hundreds of areas have some 100 kB."""

MOST_PARTS = 6
"""Most parts of a key of --set."""

Model = TypeVar("Model", bound=BaseModel)

RECIPES = Path(str(resources.files("leanrecon") / "recipes")).absolute()
"""The folder of the recipes that come with the package."""


def recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    return {path.stem: path for path in sorted(RECIPES.glob("*.toml"))}


def find_settings(source: LocationLike) -> Path:
    """The settings file at a path, of a study's folder, or of a recipe's name."""
    path = Path(source)
    with contextlib.suppress(OSError, ValueError):  # a name that no file can have
        if path.is_dir() and (path / "study.toml").exists():
            return path / "study.toml"
        if path.is_file():
            return path
    return find_recipe(str(source), "neither a settings file nor a recipe")


def find_recipe(name: str, what: str = "not a recipe") -> Path:
    """The file of a recipe that comes with the package; raises SettingsError, which says ``what`` an unknown name is."""
    known = recipes()
    if name not in known:
        short = name[:100]
        raise SettingsError(f"{short} is {what} ({nearest(short, known)})", todo="see `leanrecon recipes`")
    return known[name]


def read_settings(source: LocationLike, overrides: Iterable[str] = (), **general: Any) -> tuple[Settings, Path]:
    """Read a settings file or a recipe; returns the settings and the folder that relative paths may start from.

    ``overrides`` are ``section.key=value`` as on the command line; the value ``false`` leaves out a table, a path or
    a number that is there. ``general`` are keys outside of any table.
    """
    if (study := elsewhere(source)) is not None:  # a study in a bucket, whose paths are those of this machine
        file = study if study.suffix == ".toml" else study / "study.toml"
        if not file.is_file():
            raise SettingsError(
                f"there is no study at {study}", todo="run a recipe or a settings file with --study there first"
            )
        with file.open() as opened:
            return read_tables(_tables(opened.read(LARGEST_FILE + 1), file), Path.cwd(), overrides, **general)
    path = find_settings(source)
    return read_tables(read_toml(path), path.absolute().parent, overrides, **general)


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file, with or without a byte order mark; raises SettingsError where it is none."""
    try:
        with path.open("rb") as file:
            return _tables(file.read(LARGEST_FILE + 1), path)
    except OSError as error:
        raise SettingsError(f"{path} can't be read: {error.strerror}", todo="check its permissions") from None


def _tables(content: bytes, path: object) -> dict[str, Any]:
    """The tables of a TOML file's first bytes; raises SettingsError for others, and for too many."""
    if len(content) > LARGEST_FILE:
        raise SettingsError(
            f"{path} is larger than {format_bytes(LARGEST_FILE)}", expected="a settings file (TOML) of a few kB"
        )
    try:
        return tomllib.loads(content.decode("utf-8-sig"))
    except RecursionError:
        raise SettingsError(f"{path} holds lists or tables that are nested too deeply") from None
    except ValueError as error:  # no TOML, no UTF-8, or a number of thousands of digits
        raise SettingsError(f"{path} is not valid TOML: {said_by(error)}") from None


def read_tables(
    tables: Mapping[str, Any], base_dir: Path, overrides: Iterable[str] = (), **general: Any
) -> tuple[Settings, Path]:
    """Settings from the tables of a settings file, as ``read_settings`` reads them.

    Tables made in Python may hold paths, tuples, and numbers and short vectors of NumPy.
    """
    try:
        own: dict[str, Any] = plain_values(tables)
        for override in overrides:
            _set(own, override)
        own |= {key: value for key, value in general.items() if value is not None}
        _require_writable(own)
        return resolved(check_settings(own), base_dir), base_dir
    except RecursionError:
        raise SettingsError("the settings hold lists or tables that are nested too deeply") from None


def _require_writable(value: Any, name: str = "") -> None:
    """Raise SettingsError for texts that study.toml can't or must not hold."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            _require_writable(key, name)
            _require_writable(part, f"{name}.{key}".lstrip("."))
    elif isinstance(value, list | tuple):
        for part in value:
            _require_writable(part, name)
    elif isinstance(value, str):
        if "\0" in value or not _is_unicode(value):
            raise SettingsError(f"{name} = {shown(value)} holds a zero byte or bytes that are not UTF-8")
        if expanded(value).parts[:1] == Path(value).parts[:1] and re.match(r"~[\w.-]+(/|$)", value):
            raise SettingsError(f"{name} = {shown(value)}: there is no user {shown(value[1:].partition('/')[0])} here")
        if has_credentials(value):
            raise SettingsError(
                f"{name or 'a setting'} is a URL with a user, a token or a signature, which study.toml would keep",
                expected="a URL without them",
                todo="leave them out; public data need none, and tokens belong into environment variables",
            )
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise SettingsError(f"{name} is an integer of more than 64 bits")


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def resolved(settings: Settings, base_dir: Path) -> Settings:
    """The settings with whole paths to the weights and captions that are there, so that any folder can continue."""
    dataset = settings.dataset
    captions = getattr(dataset, "captions", None)
    if captions in FILES and find(captions, base_dir) is None:  # published captions, perhaps fetched
        dataset = dataset.model_copy(update={"captions": _resolve(captions, base_dir)})
    return replace(
        settings,
        dataset=dataset,
        features={name: _with_paths(space, base_dir) for name, space in settings.features.items()},
        decode=None if settings.decode is None else _with_paths(settings.decode, base_dir),
        refine=_with_paths(settings.refine, base_dir),
        judges={name: _with_paths(judge, base_dir) for name, judge in settings.judges.items()},
    )


def _with_paths(model: Model, base_dir: Path) -> Model:
    """The settings of a kind with the weights that it names resolved, those of a kind within it too."""
    values = {key: getattr(model, key) for key in weight_fields(type(model))}
    inner = {key: _with_paths(value, base_dir) for key, value in model if isinstance(value, BaseModel)}
    return model.model_copy(update={key: _resolve(text, base_dir) for key, text in values.items() if text} | inner)


def _resolve(text: str, base_dir: Path) -> str:
    """The whole path that a setting names: from here, from ``base_dir``, or among fetched files; else the text."""
    if base_dir == RECIPES and (packaged := in_recipe(text)):  # whatever lies beside the current folder
        return str(packaged)
    path = find(text, base_dir) or cached_file(text)
    return text if path is None else str(path.absolute())


def _value(override: str, text: str) -> Any:
    """The value of an override: as in TOML, else the text itself."""
    try:
        read = tomllib.loads(f"value = {text}")
    except RecursionError:
        raise SettingsError(f"--set {_short(override)}: lists or tables that are nested too deeply") from None
    except tomllib.TOMLDecodeError:
        return text  # a bare word is a string
    except ValueError as error:
        raise SettingsError(f"--set {_short(override)}: {said_by(error)}") from None
    return read["value"] if read.keys() == {"value"} else text  # newlines would begin further keys


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:79]}…"


def _set(tables: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names) or len(names) > MOST_PARTS:
        raise SettingsError(f"--set {_short(override)}", expected="section.key=value")
    table = tables
    value = _value(override, text.strip())
    for name in names[:-1]:
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise SettingsError(f"--set {_short(override)}: {name} is a value, not a table")
    if value is False and not isinstance(table.get(names[-1], False), bool):
        del table[names[-1]]
        if names[0] == "features" and isinstance(regression := tables.get("regression"), dict):
            regression.pop(names[-1], None)  # the regression to a space that was left out
    else:
        table[names[-1]] = value
