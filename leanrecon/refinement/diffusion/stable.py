"""Stable Diffusion, conditioned on prompt embeddings: the kinds lcm, ddim and ddpm.

Source: Rombach et al. 2022, arXiv:2112.10752.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import Any, ClassVar

from leanrecon.refinement.diffusion.generator import DiffusionGenerator
from leanrecon.refinement.diffusion.lora import LoRA, read_lora
from leanrecon.refinement.diffusion.model import DiffusionModel
from leanrecon.refinement.diffusion.networks import Part, WeightSource, read_part
from leanrecon.refinement.diffusion.settings import DDIMSettings, DDPMSettings, LCMSettings, StableDiffusionSettings
from leanrecon.stores.fingerprint import file_content
from leanrecon.weights.folders import find_model
from leanrecon.weights.needs import Need
from leanrecon.weights.pieces import Piece


class StableDiffusion(DiffusionModel):
    """Stable Diffusion 1.5, or a model like it, with low-rank updates of its weights where settings name some."""

    layout = "Stable Diffusion in diffusers' format, with unet, vae and scheduler"
    tokens: ClassVar = {"text": 77}
    deciding = frozenset({"kind", "steps", "strength", "guidance", "text", "start", "size"})
    settings: StableDiffusionSettings

    @cached_property
    def unet(self) -> Part:
        return read_part(self.base, ("unet",), ("UNet2DConditionModel",), self.layout)

    @cached_property
    def lora(self) -> LoRA | None:
        if not self.settings.lora:
            return None
        path = find_model(self.settings.lora, "refine.lora")
        return read_lora(path, self.unet.entries, scale=self.settings.lora_scale)

    def sources(self, precision: str) -> list[WeightSource]:
        return [WeightSource(self.unet, precision, self.lora), WeightSource(self.vae, precision)]

    def prepare(self, network: Any) -> None:
        """It needs nothing."""

    def check(self) -> None:
        super().check()
        _ = self.lora

    def made_of(self) -> dict[str, Any]:
        if self.lora is None:
            return super().made_of()
        return super().made_of() | {"lora": file_content(self.lora.file), "lora_scale": self.settings.lora_scale}


class StableDiffusionGenerator(DiffusionGenerator):
    """Stable Diffusion with any sampler."""

    Model = StableDiffusion
    networks = ("unet",)

    @classmethod
    def needs(cls, settings: StableDiffusionSettings, prefix: str = "refine.") -> Iterator[Need]:
        yield from super().needs(settings, prefix)
        if settings.lora:
            yield Need(f"{prefix}lora", settings.lora, (Piece("lora", (".",)),))


class LCM(StableDiffusionGenerator):
    """Stable Diffusion with the sampler of latent consistency models."""

    Settings = LCMSettings


class DDIM(StableDiffusionGenerator):
    """Stable Diffusion with DDIM."""

    Settings = DDIMSettings


class DDPM(StableDiffusionGenerator):
    """Stable Diffusion with DDPM."""

    Settings = DDPMSettings
