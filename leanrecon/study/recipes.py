"""Settings files and recipes: found, read, overridden, and their paths resolved."""

import copy
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from leanrecon.errors import SettingsError
from leanrecon.places.paths import find
from leanrecon.study.settings import Settings, check_settings
from leanrecon.validation import nearest
from leanrecon.weights.folders import cached_file
from leanrecon.weights.names import weight_fields
from leanrecon.weights.packaged import in_recipe
from leanrecon.weights.published import FILES

Model = TypeVar("Model", bound=BaseModel)

RECIPES = Path(str(resources.files("leanrecon") / "recipes")).absolute()
"""The folder of the recipes that come with the package."""


def recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    return {path.stem: path for path in sorted(RECIPES.glob("*.toml"))}


def find_settings(source: str | Path) -> Path:
    """The settings file at a path, of a study's folder, or of a recipe's name."""
    path = Path(source)
    if path.is_dir() and (path / "study.toml").exists():
        return path / "study.toml"
    if path.is_file():
        return path
    known = recipes()
    if str(source) in known:
        return known[str(source)]
    raise SettingsError(
        f"{source} is neither a settings file nor a recipe ({nearest(str(source), known)})",
        todo="see `leanrecon recipes`",
    )


def read_settings(source: str | Path, overrides: Iterable[str] = (), **general: Any) -> tuple[Settings, Path]:
    """Read a settings file or a recipe; returns the settings and the folder that relative paths may start from.

    ``overrides`` are ``section.key=value`` as on the command line; the value ``false`` leaves out a table, a path or
    a number that is there. ``general`` are keys outside of any table.
    """
    path = find_settings(source)
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not valid TOML: {error}") from None
    return read_tables(tables, path.absolute().parent, overrides, **general)


def read_tables(
    tables: Mapping[str, Any], base_dir: Path, overrides: Iterable[str] = (), **general: Any
) -> tuple[Settings, Path]:
    """Settings from the tables of a settings file, as ``read_settings`` reads them."""
    own = copy.deepcopy(dict(tables))
    for override in overrides:
        _set(own, override)
    own |= {key: value for key, value in general.items() if value is not None}
    return resolved(check_settings(own), base_dir), base_dir


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
    """The settings of a kind with the weights that it names resolved."""
    values = {key: getattr(model, key) for key in weight_fields(type(model))}
    return model.model_copy(update={key: _resolve(text, base_dir) for key, text in values.items() if text})


def _resolve(text: str, base_dir: Path) -> str:
    """The whole path that a setting names: from here, from ``base_dir``, or among fetched files; else the text."""
    if base_dir == RECIPES and (packaged := in_recipe(text)):  # whatever lies beside the current folder
        return str(packaged)
    path = find(text, base_dir) or cached_file(text)
    return text if path is None else str(path.absolute())


def _set(tables: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        raise SettingsError(f"--set {override}", expected="section.key=value")
    try:
        value = tomllib.loads(f"value = {text.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()  # a bare word is a string
    table = tables
    for name in names[:-1]:
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise SettingsError(f"--set {override}: {name} is a value, not a table")
    if value is False and not isinstance(table.get(names[-1], False), bool):
        del table[names[-1]]
        if names[0] == "features" and isinstance(regression := tables.get("regression"), dict):
            regression.pop(names[-1], None)  # the regression to a space that was left out
    else:
        table[names[-1]] = value
