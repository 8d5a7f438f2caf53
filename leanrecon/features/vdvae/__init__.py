"""Latents of a very deep VAE (Child 2021, arXiv:2011.10650) as a feature space; nothing here loads PyTorch by itself."""

from leanrecon.features.vdvae.checkpoint import convert
from leanrecon.features.vdvae.config import VDVAEConfig, latent_groups
from leanrecon.features.vdvae.network import VDVAE
from leanrecon.features.vdvae.proof import prove
from leanrecon.features.vdvae.space import VDVAESettings, VDVAESpace

__all__ = ["VDVAE", "VDVAEConfig", "VDVAESettings", "VDVAESpace", "convert", "latent_groups", "prove"]
