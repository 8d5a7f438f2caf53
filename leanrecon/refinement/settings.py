"""``[refine]``: how first images are made into final ones."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from leanrecon.refinement.schedule import SIDE, problem_of

Baseline = Literal["prior", "shuffled", "oracle"]

DEFAULT_STEPS = {"lcm": 4, "ddim": 37, "ddpm": 37}
"""Evaluations of the network: Luo et al. 2023 use 4; Brain-Diffuser's 50 steps at strength .75 run 37."""


class RefineSettings(BaseModel):
    """``[refine]``"""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["none", "lcm", "ddim", "ddpm"] = "none"
    """none: the final images are the first ones. Others: Stable Diffusion, started from them, by this sampler."""
    base: str = ""
    """Stable Diffusion 1.5 or a model like it, in diffusers' format: a folder, or a name on the Hugging Face Hub."""
    lora: str = ""
    """Low-rank weights to be added to the base, as LCM-LoRA: a file, a folder, or a name on the hub."""
    lora_scale: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    steps: Annotated[int, Field(strict=True, ge=1)] | None = None
    """Evaluations of the network that really run, whatever the strength; by default 4 for lcm and 37 for the others."""
    strength: Annotated[float, Field(gt=0, le=1)] = 0.75
    """How much of the first image is replaced by noise: 1 is all of it."""
    guidance: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1.0
    """How far the text is followed beyond what the model would do; above 1 needs ``negative`` and takes twice the time."""
    negative: str = ""
    """Path of the prompt embedding to be led away from: .npy, [77, width], as that of an empty text."""
    text: str = ""
    """The feature space whose predictions are the prompt embeddings."""
    start: str = "stage1"
    """Where the sampler starts: first images, or the feature space of autoencoder latents."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: float16 on CUDA, bfloat16 on a CPU with instructions for it, float32 elsewhere."""
    offload: Literal["auto", "none", "model", "sequential", "disk", "stream"] = "auto"
    """Where weights wait that are not in use; changes memory and time, never an image."""
    tiny_autoencoder: str = ""
    """A tiny autoencoder (TAESD) instead of the base's own: a folder or a name on the hub."""
    size: Annotated[int, Field(strict=True, ge=SIDE, le=2048, multiple_of=SIDE)] = 512
    """Height and width of the final images in pixels."""
    batch: Annotated[int, Field(strict=True, ge=1)] | Literal["auto"] = "auto"
    """Images that are denoised together; auto: 1 on a CPU, 4 on a GPU or what fits."""
    baselines: list[Baseline] = []
    """Final images without this brain: prior (the mean prediction), shuffled (another row's), oracle (true features)."""

    @field_validator("baselines")
    @classmethod
    def _each_once(cls, names: list[Baseline]) -> list[Baseline]:
        return list(dict.fromkeys(names))

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.kind == "none":
            return self
        if self.steps is None:
            self.steps = DEFAULT_STEPS[self.kind]
        for name in ("base", "text"):
            if not getattr(self, name):
                raise ValueError(f'{name} is not given, which kind = "{self.kind}" needs')
        if self.guidance > 1 and not self.negative:
            raise ValueError(
                f"guidance = {self.guidance:g} needs negative, the path of an embedding to be led away from"
            )
        if problem := problem_of(self.kind, self.steps, self.strength):
            raise ValueError(problem)
        return self

    def roles(self) -> dict[str, str]:
        """The feature spaces whose predictions the generator takes, by what they are to it."""
        if self.kind == "none":
            return {}
        return {"text": self.text} | ({"latents": self.start} if self.start != "stage1" else {})

    def table(self) -> dict[str, Any]:
        """The settings as a TOML table with all defaults; without refinement there are none to tell."""
        return {"kind": "none"} if self.kind == "none" else self.model_dump(exclude_none=True)
