"""Stable Diffusion as a generator: guided by prompt embeddings, its weights with low-rank updates where asked.

Source: Rombach et al. 2022, arXiv:2112.10752.
"""

from functools import cached_property
from typing import Any, ClassVar

from leanrecon.refinement.diffusion.lora import LoRA, read_lora
from leanrecon.refinement.diffusion.model import Generator
from leanrecon.refinement.diffusion.networks import Part, Source, read_part
from leanrecon.refinement.inputs import Inputs
from leanrecon.stores.fingerprint import file_content
from leanrecon.weights.folders import find_model


class StableDiffusion(Generator):
    """Stable Diffusion 1.5, or a model like it."""

    layout = "Stable Diffusion in diffusers' format, with unet, vae and scheduler"
    tokens: ClassVar = {"text": 77}
    own_settings = frozenset({"kind", "steps", "strength", "guidance", "text", "start", "size"})

    @cached_property
    def unet(self) -> Part:
        return read_part(self.base, ("unet",), ("UNet2DConditionModel",), self.layout)

    @cached_property
    def lora(self) -> LoRA | None:
        if not self.settings.lora:
            return None
        path = find_model(self.settings.lora, "refine.lora")
        return read_lora(path, self.unet.entries, scale=self.settings.lora_scale)

    def sources(self, precision: str) -> list[Source]:
        return [Source(self.unet, precision, self.lora), Source(self.vae, precision)]

    def made_ready(self, network: Any) -> None:
        """It has nothing beside its weights."""

    def check(self, inputs: Inputs) -> None:
        super().check(inputs)
        _ = self.lora

    def made_of(self) -> dict[str, Any]:
        if self.lora is None:
            return super().made_of()
        return super().made_of() | {"lora": file_content(self.lora.file), "lora_scale": self.settings.lora_scale}
