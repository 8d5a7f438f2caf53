"""The settings of ``[regression]`` and of ``[regression.SPACE]``, which overrides it for one feature space."""

from leanrecon.regression.mlp.settings import MLPSettings
from leanrecon.regression.ridge.settings import RidgeSettings

RegressionSettings = RidgeSettings | MLPSettings

KINDS: dict[str, type[RidgeSettings] | type[MLPSettings]] = {"ridge": RidgeSettings, "mlp": MLPSettings}
