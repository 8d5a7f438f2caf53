"""A commented study.toml for data that ``inspect`` understood: what it found, and what else can be set."""

import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from leanrecon import kinds
from leanrecon.app.toml import sentence_of, written
from leanrecon.datasets.inspect.inspect import inspect
from leanrecon.errors import InputError
from leanrecon.places import elsewhere
from leanrecon.places.paths import expanded
from leanrecon.study.evaluate_settings import EvaluateSettings
from leanrecon.study.sections import GeneralSettings, StageOneSettings

WIDTH = 100
"""Letters of a line of comment at most."""

CHAIN = (
    (
        "features.pca",
        "features",
        "pca",
        "What is predicted from the betas: `leanrecon kinds features` lists all spaces.",
    ),
    ("regression", "regressors", "ridge", "How it is predicted: `leanrecon kinds regressors` lists all regressors."),
)
"""The tables after [dataset] with the kinds that a study takes by default."""


def study_text(path: Path) -> str:
    """The text of a study.toml for a file or folder; raises InputError for data whose layout is not known."""
    away = elsewhere(path)
    path = expanded(path).absolute() if away is None else path
    found = inspect(path)
    where = str(path if away is None else away)
    if not found.settings:
        raise InputError(
            f"{where} is {found.layout}: {'; '.join(line.strip() for line in found.lines)}",
            expected="data in a layout that a kind of dataset reads",
            todo="docs/datasets.md shows the layouts; `leanrecon kinds datasets` lists the kinds",
        )
    parts = [_head(where, found.lines), _general(), _dataset(found.settings)]
    parts += [_table(name, kinds.get(group, kind).Settings, why) for name, group, kind, why in CHAIN]
    parts += [
        _table("stage1", StageOneSettings, "First images."),
        _table("evaluate", EvaluateSettings, "How images are compared."),
    ]
    return "\n\n".join("\n".join(lines) for lines in parts) + "\n"


def _head(path: str, lines: list[str]) -> Iterator[str]:
    yield f"# A study of {path}. inspect found:"
    yield from (f"#   {line.strip()}" for line in lines)
    yield "# Settings in comments have the value that is shown, unless they are set. Then:"
    yield "#   leanrecon plan study.toml        what every stage takes"
    yield "#   leanrecon run study.toml         from the data to report.html"


def _general() -> Iterator[str]:
    yield from _keys(GeneralSettings, {})


def _dataset(given: Mapping[str, Any]) -> Iterator[str]:
    yield "[dataset]"
    yield from _keys(kinds.get("datasets", given["kind"]).Settings, given)


def _table(name: str, model: type[BaseModel], why: str) -> Iterator[str]:
    yield from (f"# {why}", f"[{name}]")
    yield from _keys(model, {})


def _keys(model: type[BaseModel], given: Mapping[str, Any]) -> Iterator[str]:
    """The keys of a table: those given as they are, then others in comments with their defaults."""
    for key in sorted(model.model_fields, key=lambda key: key not in given):
        field = model.model_fields[key]
        default = PydanticUndefined if field.is_required() else field.get_default(call_default_factory=True)
        if key == "kind" and key not in given:
            continue
        yield from textwrap.wrap(sentence_of(field), WIDTH, initial_indent="# ", subsequent_indent="# ")
        if key in given:
            yield _assigned(key, given[key])
        else:
            yield f"# {_assigned(key, default)}"


def _assigned(key: str, value: Any) -> str:
    """``key = value`` in TOML on one line; without a value where there is none."""
    return f"{key} =" if value is None or value is PydanticUndefined else f"{key} = {written(value)}"
