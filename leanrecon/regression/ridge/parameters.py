"""The rules for the parameters of a ridge, which loads no settings models."""

import math
import sys
from collections.abc import Sequence
from numbers import Real
from typing import Any, get_args

from leanrecon.errors import SettingsError, shown
from leanrecon.regression.ridge.form import KERNELS, MOST_POWER, VOXEL_WEIGHTS
from leanrecon.regression.ridge.restandardise import Kind

_LARGEST = sys.float_info.max  # larger integers are no floats


def check_form(kernel: Any, gamma: Any, voxel_weights: Any, voxel_power: Any, alpha: Any) -> None:
    """Raise SettingsError for parameters of the form of a decoder that are out of range or contradict each other."""
    for name, value, known in (("kernel", kernel, KERNELS), ("voxel_weights", voxel_weights, VOXEL_WEIGHTS)):
        if value not in known:
            raise SettingsError(f"{name} = {shown(value)}", expected=f"one of {', '.join(known)}")
    for name, value, most in (("gamma", gamma, _LARGEST), ("voxel_power", voxel_power, MOST_POWER)):
        number = isinstance(value, Real) and not isinstance(value, bool)
        if value != "loo" and not (number and 0 < value <= most):
            up_to = f" and up to {most}" if most == MOST_POWER else ""
            raise SettingsError(f"{name} = {shown(value)}", expected=f'a number above 0{up_to}, or "loo"')
    if kernel == "auto" and alpha != "loo":
        raise SettingsError(
            'kernel = "auto" compares kernels whose alphas have different scales', todo='set alpha = "loo", or a kernel'
        )


def check_parameters(alpha: Any, alphas: Sequence[float] | None, per_target: bool, restandardize: str) -> None:
    """Raise SettingsError for parameters of a ridge that are out of range or contradict each other."""
    number = isinstance(alpha, Real) and not isinstance(alpha, bool)
    if alpha != "loo" and not (number and 0 <= alpha <= _LARGEST):
        raise SettingsError(f"alpha = {shown(alpha)}", expected='a number, 0 or more, or "loo"')
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
