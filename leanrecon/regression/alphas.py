"""The settings that say how a ridge chooses its penalty alpha."""

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator


def _alpha(value: Any) -> float | str:
    if value == "loo":
        return "loo"
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError('a number, 0 or more, or "loo" is expected')
    return float(value)


def _alphas(value: Any) -> list[float] | None:
    if value is None:
        return None
    numbers = value if isinstance(value, list) else []
    if not numbers or any(
        isinstance(a, bool) or not isinstance(a, int | float) or not 0 < a < math.inf for a in numbers
    ):
        raise ValueError("a list of numbers above 0 is expected")
    return [float(a) for a in numbers]


def _positive_or_loo(value: Any) -> float | str:
    if value == "loo":
        return "loo"
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError('a number above 0, or "loo" is expected')
    return float(value)


Alpha = Annotated[float | Literal["loo"], BeforeValidator(_alpha)]
"""A penalty, 0 or more, or ``"loo"``: the one of least leave-one-out error."""

Alphas = Annotated[list[float] | None, BeforeValidator(_alphas)]
"""Penalties to choose from, all above 0; None: the default grid."""

PositiveOrLoo = Annotated[float | Literal["loo"], BeforeValidator(_positive_or_loo)]
"""A number above 0, or ``"loo"``: the one of least error for images that are held out of the train rows."""

Restandardize = Literal["none", "inductive", "transductive"]
"""How predictions get the spread of the train targets (see ``regression.ridge.restandardise``)."""
