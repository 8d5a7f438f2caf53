"""The settings of a study: checked as a whole, and written out with every default."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from leanrecon import kinds
from leanrecon.errors import SettingsError, shown
from leanrecon.study.evaluate_settings import EvaluateSettings
from leanrecon.study.layout import GENERATOR
from leanrecon.study.protocols import PROTOCOLS
from leanrecon.study.sections import GeneralSettings, StageOneSettings, StoresSettings
from leanrecon.validation import nearest, validate

SECTIONS = (
    "dataset",
    "stores",
    "areas",
    "features",
    "regression",
    "stage1",
    "decode",
    "refine",
    "judges",
    "evaluate",
)

RESERVED = re.compile(r"fold\d+|shuffled\d*|oracle|prior|mismatched")
"""Names of variants that neither an area nor a test set can have."""

LONGEST_NAME = 99
"""Characters of a name: those of a variant's folder join several."""

_FILE = re.compile(r"\.(zarr|json|npz|npy|png|csv|toml|html|partial|safetensors)$|\.$", re.IGNORECASE)
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.]*(?:-[A-Za-z0-9_.]+)*")  # a name that is also that of a folder


@dataclass(frozen=True)
class Settings:
    """Everything that decides a study. ``regression`` holds the settings of each feature space by name."""

    general: GeneralSettings
    dataset: Any
    stores: StoresSettings
    areas: dict[str, list[str]]
    features: dict[str, BaseModel]
    regression: dict[str, BaseModel]
    stage1: StageOneSettings
    decode: Any
    """The settings of the end-to-end decoder, or None."""
    refine: Any
    judges: dict[str, BaseModel]
    evaluate: EvaluateSettings

    @property
    def decoded_space(self) -> str | None:
        """The feature space whose predictions the end-to-end decoder takes in place of betas, if it does."""
        found: str | None = getattr(self.decode, "space", None)
        return found

    def located(self, base_dir: Path | None) -> "Settings":
        """The same settings with absolute paths to the files of the dataset and of feature spaces.

        So any folder can continue and repair the study. Relative paths start at the current folder or at ``base_dir``.
        """
        features = {name: _located(space, base_dir) for name, space in self.features.items()}
        return replace(self, dataset=self.dataset.located(base_dir), features=features)

    def tables(self) -> dict[str, Any]:
        """The settings as TOML tables with all defaults written out; keys without a value are left out."""
        tables = {
            **_dump(self.general),
            "dataset": _dump(self.dataset),
            "stores": _dump(self.stores),
            "areas": dict(self.areas),
            "features": {name: _dump(space) for name, space in self.features.items()},
            "regression": self._regression_table(),
            "stage1": _dump(self.stage1),
            "decode": None if self.decode is None else _dump(self.decode),
            "refine": _dump(self.refine),
            "judges": {name: _dump(judge) for name, judge in self.judges.items()},
            "evaluate": _dump(self.evaluate),
        }
        if self.decode is not None:
            del tables["stage1"]
        return {key: value for key, value in tables.items() if value is not None and value != {}}

    def _regression_table(self) -> dict[str, Any]:
        """``[regression]``: what all spaces share at its top, where ``--set regression.KEY`` reaches it."""
        by_space = {name: _dump(settings) for name, settings in self.regression.items()}
        if not by_space:
            return {}
        first = next(iter(by_space.values()))
        shared = {key: value for key, value in first.items() if all(t.get(key) == value for t in by_space.values())}
        rest = {name: {k: v for k, v in table.items() if k not in shared} for name, table in by_space.items()}
        return {**shared, **{name: table for name, table in rest.items() if table}}


def check_settings(tables: Mapping[str, Any]) -> Settings:
    """Check all tables of a settings file; raises one SettingsError with every problem."""
    return _Checker(tables).settings()


