"""The settings of a study: read from TOML, checked as a whole, written out with every default."""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator

from leanrecon import datasets, kinds
from leanrecon.datasets.plan import DatasetSettings
from leanrecon.devices import Device
from leanrecon.errors import SettingsError
from leanrecon.evaluation.settings import EvaluateSettings
from leanrecon.features.first_images import StageOneSettings
from leanrecon.memory import parse_bytes
from leanrecon.places.paths import find
from leanrecon.refinement.diffusion.settings import RefineSettings
from leanrecon.regression.settings import KINDS, RegressionSettings
from leanrecon.stores.layout import DEFAULT_CHUNK
from leanrecon.validation import nearest, validate
from leanrecon.weights.folders import cached_file
from leanrecon.weights.packaged import in_recipe
from leanrecon.weights.published import FILES

Model = TypeVar("Model", bound=BaseModel)

WEIGHTS = ("checkpoint", "model", "tiny", "base", "lora", "tiny_autoencoder", "negative", "negative_vision", "clip")
"""Settings that name weights: by a path or, where there is no such path, in the cache of weights."""

RECIPES = Path(str(resources.files("leanrecon") / "recipes")).absolute()
"""The folder of the recipes that come with the package."""

SECTIONS = ("dataset", "stores", "features", "regression", "stage1", "refine", "evaluate")


class GeneralSettings(BaseModel):
    """The keys outside of any table."""

    model_config = ConfigDict(extra="forbid")

    memory: str | None = None
    """What the process may hold, as in "4GB"; absent: 80 % of the free memory."""
    device: Device = "auto"
    """Where models run and networks are trained; pixels, principal components and ridge run on the CPU."""
    seed: int = Field(default=0, ge=0)

    @field_validator("memory")
    @classmethod
    def _size(cls, text: str | None) -> str | None:
        return None if text is None else _is_size(text)


class StoresSettings(BaseModel):
    """``[stores]``."""

    model_config = ConfigDict(extra="forbid")

    chunk: str = DEFAULT_CHUNK
    """Size of a chunk file."""

    @field_validator("chunk")
    @classmethod
    def _size(cls, text: str) -> str:
        return _is_size(text)


@dataclass(frozen=True)
class Settings:
    """Everything that decides a study; ``regression`` holds the settings of each feature space by name."""

    general: GeneralSettings
    dataset: DatasetSettings
    stores: StoresSettings
    features: dict[str, BaseModel]
    regression: dict[str, RegressionSettings]
    stage1: StageOneSettings
    refine: RefineSettings
    evaluate: EvaluateSettings

    def tables(self) -> dict[str, Any]:
        """The settings as TOML tables, all defaults written out; what is not set is left out."""
        by_space = {name: settings.model_dump(exclude_none=True) for name, settings in self.regression.items()}
        first = next(iter(by_space.values()))
        # What all spaces share stands in [regression], where --set regression.KEY reaches it.
        shared = {key: value for key, value in first.items() if all(t.get(key) == value for t in by_space.values())}
        own = {name: {k: v for k, v in table.items() if k not in shared} for name, table in by_space.items()}
        return {
            **self.general.model_dump(exclude_none=True),
            "dataset": self.dataset.model_dump(exclude_none=True),
            "stores": self.stores.model_dump(),
            "features": {name: space.model_dump(exclude_none=True) for name, space in self.features.items()},
            "regression": {**shared, **{name: table for name, table in own.items() if table}},
            "stage1": self.stage1.model_dump(exclude_none=True),
            "refine": self.refine.table(),
            "evaluate": self.evaluate.table(),
        }


def read_settings(source: str | Path, overrides: Iterable[str] = (), **general: Any) -> tuple[Settings, Path]:
    """Read a settings file, or a recipe by its name; returns the settings and the folder that paths may start from.

    ``overrides`` are ``section.key=value`` as on the command line, where ``false`` leaves out a table, a path or a number
    that is there; ``general`` keys outside of any table.
    """
    path = find_settings(source)
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not valid TOML: {error}") from None
    for override in overrides:
        _set(tables, override)
    tables |= {key: value for key, value in general.items() if value is not None}
    base_dir = path.absolute().parent
    settings = check_settings(tables)
    spaces = {name: _located(space, base_dir) for name, space in settings.features.items()}
    refine = _located(settings.refine, base_dir)
    dataset = settings.dataset
    if (captions := getattr(dataset, "captions", None)) in FILES and find(captions, base_dir) is None:
        dataset = dataset.model_copy(update={"captions": _found(captions, base_dir)})
    evaluate = _located(settings.evaluate, base_dir)
    return replace(settings, features=spaces, refine=refine, evaluate=evaluate, dataset=dataset), base_dir


def _located(space: Model, base_dir: Path) -> Model:
    """The settings of a model with its weights found from here or from ``base_dir``, so that any folder can continue the study."""
    given = {key: getattr(space, key, None) for key in WEIGHTS}  # else a name in the cache of weights
    return space.model_copy(update={key: _found(text, base_dir) for key, text in given.items() if text})


def _found(text: str, base_dir: Path) -> str:
    """The whole path of what a setting names: from here, from ``base_dir``, or among fetched files; else the text."""
    if base_dir == RECIPES and (packaged := in_recipe(text)):  # whatever lies beside the current folder
        return str(packaged)
    path = find(text, base_dir) or cached_file(text)
    return text if path is None else str(path.absolute())


def find_settings(source: str | Path) -> Path:
    """The file of these settings: a path, or a recipe's name."""
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


def recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    return {path.stem: path for path in sorted(RECIPES.glob("*.toml"))}


