"""Values and sentences of settings as a user of TOML reads them."""

from collections.abc import Mapping
from typing import Any

import tomli_w
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined


def assigned(key: str, value: Any) -> str:
    """``key = value`` in TOML on one line; without a value where there is none."""
    if value is None or value is PydanticUndefined:
        return f"{key} ="
    value = value.model_dump(mode="json", exclude_none=True) if isinstance(value, BaseModel) else value
    if isinstance(value, Mapping):
        return f"{key} = {{{', '.join(assigned(name, part) for name, part in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"{key} = [{', '.join(map(as_toml, value))}]"
    return tomli_w.dumps({key: value}).strip()


def as_toml(value: Any) -> str:
    """A value as TOML writes it, on one line."""
    return assigned("x", value).removeprefix("x = ")


def sentence_of(field: FieldInfo) -> str:
    """What a setting means, on one line, with code between single backticks."""
    return " ".join((field.description or "").replace("``", "`").split())
