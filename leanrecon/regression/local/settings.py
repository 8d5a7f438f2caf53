"""The settings of the regressor ``local``."""

import re
import tomllib
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from leanrecon.regression.alphas import Alpha

Count = Annotated[int, Field(strict=True, ge=1)]

NAMES = ("auto", "ridge", "omp", "univariate", "linear", "bayesian_ridge", "ard", "logistic")

STACKED: dict[str, dict[str, Any]] = {
    "univariate": {"estimator": "univariate"},
    "omp_3": {"estimator": "omp", "nonzero": 3},
    "omp_10": {"estimator": "omp", "nonzero": 10},
    "ridge": {"estimator": "ridge"},
}
"""The estimators that ``auto`` adds up: a target's decoder uses one voxel, three, ten, or all of them."""

BATCHED = ("univariate", "omp")
"""Estimators of our own, which fit a block of targets at once."""

_PATH = re.compile(r"sklearn(\.[A-Za-z_]\w*)+")


class LocalSettings(BaseModel):
    """A decoder a target, from voxels picked for it (see ``regression.local.regressor.LocalRegressor``)."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    kind: Literal["local"] = "local"
    """A decoder a target."""
    estimator: str = "auto"
    """ridge, omp, univariate, linear, bayesian_ridge, ard, logistic, auto, or a scikit-learn class such as
    sklearn.svm.LinearSVR. auto mixes univariate, omp with 3 and with 10 voxels, and ridge. Shares are those that predict
    left-out train images best."""
    voxels: Count | None = None
    """How many voxels are picked for each target from the train rows; absent: all."""
    select: Literal["correlation", "f"] = "correlation"
    """Voxels are picked by their correlation with the target, or by an F-test over the levels of the target."""
    standardize: bool = True
    """Whether voxels are divided by their standard deviation over the train rows."""
    nonzero: Count = 3
    """Voxels of a target's decoder with omp."""
    alpha: Alpha = "loo"
    """Penalty of the ridge; "loo" chooses the alpha of least leave-one-out error."""
    output: Literal["expected", "most_probable"] = "expected"
    """What a classifier predicts of a target's levels: their mean, weighted by probability, or the most probable one."""
    options: list[str] = []
    """Parameters of scikit-learn's estimator, each as NAME=VALUE."""
    workers: Count | None = None
    """Threads at work; absent: one for each processor. They change no prediction."""

    @field_validator("estimator")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in NAMES and not _PATH.fullmatch(name):
            raise ValueError(
                f"one of {', '.join(NAMES)} or a class of scikit-learn as sklearn.MODULE.CLASS is expected"
            )
        return name

    @field_validator("options")
    @classmethod
    def _written(cls, options: list[str]) -> list[str]:
        for option in options:
            if not re.fullmatch(r"[A-Za-z_]\w*=.+", option):
                raise ValueError(f'"{option[:60]}" is not written as NAME=VALUE')
        return options

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.voxels is not None and self.estimator in ("auto", "ridge"):
            raise ValueError(
                f'voxels are picked for each target, but with estimator = "{self.estimator}" all targets share one ridge; '
                "leave voxels out, or use sklearn.linear_model.Ridge"
            )
        if self.options and self.estimator in ("auto", "ridge", "omp", "univariate"):
            raise ValueError(f"options are for scikit-learn's estimators, and \"{self.estimator}\" is leanrecon's own")
        return self

    @property
    def parameters(self) -> dict[str, Any]:
        """The options as values: as in TOML, else text."""
        return {name: _value(text) for name, _, text in (option.partition("=") for option in self.options)}


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, KeyError):
        return text
