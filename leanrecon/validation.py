"""Tables of settings checked against their models: every problem at once, unknown keys with the nearest known one."""

import difflib
import math
from collections.abc import Iterable, Iterator, Mapping
from numbers import Number
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from leanrecon.arguments import is_bool
from leanrecon.errors import SettingsError, shown

Model = TypeVar("Model", bound=BaseModel)

_NUMBER, _FINITE = "a number is expected", "a finite number is expected"
_OF_RANGE = ("greater_than", "less_than", "multiple_of", "finite_number")  # what pydantic calls them


def validate(model: type[Model], table: Mapping[str, Any], prefix: str) -> Model:
    """The table as an instance of its model; ``prefix`` names it, as in ``dataset.``.

    Numbers are finite, and neither true nor false nor a text of digits; true and false are neither numbers nor text.
    Raises SettingsError with all problems, one sentence each.
    """
    try:
        found = model.model_validate(dict(table))
        problems = [
            f"{prefix}{key} = {_shown(value)}: {problem}"
            for key, value in table.items()
            for problem in _taken_for_another(value, getattr(found, key, None))
        ]
    except ValidationError as error:
        problems = [_sentence(problem, table, prefix, model) for problem in error.errors()]
    except RecursionError:
        raise SettingsError(
            f"{prefix.rstrip('.') or 'the settings'} hold tables or lists that are nested too deeply"
        ) from None
    if not problems:
        return found
    raise SettingsError("; ".join(dict.fromkeys(problems)))


def nearest(name: Any, known: Iterable[str]) -> str:
    """A hint to the nearest known name, or to all of them where it is not text."""
    known = list(known)
    close = difflib.get_close_matches(name, known, 1) if isinstance(name, str) else []
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(sorted(known))}"


def _sentence(problem: Any, table: Mapping[str, Any], prefix: str, model: type[BaseModel]) -> str:
    if not problem["loc"]:
        return f"{prefix.rstrip('.')}: {problem['msg'].removeprefix('Value error, ')}"
    key = str(problem["loc"][0])
    if problem["type"] == "extra_forbidden":
        return f"{prefix}{key} is unknown ({nearest(key, model.model_fields)})"
    if problem["type"] == "missing":
        return f"{prefix}{key} is not given"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"].startswith(_OF_RANGE) and (other := _no_number(problem["input"])):
        message = other
    return f"{prefix}{key} = {_shown(table.get(key))}: {message[0].lower()}{message[1:]}"


def _taken_for_another(given: Any, read: Any) -> Iterator[str]:
    """What is wrong with values that pydantic reads as another type: true as 1, "10" as 10, "no" as false."""
    if isinstance(given, Mapping):
        parts = read if isinstance(read, Mapping) else getattr(read, "__dict__", {})
        for key, part in given.items():
            yield from _taken_for_another(part, parts.get(key))
    elif isinstance(given, list | tuple) and isinstance(read, list | tuple):
        for part, of in zip(given, read, strict=False):
            yield from _taken_for_another(part, of)
    elif isinstance(read, bool):
        if not is_bool(given):
            yield "true or false is expected"
    elif isinstance(read, int | float) and (problem := _no_number(given)):
        yield problem
    elif isinstance(read, float) and not math.isfinite(read):
        yield _FINITE


def _no_number(given: Any) -> str:
    """What is wrong with a value that is taken for a number; empty for a number."""
    if is_bool(given):
        return f"{_NUMBER}, not true or false"
    if not isinstance(given, Number):
        return f"{_NUMBER}, without quotation marks" if isinstance(given, str) else _NUMBER
    return _FINITE if isinstance(given, float) and not math.isfinite(given) else ""


def _shown(value: Any) -> str:
    """A value as in TOML, where that differs from Python."""
    return str(value).lower() if is_bool(value) else shown(value)
