"""Values and types of settings, as a settings file writes them."""

import inspect
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import BaseModel
from pydantic.fields import FieldInfo

_TYPES = {str: "string", int: "integer", float: "number", bool: "true or false", Path: "path"}


def written(value: Any) -> str:
    """A value in TOML, on one line."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json", exclude_none=True)
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name} = {written(part)}' for name, part in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(written, value))}]"
    return tomli_w.dumps({"x": value}).strip().removeprefix("x = ")


def type_of(annotation: Any) -> str:
    """The type of a setting in words, or the values that it may have."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return ", ".join(map(written, parts))
    if origin is typing.Annotated:
        return type_of(parts[0])
    if origin in (list, tuple, set):
        inner = dict.fromkeys(type_of(part) for part in parts if part is not Ellipsis)
        return f"list of {' or '.join(inner)}" if inner else "list"
    if origin is dict or annotation is dict:
        return "table"
    if parts:  # a union
        return " or ".join(dict.fromkeys(type_of(part) for part in parts if part is not type(None)))
    if annotation in _TYPES:
        return _TYPES[annotation]
    return "table" if inspect.isclass(annotation) and issubclass(annotation, BaseModel) else "any"


def sentence_of(field: FieldInfo) -> str:
    """What a setting means, on one line, with code between single backticks."""
    return " ".join((field.description or "").replace("``", "`").split())