def check_settings(tables: Mapping[str, Any]) -> Settings:
    """Check all tables; raises one SettingsError with every problem found."""
    problems: list[str] = []

    def checked(check: Any, *arguments: Any) -> Any:
        try:
            return check(*arguments)
        except SettingsError as error:
            problems.append(str(error).rstrip("."))
            return None

    wrong = [name for name in SECTIONS if not isinstance(tables.get(name, {}), Mapping)]
    problems += [f"{name} is not a table, as in [{name}]" for name in wrong]
    section = {name: {} if name in wrong else dict(tables.get(name, {})) for name in SECTIONS}
    plain = {key: value for key, value in tables.items() if key not in SECTIONS}
    for key in [k for k in plain if k not in GeneralSettings.model_fields]:
        problems.append(f"{key} is unknown ({nearest(key, [*GeneralSettings.model_fields, *SECTIONS])})")
        del plain[key]
    general = checked(validate, GeneralSettings, plain, "")
    stores = checked(validate, StoresSettings, section["stores"], "stores.")
    dataset: Any = None if "dataset" in wrong else checked(_dataset, section["dataset"], "dataset" in tables)
    spaces = section["features"] or {"pca": {}}
    chosen = {name: checked(_space, name, table) for name, table in spaces.items()}
    regression = _regression(section["regression"], list(spaces), checked, problems)
    stage1 = checked(validate, StageOneSettings, section["stage1"], "stage1.")
    if stage1 is not None and stage1.space not in (None, *spaces):
        problems.append(
            f"stage1.space = {stage1.space!r} is not a feature space here ({nearest(stage1.space, spaces)})"
        )
    refine = checked(validate, RefineSettings, section["refine"], "refine.")
    for role, name in (refine.roles() if refine is not None else {}).items():
        key = "start" if role == "latents" else role
        if name not in spaces:
            problems.append(f"refine.{key} = {name!r} is not a feature space here ({nearest(name, spaces)})")
        elif (
            role in refine.unconditional()
            and chosen[name] is not None
            and not kinds.kind_of("features", chosen[name]).conditions
        ):
            negative = "negative" if role == "text" else f"negative_{role}"
            problems.append(
                f"refine.guidance = {refine.guidance:g} needs refine.{negative}, the path of what is to be led away "
                f"from, as the feature space {name} can't tell (clip-text and clip-vision can)"
            )
    evaluate = checked(validate, EvaluateSettings, section["evaluate"], "evaluate.")
    if problems:
        raise SettingsError("; ".join(dict.fromkeys(problems)))
    return Settings(general, dataset, stores, chosen, regression, stage1, refine, evaluate)


def _dataset(table: Mapping[str, Any], given: bool) -> BaseModel:
    if not given:
        raise SettingsError("there is no [dataset]", expected=f"a table with a kind: {', '.join(datasets.KINDS)}")
    kind = table.get("kind", "arrays")
    if kind not in datasets.KINDS:
        raise SettingsError(f"dataset.kind = {kind!r} ({nearest(str(kind), datasets.KINDS)})")
    return validate(datasets.settings_model(kind), table, "dataset.")


def _space(name: str, table: Any) -> BaseModel:
    if not isinstance(table, Mapping):
        raise SettingsError(f"features.{name} is not a table, as in [features.{name}]")
    return kinds.settings_of("features", table, f"features.{name}.", default=name)


def _regression(
    table: Mapping[str, Any], spaces: list[str], checked: Any, problems: list[str]
) -> dict[str, RegressionSettings]:
    for_all = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    for_one = {key: value for key, value in table.items() if isinstance(value, Mapping)}
    problems += [
        f"regression.{name} is for a feature space that is not there ({nearest(name, spaces)})"
        for name in for_one
        if name not in spaces
    ]
    kinds = {name: str(for_one.get(name, {}).get("kind", for_all.get("kind", "ridge"))) for name in spaces}
    shared = _of_all(for_all, set(kinds.values()))
    common = checked(_regressor, shared, "regression.")
    result = {}
    for name in spaces:
        result[name] = common
        if name in for_one:
            own = {"kind": kinds[name], **for_one[name]}
            merged = {**_known_to(kinds[name], for_all), **own} if common else own  # problems of all are told once
            result[name] = checked(_regressor, merged, f"regression.{name}.")
    return result


def _regressor(table: Mapping[str, Any], prefix: str) -> RegressionSettings:
    kind = str(table.get("kind", "ridge"))
    if kind not in KINDS:
        raise SettingsError(f"{prefix}kind = {kind!r} ({nearest(kind, KINDS)})")
    return validate(KINDS[kind], table, prefix)


def _of_all(table: Mapping[str, Any], kinds: set[str]) -> dict[str, Any]:
    """``[regression]`` for the kind it names, without what it says for another kind that some space has."""
    own = str(table.get("kind", "ridge"))
    others = {key for kind in kinds - {own} if kind in KINDS for key in KINDS[kind].model_fields}
    known = set(KINDS[own].model_fields) if own in KINDS else set()
    return {key: value for key, value in table.items() if key in known or key not in others}


def _known_to(kind: str, table: Mapping[str, Any]) -> dict[str, Any]:
    """What ``[regression]`` says that a kind of regression knows, which one space has and others have not."""
    fields = KINDS[kind].model_fields if kind in KINDS else {}
    return {key: value for key, value in table.items() if key in fields}


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
        del table[names[-1]]  # a table, a path or a number is left out
        if names[0] == "features" and isinstance(own := tables.get("regression"), dict):
            own.pop(names[-1], None)  # and what is said of its regression
    else:
        table[names[-1]] = value


def _is_size(text: str) -> str:
    try:
        parse_bytes(text)
    except SettingsError as error:
        raise ValueError(str(error).rstrip(".")) from None
    return text
