"""``[refine]`` for diffusion models: one settings model a kind."""

from abc import abstractmethod
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from leanrecon.refinement.diffusion.schedule import DDIM, DDPM, LCM, Sampler
from leanrecon.refinement.generator import GeneratorSettings
from leanrecon.weights.names import WeightsName

Steps = Annotated[int, Field(strict=True, ge=1)]
Guidance = Annotated[float, Field(ge=1, allow_inf_nan=False)]


class DiffusionSettings(GeneratorSettings):
    """The settings that all diffusion models have."""

    base: WeightsName
    """Model in diffusers' format: a folder, or a name on the Hugging Face Hub."""
    steps: Steps = 37
    """Evaluations of the network that really run, whatever the strength (37 of 50 in Brain-Diffuser)."""
    strength: Annotated[float, Field(gt=0, le=1)] = 0.75
    """Share of the noise schedule that the first image goes through; at 1 it is replaced by noise."""
    guidance: Guidance = 1.0
    """Scale of classifier-free guidance; above 1 it takes twice the time."""
    negative: WeightsName = ""
    """Path of the text's unconditional embedding (.npy, [77, width]); absent: that of an empty caption."""
    text: str
    """Feature space whose predictions are the prompt embeddings."""
    start: str = "stage1"
    """Where the sampler starts: "stage1" (first images), or a feature space of autoencoder latents."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the networks; auto: float16 on CUDA, bfloat16 on CPUs with instructions for it, else float32."""
    offload: Literal["auto", "none", "model", "sequential", "disk", "stream"] = "auto"
    """Where idle weights wait; it changes memory and time, never an image."""
    tiny_autoencoder: WeightsName = ""
    """Tiny autoencoder (TAESD) instead of the base's own: a folder, or a name on the hub."""
    size: Annotated[int, Field(strict=True, ge=16, le=2048, multiple_of=8)] = 512
    """Height and width of final images in pixels; Stable Diffusion 1.5 needs a multiple of 64."""
    batch: Annotated[int, Field(strict=True, ge=1)] | Literal["auto"] = "auto"
    """Images that are denoised together; auto: 1 on a CPU, 8 of a small network; 4 on a GPU, or what fits."""

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, table: Any) -> Any:
        """Take an empty text as a setting that is not given, where it is required."""
        if not isinstance(table, dict):
            return table
        required = {name for name, field in cls.model_fields.items() if field.is_required()}
        return {key: value for key, value in table.items() if key not in required or value != ""}

    @model_validator(mode="after")
    def _enough_levels(self) -> Self:
        if problem := self.sampler.problem(self.steps, self.strength):
            raise ValueError(problem)
        return self

    @property
    @abstractmethod
    def sampler(self) -> Sampler:
        """The sampler that removes the noise."""

    @property
    def guides(self) -> dict[str, str]:
        """The feature space of each role that conditions the network."""
        return {"text": self.text}

    @property
    def negatives(self) -> dict[str, str]:
        """The path of the unconditional embedding of each guiding role; empty where its feature space gives it."""
        return {"text": self.negative}


class StableDiffusionSettings(DiffusionSettings):
    """The settings of Stable Diffusion with any sampler."""

    lora: WeightsName = ""
    """Low-rank weights added to the network, as LCM-LoRA: a file, a folder, or a name on the hub."""
    lora_scale: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    """Factor of the low-rank weights."""


class LCMSettings(StableDiffusionSettings):
    """``[refine]`` with ``kind = "lcm"``."""

    kind: Literal["lcm"] = "lcm"
    """Stable Diffusion with the sampler of latent consistency models, for a distilled base or an LCM-LoRA."""
    steps: Steps = 4
    """Evaluations of the network that really run, whatever the strength (4 in Luo et al. 2023)."""

    @property
    def sampler(self) -> Sampler:
        return LCM


class DDIMSettings(StableDiffusionSettings):
    """``[refine]`` with ``kind = "ddim"``."""

    kind: Literal["ddim"] = "ddim"
    """Stable Diffusion with the deterministic sampler DDIM."""

    @property
    def sampler(self) -> Sampler:
        return DDIM


class DDPMSettings(StableDiffusionSettings):
    """``[refine]`` with ``kind = "ddpm"``."""

    kind: Literal["ddpm"] = "ddpm"
    """Stable Diffusion with the stochastic sampler DDPM."""

    @property
    def sampler(self) -> Sampler:
        return DDPM


class VersatileSettings(DiffusionSettings):
    """``[refine]`` with ``kind = "versatile"``."""

    kind: Literal["versatile"] = "versatile"
    """Versatile Diffusion, guided by text and vision at once, as in Brain-Diffuser."""
    scheduler: Literal["ddim", "ddpm"] = "ddim"
    """The sampler."""
    guidance: Guidance = 7.5
    """Scale of classifier-free guidance (7.5 in Brain-Diffuser); above 1 it takes twice the time."""
    negative_vision: WeightsName = ""
    """Path of the vision's unconditional embedding (.npy, [257, width]); absent: that of a black image."""
    vision: str
    """Feature space whose predictions are CLIP's tokens of the image."""
    mixing: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.6
    """Weight of ``vision``; ``text`` has the rest."""

    @property
    def sampler(self) -> Sampler:
        return {"ddim": DDIM, "ddpm": DDPM}[self.scheduler]

    @property
    def guides(self) -> dict[str, str]:
        return super().guides | {"vision": self.vision}

    @property
    def negatives(self) -> dict[str, str]:
        return super().negatives | {"vision": self.negative_vision}
