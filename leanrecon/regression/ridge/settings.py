"""The settings of the regressor ``ridge``."""

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, model_validator

from leanrecon.errors import SettingsError
from leanrecon.regression.alphas import Alpha, Alphas, Restandardize


class RidgeSettings(BaseModel):
    """Ridge regression from betas to the rows of a feature space (see ``regression.ridge.StreamingRidge``)."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    kind: Literal["ridge"] = "ridge"
    """The kind of regressor."""
    alpha: Alpha = "loo"
    """Penalty of the squared weights; "loo" chooses the alpha of least leave-one-out error."""
    alphas: Alphas = None
    """Alphas that "loo" chooses from; by default 10⁻³ to 10⁴ times the mean eigenvalue of the Gram matrix."""
    per_target: bool = False
    """Whether "loo" chooses an alpha for every target, rather than one for all."""
    standardize: bool = True
    """Whether voxels are divided by their standard deviation over the train rows."""
    restandardize: Restandardize = "none"
    """Whether predictions get the spread of the train targets, by held-out train rows or by all test rows together."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.per_target and self.alpha != "loo":
            raise ValueError('per_target chooses an alpha for every target, which needs alpha = "loo"')
        if self.per_target and self.restandardize == "inductive":
            raise ValueError('restandardize = "inductive" needs one alpha for all targets, not per_target')
        return self


def check_parameters(alpha: Any, alphas: Sequence[float] | None, per_target: bool, restandardize: str) -> None:
    """Raise SettingsError for parameters of a ridge that are out of range or contradict each other."""
    number = isinstance(alpha, Real) and not isinstance(alpha, bool)
    if alpha != "loo" and not (number and 0 <= float(alpha) < math.inf):
        raise SettingsError(f"alpha = {alpha!r}", expected='a number, 0 or more, or "loo"')
    if per_target and alpha != "loo":
        raise SettingsError("per_target chooses an alpha for every target", todo='set alpha = "loo"')
    if alphas is not None and (len(alphas) == 0 or not all(0 < a < math.inf for a in alphas)):
        raise SettingsError(f"alphas = {alphas!r}", expected="numbers above 0")
    if restandardize not in get_args(Restandardize):
        expected = f"one of {', '.join(get_args(Restandardize))}"
        raise SettingsError(f"restandardize = {restandardize!r}", expected=expected)
    if per_target and restandardize == "inductive":
        raise SettingsError(
            'restandardize = "inductive" has no leave-one-out predictions under an alpha for every target',
            todo="use one alpha for all targets, or another restandardize",
        )
