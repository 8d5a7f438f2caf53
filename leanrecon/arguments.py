"""Arguments in Python: a value of another type than is expected is refused by a sentence that names it."""

import inspect
import math
import os
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from pathlib import PurePath
from typing import Any, Self

from leanrecon.errors import InputError, SettingsError, shown
from leanrecon.progress import Progress

_LONGEST_VECTOR = 1000  # numbers; larger arrays are data, which settings name by their paths


class Parameters:
    """An object whose ``__init__`` stores its arguments untouched, so that scikit-learn can copy and change it."""

    def __repr__(self) -> str:
        """The parameters that differ from their defaults, as scikit-learn shows an estimator."""
        defaults = inspect.signature(type(self)).parameters
        shown = {name: getattr(self, name) for name in defaults}
        changed = (f"{name}={value!r}" for name, value in shown.items() if repr(value) != repr(defaults[name].default))
        return f"{type(self).__name__}({', '.join(changed)})"

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The parameters by name; ``deep`` changes nothing, as no parameter is an estimator."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def set_params(self, **params: Any) -> Self:
        """Change parameters by name; raises SettingsError for others."""
        known = list(inspect.signature(type(self)).parameters)
        for name in params:
            if name not in known:
                raise SettingsError(
                    f"{type(self).__name__} has no parameter {name!r}", expected=f"one of {', '.join(known)}"
                )
        for name, value in params.items():
            setattr(self, name, value)
        return self


def check_flag(name: str, value: Any) -> None:
    """Raise SettingsError for anything but True and False."""
    if not is_bool(value):
        raise SettingsError(f"{name} = {shown(value)}", expected="True or False")


def check_whole(name: str, value: Any, least: int = 0) -> None:
    """Raise SettingsError for anything but a whole number of at least ``least``, of 63 bits."""
    if is_bool(value) or not isinstance(value, Integral) or not least <= int(value) < 2**63:
        raise SettingsError(f"{name} = {shown(value)}", expected=f"a whole number, {least} or more")


def check_path(name: str, value: Any) -> None:
    """Raise InputError for anything but a path that is not empty."""
    if not isinstance(value, str | os.PathLike):
        raise InputError(f"{name} = {shown(value)}", expected="a path, as text or pathlib.Path")
    if not os.fspath(value):
        raise InputError(f"{name} is an empty path", expected='a path; "." is the current folder')


def check_name(name: str, value: Any) -> None:
    """Raise InputError for anything but a name without slashes, such as that of a feature space."""
    if not isinstance(value, str) or not value or {"/", "\\", "\0"} & set(value) or value in (".", ".."):
        raise InputError(f"{name} = {shown(value)}", expected="a name, without slashes")


def check_progress(value: Any) -> None:
    """Raise SettingsError for anything but a Progress or None."""
    if value is not None and not isinstance(value, Progress):
        raise SettingsError(f"progress = {shown(value)}", expected="a leanrecon.progress.Progress, or None")


def checked_texts(name: str, value: Any, example: str) -> list[str]:
    """The texts of a list; raises SettingsError for anything else, one text alone included."""
    alone = isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable)
    texts = [] if alone else list(value)
    if alone or not all(isinstance(text, str) for text in texts):
        raise SettingsError(
            f"{name} = {shown(value if alone else texts)}", expected=f"a list of texts, as in {example}"
        )
    return texts


def plain_values(value: Any) -> Any:
    """Settings given in Python as TOML has them: paths as texts, tuples as lists, numbers and short vectors of NumPy.

    Raises SettingsError for tables whose keys are not text.
    """
    if isinstance(value, Mapping):
        if other := [key for key in value if not isinstance(key, str)]:
            raise SettingsError(f"the settings hold {shown(other[0])} as a key", expected="keys that are text")
        return {key: plain_values(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain_values(part) for part in value]
    if isinstance(value, PurePath):
        return str(value)
    if type(value).__module__ == "numpy" and getattr(value, "size", math.inf) <= _LONGEST_VECTOR:
        return value.tolist()
    return value


def is_bool(value: Any) -> bool:
    """Whether a value is true or false, of Python or NumPy."""
    return isinstance(value, bool) or type(value).__name__ in ("bool", "bool_")  # NumPy need not be imported for it


def is_number(value: Any) -> bool:
    """Whether a value is a real number, and neither true nor false."""
    return isinstance(value, Real) and not is_bool(value)
