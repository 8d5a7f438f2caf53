"""CLIP (Radford et al. 2021, arXiv:2103.00020) as feature spaces of captions and of images."""

from leanrecon.features.clip.text import CLIPText, CLIPTextSettings
from leanrecon.features.clip.vision import CLIPVision, CLIPVisionSettings

__all__ = ["CLIPText", "CLIPTextSettings", "CLIPVision", "CLIPVisionSettings"]
