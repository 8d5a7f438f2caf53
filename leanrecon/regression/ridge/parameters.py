"""The rules for the parameters of a ridge, which loads no settings models."""

import sys
from collections.abc import Iterable
from typing import Any, get_args

from leanrecon.arguments import check_flag, check_whole, is_number
from leanrecon.errors import SettingsError, shown
from leanrecon.regression.ridge.form import KERNELS, MOST_POWER, VOXEL_WEIGHTS
from leanrecon.regression.ridge.restandardise import Kind

_LARGEST = sys.float_info.max  # larger integers are not floats


def _is_other(value: Any) -> bool:
    """Whether a value is not "loo"; arrays are not compared."""
    return not (isinstance(value, str) and value == "loo")


def check_form(kernel: Any, gamma: Any, voxel_weights: Any, voxel_power: Any, alpha: Any, seed: Any) -> None:
    """Raise SettingsError for parameters of the form of a decoder that are out of range or contradict each other."""
    for name, value, known in (("kernel", kernel, KERNELS), ("voxel_weights", voxel_weights, VOXEL_WEIGHTS)):
        if value not in known:
            raise SettingsError(f"{name} = {shown(value)}", expected=f"one of {', '.join(known)}")
    check_whole("seed", seed)
    for name, value, most in (("gamma", gamma, _LARGEST), ("voxel_power", voxel_power, MOST_POWER)):
        if _is_other(value) and not (is_number(value) and 0 < value <= most):
            up_to = f" and up to {most}" if most == MOST_POWER else ""
            raise SettingsError(f"{name} = {shown(value)}", expected=f'a number above 0{up_to}, or "loo"')
    if kernel == "auto" and alpha != "loo":
        raise SettingsError(
            'kernel = "auto" compares kernels whose alphas have different scales', todo='set alpha = "loo", or a kernel'
        )


def check_parameters(alpha: Any, alphas: Any, per_target: Any, standardize: Any, restandardize: Any) -> None:
    """Raise SettingsError for parameters of a ridge that are out of range or contradict each other."""
    if _is_other(alpha) and not (is_number(alpha) and 0 <= alpha <= _LARGEST):
        raise SettingsError(f"alpha = {shown(alpha)}", expected='a number, 0 or more, or "loo"')
    for name, value in (("per_target", per_target), ("standardize", standardize)):
        check_flag(name, value)
    if per_target and alpha != "loo":
        raise SettingsError("per_target chooses an alpha for every target", todo='set alpha = "loo"')
    if alphas is not None:
        listed = isinstance(alphas, Iterable) and not isinstance(alphas, str)
        numbers = list(alphas) if listed and getattr(alphas, "ndim", 1) == 1 else []
        if not numbers or not all(is_number(a) and 0 < a <= _LARGEST for a in numbers):
            raise SettingsError(f"alphas = {shown(alphas)}", expected="a list of numbers above 0")
    if restandardize not in get_args(Kind):
        expected = f"one of {', '.join(get_args(Kind))}"
        raise SettingsError(f"restandardize = {shown(restandardize)}", expected=expected)
    if per_target and restandardize == "inductive":
        raise SettingsError(
            'restandardize = "inductive" has no leave-one-out predictions under an alpha for every target',
            todo="use one alpha for all targets, or another restandardize",
        )
