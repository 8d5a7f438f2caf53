"""``[refine]``: how first images are made into final ones."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from leanrecon.refinement.diffusion.schedule import problem_of

Baseline = Literal["prior", "shuffled", "oracle"]

DEFAULT_STEPS = {"lcm": 4, "ddim": 37, "ddpm": 37, "versatile": 37}
"""Evaluations of the network: Luo et al. 2023 use 4; Brain-Diffuser's 50 steps at strength .75 run 37."""

GUIDANCE = 7.5
"""Of Versatile Diffusion in Brain-Diffuser (Ozcelik & VanRullen 2023)."""

_VERSATILE_ALONE = ("vision", "mixing", "scheduler", "negative_vision")


class RefineSettings(BaseModel):
    """``[refine]``"""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["none", "lcm", "ddim", "ddpm", "versatile"] = "none"
    """none: the final images are the first ones. lcm, ddim, ddpm: Stable Diffusion, started from them, by this sampler.
    versatile: Versatile Diffusion, guided by text and vision."""
    base: str = ""
    """Stable Diffusion 1.5 or a model like it, or Versatile Diffusion, in diffusers' format: a folder, or a name on the
    Hugging Face Hub."""
    lora: str = ""
    """Low-rank weights to be added to Stable Diffusion, as LCM-LoRA: a file, a folder, or a name on the hub."""
    lora_scale: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    steps: Annotated[int, Field(strict=True, ge=1)] | None = None
    """Evaluations of the network that really run, whatever the strength; by default 4 for lcm and 37 for the others."""
    scheduler: Literal["ddim", "ddpm"] = "ddim"
    """The sampler of Versatile Diffusion; that of Stable Diffusion is its kind."""
    strength: Annotated[float, Field(gt=0, le=1)] = 0.75
    """How much of the first image is replaced by noise: 1 is all of it."""
    guidance: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1.0
    """How far predictions are followed beyond what the model would do: 1, and 7.5 for versatile; above 1 takes twice the
    time, as the images of what is to be led away from are denoised as well."""
    negative: str = ""
    """Path of the prompt embedding to be led away from: .npy, [77, width]; absent: an empty text, as ``text`` encodes it."""
    negative_vision: str = ""
    """Path of the same for ``vision``: .npy, [257, width]; absent: a black image, as ``vision`` encodes it."""
    text: str = ""
    """The feature space whose predictions are the prompt embeddings."""
    vision: str = ""
    """The feature space whose predictions are CLIP's tokens of the image, which versatile needs beside ``text``."""
    mixing: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.6
    """The weight of ``vision`` in versatile; ``text`` has the rest."""
    start: str = "stage1"
    """Where the sampler starts: first images, or the feature space of autoencoder latents."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: float16 on CUDA, bfloat16 on a CPU with instructions for it, float32 elsewhere."""
    offload: Literal["auto", "none", "model", "sequential", "disk", "stream"] = "auto"
    """Where weights wait that are not in use; changes memory and time, never an image."""
    tiny_autoencoder: str = ""
    """A tiny autoencoder (TAESD) instead of the base's own: a folder or a name on the hub."""
    size: Annotated[int, Field(strict=True, ge=16, le=2048, multiple_of=8)] = 512
    """Height and width of the final images in pixels: for Stable Diffusion 1.5 a multiple of 64."""
    batch: Annotated[int, Field(strict=True, ge=1)] | Literal["auto"] = "auto"
    """Images that are denoised together; auto: 1 on a CPU, 4 on a GPU or what fits."""
    baselines: list[Baseline] = []
    """Final images without this brain: prior (the mean prediction), shuffled (another row's), oracle (true features)."""

    @field_validator("baselines")
    @classmethod
    def _each_once(cls, names: list[Baseline]) -> list[Baseline]:
        return list(dict.fromkeys(names))

    @model_validator(mode="before")
    @classmethod
    def _guided_as_published(cls, table: Any) -> Any:
        if isinstance(table, dict) and table.get("kind") == "versatile":
            return {"guidance": GUIDANCE} | table
        return table

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.kind == "none":
            return self
        if self.steps is None:
            self.steps = DEFAULT_STEPS[self.kind]
        versatile = self.kind == "versatile"
        for name in ("base", "text", *(("vision",) if versatile else ())):
            if not getattr(self, name):
                raise ValueError(f'{name} is not given, which kind = "{self.kind}" needs')
        for name in () if versatile else _VERSATILE_ALONE:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f'{name} is for kind = "versatile", not for kind = "{self.kind}"')
        if versatile and self.lora:
            raise ValueError('lora is for Stable Diffusion, not for kind = "versatile": leave it out')
        if problem := problem_of(self.sampler, self.steps, self.strength):
            raise ValueError(problem)
        return self

    @property
    def sampler(self) -> str:
        """lcm, ddim or ddpm."""
        return self.scheduler if self.kind == "versatile" else self.kind

    def roles(self) -> dict[str, str]:
        """The feature space of each prediction that the generator is handed: text, vision, latents."""
        if self.kind == "none":
            return {}
        roles = {"text": self.text}
        if self.kind == "versatile":
            roles["vision"] = self.vision
        return roles if self.start == "stage1" else roles | {"latents": self.start}

    def negatives(self) -> dict[str, str]:
        """What is to be led away from in each role that guides, as a path, or "" where its feature space knows it."""
        if self.kind == "none" or self.guidance == 1:
            return {}
        paths = {"text": self.negative, "vision": self.negative_vision}
        return {role: paths[role] for role in self.roles() if role in paths}

    def unconditional(self) -> dict[str, str]:
        """The feature spaces by role that are asked for the row of nothing: an empty text, a black image."""
        return {role: self.roles()[role] for role, path in self.negatives().items() if not path}

    def table(self) -> dict[str, Any]:
        """The settings as a TOML table with all defaults; without refinement there are none to tell."""
        if self.kind == "none":
            return {"kind": "none"}
        others = {"lora", "lora_scale"} if self.kind == "versatile" else set(_VERSATILE_ALONE)
        return self.model_dump(exclude_none=True, exclude=others)
