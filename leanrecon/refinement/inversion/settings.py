"""The settings of a search through a decoder."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from leanrecon.refinement.generator import GeneratorSettings

Whole = Annotated[int, Field(strict=True, ge=1, le=10_000)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class InversionSettings(GeneratorSettings):
    """``[refine]`` with ``kind = "inversion"``."""

    kind: Literal["inversion"] = "inversion"
    """A search for the latents of a decoder whose image has the features that were predicted, or explains the betas."""
    decoder: str
    """Feature space whose decoder is searched, as autokl or vdvae."""
    features: str
    """Feature space in which images are compared: one that a network computes, as clip-vision, vdvae or autokl."""
    match: Literal["features", "responses"] = "features"
    """Compare an image's features with the predicted ones, or its predicted responses with the measured betas."""
    measure: Literal["mse", "cosine"] = "mse"
    """Squared differences, features weighted by how well train rows predict them; or 1 − the cosine of z-scored ones."""
    start: Literal["first", "random"] = "first"
    """Where the search starts: at the latents of the first image, or at random ones of the spread of train images."""
    keep: bool = True
    """With start = "first": add only the search's change to the first image, so that 0 steps leave it as it is."""
    steps: Annotated[int, Field(strict=True, ge=0, le=10_000)] | Literal["auto"] = "auto"
    """Steps of Adam; auto: the number, up to most, that is best for train images, each predicted without itself."""
    most: Whole = 40
    """The most steps that auto tries."""
    tuned_on: Annotated[int, Field(strict=True, ge=4, le=1000)] = 32
    """Train images that auto searches."""
    rate: Positive = 0.03
    """Size of a step, in standard deviations of a latent over train images."""
    penalty: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1
    """Weight of the prior: the mean squared distance from the start (or from the mean latents), in such deviations."""
    restarts: Annotated[int, Field(strict=True, ge=1, le=100)] = 1
    """Searches of each image; the one whose image fits the brain best is kept, whatever its prior."""
    spread: Positive = 0.5
    """How far restarts begin from the first image, in standard deviations of a latent; unused by random starts."""
    voxels: Whole = 1500
    """With responses: how many voxels are matched, those that the features explain best."""
    batch: Whole | Literal["auto"] = "auto"
    """Images that are searched together; auto: 1 on a CPU, 8 on a GPU."""

    @model_validator(mode="after")
    def _usable(self) -> Self:
        if self.match == "responses" and "oracle" in self.baselines:
            raise ValueError("baselines: oracle draws from true features, and responses are matched to measured betas")
        if self.match == "responses" and self.measure == "cosine":
            raise ValueError(
                'measure = "cosine" compares features; responses are compared by their noise: leave it out'
            )
        return self
