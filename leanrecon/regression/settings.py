"""The settings of ``[regression]`` and of ``[regression.SPACE]``, which overrides it for one feature space."""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator


def _penalty(value: Any) -> float | str:
    if value == "loo":
        return "loo"
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError('a number, 0 or more, or "loo" is expected')
    return float(value)


def _grid(value: Any) -> list[float] | None:
    if value is None:
        return None
    numbers = value if isinstance(value, list) else []
    if not numbers or any(
        isinstance(a, bool) or not isinstance(a, int | float) or not 0 < a < math.inf for a in numbers
    ):
        raise ValueError("a list of numbers above 0 is expected")
    return [float(a) for a in numbers]


class RidgeSettings(BaseModel):
    """Ridge regression from betas to the rows of a feature space (see ``regression.ridge.StreamingRidge``)."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["ridge"] = "ridge"
    alpha: Annotated[float | Literal["loo"], BeforeValidator(_penalty)] = "loo"
    alphas: Annotated[list[float] | None, BeforeValidator(_grid)] = None
    per_target: bool = False
    standardize: bool = True
    restandardize: Literal["none", "inductive", "transductive"] = "none"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.per_target and self.alpha != "loo":
            raise ValueError('per_target chooses an alpha for every target, which needs alpha = "loo"')
        if self.per_target and self.restandardize == "inductive":
            raise ValueError('restandardize = "inductive" needs one alpha for all targets, not per_target')
        return self
