"""The settings and weights of a small study with latents, captions and a diffusion model, all of it simulated."""

import json
from pathlib import Path

import torch

from support import published_models as models
from support.diffusion_models import write_base
from support.vdvae_models import SMALL, random_weights

SETTINGS = """
memory = "3GB"
[dataset]
kind = "simulated"
n_train = 40
n_test = 12
size = 16
voxels = 60
[features.vdvae]
checkpoint = "vdvae.pth"
n_latents = 5
latents = "mean"
[features.vdvae.config]
{sizes}
[features.clip]
kind = "clip-text"
model = "base"
form = "sd15"
[refine]
kind = "lcm"
base = "base"
text = "clip"
size = 64
steps = 2
precision = "float32"
{refine}
[evaluate]
permutations = 1
resamples = 100
"""


def write_refined_study(folder: Path, name: str, refine: str) -> None:
    """Write the models, and the settings as ``name``; ``refine`` are further lines of ``[refine]``."""
    write_base(folder / "base", width=models.WIDTH)
    models.write_text_encoder(folder / "base", projection=False)
    torch.save(random_weights(), folder / "vdvae.pth")
    sizes = "\n".join(f"{key} = {json.dumps(value)}" for key, value in SMALL.as_table().items())
    (folder / name).write_text(SETTINGS.format(sizes=sizes, refine=refine))
