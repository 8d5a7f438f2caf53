"""The settings of the regressor ``ridge``."""

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator

from leanrecon.regression.alphas import Alpha, Alphas, PositiveOrLoo, Restandardize
from leanrecon.regression.ridge.form import MOST_POWER, Form, forms


def _power(value: float | str) -> float | str:
    if not isinstance(value, str) and value > MOST_POWER:
        raise ValueError(f'a number above 0 and up to {MOST_POWER}, or "loo" is expected')
    return value


Power = Annotated[PositiveOrLoo, AfterValidator(_power)]
"""The power of voxels' weights, or ``"loo"``."""


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
    """Whether predictions are rescaled to the spread of train targets, by held-out train rows or by all test rows."""
    kernel: Literal["linear", "rbf", "auto"] = "linear"
    """Kernel of betas; "auto" takes the one with less error for held-out train images, and needs alpha "loo"."""
    gamma: PositiveOrLoo = "loo"
    """γ of an rbf kernel exp(−γ d² / median d²); "loo" chooses from ¼, ½, 1 and 2 in the same way."""
    voxel_weights: Literal["none", "accuracy", "reliability", "auto"] = "none"
    """Weights of voxels: how well images predict them, or their reliability; "auto" chooses none or accuracy."""
    voxel_power: Power = "loo"
    """Power of these weights; "loo" chooses from ½ and 1 in the same way."""

    @property
    def forms(self) -> Sequence[Form]:
        """The forms to choose from, the simplest first."""
        return forms(self.kernel, self.gamma, self.voxel_weights, self.voxel_power)

    @property
    def learns_form(self) -> bool:
        """Whether the form depends on the targets."""
        return len(self.forms) > 1 or self.voxel_weights == "accuracy"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.per_target and self.alpha != "loo":
            raise ValueError('per_target chooses an alpha for every target, which needs alpha = "loo"')
        if self.per_target and self.restandardize == "inductive":
            raise ValueError('restandardize = "inductive" needs one alpha for all targets, not per_target')
        if self.kernel == "auto" and self.alpha != "loo":
            raise ValueError('kernel = "auto" compares kernels whose alphas have different scales: set alpha = "loo"')
        return self
