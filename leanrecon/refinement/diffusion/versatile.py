"""Versatile Diffusion, conditioned on text and vision at once as in Brain-Diffuser: the kind versatile.

Sources: Xu et al. 2022, arXiv:2211.08332 (the model, and mixing within its attention); Ozcelik & VanRullen 2023,
doi:10.1038/s41598-023-42891-8 (latents of a first image, 37 of 50 DDIM steps, guidance 7.5, vision .6 and text .4, an
empty caption and a black image as unconditional embeddings). Their code adds the noise of the level before the first
that it removes; here, as in diffusers, noise is added at the first level.
"""

from functools import cached_property
from typing import Any, ClassVar

from leanrecon.errors import InputError
from leanrecon.refinement.diffusion.generator import DiffusionGenerator
from leanrecon.refinement.diffusion.model import DiffusionModel
from leanrecon.refinement.diffusion.networks import Part, read_part
from leanrecon.refinement.diffusion.settings import VersatileSettings
from leanrecon.weights.folders import Weights
from leanrecon.weights.safetensors import Entry

_DUAL = "DualTransformer2DModel"
_IMAGE, _TEXT = 0, 1  # places of the two transformers in a dual one

_EQUAL = {"attention_head_dim": 8, "norm_num_groups": 32}
"""Settings that both networks must share and that shapes do not show, with their defaults."""


class VersatileDiffusion(DiffusionModel):
    """The network for images, with the transformers of the network for texts beside its own.

    A dual transformer adds m · (change by vision) + (1 - m) · (change by text) to its input, where m is ``mixing``:
    vision goes through the transformers of image_unet, text through those of text_unet.
    """

    layout = "Versatile Diffusion in diffusers' format, with image_unet, text_unet, vae and scheduler"
    tokens: ClassVar = {"text": 77, "vision": 257}
    deciding = frozenset({"kind", "steps", "strength", "guidance", "text", "vision", "mixing", "start", "size"})
    settings: VersatileSettings

    @cached_property
    def unet(self) -> Part:
        image = read_part(self.base, ("image_unet",), ("UNet2DConditionModel",), self.layout)
        if image.config.get("dual_cross_attention"):  # saved after the two were joined
            return image
        return joined(image, read_part(self.base, ("text_unet",), ("UNetFlatConditionModel",), self.layout))

    def prepare(self, network: Any) -> None:
        """Set the weight of text in every dual transformer, and which tokens go to which of its two."""
        for module in network.modules():
            if type(module).__name__ == _DUAL:
                module.mix_ratio = 1 - self.settings.mixing  # of the first condition, which is text
                module.condition_lengths = list(self.tokens.values())
                module.transformer_index_for_condition = [_TEXT, _IMAGE]
                module.register_forward_pre_hook(_without_mask, with_kwargs=True)

    def made_of(self) -> dict[str, Any]:
        return super().made_of() | {"sampler": self.settings.scheduler}


class Versatile(DiffusionGenerator):
    """Versatile Diffusion with DDIM or DDPM."""

    Settings = VersatileSettings
    Model = VersatileDiffusion
    networks = ("image_unet", "text_unet")


def joined(image: Part, text: Part) -> Part:
    """The network for images with both transformers in each place, from the headers of both.

    Of the network for texts only the transformers are used. Raises InputError where the two don't fit.
    """
    advice = {"expected": "the two networks of one Versatile Diffusion", "todo": "fetch the model's folder again"}
    for key, default in _EQUAL.items():
        ours, theirs = image.config.get(key, default), text.config.get(key, default)
        if ours != theirs:
            raise InputError(f"{text.folder} has {key} = {theirs} where {image.folder} has {ours}", **advice)
    entries: dict[str, Entry] = {}
    for name, entry in image.entries.items():
        if (dual := _dual_name(name, _IMAGE)) is None:
            entries[name] = entry
            continue
        if (found := text.entries.get(name)) is None or found.shape != entry.shape:
            what = "lack" if found is None else f"have {list(found.shape)} instead of {list(entry.shape)} for"
            raise InputError(f"the weights in {text.folder} {what} {name}", **advice)
        entries[dual] = entry
        entries[str(_dual_name(name, _TEXT))] = found
    config = {**image.config, "dual_cross_attention": True}
    files = dict.fromkeys(entry.file for entry in entries.values())
    return Part(image.folder, image.kind, config, Weights(tuple(files), entries))


def _dual_name(name: str, place: int) -> str | None:
    """The name of a transformer's weight within a dual one; None for a weight of another layer."""
    block, separator, after = name.partition(".attentions.")
    number, _, rest = after.partition(".")
    return f"{block}{separator}{number}.transformers.{place}.{rest}" if separator else None


def _without_mask(module: Any, inputs: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Leave out a mask that is None: the blocks of diffusers 0.42 pass it, and their dual transformer does not take it.

    https://github.com/huggingface/diffusers/issues/13651
    """
    return inputs, {key: value for key, value in named.items() if key != "encoder_attention_mask" or value is not None}
