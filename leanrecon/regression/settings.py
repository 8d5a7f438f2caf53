"""The settings of ``[regression]`` and of ``[regression.SPACE]``, which overrides it for one feature space."""

import math
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from leanrecon.regression.alphas import Alpha, Alphas, Restandardize
from leanrecon.regression.ridge.settings import RidgeSettings


class MLPSettings(BaseModel):
    """A residual network from betas to the rows of a feature space (see ``regression.mlp.StreamingMLP``)."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["mlp"] = "mlp"
    hidden: Annotated[int, Field(strict=True, ge=1)] = 2048
    blocks: Annotated[int, Field(strict=True, ge=0)] = 2
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    head: Literal["pca", "full"] = "pca"
    components: Annotated[int, Field(strict=True, ge=1)] = 1024
    explained: Annotated[float, Field(gt=0, le=1)] = 1.0
    whiten: bool = True
    skip: Literal["none", "ridge"] = "ridge"
    inputs: Literal["betas", "ridge"] = "betas"
    alpha: Alpha = "loo"
    alphas: Alphas = None
    standardize: bool = True
    restandardize: Restandardize = "none"
    loss: Literal["mse", "softclip"] = "mse"
    temperature: Annotated[float, Field(gt=0)] = 0.125
    contrast: Annotated[float, Field(ge=0)] = 1.0
    epochs: Annotated[int, Field(strict=True, ge=1)] = 60
    batch_size: Annotated[int, Field(strict=True, ge=1)] = 64
    learning_rate: Annotated[float, Field(gt=0, lt=math.inf)] = 3e-4
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    clip: Annotated[float, Field(gt=0)] = 1.0
    validation: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    patience: Annotated[int, Field(strict=True, ge=1)] = 10
    noise: Annotated[float, Field(ge=0)] = 0.1
    voxel_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    window: Annotated[int, Field(strict=True, ge=1)] = 1024
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    checkpoint_minutes: Annotated[float, Field(ge=0)] = 10.0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.skip == "ridge" and self.head == "full":
            raise ValueError('skip = "ridge" needs head = "pca": residuals of every target would not fit in memory')
        if self.inputs == "ridge" and self.skip == "none":
            raise ValueError('inputs = "ridge" needs skip = "ridge"')
        if self.restandardize == "inductive" and self.validation == 0:
            raise ValueError('restandardize = "inductive" takes its moments from validation rows, and validation = 0')
        return self


RegressionSettings = RidgeSettings | MLPSettings

KINDS: dict[str, type[RidgeSettings] | type[MLPSettings]] = {"ridge": RidgeSettings, "mlp": MLPSettings}