class _Checker:
    """Checks the sections one after the other and collects their problems."""

    def __init__(self, tables: Mapping[str, Any]) -> None:
        self.tables = tables
        self.problems: list[str] = []
        self.wrong = {name for name in SECTIONS if not isinstance(tables.get(name, {}), Mapping)}
        self.problems += [f"{name} is not a table, as in [{name}]" for name in SECTIONS if name in self.wrong]

    def section(self, name: str) -> dict[str, Any]:
        return {} if name in self.wrong else dict(self.tables.get(name, {}))

    def collect(self, check: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """The result of a check; None after its problem was noted."""
        try:
            return check(*arguments, **options)
        except SettingsError as error:
            self.problems.append(str(error).rstrip("."))
            return None

    def settings(self) -> Settings:
        general = self.collect(validate, GeneralSettings, self._general_table(), "")
        stores = self.collect(validate, StoresSettings, self.section("stores"), "stores.")
        dataset = None if "dataset" in self.wrong else self.collect(self._dataset)
        areas = self._areas()
        decode = self._decode()
        spaces = self._spaces() if "decode" not in self.tables or self._decoded_space() else {}
        if (decoded := self._decoded_space()) and decoded not in spaces:
            self.problems.append(
                f"decode.space = {shown(decoded)} is not a feature space here ({nearest(_text(decoded), spaces)})"
            )
        regression = self._regression(list(spaces))
        stage1 = self.collect(validate, StageOneSettings, self.section("stage1"), "stage1.")
        if stage1 is not None and stage1.space not in (None, *spaces):
            self.problems.append(
                f"stage1.space = {shown(stage1.space)} is not a feature space here ({nearest(stage1.space, spaces)})"
            )
        if (
            stage1 is not None
            and "calibration" in spaces
            and kinds.kind_of("calibrations", stage1.calibrate).calibrates
        ):
            self.problems.append(
                "features.calibration: another name is expected, as the calibration is kept under this one"
            )
        refine = self.collect(kinds.settings_of, "generators", self.section("refine"), "refine.", default="none")
        self._check_roles(refine, spaces)
        evaluate = self.collect(validate, EvaluateSettings, self.section("evaluate"), "evaluate.")
        judges = self._named("judges", self._judges(evaluate))
        if self.problems:
            raise SettingsError("; ".join(dict.fromkeys(self.problems)))
        return Settings(general, dataset, stores, areas, spaces, regression, stage1, decode, refine, judges, evaluate)

    def _general_table(self) -> dict[str, Any]:
        plain = {key: value for key, value in self.tables.items() if key not in SECTIONS}
        for key in [key for key in plain if key not in GeneralSettings.model_fields]:
            known = [*GeneralSettings.model_fields, *SECTIONS]
            self.problems.append(f"{key} is unknown ({nearest(key, known)})")
            del plain[key]
        return plain

    def _dataset(self) -> BaseModel:
        if "dataset" not in self.tables:
            known = ", ".join(kinds.names("datasets"))
            raise SettingsError("there is no [dataset]", expected=f"a table with a kind: {known}")
        return kinds.settings_of("datasets", self.section("dataset"), "dataset.", default="arrays")

    def _areas(self) -> dict[str, list[str]]:
        areas = self.section("areas")
        for name, parts in areas.items():
            if not _NAME.fullmatch(name) or RESERVED.fullmatch(name) or _FILE.search(name):
                reserved = "fold00, shuffled00, oracle, prior, mismatched and shuffled are taken"
                self.problems.append(f"areas.{name} is not a name: letters, digits, _ and . are expected; {reserved}")
            if not (isinstance(parts, list) and parts and all(isinstance(part, str) and part for part in parts)):
                self.problems.append(f'areas.{name} = {shown(parts)}: a list of areas is expected, as in ["V1", "V2"]')
        return areas

    def _decode(self) -> BaseModel | None:
        if "decode" not in self.tables or "decode" in self.wrong:
            return None
        not_needed = ("stage1",) if self._decoded_space() else ("features", "regression", "stage1")
        beside = [name for name in not_needed if name in self.tables]
        if beside:
            listed = " and ".join(f"[{name}]" for name in beside)
            self.problems.append(f"[decode] goes from betas to images by itself: leave out {listed}, or [decode]")
        found: BaseModel | None = self.collect(
            kinds.settings_of, "decoders", self.section("decode"), "decode.", default=""
        )
        return found

    def _decoded_space(self) -> Any:
        """The feature space that [decode] names, if any."""
        return self.section("decode").get("space")

    def _spaces(self) -> dict[str, Any]:
        if "features" in self.tables and self.tables["features"] == {}:
            self.problems.append("features holds no feature space: name one, or leave [features] out, which means pca")
        return self._named("features", self.section("features") or {"pca": {}})

    def _judges(self, evaluate: EvaluateSettings | None) -> dict[str, Any]:
        """The tables of the judges: those of [judges] over those of the preset, as far as they are asked for."""
        own = self.section("judges")
        if evaluate is None or evaluate.judges is None:
            return own
        of_preset = PROTOCOLS[evaluate.preset].judges
        if evaluate.judges == "preset" and not of_preset:
            self.problems.append(f'evaluate.judges = "preset", but the preset {evaluate.preset} has no networks')
        asked = [*of_preset, *own] if evaluate.judges == "preset" else list(evaluate.judges)
        known = {**of_preset, **own}
        self.problems += [
            f"evaluate.judges names {shown(name)}, which is not a judge here ({nearest(name, known)})"
            for name in asked
            if name not in known
        ]
        unasked = [name for name in own if name not in asked]
        self.problems += [
            f"judges.{name} is not among evaluate.judges: name it there, or leave it out" for name in unasked
        ]
        tables = {name: known[name] for name in dict.fromkeys(asked) if name in known}
        for name, table in tables.items():
            preset = of_preset.get(name, {})
            if isinstance(table, Mapping) and table.get("kind", preset.get("kind")) == preset.get("kind"):
                tables[name] = {**preset, **table}
        return tables

    def _named(self, group: str, tables: Mapping[str, Any]) -> dict[str, Any]:
        """Tables by name, as ``[features.NAME]``; their kind is NAME where they name none."""
        result = {}
        for name, table in tables.items():
            if not _NAME.fullmatch(name):
                self.problems.append(f"{group}.{name} is not a name: letters, digits, _, - and . are expected")
            elif _FILE.search(name) or len(name) > LONGEST_NAME:
                self.problems.append(
                    f"{group}.{name[:99]} can't be a folder's name: one without the ending of a file is expected"
                )
            elif not isinstance(table, Mapping):
                self.problems.append(f"{group}.{name} is not a table, as in [{group}.{name}]")
            else:
                result[name] = self.collect(kinds.settings_of, group, table, f"{group}.{name}.", default=name)
        return result

    def _regression(self, spaces: list[str]) -> dict[str, Any]:
        table = self.section("regression")
        for_all = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
        for_one = {key: value for key, value in table.items() if isinstance(value, Mapping)}
        self.problems += [
            f"regression.{name} is for a feature space that is not there ({nearest(name, spaces)})"
            for name in for_one
            if name not in spaces
        ]
        default = _text(for_all.get("kind", "ridge"))
        kind = {name: _text(for_one.get(name, {}).get("kind", default)) for name in spaces}
        fields = {name: self._fields(name) for name in {default, *kind.values()}}
        # [regression] may hold keys for a kind that only some spaces have.
        others = set().union(*(fields[name] for name in set(kind.values()) - {default}))
        shared = {key: value for key, value in for_all.items() if key in fields[default] or key not in others}
        common = self.collect(kinds.settings_of, "regressors", shared, "regression.", default="ridge")
        result = {}
        for name in spaces:
            result[name] = common
            if name in for_one:
                known = {key: value for key, value in for_all.items() if key in fields[kind[name]]} if common else {}
                merged = {**known, "kind": kind[name], **for_one[name]}
                prefix = f"regression.{name}."
                result[name] = self.collect(kinds.settings_of, "regressors", merged, prefix, default="ridge")
        return result

    @staticmethod
    def _fields(kind: str) -> set[str]:
        """The keys that a kind of regression knows; none for an unknown kind, which is reported elsewhere."""
        try:
            return set(kinds.get("regressors", kind).Settings.model_fields)
        except SettingsError:
            return set()

    def _check_roles(self, refine: BaseModel | None, spaces: Mapping[str, BaseModel]) -> None:
        """Note predictions that the generator needs and no feature space gives."""
        if refine is None:
            return
        generator = kinds.kind_of("generators", refine)
        roles, unconditional = generator.roles(refine), generator.unconditional_roles(refine)
        searched: dict[str, str] = generator.spaces(refine) if getattr(generator, "learns", False) else {}
        if searched and GENERATOR in spaces:
            self.problems.append(f"features.{GENERATOR}: another name is expected, as the generator has this one")
        for key, name in searched.items():
            if name not in spaces and name not in roles.values():
                self.problems.append(f"refine.{key} = {name!r} is not a feature space here ({nearest(name, spaces)})")
        for role, name in roles.items():
            key = "start" if role == "latents" else role
            if "decode" in self.tables:
                self.problems.append(
                    f"refine.{key} = {name!r} needs predictions of a feature space, and [decode] makes none"
                )
            elif name not in spaces:
                self.problems.append(f"refine.{key} = {name!r} is not a feature space here ({nearest(name, spaces)})")
            elif role in unconditional and spaces[name] is not None:
                self._check_unconditional(role, name, spaces[name], getattr(refine, "guidance", None))

    def _check_unconditional(self, role: str, name: str, space: BaseModel, guidance: float | None) -> None:
        if not kinds.kind_of("features", space).conditions:
            key = "negative" if role == "text" else f"negative_{role}"
            self.problems.append(
                f"refine.guidance = {guidance or 1:g} needs refine.{key}, the path of an unconditional embedding, as "
                f"the feature space {name} has none (clip-text and clip-vision have one)"
            )


def _text(value: Any) -> str:
    """A kind's name; other values are shown as text and refused as unknown kinds."""
    return value if isinstance(value, str) else shown(value)


def _located(space: Any, base_dir: Path | None) -> BaseModel:
    """The settings of a feature space, whose kind may read files of the user's: then it has ``located``."""
    locate = getattr(space, "located", None)
    found: BaseModel = space if locate is None else locate(base_dir)
    return found


def _dump(model: BaseModel) -> dict[str, Any]:
    return model.model_dump(exclude_none=True)
