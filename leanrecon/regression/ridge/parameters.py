"""The rules for the parameters of a ridge, which loads no settings models."""

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any, get_args

from leanrecon.errors import SettingsError
from leanrecon.regression.ridge.restandardise import Kind


def check_parameters(alpha: Any, alphas: Sequence[float] | None, per_target: bool, restandardize: str) -> None:
    """Raise SettingsError for parameters of a ridge that are out of range or contradict each other."""
    number = isinstance(alpha, Real) and not isinstance(alpha, bool)
    if alpha != "loo" and not (number and 0 <= float(alpha) < math.inf):
        raise SettingsError(f"alpha = {alpha!r}", expected='a number, 0 or more, or "loo"')
    if per_target and alpha != "loo":
        raise SettingsError("per_target chooses an alpha for every target", todo='set alpha = "loo"')
    if alphas is not None and (len(alphas) == 0 or not all(0 < a < math.inf for a in alphas)):
        raise SettingsError(f"alphas = {alphas!r}", expected="numbers above 0")
    if restandardize not in get_args(Kind):
        expected = f"one of {', '.join(get_args(Kind))}"
        raise SettingsError(f"restandardize = {restandardize!r}", expected=expected)
    if per_target and restandardize == "inductive":
        raise SettingsError(
            'restandardize = "inductive" has no leave-one-out predictions under an alpha for every target',
            todo="use one alpha for all targets, or another restandardize",
        )
