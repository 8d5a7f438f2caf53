"""The settings of ``[regression] kind = "mlp"``, which are also the parameters of ``StreamingMLP``."""

import math
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from leanrecon.regression.alphas import Alpha, Alphas, Restandardize

NOT_IN_WEIGHTS = frozenset({"kind", "checkpoint_minutes", "restandardize"})
"""Settings that change no weight of the network."""

VALIDATION_ROWS = 1024
"""Most rows that are kept for validation, however many there are: they are held in memory."""


class MLPSettings(BaseModel):
    """A residual network from betas to the rows of a feature space (see ``regression.mlp.mlp.StreamingMLP``)."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    kind: Literal["mlp"] = "mlp"
    """A residual network, alone or added to a ridge."""
    hidden: Annotated[int, Field(strict=True, ge=1)] = 2048
    """Width of the hidden layers."""
    blocks: Annotated[int, Field(strict=True, ge=0, le=1000)] = 2
    """Number of residual blocks after the first layer."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of a hidden layer's outputs that is dropped in training."""
    head: Literal["pca", "full"] = "pca"
    """Output: coordinates along the principal components of the train targets, or every target."""
    components: Annotated[int, Field(strict=True, ge=1)] = 1024
    """Most principal components of the targets that the PCA head predicts."""
    explained: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the targets' variance after which further components are left out."""
    whiten: bool = False
    """Give every component (or target) the same weight in the loss, instead of its variance."""
    skip: Literal["none", "ridge"] = "ridge"
    """Add the network to a ridge and train it on the ridge's cross-validated residuals; this needs the PCA head."""
    inputs: Literal["betas", "ridge"] = "ridge"
    """Inputs of the network: the ridge's predictions (cross-validated in training), or the betas."""
    alpha: Alpha = "loo"
    """Penalty of the ridge, or "loo" for the one with the least leave-one-out error."""
    alphas: Alphas = None
    """Penalties that "loo" chooses from; by default 22 around the mean eigenvalue of the Gram matrix."""
    standardize: bool = True
    """Divide each voxel by its standard deviation over train rows."""
    restandardize: Restandardize = "none"
    """Rescale predictions to the spread of train targets, by moments of validation rows or of all test rows."""
    loss: Literal["mse", "softclip"] = "mse"
    """Mean squared error, alone or with the SoftCLIP loss added."""
    temperature: Annotated[float, Field(gt=0)] = 0.125
    """Temperature of the SoftCLIP loss."""
    contrast: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the SoftCLIP loss beside the mean squared error."""
    epochs: Annotated[int, Field(strict=True, ge=1)] = 60
    """Most passes over the train rows."""
    batch_size: Annotated[int, Field(strict=True, ge=1)] = 64
    """Rows of a batch."""
    learning_rate: Annotated[float, Field(gt=0, lt=math.inf)] = 3e-4
    """Highest learning rate of AdamW; it falls to zero along half a cosine."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Weight decay of AdamW on matrices; biases and norms do not decay."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of all steps over which the learning rate rises from zero."""
    clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest norm of the gradient; longer ones are scaled down to it."""
    validation: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    """Share of the train rows that is kept for validation, 1024 rows at most."""
    patience: Annotated[int, Field(strict=True, ge=1)] = 10
    """Epochs without a lower validation loss after which training stops."""
    noise: Annotated[float, Field(ge=0)] = 0.0
    """Standard deviation of the Gaussian noise that is added to inputs in training."""
    voxel_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the inputs that is dropped in training."""
    window: Annotated[int, Field(strict=True, ge=1)] = 1024
    """Rows that are read and shuffled together, rounded down to a multiple of 256."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format of matrix products in training; weights stay float32."""
    checkpoint_minutes: Annotated[float, Field(ge=0)] = 10.0
    """Minutes between checkpoints of the training."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.skip == "ridge" and self.head == "full":
            raise ValueError(
                'skip = "ridge" needs head = "pca": residuals of every target would not fit in memory; '
                'with head = "full", set skip = "none" and inputs = "betas"'
            )
        if self.inputs == "ridge" and self.skip == "none":
            raise ValueError('inputs = "ridge" needs skip = "ridge"; with skip = "none", set inputs = "betas"')
        if self.restandardize == "inductive" and self.validation == 0:
            raise ValueError(
                'restandardize = "inductive" takes its moments from validation rows, so validation must be above 0'
            )
        return self
