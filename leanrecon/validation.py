"""Tables of settings checked against their models: every problem at once, unknown keys with the nearest known one."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from leanrecon.errors import SettingsError, shown

Model = TypeVar("Model", bound=BaseModel)


def validate(model: type[Model], table: Mapping[str, Any], prefix: str) -> Model:
    """The table as an instance of its model; ``prefix`` names it, as in ``dataset.``.

    Raises SettingsError with all problems, one sentence each.
    """
    try:
        found = model.model_validate(dict(table))
    except ValidationError as error:
        problems = [_sentence(problem, table, prefix, model) for problem in error.errors()]
    except RecursionError:
        raise SettingsError(
            f"{prefix.rstrip('.') or 'the settings'} hold tables or lists that are nested too deeply"
        ) from None
    else:
        return found
    raise SettingsError("; ".join(dict.fromkeys(problems)))


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint to the nearest known name, or to all of them."""
    known = list(known)
    close = difflib.get_close_matches(name, known, 1)
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
    return f"{prefix}{key} = {shown(table.get(key))}: {message[0].lower()}{message[1:]}"
