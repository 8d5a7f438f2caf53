"""The settings of ``[regression]`` and of ``[regression.SPACE]``, which overrides it for one feature space."""

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict


def _penalty(value: Any) -> float | str:
    if value == "loo":
        return "loo"
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError('a number, 0 or more, or "loo" is expected')
    return float(value)


def _grid(value: Any) -> list[float] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not value or any(not isinstance(a, int | float) or a <= 0 for a in value):
        raise ValueError("a list of numbers above 0 is expected")
    return [float(a) for a in value]


class RidgeSettings(BaseModel):
    """Ridge regression from betas to the rows of a feature space (see ``regression.ridge.StreamingRidge``)."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["ridge"] = "ridge"
    alpha: Annotated[float | Literal["loo"], BeforeValidator(_penalty)] = "loo"
    alphas: Annotated[list[float] | None, BeforeValidator(_grid)] = None
    per_target: bool = False
    standardize: bool = True
    restandardize: Literal["none", "inductive", "transductive"] = "none"
